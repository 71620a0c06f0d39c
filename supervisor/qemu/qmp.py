"""One QMP connection: typed commands and a stream of events, over the library qemu.qmp.

qemu.qmp uses asyncio, and this is the only module that calls it. The methods of a `Monitor` are
trio-flavoured and need ``bridge.open_loop()`` around them.

Source: QEMU's QAPI reference, ``qemu-qmp-ref(7)``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any

import attrs
import trio
from qemu.qmp import EventListener, QMPClient, QMPError, Runstate
from qemu.qmp.qmp_client import ExecuteError

from supervisor import spans
from supervisor.bridge import aio_as_trio
from supervisor.errors import MonitorError, SocketGone
from supervisor.qemu import qapi
from supervisor.qemu.version import Version, pass_file

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from qemu.qmp.message import Message

    from supervisor.config.timing import Timing

#: qemu.qmp logs a lost connection as an error, and as a bug if it is lost while it is being made.
#: Here both are usual: QEMU has exited.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)

_DISCONNECT_GRACE_S = 2.0

#: Longer than any message that QEMU has for us. A longer one ends the connection.
_MESSAGE_BYTES = 1 << 16

#: What qemu.qmp raises if the connection is lost. The last two come from JSON's decoder, if the
#: other end sends garbage.
_BROKEN = (QMPError, OSError, EOFError, UnicodeDecodeError, RecursionError)


@attrs.frozen
class Facts:
    """What QEMU answered to `Monitor.query`, and when."""

    run_status: qapi.RunStatus
    sev: qapi.SevStatus
    at: datetime


class Monitor:
    """One QMP connection.

    :ivar events: yields every event of `qapi.RELEVANT_EVENTS` since the connection was made; ends
        with the connection, and when QEMU sends too many events of any kind
    """

    def __init__(
        self,
        vm_id: str,
        client: QMPClient,
        events: trio.MemoryReceiveChannel[qapi.QmpEvent],
        forwarder: _Forwarder,
        answer_s: float,
    ) -> None:
        self._vm_id = vm_id
        self._client = client
        self._forwarder = forwarder
        self._answer_s = answer_s
        self._passing = trio.Lock()
        self.events = events

    @property
    def flooded(self) -> bool:
        """Whether ``events`` ended because QEMU sent too many events."""
        return self._forwarder.flooded

    @property
    def connected(self) -> bool:
        return self._client.runstate is Runstate.RUNNING

    @property
    def waiting_events(self) -> int:
        """How many events have arrived and are not read yet."""
        return self.events.statistics().current_buffer_used

    async def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """A command's raw return value.

        :raises MonitorError: if QEMU refuses the command or does not answer, or the connection is
            lost
        """
        try:
            about = {"qmp.command": command, "vm.id": self._vm_id}
            with trio.fail_after(self._answer_s), spans.asking(f"QMP {command}", about):
                return await aio_as_trio(self._client.execute)(command, arguments)
        except trio.TooSlowError as error:
            raise MonitorError(f"{command}: QEMU did not answer in {self._answer_s:g} s") from error
        except ExecuteError as error:
            raise MonitorError(
                f"{command}: {qapi.sentence(str(error))}", error_class=qapi.word(error.error_class)
            ) from error
        except _BROKEN as error:
            raise MonitorError(f"{command}: the QMP connection is lost") from error

    async def query_status(self) -> qapi.RunStatus:
        answer = await self.execute("query-status")
        with _as_qapi_says():
            return qapi.RunStatus(qapi.word(answer["status"]), qapi.flag(answer["running"]))

    async def query_sev(self) -> qapi.SevStatus:
        """SEV's status. It is not enabled if QEMU refuses the command, as one without SEV does."""
        try:
            answer = await self.execute("query-sev")
        except MonitorError as error:
            if error.error_class is None:
                raise
            return qapi.SevStatus(enabled=False)
        with _as_qapi_says():
            return qapi.parse_sev(answer)

    async def sev_measurement(self) -> qapi.SevMeasurement:
        """What SEV's firmware has measured of a guest that has not run.

        :raises MonitorError: if QEMU refuses, as for SEV-SNP
        """
        answer = await self.execute("query-sev-launch-measure")
        status = await self.query_sev()
        with _as_qapi_says():
            return qapi.SevMeasurement(qapi.word(answer["data"]), status)

    async def sev_inject_secret(self, header: str, secret: str) -> None:
        """Give the guest a secret. QEMU finds the place in the firmware.

        :param header, secret: of the packet, in base64
        """
        packet = {"packet-header": header, "secret": secret}
        await self.execute("sev-inject-launch-secret", packet)

    async def query(self, *, sev: bool = True) -> Facts:
        """Both queries that a new connection asks.

        :param sev: False if QEMU was started without SEV; then it is not asked
        """
        status = await self.query_status()
        found = await self.query_sev() if sev else qapi.SevStatus(enabled=False)
        return Facts(status, found, datetime.now(UTC))

    async def set_actions(self, **actions: str) -> None:
        """Set what QEMU does if a guest reboots or shuts down, panics, or its watchdog fires.

        :param actions: of QAPI's ``set-action``: ``reboot`` is a ``RebootAction``, and so on
        """
        await self.execute("set-action", dict(actions))

    async def serve_serial(self, listener: socket.socket, log: Path) -> None:
        """Have QEMU serve the serial console on a socket, and go on to write it to a file.

        :param listener: QEMU gets a copy
        """
        served = {"server": True, "wait": False, "logfile": str(log), "logappend": True}
        await self._put("chardev-change", "serial", listener, served)

    async def add_port(self, name: str, end: socket.socket) -> None:
        """Add a serial port of virtio's. Before the guest runs.

        :param name: what the guest knows the port by
        :param end: of a connection, for what the guest says there and hears; QEMU gets a copy
        """
        await self._put("chardev-add", name, end, {"server": False})
        port = {"driver": "virtserialport", "chardev": name, "name": name, "id": f"port-{name}"}
        await self.execute("device_add", port)

    async def has_port_open(self, name: str) -> bool:
        """Whether the guest has opened the port of `add_port`."""
        answer = await self.execute("query-chardev")
        with _as_qapi_says():
            return any(one["label"] == name and qapi.flag(one["frontend-open"]) for one in answer)

    async def _put(self, how: str, device: str, end: socket.socket, more: dict[str, Any]) -> None:
        """Have a character device be a socket.

        :param more: members of QAPI's ``ChardevSocket``
        """
        name = f"socket-{device}"  # of the descriptor, until it is used
        await self._pass("getfd", {"fdname": name}, end)
        backend = {"addr": {"type": "fd", "data": {"str": name}}, **more}
        await self.execute(how, {"id": device, "backend": {"type": "socket", "data": backend}})

    async def stop(self) -> None:
        """Pause the guest."""
        await self.execute("stop")

    async def reset(self) -> None:
        """Begin to reset the machine. The event RESET says when it is done."""
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
        """Make QEMU close its disks and exit."""
        await self.execute("quit")

    async def save_state(self, file: IO[bytes]) -> None:
        """Have QEMU write the machine's state, without the guest's memory. The guest is stopped.

        :raises MonitorError: if QEMU refuses, or the migration fails
        """
        await self._migrate("migrate", file)

    async def load_state(self, file: IO[bytes]) -> None:
        """Have QEMU read what `save_state` of another QEMU has written.

        :raises MonitorError: if QEMU refuses, or the migration fails
        """
        await self._migrate("migrate-incoming", file)

    async def _pass(
        self, command: str, arguments: dict[str, Any], file: IO[bytes] | socket.socket
    ) -> None:
        """A command that takes a descriptor."""
        # The descriptor goes ahead of its command. QEMU keeps the last one that came: no other may
        # be sent before the command is answered.
        async with self._passing:
            try:
                self._client.send_fd_scm(file.fileno())
            except _BROKEN as error:
                raise MonitorError(f"{command}: the QMP connection is lost") from error
            await self.execute(command, arguments)

    async def _migrate(self, command: str, file: IO[bytes]) -> None:
        passing = pass_file(self._version())
        await self._pass(passing.command, dict(passing.arguments), file)
        wanted = [
            {"capability": name, "state": True}
            # The guest's memory is in a file, where it stays.
            for name in ("events", "x-ignore-shared")
        ]
        await self.execute("migrate-set-capabilities", {"capabilities": wanted})
        await self.execute(command, {"uri": passing.uri})
        await self._forwarder.migrated.wait()
        if self._forwarder.migration != "completed":
            raise MonitorError(
                f"{command}: migration status: {self._forwarder.migration}",
                error_class="GenericError",
            )
        if passing.forget:
            await self.execute(passing.forget, dict(passing.arguments))

    def _version(self) -> Version:
        """Of this process, which may be older than its binary.

        :raises MonitorError: if the greeting does not follow QAPI
        """
        greeting = self._client.greeting
        with _as_qapi_says():
            return Version.of(greeting.QMP.version if greeting else {})


