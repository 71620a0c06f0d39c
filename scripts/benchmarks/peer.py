"""The fake QEMU of the benchmarks: a thousand of it are VMs whose agents answer.

From ``cont`` on it is the VM's agent as well: it answers every gRPC call at the forwarded port with
one fixed RunResponse. Both in one process, so that the port goes with it, as QEMU's does. SIGUSR1
has it power off and note the moment in a file: ``<id> <microseconds since the epoch>``.

Like `FakeQemu` it runs under ``python -ISE`` and imports built-in modules only.

Sources: RFC 9113 (HTTP/2), RFC 7541 (HPACK).
"""

import _signal
import _socket
import posix
import sys

from tests.support.fake_qemu import Connection, FakeQemu, Listener, answer_trial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: What a gRPC client sends before its first frame.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 4, 6, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """An HTTP/2 frame."""
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
    return head + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header field that no table need remember, with a name of its own."""
    return b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value


#: Windows so large that nobody waits for more: SETTINGS_INITIAL_WINDOW_SIZE, and the connection's.
_HELLO = frame(_SETTINGS, 0, 0, b"\0\4\x40\0\0\0") + frame(_WINDOW_UPDATE, 0, 0, b"\x3f\0\0\0")
#: ``:status: 200`` is the static table's number 8.
_RESPONSE = b"\x88" + literal(b"content-type", b"application/grpc")
_TRAILERS = literal(b"grpc-status", b"0")
#: Not compressed, four bytes long: RunResponse with Computation (field 1) "ok".
_MESSAGE = b"\0\0\0\0\4\x0a\x02ok"


class Grpc(Connection):
    """One connection to the agent."""

    def __init__(self, program: FakeQemu, connection: _socket.socket) -> None:
        super().__init__(program, connection)
        self._buffer = b""
        self._greeted = False

    def hear(self, data: bytes) -> None:
        self._buffer += data
        if not self._greeted and len(self._buffer) >= len(_PREFACE):
            self._buffer = self._buffer[len(_PREFACE) :]
            self._greeted = True
            self.send(_HELLO)
        while self._greeted and self._take_frame():
            pass

    def _take_frame(self) -> bool:
        """Answer the next frame. Whether it was there as a whole."""
        end = 9 + int.from_bytes(self._buffer[:3], "big")
        if len(self._buffer) < max(end, 9):
            return False
        kind, flags = self._buffer[3], self._buffer[4]
        stream = int.from_bytes(self._buffer[5:9], "big")
        payload, self._buffer = self._buffer[9:end], self._buffer[end:]
        if kind in (_SETTINGS, _PING) and not flags & _ACK:
            self.send(frame(kind, _ACK, 0, payload if kind == _PING else b""))
        elif kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            self.send(
                frame(_HEADERS, _END_HEADERS, stream, _RESPONSE)
                + frame(_DATA, 0, stream, _MESSAGE)
                + frame(_HEADERS, _END_HEADERS | _END_STREAM, stream, _TRAILERS)
            )
        return True


class Peer(FakeQemu):
    """One run of the program."""

    def __init__(self, argv: "list[str]", notes: str) -> None:
        super().__init__(argv)
        self._notes = notes
        self._has_agent = False

    def signals(self) -> "dict[int, Callable[[], None]]":
        return {**super().signals(), _signal.SIGUSR1: self.press_power_button}

    def start_agent(self) -> None:
        port = self.host_port(7002)
        if not port or self._has_agent:
            return
        self._has_agent = True
        listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(16)
        Listener(self, listener, Grpc)

    def emit(self, event: str, data: object = None) -> int:
        moment = super().emit(event, data)
        if event == "SHUTDOWN" and data == {"guest": True, "reason": "guest-shutdown"}:
            notes = posix.open(self._notes, posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND, 0o600)
            posix.write(notes, f"{self.vm_id} {moment}\n".encode())
            posix.close(notes)
        return moment


def main(notes: str) -> None:
    """Run as QEMU would with this program's arguments.

    :param notes: the file of power-offs
    """
    if "stdio" in sys.argv:
        answer_trial(Peer.version)
        return
    if "-uuid" not in sys.argv:
        sys.exit(1)  # the probe for KVM
    Peer(sys.argv, notes).run()
