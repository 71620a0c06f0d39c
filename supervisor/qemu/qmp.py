"""QMP: typed questions and a stream of events, over qemu.qmp.

qemu.qmp speaks asyncio; this is the only module that knows. A `Monitor`'s methods are
trio-flavoured and need ``trio_asyncio.open_loop()`` around them.

Source: QEMU's QAPI reference, ``qemu-qmp-ref(7)``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs
import trio
from qemu.qmp import EventListener, QMPClient, QMPError, Runstate
from qemu.qmp.qmp_client import ExecuteError
from trio_asyncio import aio_as_trio

from supervisor.errors import MonitorError, SocketGone

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path

    from qemu.qmp.message import Message

    from supervisor.config.timing import Timing

#: qemu.qmp reports a lost link as an error of its own, and as a bug if it is lost while being
#: made; to us both are the usual signs of an exit.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)

_DISCONNECT_GRACE_S = 2.0

#: What a link ends with. The last two are what some garbage makes of JSON's decoder, which
#: qemu.qmp passes on.
_BROKEN = (QMPError, OSError, EOFError, UnicodeDecodeError, RecursionError)


@attrs.frozen
class QmpEvent:
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

    ``events`` yields every event since the connection that is in `HEARD`, and ends when the link
    does, or when there are too many of any kind.
    """

    def __init__(
        self,
        client: QMPClient,
        events: trio.MemoryReceiveChannel[QmpEvent],
        forwarder: _Forwarder,
        answer_s: float,
    ) -> None:
        self._client = client
        self._forwarder = forwarder
        self._answer_s = answer_s
        self.events = events

    @property
    def flooded(self) -> bool:
        """Whether ``events`` ended because there were too many."""
        return self._forwarder.flooded

    @property
    def connected(self) -> bool:
        return self._client.runstate is Runstate.RUNNING

    @property
    def waiting_events(self) -> int:
        """How many events have come that nobody has taken yet."""
        return self.events.statistics().current_buffer_used

    async def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """A command's raw return value.

        :raises MonitorError: if QEMU refuses it or does not answer, or the link is gone
        """
        try:
            with trio.fail_after(self._answer_s):
                return await aio_as_trio(self._client.execute)(command, arguments)
        except trio.TooSlowError as error:
            raise MonitorError(f"{command}: QEMU did not answer in {self._answer_s:g} s") from error
        except ExecuteError as error:
            raise MonitorError(f"{command}: {error}", error_class=error.error_class) from error
        except _BROKEN as error:
            raise MonitorError(f"{command}: QEMU's monitor is gone") from error

    async def query_status(self) -> RunStatus:
        answer = await self.execute("query-status")
        with _as_qapi_says():
            return RunStatus(answer["status"], answer["running"])

    async def query_sev(self) -> SevStatus:
        """SEV's facts. A QEMU without the command, or whose SEV is off, is simply not enabled."""
        try:
            answer = await self.execute("query-sev")
        except MonitorError as error:
            if error.error_class is None:
                raise
            return SevStatus(enabled=False)
        with _as_qapi_says():
            return parse_sev(answer)

    async def query(self) -> Facts:
        """All that is asked of QEMU as a rule."""
        return Facts(await self.query_status(), await self.query_sev(), datetime.now(UTC))

    async def set_actions(self, **actions: str) -> None:
        """What QEMU does by itself at a guest's ``reboot``, ``shutdown``, ``panic``, ``watchdog``.

        The values are QAPI's: ``RebootAction`` and so on.
        """
        await self.execute("set-action", dict(actions))

    async def stop(self) -> None:
        """Hold the guest."""
        await self.execute("stop")

    async def reset(self) -> None:
        """Begin to reset the machine; a RESET event tells when it is done."""
        await self.execute("system_reset")

    async def cont(self) -> None:
        """Let the guest run, for the first time or again."""
        await self.execute("cont")

    async def wake_up(self) -> None:
        """Wake a guest that has suspended itself."""
        await self.execute("system_wakeup")

    async def powerdown(self) -> None:
        """Press the guest's power button, which it may ignore."""
        await self.execute("system_powerdown")

    async def quit(self) -> None:
        """Have QEMU close its disks and exit."""
        await self.execute("quit")

    async def give(self, name: str, descriptor: int) -> None:
        """Hand QEMU a copy of an open file, which commands then call ``fd:name``."""
        # Sent ahead of the command that takes it up; nothing may be sent between the two.
        try:
            self._client.send_fd_scm(descriptor)
        except _BROKEN as error:
            raise MonitorError("getfd: QEMU's monitor is gone") from error
        await self.execute("getfd", {"fdname": name})

    async def migrate(self, command: str, uri: str, **capabilities: bool) -> None:
        """Save or load the machine's state; return when that is done.

        :param command: ``migrate`` or ``migrate-incoming``
        :param capabilities: QAPI's ``MigrationCapability``, with ``_`` for ``-``
        :raises MonitorError: also if it fails
        """
        wanted = {"events": True, **capabilities}
        states = [
            {"capability": name.replace("_", "-"), "state": state} for name, state in wanted.items()
        ]
        await self.execute("migrate-set-capabilities", {"capabilities": states})
        await self.execute(command, {"uri": uri})
        await self._forwarder.migrated.wait()
        if self._forwarder.migration != "completed":
            raise MonitorError(
                f"{command}: it ended with {self._forwarder.migration}", error_class="GenericError"
            )