@contextlib.contextmanager
def _as_qapi_says() -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise MonitorError(f"QEMU's answer does not follow QAPI: {error!r}") from error


@asynccontextmanager
async def connect(
    vm_id: str, socket_path: Path, greeting_s: float, answer_s: float, timing: Timing
) -> AsyncIterator[Monitor]:
    """Connect, and negotiate. Leaving the context closes the connection.

    :param vm_id: for traces
    :param greeting_s: how long greeting and negotiation may take
    :param answer_s: how long the answer to a command may take
    :raises SocketGone: if nothing listens on the path
    :raises MonitorError: if QEMU goes away before its greeting, or the greeting is late
    """
    client = _Client(readbuflen=_MESSAGE_BYTES)
    send, receive = trio.open_memory_channel[qapi.QmpEvent](timing.qmp_flood_events)
    forwarder = _Forwarder(send, timing)
    client.register_listener(forwarder)
    try:
        with trio.fail_after(greeting_s):
            watch = await aio_as_trio(_open)(client, socket_path, forwarder)
    except AssertionError as error:
        # qemu.qmp's, if the other end goes away in the moment in which it is connected.
        raise MonitorError(f"no QMP connection on {socket_path}: it was lost at once") from error
    except trio.TooSlowError as error:
        raise MonitorError(f"no greeting on {socket_path} within {greeting_s:g} s") from error
    except _BROKEN as error:
        cause = _root_cause(error)
        kind = SocketGone if isinstance(cause, _NO_LISTENER) else MonitorError
        # Other errors repeat what QEMU has sent.
        why = cause.strerror if isinstance(cause, OSError) else type(cause).__name__
        raise kind(f"no QMP connection on {socket_path}: {why}") from error
    try:
        yield Monitor(vm_id, client, receive, forwarder, answer_s)
    finally:
        with trio.move_on_after(_DISCONNECT_GRACE_S, shield=True):
            await aio_as_trio(_close)(client, watch)


