"""What systemd is told, if it has started the supervisor: when it is ready, and how it is.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

import trio
from systemd_watchdog.systemd_watchdog import WatchDog

if TYPE_CHECKING:
    from supervisor.runs.service import Service

#: How often, at least. A watchdog that is shorter is told three times before it bites.
_LONGEST_S = 5.0


async def tell(service: Service, over: trio.Event) -> None:
    """Once the VMs of before are taken up and the servers listen, until it is over.

    A loop that does not come round is one that the watchdog ends: VMs go on, and the next
    supervisor takes them up.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        systemd = WatchDog(sock)
        # What is started from here is not the service.
        os.environ.pop("NOTIFY_SOCKET", None)
        if not systemd.is_enabled:
            return
        pause_s = min(_LONGEST_S, systemd.timeout_td.total_seconds() / 3)
        with suppress(OSError):
            systemd.ready()
        while not over.is_set():
            with suppress(OSError):  # it does not listen at the moment
                systemd.status(status(service))
                systemd.notify()
            with trio.move_on_after(pause_s):
                await over.wait()


def status(service: Service) -> str:
    """A line for ``systemctl status``."""
    states = Counter(str(vm.status.state) for vm in service.vms if not vm.ended)
    vms = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    waiting = service.vms.admission.waiting
    runs = f"; {waiting} runs wait for room" if waiting else ""
    return f"VMs: {vms or 'none'}{runs}"