@contextlib.contextmanager
def _as_qapi_says() -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError) as error:
        raise MonitorError(f"QEMU's answer is not what QAPI says: {error!r}") from error


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
async def connect(
    socket_path: Path, greeting_s: float, answer_s: float, timing: Timing
) -> AsyncIterator[Monitor]:
    """A monitor that is past QMP's greeting and negotiation. Closed on leaving.

    :param greeting_s: how long the greeting may take
    :param answer_s: how long any other answer may take
    :raises SocketGone: if nobody listens
    :raises MonitorError: if QEMU goes away before its greeting, or does not give one
    """
    client = _Client()
    send, receive = trio.open_memory_channel[QmpEvent](timing.qmp_flood_events)
    forwarder = _Forwarder(send, timing)
    client.register_listener(forwarder)
    try:
        with trio.fail_after(greeting_s):
            watch = await aio_as_trio(_open)(client, socket_path, forwarder)
    except trio.TooSlowError as error:
        raise MonitorError(f"no greeting on {socket_path} within {greeting_s:g} s") from error
    except _BROKEN as error:
        kind = SocketGone if isinstance(_root(error), _NOBODY) else MonitorError
        raise kind(f"no QMP on {socket_path}: {error}") from error
    try:
        yield Monitor(client, receive, forwarder, answer_s)
    finally:
        with trio.move_on_after(_DISCONNECT_GRACE_S, shield=True):
            await aio_as_trio(_close)(client, watch)


#: What connecting to a socket's path says where no process listens any more.
_NOBODY = (FileNotFoundError, ConnectionRefusedError)


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


class _Client(QMPClient):
    """Without the stock one's log, which renders each message though nobody may read it.

    Nor has it a name, for each would leave a logger behind for ever.
    """

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        return msg


#: The events that mean something to a VM. A guest can make QEMU send some of the others, such
#: as GUEST_CRASHLOADED, as fast as it can write to a port.
HEARD = frozenset(
    (
        *("RESUME", "STOP", "SUSPEND", "WAKEUP", "SHUTDOWN", "RESET"),
        *("GUEST_PANICKED", "WATCHDOG", "BLOCK_IO_ERROR"),
    )
)


class _Forwarder(EventListener):
    """Hands events over to trio as they come; asyncio-flavoured.

    A flood ends the channel: who reads all of it has no time for anything else.
    """

    def __init__(self, channel: trio.MemorySendChannel[QmpEvent], timing: Timing) -> None:
        super().__init__()
        self._timing = timing
        self.flooded = False
        #: What a migration has come to, once it has, or what kept it from that.
        self.migration = "the loss of QEMU's monitor"
        self.migrated = trio.Event()
        self._channel = channel
        self._count = 0
        self._since = time.monotonic()

    async def put(self, event: Message) -> None:
        if self.flooded:
            await asyncio.sleep(self._timing.qmp_flood_s)  # the connection is about to be closed
            return
        now = time.monotonic()
        if now - self._since > self._timing.qmp_flood_s:
            self._since, self._count = now, 0
        self._count += 1
        if self._count > self._timing.qmp_flood_events:
            self.flooded = True
            self._channel.close()
        elif event["event"] == "MIGRATION":
            self._note_migration(event.get("data"))
        elif event["event"] in HEARD:
            data = event.get("data", {})
            told = data if isinstance(data, dict) else {}
            self._channel.send_nowait(QmpEvent(str(event["event"]), told))

    def _note_migration(self, data: object) -> None:
        status = data.get("status") if isinstance(data, dict) else None
        if status in ("completed", "failed"):
            self.migration = str(status)
            self.migrated.set()

    def close(self) -> None:
        """No event will come any more."""
        self.migrated.set()
        self._channel.close()


async def _open(client: QMPClient, socket_path: Path, forwarder: _Forwarder) -> asyncio.Task[None]:
    """Connect; the task that comes back ends the events with the link. asyncio-flavoured."""
    await client.connect(str(socket_path))
    return asyncio.create_task(_end_with(client, forwarder))


async def _end_with(client: QMPClient, forwarder: _Forwarder) -> None:
    """asyncio-flavoured."""
    # qemu.qmp's listeners stay silent when the link goes; its state is what tells. All that
    # was read before has been handed over by then.
    while client.runstate is Runstate.RUNNING:
        await client.runstate_changed()
    forwarder.close()


async def _close(client: QMPClient, watch: asyncio.Task[None]) -> None:
    """asyncio-flavoured."""
    watch.cancel()
    with contextlib.suppress(*_BROKEN):
        # Raises whatever ended the link, which everybody concerned has heard by now.
        await client.disconnect()