#: What connect(2) raises if no process listens on the socket's path.
_NO_LISTENER = (FileNotFoundError, ConnectionRefusedError)


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


class _Client(QMPClient):
    """A client that does not log each message: to render them would cost time for no reader.

    It has no name either, because qemu.qmp keeps a logger for each name for ever.
    """

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        return msg


class _Forwarder(EventListener):
    """Passes events on to trio as they arrive. asyncio-flavoured.

    Too many events close the channel: to read them all would leave no time for other VMs.
    """

    def __init__(self, channel: trio.MemorySendChannel[qapi.QmpEvent], timing: Timing) -> None:
        super().__init__()
        self._timing = timing
        self.flooded = False
        #: The final status of a migration, once ``migrated`` is set.
        self.migration = "unknown, the QMP connection is lost"
        #: Set when a migration has ended, or the connection has.
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
        elif found := qapi.read_event(event):
            try:
                self._channel.send_nowait(found)
            except trio.WouldBlock:  # they come faster than they are dealt with
                self.flooded = True
                self._channel.close()

    def _note_migration(self, data: object) -> None:
        status = data.get("status") if isinstance(data, dict) else None
        if status in ("completed", "failed"):
            self.migration = str(status)
            self.migrated.set()

    def close(self) -> None:
        """The connection has ended: end ``events``, and wake the waiter for a migration."""
        self.migrated.set()
        self._channel.close()


async def _open(client: QMPClient, socket_path: Path, forwarder: _Forwarder) -> asyncio.Task[None]:
    """Connect. The returned task ends the events when the connection ends. asyncio-flavoured."""
    await client.connect(str(socket_path))
    return asyncio.create_task(_end_with(client, forwarder))


async def _end_with(client: QMPClient, forwarder: _Forwarder) -> None:
    """asyncio-flavoured."""
    # qemu.qmp does not notify listeners of a lost connection; its runstate changes. All events
    # that were read before have been passed on by then.
    while client.runstate is Runstate.RUNNING:
        await client.runstate_changed()
    forwarder.close()


async def _close(client: QMPClient, watch: asyncio.Task[None]) -> None:
    """asyncio-flavoured."""
    watch.cancel()
    with contextlib.suppress(Exception):
        # Raises the error that ended the connection, of any kind, for it depends on what QEMU has
        # sent. Its users have already seen that the connection is lost.
        await client.disconnect()
