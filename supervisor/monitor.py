"""QMP: typed questions and a stream of events, over qemu.qmp.

qemu.qmp speaks asyncio; this is the only module that knows. A `Monitor`'s methods are
trio-flavoured and need ``trio_asyncio.open_loop()`` around them.

Source: QEMU's QAPI reference, ``qemu-qmp-ref(7)``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import attrs
import trio
from qemu.qmp import EventListener, QMPClient, QMPError, Runstate
from qemu.qmp.qmp_client import ExecuteError
from trio_asyncio import aio_as_trio

from supervisor.errors import MonitorError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from qemu.qmp.message import Message

#: qemu.qmp reports a lost link as an error of its own; to us it is the usual sign of an exit.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

_DISCONNECT_GRACE_S = 2.0
#: A QEMU that is well answers in a millisecond, one that is stopped never.
_ANSWER_S = 10.0


@attrs.frozen
class Event:
    """A QMP event: its name, such as ``SHUTDOWN``, and its data."""

    name: str
    data: Mapping[str, Any]


@attrs.frozen
class RunStatus:
    """``query-status``: QEMU's RunState, raw, and whether virtual CPUs run."""

    status: str
    running: bool


@attrs.frozen
class SevStatus:
    """``query-sev``. Where ``enabled`` is false the rest means nothing and is None.

    ``policy`` is SEV's 32-bit one, or SNP's 64-bit one where ``sev_type`` is ``sev-snp``.
    """

    enabled: bool
    state: str | None = None
    sev_type: str | None = None
    api_major: int | None = None
    api_minor: int | None = None
    build_id: int | None = None
    policy: int | None = None
    handle: int | None = None


@attrs.frozen
class Facts:
    """What QEMU said of itself, and when."""

    run_status: RunStatus
    sev: SevStatus
    at: datetime


class Monitor:
    """One QMP connection.

    ``events`` yields every event since the connection and ends when the link does.
    """

    def __init__(self, client: QMPClient, events: trio.MemoryReceiveChannel[Event]) -> None:
        self._client = client
        self.events = events

    async def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """A command's raw return value.

        :raises MonitorError: if QEMU refuses it or does not answer, or the link is gone
        """
        try:
            with trio.fail_after(_ANSWER_S):
                return await aio_as_trio(self._client.execute)(command, arguments)
        except trio.TooSlowError as error:
            raise MonitorError(f"{command}: QEMU did not answer in {_ANSWER_S:g} s") from error
        except ExecuteError as error:
            raise MonitorError(f"{command}: {error}", error_class=error.error_class) from error
        except (QMPError, OSError, EOFError) as error:
            raise MonitorError(f"{command}: QEMU's monitor is gone") from error

    async def query_status(self) -> RunStatus:
        answer = await self.execute("query-status")
        return RunStatus(answer["status"], answer["running"])

    async def query_sev(self) -> SevStatus:
        """SEV's facts. A QEMU without the command, or whose SEV is off, is simply not enabled."""
        try:
            answer = await self.execute("query-sev")
        except MonitorError as error:
            if error.error_class is None:
                raise
            return SevStatus(enabled=False)
        return parse_sev(answer)

    async def ask(self) -> Facts:
        """All that is asked of QEMU as a rule."""
        try:
            return Facts(await self.query_status(), await self.query_sev(), datetime.now(UTC))
        except (KeyError, TypeError) as error:
            raise MonitorError(f"QEMU's answer is not what QAPI says: {error!r}") from error

    async def cont(self) -> None:
        """Let the guest run, for the first time or again."""
        await self.execute("cont")

    async def powerdown(self) -> None:
        """Press the guest's power button, which it may ignore."""
        await self.execute("system_powerdown")

    async def quit(self) -> None:
        """Have QEMU close its disks and exit."""
        await self.execute("quit")


def parse_sev(answer: Mapping[str, Any]) -> SevStatus:
    """``query-sev``'s answer, as plain struct (2.12) or as union on ``sev-type`` (9.1)."""
    if not answer["enabled"]:
        return SevStatus(enabled=False)
    return SevStatus(
        enabled=True,
        state=answer.get("state"),
        sev_type=answer.get("sev-type", "sev"),
        api_major=answer.get("api-major"),
        api_minor=answer.get("api-minor"),
        build_id=answer.get("build-id"),
        policy=answer.get("policy", answer.get("snp-policy")),
        handle=answer.get("handle"),
    )


@asynccontextmanager
async def connect(name: str, socket_path: Path) -> AsyncIterator[Monitor]:
    """A monitor that is past QMP's greeting and negotiation. Closed on leaving.

    :param name: for qemu.qmp's own debug log
    :raises MonitorError: if nobody listens, or QEMU goes away before its greeting
    """
    client = QMPClient(name)
    send, receive = trio.open_memory_channel[Event](math.inf)
    client.register_listener(_Forwarder(send))
    try:
        watch = await aio_as_trio(_open)(client, socket_path, send)
    except (QMPError, OSError, EOFError) as error:
        raise MonitorError(f"no QMP on {socket_path}: {error}") from error
    try:
        yield Monitor(client, receive)
    finally:
        with trio.move_on_after(_DISCONNECT_GRACE_S, shield=True):
            await aio_as_trio(_close)(client, watch)


class _Forwarder(EventListener):
    """Hands events over to trio as they come; asyncio-flavoured."""

    def __init__(self, channel: trio.MemorySendChannel[Event]) -> None:
        super().__init__()
        self._channel = channel

    async def put(self, event: Message) -> None:
        name, data = str(event["event"]), cast("Mapping[str, Any]", event.get("data", {}))
        self._channel.send_nowait(Event(name, data))


async def _open(
    client: QMPClient, socket_path: Path, channel: trio.MemorySendChannel[Event]
) -> asyncio.Task[None]:
    """Connect; the task that comes back ends the channel with the link. asyncio-flavoured."""
    await client.connect(str(socket_path))
    return asyncio.create_task(_end_with(client, channel))


async def _end_with(client: QMPClient, channel: trio.MemorySendChannel[Event]) -> None:
    """asyncio-flavoured."""
    # qemu.qmp's listeners stay silent when the link goes; its state is what tells. All that
    # was read before has been handed over by then.
    while client.runstate is Runstate.RUNNING:
        await client.runstate_changed()
    channel.close()


async def _close(client: QMPClient, watch: asyncio.Task[None]) -> None:
    """asyncio-flavoured."""
    watch.cancel()
    with contextlib.suppress(QMPError, OSError, EOFError):
        # Raises whatever ended the link, which everybody concerned has heard by now.
        await client.disconnect()
