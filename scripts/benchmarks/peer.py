"""A program in the place of QEMU that is cheap enough to be started by the thousand.

It speaks QMP on the listening socket that is its descriptor 0, to any number of connections
one after another, and is the VM's agent as well: from ``cont`` on it answers every gRPC call at
the forwarded port with one fixed RunResponse. Both in one process, so that the port goes with it,
as QEMU's does. SIGUSR1 has it power off, noting the moment in ``sent`` beside this file:
``<id> <microseconds since the epoch>``. SIGTERM ends it as it ends QEMU.

It runs under ``python -ISE`` and imports built-in modules only; with the interpreter it is up in
some 10 ms and has about 4 MB of its own. It waits in poll(2), without a timeout.

Sources: QEMU's QAPI reference, RFC 9113 (HTTP/2), RFC 7541 (HPACK).
"""

import _json
import _signal
import _socket
import posix
import select
import sys
import time

_READ = 65536
#: What a gRPC client sends before its first frame.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 4, 6, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1


def frame(kind, flags, stream, payload=b""):
    """An HTTP/2 frame."""
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
    return head + payload


def literal(name, value):
    """A header field that no table need remember, with a name of its own."""
    return b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value


#: Windows so large that nobody waits for more: SETTINGS_INITIAL_WINDOW_SIZE, and the connection's.
_HELLO = frame(_SETTINGS, 0, 0, b"\0\4\x40\0\0\0") + frame(_WINDOW_UPDATE, 0, 0, b"\x3f\0\0\0")
#: ``:status: 200`` is the static table's number 8.
_RESPONSE = b"\x88" + literal(b"content-type", b"application/grpc")
_TRAILERS = literal(b"grpc-status", b"0")
#: Not compressed, four bytes long: RunResponse with Computation (field 1) "ok".
_MESSAGE = b"\0\0\0\0\4\x0a\x02ok"


