"""A program in the place of QEMU: QMP on the passed socket, a machine without a guest.

Tests and benchmarks derive a guest from `FakeQemu`. What it says and when is that of QEMU 7.2,
measured. It dies like QEMU: at once, its ports with it.

A benchmark starts it by the thousand under ``python -ISE``. So it imports built-in modules only:
with the interpreter it is up in some 10 ms and has about 4 MB of its own. It waits in poll(2),
without a timeout.
"""

import _json
import _signal
import _socket
import posix
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    class Source(Protocol):
        """What may become readable or writable."""

        def ready(self, event: int) -> None: ...


_READ = 65536
_WAKEUPS = 64


class _Scan:
    """How `_json`'s scanner reads. The scanner asks for these by name."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo: "dict[str, str]" = {}  # noqa: RUF012


_scan = _json.make_scanner(_Scan)  # type: ignore[arg-type]
_encode = _json.make_encoder(
    None, str, _json.encode_basestring_ascii, None, ": ", ", ", False, False, True
)


def dumps(message: object) -> bytes:
    """JSON, as the module `json` writes it, which takes long to import."""
    return "".join(_encode(message, 0)).encode()


class Connection:
    """One stream connection. What cannot be sent at once is sent as soon as there is room."""

    def __init__(self, program: "FakeQemu", connection: _socket.socket) -> None:
        connection.setblocking(False)
        self.program = program
        self.connection = connection
        self._unsent = b""
        program.watch(connection.fileno(), self)

    def hear(self, data: bytes) -> None:
        """What was received."""

    def closed(self) -> None:
        """The other end has gone."""
        self.close()

    def close(self) -> None:
        self.program.unwatch(self.connection.fileno())
        self.connection.close()

    def receive(self) -> bytes:
        return self.connection.recv(_READ)

    def ready(self, event: int) -> None:
        if event & select.POLLOUT:
            self.send(b"")
        if event & ~select.POLLOUT:
            try:
                data = self.receive()
            except BlockingIOError:
                return  # what poll told of was a connection that had this number before
            except OSError:
                data = b""
            if data:
                self.hear(data)
            else:
                self.closed()

    def send(self, data: bytes) -> None:
        """Send, to a peer that is gone as well: poll tells of that next."""
        had, unsent = bool(self._unsent), self._unsent + data
        try:
            unsent = unsent[self.connection.send(unsent) :] if unsent else b""
        except BlockingIOError:
            pass
        except OSError:
            unsent = b""
        self._unsent = unsent
        if had != bool(unsent):
            self.program.watch(self.connection.fileno(), self, writable=bool(unsent))

    def flush(self) -> None:
        """Wait until all is sent."""
        try:
            self.connection.setblocking(True)
            self.connection.sendall(self._unsent)
        except OSError:
            return


class Listener:
    """A listening socket, and the kind of its connections."""

    def __init__(
        self,
        program: "FakeQemu",
        listener: _socket.socket,
        accepted: "Callable[[FakeQemu, _socket.socket], object]",
    ) -> None:
        self.program = program
        self.listener = listener
        self.accepted = accepted
        program.watch(listener.fileno(), self)

    def ready(self, _: int) -> None:
        number, _address = self.listener._accept()  # type: ignore[attr-defined]
        self.accepted(self.program, _socket.socket(fileno=number))


class Signals:
    """The pipe that tells of signals, so that they are heeded between two other things."""

    def __init__(self, program: "FakeQemu", act: "dict[int, Callable[[], None]]") -> None:
        self._reader, writer = posix.pipe2(posix.O_NONBLOCK | posix.O_CLOEXEC)
        self._act = act
        _signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in act:
            _signal.signal(number, lambda *_: None)
        program.watch(self._reader, self)

    def ready(self, _: int) -> None:
        for number in posix.read(self._reader, _WAKEUPS):
            if number in self._act:
                self._act[number]()


class Qmp(Connection):
    """One client of the monitor."""

    def __init__(self, program: "FakeQemu", connection: _socket.socket) -> None:
        super().__init__(program, connection)
        #: No event is sent before.
        self.negotiated = False
        self._text = ""
        program.greet(self)

    def hear(self, data: bytes) -> None:
        # A stream of objects, not of lines: the supervisor's library sends no line ends.
        self._text = (self._text + data.decode()).lstrip()
        while self._text:
            try:
                message, end = _scan(self._text, 0)
            except (StopIteration, ValueError):
                break  # the rest is still to come
            self._text = self._text[end:].lstrip()
            self.program.execute(self, message)

    def say(self, message: object) -> None:
        self.send(dumps(message) + b"\r\n")

    def answer(self, message: "dict[str, Any]", result: object) -> None:
        self.say({"return": result, **_id(message)})

    def refuse(self, message: "dict[str, Any]", text: str, kind: str = "GenericError") -> None:
        self.say({"error": {"class": kind, "desc": text}, **_id(message)})


def _id(message: "dict[str, Any]") -> "dict[str, Any]":
    return {"id": message["id"]} if "id" in message else {}


def version(number: str) -> "dict[str, Any]":
    """QAPI's ``VersionInfo`` of a version such as ``7.2``."""
    major, minor = number.split(".")
    return {"qemu": {"micro": 0, "minor": int(minor), "major": int(major)}, "package": "stand-in"}


