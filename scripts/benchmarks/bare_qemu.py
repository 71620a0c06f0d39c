"""QEMU alone: a supervisor's command line without a supervisor."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import trio

from scripts.benchmarks import guest
from supervisor.bridge import open_loop
from supervisor.config import Timing
from supervisor.errors import single
from supervisor.qemu import qmp

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

_ANSWER_S = 30.0
#: A guest that did not hear its power button has it pressed again, as the supervisor does.
_PRESS_AGAIN_S = 5.0

#: A QMP socket's path, on the command line that the supervisor shows.
_QMP_PATH = re.compile(r",path=[^,]*/qmp\.sock,")


@attrs.frozen
class BareQemu:
    """A running one. Moments are on ``time.perf_counter``."""

    process: subprocess.Popen[bytes]
    qmp_socket: Path
    executed_at: float
    greeted_at: float

    def query_status_rate(self, seconds: float, callers: int) -> float:
        """Questions a second, of each caller one after another, over the supervisor's own link."""

        async def ask(link: qmp.Monitor) -> float:
            asked, started = 0, time.perf_counter()

            async def caller() -> None:
                nonlocal asked
                while time.perf_counter() - started < seconds:
                    await link.query_status()
                    asked += 1

            async with trio.open_nursery() as nursery:
                for _ in range(callers):
                    nursery.start_soon(caller)
            return asked / (time.perf_counter() - started)

        return float(self._over_the_link(ask))

    def pci_devices(self) -> list[str]:
        async def ask(link: qmp.Monitor) -> list[str]:
            return pci_devices(await link.execute("query-pci"))

        return list(self._over_the_link(ask))

    def power_off(self) -> float:
        """Seconds from the power button to the process being gone."""

        async def press(link: qmp.Monitor) -> float:
            started = time.perf_counter()
            with trio.fail_after(guest.PATIENCE_S):
                while True:
                    await link.powerdown()
                    with trio.move_on_after(_PRESS_AGAIN_S):
                        await trio.to_thread.run_sync(self.process.wait, abandon_on_cancel=True)
                        return time.perf_counter() - started

        return float(self._over_the_link(press))

    def _over_the_link(self, task: Callable[[qmp.Monitor], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            async with (
                open_loop(),
                qmp.connect("", self.qmp_socket, _ANSWER_S, _ANSWER_S, Timing()) as link,
            ):
                return await task(link)

        try:
            return trio.run(main)
        except ExceptionGroup as group:
            raise single(group) from None


def pci_devices(answer: Any) -> list[str]:
    """``query-pci``'s answer as ``slot.function vendor:device``, sorted."""
    return sorted(
        f"{one['slot']:02x}.{one['function']} {one['id']['vendor']:04x}:{one['id']['device']:04x}"
        for bus in answer
        for one in bus["devices"]
    )


@contextmanager
def started(argv: list[str], theirs: Path, directory: Path) -> Iterator[BareQemu]:
    """QEMU with a VM's command line, its files in a directory of its own. Killed on leaving.

    The disk and the firmware's variables are there before the clock starts.

    :param argv: as ``GET /vms/<id>`` shows it
    :param theirs: the directory of that VM
    :param directory: not there yet; removed on leaving
    """
    words = [word.replace(str(theirs), str(directory)) for word in argv if word != "-S"]
    # As the supervisor starts it: on a socket that is there already.
    words = [_QMP_PATH.sub(",fd=0,", word) for word in words]
    directory.mkdir()
    process = None
    try:
        make_disk(directory / "overlay.qcow2")
        shutil.copyfile(guest.firmware()[1], directory / "firmware_vars.fd")
        path = directory / "qmp.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)
            executed_at = time.perf_counter()
            process = subprocess.Popen(words, stdin=listener.fileno(), stdout=subprocess.DEVNULL)
        greeted_at = _greeting(path)
        yield BareQemu(process, path, executed_at, greeted_at)
    finally:
        if process:
            process.kill()
            process.wait()
        shutil.rmtree(directory)


def make_disk(overlay: Path) -> None:
    """A disk to write to, on the image."""
    base = ("-b", str(guest.IMAGE), "-F", "qcow2")
    command = ["qemu-img", "create", "-q", "-f", "qcow2", *base, str(overlay)]
    subprocess.run(command, check=True)


def _greeting(path: Path) -> float:
    """When QEMU said that its monitor is there.

    :raises Unmeasured: if it does not
    """
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.settimeout(_ANSWER_S)
        waiting.connect(str(path))
        try:
            said = waiting.recv(65536)
        except TimeoutError:
            said = b""
        if b"QMP" not in said:
            raise guest.Unmeasured("the bare QEMU did not start")
        return time.perf_counter()
