"""How a VM is brought to its end: power button, quit, SIGTERM, SIGKILL."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import trio

from supervisor.errors import MonitorError
from supervisor.qemu.process import EXIT_LAG_S
from supervisor.state.record import EndMode
from supervisor.waiting import CutShort, unless

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from supervisor.config import ShutdownConfig
    from supervisor.qemu.connection import Link
    from supervisor.qemu.process import Qemu

log = structlog.stdlib.get_logger()


class EndRequest:
    """What has been asked for so far. Asking for force hurries an end begun gracefully."""

    def __init__(self) -> None:
        self.mode: EndMode | None = None
        #: For the log and the record: who wants it, or what for.
        self.why = ""
        self.any = trio.Event()
        self.force = trio.Event()
        #: Whether it was for more than to see a guest off that ended by itself.
        self.for_good = trio.Event()

    def ask(self, mode: EndMode, why: str, *, for_good: bool = True) -> None:
        self.why = self.why or why
        if for_good:
            self.for_good.set()
        if self.mode is not EndMode.FORCE:
            self.mode = mode
        self.any.set()
        if mode is EndMode.FORCE:
            self.force.set()


async def end(
    request: EndRequest,
    qemu: Qemu,
    link: Link,
    grace: ShutdownConfig,
    press: Callable[[], Awaitable[object]],
    going_down: Callable[[], Awaitable[object]],
) -> None:
    """Take each step after the grace of the one before, until cancelled at the process's exit.

    :param request: has been made
    :param press: the power button's; ``going_down`` returns once the guest has heard it
    """

    async def press_power_button() -> None:
        # Again and again: a guest that is still booting does not hear it.
        failed = False
        while True:
            try:
                await press()
                failed = False
            except MonitorError:
                if failed:
                    raise
                failed = True  # the link may be about to be made again
            with trio.move_on_after(grace.powerdown_interval_s):
                await going_down()
                return

    if not request.force.is_set():
        with trio.move_on_after(grace.powerdown_grace_s):
            try:
                await unless(request.force.wait, press_power_button)
            except CutShort:
                pass
            except MonitorError as error:
                log.warning("power button out of reach", pid=qemu.pid, problem=str(error))
    with trio.move_on_after(grace.quit_grace_s) as patience:
        try:
            await link.monitor().quit()
        except MonitorError:
            # It exits, or nobody told it to: the next step needs no monitor.
            patience.deadline = min(patience.deadline, trio.current_time() + EXIT_LAG_S)
        await trio.sleep_forever()
    log.warning("QEMU does not quit, sending SIGTERM", pid=qemu.pid)
    await qemu.terminate()
    await trio.sleep(grace.term_grace_s)
    log.warning("QEMU does not heed SIGTERM, sending SIGKILL", pid=qemu.pid)
    await qemu.kill()
