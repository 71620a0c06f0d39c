"""Where supervisors run: programs that take QEMU's place, ports, firmware, a disk, a tmp/."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos.agents import Agents
from tests.support import small_host
from tests.support.clones import declare
from tests.support.guest_images import trusting_image

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "img" / "guest.qcow2"

#: Where forwards listen; the agents have the same ports elsewhere.
FORWARDS = "127.0.0.2"
#: Each of a VM's three forwards has so many ports to choose from.
_PORTS_EACH = 16


class Place:
    """The directory, ports and agents of one supervisor after another. To be closed."""

    def __init__(self, directory: Path, user: str = "") -> None:
        self.directory = directory
        directory.mkdir()
        #: An ordinary user who may become root by sudo without a password, if any.
        self.user = user
        if user:
            shutil.chown(directory, user)
        self.base = _free_ports()
        self.agents = Agents(range(self.base + 2 * _PORTS_EACH, self.base + 3 * _PORTS_EACH))
        self.qemu = directory / "qemu"
        small_host.write_machineless(self.qemu)
        #: The same, but stopped before it is a VM's QEMU, until somebody sends it a SIGCONT.
        self.stopped_qemu = directory / "stopped-qemu"
        self.stopped_qemu.write_text(
            f'#!/bin/sh\n[ "${{*#*-qmp stdio}}" != "$*" ] || kill -STOP $$\nexec {self.qemu} "$@"\n'
        )
        self.stopped_qemu.chmod(0o755)
        small_host.write_files(directory)
        self._disk = directory / small_host.DISK
        self._cloneable = directory / "cloneable" / "base.qcow2"
        self._describe()
        self._made = 0

    def new_tmp(self) -> Path:
        self._made += 1
        return self.directory / f"t{self._made}"

    def environ(self, tmp: Path) -> dict[str, str]:
        """Short graces, and a heartbeat that does not come by itself."""
        bases = {
            f"MANAGER_QEMU_HOST_FWD_{number + 1}": str(self.base + number * _PORTS_EACH)
            for number in range(3)
        }
        return _clean_environ() | bases | small_host.settings(self.directory, self.qemu, tmp) | {
            # Not ones that the system gives out: a reader that comes back meets nobody else.
            "MANAGER_AUTH": "off",
            "MANAGER_CALLER_RATE": "0",
            "MANAGER_HTTP_PORT": str(self.base + 3 * _PORTS_EACH),
            "MANAGER_GRPC_PORT": str(self.base + 3 * _PORTS_EACH + 1),
            "MANAGER_QEMU_HOST_FWD_ADDR": FORWARDS,
            # The agents are on the host itself: an address that is not called a loopback.
            "MANAGER_AGENT_GRPC_URL": "0.0.0.0:{port}",
            "MANAGER_MEMORY_OVERCOMMIT": "1000",
            "MANAGER_VCPU_OVERCOMMIT": "1000",
            "MANAGER_POWERDOWN_GRACE": "100ms",
            "MANAGER_QUIT_GRACE": "10s",
            "MANAGER_TERM_GRACE": "1s",
            "MANAGER_RESTART_BACKOFF": "50ms",
            "MANAGER_HEARTBEAT": "1h",
            "MANAGER_QMP_TIMEOUT": "20s",
        }  # fmt: skip

    def clones(self, pool: int, held: int, *, guests: bool) -> dict[str, str]:
        """Of a supervisor that keeps a template, so many VMs ready, and holds so many clones."""
        small = {
            "MANAGER_QEMU_DISK_IMG_FILE": str(self._cloneable),
            "MANAGER_QEMU_MEMORY_SIZE": "16M",
        }
        return ({} if guests else small) | {
            "MANAGER_TEMPLATES": "auto",
            "MANAGER_POOL_SIZE": str(pool),
            "MANAGER_HELD_CLONES": str(held),
            "MANAGER_POOL_INTERVAL": "10ms",
        }

    def another_image(self) -> None:
        """Replace the image that templates are made of by one of the same content."""
        fresh = self._cloneable.with_suffix(".new")
        shutil.copyfile(self._disk, fresh)
        fresh.rename(self._cloneable)

    def _describe(self) -> None:
        """An image like the other, with a manifest that says that its guests may be copied."""
        self._cloneable.parent.mkdir()
        shutil.copyfile(self._disk, self._cloneable)
        # They renew themselves, but for want of a line this QEMU's are called for it.
        declare(self._cloneable, renews_itself=True)

    def guest_environ(self, tmp: Path) -> dict[str, str]:
        """A real machine with the real guest, whose agent is its own."""
        return self.environ(tmp) | {
            "MANAGER_QEMU_BIN_PATH": "qemu-system-x86_64",
            "MANAGER_QEMU_DISK_IMG_FILE": str(trusting_image()),
            "MANAGER_QEMU_OVMF_CODE_FILE": "",
            "MANAGER_QEMU_OVMF_VARS_FILE": "",
            "MANAGER_QEMU_HOST_FWD_ADDR": "127.0.0.3",
            "MANAGER_AGENT_GRPC_URL": "localhost:7002",
            "MANAGER_QEMU_MEMORY_SIZE": "512M",
            "MANAGER_QEMU_SMP_COUNT": "1",
            "MANAGER_TEMPLATES": "off",
            "MANAGER_POWERDOWN_GRACE": "60s",
        }

    def ports_in_use(self) -> list[int]:
        """Ports of forwards that cannot be had, though no VM should have them."""
        return [
            port
            for address in (FORWARDS, "127.0.0.3")
            for port in range(self.base, self.base + 3 * _PORTS_EACH)
            if not is_free(address, port)
        ]

    def close(self) -> None:
        self.agents.close()


def _clean_environ() -> dict[str, str]:
    ours = ("MANAGER_", "AGENT_GRPC_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


@cache
def _taken() -> set[int]:
    return set()


def _free_ports() -> int:
    """The first of so many ports that nobody has, and no other place; tests' are below 22000."""
    count = 3 * _PORTS_EACH + 2
    while True:
        first = random.SystemRandom().randrange(22000, 32000)
        wanted = set(range(first, first + count))
        if not wanted & _taken() and all(is_free("0.0.0.0", port) for port in wanted):
            _taken().update(wanted)
            return first


def is_free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def processes_below(directory: Path) -> Iterator[tuple[int, list[str]]]:
    """Pid and arguments of whatever has a path below this directory on its command line."""
    needle = os.fsencode(directory) + b"/"
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            line = Path(f"/proc/{name}/cmdline").read_bytes()
        except OSError:
            continue
        if needle in line:
            yield int(name), line.decode(errors="replace").split("\0")[:-1]


def kill_all_below(directory: Path) -> int:
    """How many there were to be killed."""
    found = [pid for pid, _ in processes_below(directory)]
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return len(found)