def answer_trial(number: str, sev: "dict[str, Any] | None" = None) -> None:
    """Be a QEMU without a guest that is asked over stdin what it can do, until it is to quit.

    The schema is what is read of QEMU's: `object-add` and the types that this takes.
    """
    objects = ["memory-backend-file", *(["monitor-qmp"] if int(number.split(".")[0]) > 10 else [])]
    schema: list[dict[str, Any]] = [
        {"name": "object-add", "meta-type": "command", "arg-type": "1"},
        {"name": "1", "meta-type": "object", "members": [{"name": "qom-type", "type": "2"}]},
        {"name": "2", "meta-type": "enum", "values": objects},
    ]
    answers: dict[str, object] = {
        "query-version": version(number),
        "query-qmp-schema": schema,
    }
    if sev:
        answers["query-sev-capabilities"] = sev
    posix.write(1, dumps({"QMP": {"version": version(number), "capabilities": []}}) + b"\n")
    asked = ""
    while more := posix.read(0, _READ):
        asked += more.decode()
        if asked.count("execute") > 1 and "quit" in asked:
            return  # QEMU's answers are lost if it is to quit before they are read
        while asked:
            try:
                message, end = _scan(asked, 0)
            except (StopIteration, ValueError):
                break  # the rest is still to come
            asked = asked[end:]
            said: dict[str, object] = {"return": answers.get(message["execute"], {})}
            if message["execute"] == "query-sev-capabilities" and not sev:
                said = {"error": {"class": "GenericError", "desc": "SEV is not enabled in KVM"}}
            posix.write(1, dumps(said | _id(message)) + b"\n")
            if message["execute"] == "quit":
                return


