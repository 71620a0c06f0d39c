"""What it takes to start a QEMU, and why one did not come up."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import attrs

from supervisor.errors import LaunchError, PortsTaken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisor.machine import Accel
    from supervisor.process import Qemu
    from supervisor.rundir import Rundir

_PORT_TAKEN = re.compile(r"Could not set up host forwarding rule '[^']*:(\d+)-[^']*'")


@attrs.frozen
class Host:
    """What the supervisor found out about this host when it started."""

    qemu: str
    accel: Accel


def failure(
    vm_id: str, qemu: Qemu, rundir: Rundir, command: Sequence[str], problem: str
) -> LaunchError:
    """Why a guest never ran: PortsTaken where another attempt may help.

    :param problem: what the monitor said if the process had to be killed, or nothing
    """
    tail = rundir.log_tail()
    how = f"failed ({problem})" if problem else f"ended with exit code {qemu.exit_code}"
    kind = PortsTaken if ports_taken(tail) else LaunchError
    return kind(
        f"QEMU of VM {vm_id} {how} before its guest ran; its log is {rundir.qemu_log}",
        argv=command,
        exit_code=qemu.exit_code,
        log_tail=tail,
    )


def ports_taken(log_tail: str) -> set[int]:
    """The host ports that QEMU says it could not have."""
    return {int(port) for port in _PORT_TAKEN.findall(log_tail)}
