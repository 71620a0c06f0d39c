"""How a VM is brought to its end: power button, quit, SIGTERM, SIGKILL."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import structlog
import trio

from supervisor.errors import MonitorError
from supervisor.process import EXIT_LAG_S
from supervisor.race import CutShort, unless

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from supervisor.config import ShutdownConfig
    from supervisor.monitor import Monitor
    from supervisor.process import Qemu

log = structlog.stdlib.get_logger()


class EndMode(enum.StrEnum):
    """How a VM is to be ended: by the guest, or without asking it."""

    GRACEFUL = "graceful"
    FORCE = "force"


class EndRequest:
    """What has been asked for so far. Asking for force hurries an end begun gracefully."""

    def __init__(self) -> None:
        self.any = trio.Event()
        self.force = trio.Event()

    def ask(self, mode: EndMode) -> None:
        self.any.set()
        if mode is EndMode.FORCE:
            self.force.set()


async def end_when_asked(
    request: EndRequest,
    qemu: Qemu,
    link: Monitor,
    grace: ShutdownConfig,
    going_down: Callable[[], Awaitable[object]],
) -> None:
    """Wait for the request, then take each step after the grace of the one before.

    To be cancelled when the process has exited.

    :param going_down: returns once the guest has begun to shut down
    """

    async def press_power_button() -> None:
        # Again and again: a guest that is still booting does not hear it.
        while True:
            await link.powerdown()
            with trio.move_on_after(grace.powerdown_interval_s):
                await going_down()
                return

    await request.any.wait()
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
            await link.quit()
        except MonitorError:
            # It exits, or nobody told it to: the next step needs no monitor.
            patience.deadline = min(patience.deadline, trio.current_time() + EXIT_LAG_S)
        await trio.sleep_forever()
    log.warning("QEMU does not quit, sending SIGTERM", pid=qemu.pid)
    await qemu.terminate()
    await trio.sleep(grace.term_grace_s)
    log.warning("QEMU does not heed SIGTERM, sending SIGKILL", pid=qemu.pid)
    await qemu.kill()