class FakeQemu:
    """One run of the program."""

    #: In the greeting.
    version = "7.2"

    def __init__(self, argv: "list[str]") -> None:
        self.argv = argv
        self.vm_id = argv[argv.index("-uuid") + 1]
        self.status = "inmigrate" if "-incoming" in argv else "prelaunch"
        #: As on the command line, and QEMU's own.
        self.actions = {"shutdown": "poweroff", "reboot": "shutdown", "panic": "shutdown"}
        self._poll = select.poll()
        self._sources: dict[int, Source] = {}

    def run(self) -> None:
        """Until a signal or a command ends it."""
        Signals(self, self.signals())
        Listener(self, _socket.socket(fileno=0), self.monitor)
        while True:
            for number, event in self._poll.poll():
                if number in self._sources:
                    self._sources[number].ready(event)

    def watch(self, number: int, source: "Source", *, writable: bool = False) -> None:
        self._sources[number] = source
        self._poll.register(number, select.POLLIN | (select.POLLOUT if writable else 0))

    def unwatch(self, number: int) -> None:
        del self._sources[number]
        self._poll.unregister(number)

    def clients(self) -> "list[Qmp]":
        return [one for one in self._sources.values() if isinstance(one, Qmp)]

    def monitor(self, program: "FakeQemu", connection: _socket.socket) -> Qmp:
        """A client of the monitor that has connected."""
        return Qmp(program, connection)

    def host_port(self, guest_port: int) -> int:
        """The host port that leads to ``guest_port``; 0 if none does."""
        netdev = self.argv[self.argv.index("-netdev") + 1] if "-netdev" in self.argv else ""
        forward, found, _ = netdev.partition(f"-:{guest_port}")
        return int(forward.rpartition(":")[2]) if found else 0

    def signals(self) -> "dict[int, Callable[[], None]]":
        """What is done at a signal."""
        return {_signal.SIGTERM: self.sigterm}

    # --- QMP ---

    def greet(self, client: Qmp) -> None:
        client.say({"QMP": {"version": version(self.version), "capabilities": []}})

    def emit(self, event: str, data: object = None) -> int:
        """Send the event to all clients; the moment, in microseconds since the epoch."""
        now = time.time_ns() // 1000
        stamp = {"seconds": now // 1000000, "microseconds": now % 1000000}
        message = {"timestamp": stamp, "event": event, **({"data": data} if data else {})}
        for client in self.clients():
            if client.negotiated:
                client.say(message)
        return now

    def execute(self, client: Qmp, message: "dict[str, Any]") -> None:
        command = message["execute"]
        if command == "cont" and self.status == "shutdown":
            client.refuse(message, "Resetting the Virtual Machine is required")
            return
        if command == "quit":
            # Before the answer, and without a STOP.
            self.emit("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})
        if command == "system_reset" and self.actions["reboot"] == "reset":
            self.reset()
        client.answer(message, self.answer(command))
        client.negotiated |= command == "qmp_capabilities"
        self.act(command, message.get("arguments", {}))

    def answer(self, command: str) -> object:
        """What the command returns."""
        if command == "query-status":
            running = self.status == "running"
            return {"status": self.status, "running": running, "singlestep": False}
        return {"enabled": False} if command == "query-sev" else {}

    def act(self, command: str, arguments: "dict[str, Any]") -> None:
        """What the command does once it is answered."""
        match command:
            # A guest that has suspended itself sleeps on.
            case "cont" if self.status not in ("running", "inmigrate", "suspended"):
                self.run_guest()
            case "stop":
                self.hold("paused")
            case "set-action":
                self.actions |= arguments
            case "system_wakeup":
                self.wake()
            case "system_reset" if self.actions["reboot"] == "shutdown":
                self.shut_down("host-qmp-system-reset")
            case "system_powerdown":
                self.emit("POWERDOWN")
                if self.status == "running":
                    self.press_power_button()
            case "quit":
                self.exit(0)

    # --- the guest ---

    def start_agent(self) -> None:
        """Have the guest's agent listen, unless it does."""

    def stop_agent(self) -> None:
        """The guest is reset."""

    def run_guest(self) -> None:
        self.status = "running"
        self.emit("RESUME")
        self.start_agent()

    def hold(self, status: str) -> None:
        if self.status == "running":
            self.status = status
            self.emit("STOP")

    def suspend(self) -> None:
        self.status = "suspended"
        self.emit("SUSPEND")

    def wake(self) -> None:
        self.status = "running"
        self.emit("WAKEUP")

    def reset(self) -> None:
        # QEMU has stopped the CPUs when it tells of it.
        self.stop_agent()
        self.emit("RESET", {"guest": False, "reason": "host-qmp-system-reset"})
        if self.status == "running":
            self.start_agent()
        else:
            self.status = "prelaunch"  # also a guest that has run: no event tells of it

    def press_power_button(self) -> None:
        self.shut_down("guest-shutdown")

    # --- the end ---

    def sigterm(self) -> None:
        # An action of pause is for the guest's own shutdown alone.
        self.emit("SHUTDOWN", {"guest": False, "reason": "host-signal"})
        self.exit(0)

    def shut_down(self, reason: str) -> None:
        """The machine's own: power off, or a reboot."""
        self.emit("SHUTDOWN", {"guest": reason.startswith("guest"), "reason": reason})
        if self.actions["shutdown"] == "pause":
            self.status = "shutdown"
            self.emit("STOP")
        else:
            self.exit(0)

    def panic(self) -> None:
        if self.actions["panic"] == "pause":
            self.emit("GUEST_PANICKED", {"action": "pause"})
            self.status = "guest-panicked"
            self.emit("STOP")
        else:
            self.emit("GUEST_PANICKED", {"action": "poweroff"})
            self.emit("SHUTDOWN", {"guest": True, "reason": "guest-panic"})
            self.exit(0)

    def exit(self, code: int) -> None:
        """Exit once everything written has gone out; a negative code is a signal to die by."""
        for source in tuple(self._sources.values()):
            if isinstance(source, Connection):
                source.flush()
        if code < 0:
            posix.kill(posix.getpid(), -code)
        posix._exit(code)