class Scan:
    """How `_json`'s scanner is to read; it asks for these by name."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo = {}  # noqa: RUF012


_scan = _json.make_scanner(Scan)


class Qmp:
    """One connection to the monitor."""

    def __init__(self, program, connection):
        self.program = program
        self.connection = connection
        self.text = ""
        self.send(
            '{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7},'
            ' "package": "stand-in"}, "capabilities": []}}'
        )

    def send(self, message):
        try:  # noqa: SIM105 - contextlib takes milliseconds to import
            self.connection.sendall(message.encode() + b"\r\n")
        except OSError:
            pass  # the supervisor was killed; poll tells so next

    def hear(self):
        """Whether the connection is still there."""
        try:
            data = self.connection.recv(_READ)
        except OSError:
            return False
        # A stream of objects, not of lines.
        self.text = (self.text + data.decode()).lstrip()
        while self.text:
            try:
                message, end = _scan(self.text, 0)
            except (StopIteration, ValueError):
                break  # the rest is still to come
            self.text = self.text[end:].lstrip()
            self.program.execute(self, message)
        return bool(data)


class Grpc:
    """One connection to the agent."""

    def __init__(self, program, connection):
        self.connection = connection
        self.buffer = b""
        self.greeted = False

    def hear(self):
        """Whether the connection is still there."""
        try:
            data = self.connection.recv(_READ)
            self.buffer += data
            if not self.greeted and len(self.buffer) >= len(_PREFACE):
                self.buffer = self.buffer[len(_PREFACE) :]
                self.greeted = True
                self.connection.sendall(_HELLO)
            while self.greeted and self.take_frame():
                pass
        except OSError:
            return False
        return bool(data)

    def take_frame(self):
        """Answer the next frame. Whether it was there as a whole."""
        end = 9 + int.from_bytes(self.buffer[:3], "big")
        if len(self.buffer) < max(end, 9):
            return False
        kind, flags = self.buffer[3], self.buffer[4]
        stream = int.from_bytes(self.buffer[5:9], "big")
        payload, self.buffer = self.buffer[9:end], self.buffer[end:]
        if kind in (_SETTINGS, _PING) and not flags & _ACK:
            self.connection.sendall(frame(kind, _ACK, 0, payload if kind == _PING else b""))
        elif kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            self.connection.sendall(
                frame(_HEADERS, _END_HEADERS, stream, _RESPONSE)
                + frame(_DATA, 0, stream, _MESSAGE)
                + frame(_HEADERS, _END_HEADERS | _END_STREAM, stream, _TRAILERS)
            )
        return True


class Program:
    """One run of the stand-in."""

    def __init__(self, argv):
        self.vm_id = argv[argv.index("-uuid") + 1]
        self.netdev = argv[argv.index("-netdev") + 1] if "-netdev" in argv else ""
        self.status = "prelaunch"
        self.poll = select.poll()
        #: By descriptor: listeners with what they accept, and what was accepted.
        self.listeners = {}
        self.connections = {}
        self.listen(_socket.socket(fileno=0), Qmp)

    def listen(self, listener, accepts):
        self.listeners[listener.fileno()] = listener, accepts
        self.poll.register(listener.fileno(), select.POLLIN)

    def run(self):
        """Until a signal or a command ends it. A signal's handler runs within poll."""
        while True:
            for number, _ in self.poll.poll():
                if number in self.listeners:
                    self.accept(*self.listeners[number])
                elif number in self.connections and not self.connections[number].hear():
                    self.poll.unregister(number)
                    self.connections.pop(number).connection.close()

    def accept(self, listener, accepts):
        number, _ = listener._accept()
        connection = _socket.socket(fileno=number)
        connection.setblocking(True)
        self.connections[number] = accepts(self, connection)
        self.poll.register(number, select.POLLIN)

    # --- QMP ---

    def execute(self, qmp, message):
        command, answer, down = message["execute"], "{}", None
        if command == "query-status":
            running = "true" if self.status == "running" else "false"
            answer = f'{{"status": "{self.status}", "running": {running}, "singlestep": false}}'
        elif command == "query-sev":
            answer = '{"enabled": false}'
        elif command == "cont":
            self.status = "running"
            self.start_agent()
            self.emit("RESUME")
        elif command == "stop":
            self.status = "paused"
            self.emit("STOP")
        elif command == "system_powerdown":
            self.emit("POWERDOWN")
            down = "guest-shutdown"
        elif command == "quit":
            down = "host-qmp-quit"
        number = message.get("id")
        known = f', "id": "{number}"' if isinstance(number, str) else ""
        qmp.send(f'{{"return": {answer}{known}}}')
        if down:
            self.shut_down(down)

    def emit(self, event, data=None):
        """Send the event to all who are connected; the moment, in microseconds."""
        now = time.time_ns() // 1000
        stamp = f'{{"seconds": {now // 1000000}, "microseconds": {now % 1000000}}}'
        more = f', "data": {data}' if data else ""
        for one in tuple(self.connections.values()):
            if isinstance(one, Qmp):
                one.send(f'{{"timestamp": {stamp}, "event": "{event}"{more}}}')
        return now

    def start_agent(self):
        at = self.netdev.find("-:7002")
        if at < 0 or len(self.listeners) > 1:
            return
        host, port = self.netdev[:at].rsplit(":", 2)[1:]
        listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
        listener.listen(16)
        self.listen(listener, Grpc)

    # --- the end ---

    def shut_down(self, reason):
        guest = "true" if reason.startswith("guest") else "false"
        sent = self.emit("SHUTDOWN", f'{{"guest": {guest}, "reason": "{reason}"}}')
        if reason == "guest-shutdown":
            flags = posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND
            notes = posix.open(sys.path[0] + "/sent", flags, 0o600)
            posix.write(notes, f"{self.vm_id} {sent}\n".encode())
        posix._exit(0)


def main():
    if "-uuid" not in sys.argv:
        # Somebody asks for the version, or probes for KVM.
        sys.exit(1)
    program = Program(sys.argv)
    _signal.signal(_signal.SIGTERM, lambda *_: program.shut_down("host-signal"))
    _signal.signal(_signal.SIGUSR1, lambda *_: program.shut_down("guest-shutdown"))
    program.run()
