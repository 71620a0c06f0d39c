"""The line to the host, at the guest's end. A socket stands in for the port of virtio's."""

from __future__ import annotations

import os
import select
import selectors
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from supervisor.agent.reference import line
from supervisor.agent.reference.line import Line
from tests.unit.test_line import framed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def shouted(message: bytes) -> tuple[bytes, bool]:
    """One that begins with a question mark is a rehearsal."""
    return message.upper(), message.startswith(b"?")


class Port:
    """A line, and the host's end of it."""

    def __init__(self) -> None:
        self.host, guest = socket.socketpair()
        guest.setblocking(False)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(os, "open", lambda *_: guest.detach())
            self.line = Line(shouted, "port")
        self.events = selectors.EVENT_READ

    def handle_all(self) -> int:
        """What is waited for when no more is to be done now."""
        poll = select.poll()
        while self.events:
            reads = self.events == selectors.EVENT_READ
            poll.register(self.line, select.POLLIN if reads else select.POLLOUT)
            if not poll.poll(0):
                break
            self.events = self.line.handle()
        return self.events


@pytest.fixture
def port() -> Iterator[Port]:
    made = Port()
    yield made
    made.line.close()
    made.host.close()


def test_one_message_is_answered_and_the_line_is_done(port: Port) -> None:
    message = framed(b"hello")
    port.host.sendall(message[:3])
    assert port.handle_all() == selectors.EVENT_READ
    port.host.sendall(message[3:])
    assert port.handle_all() == 0
    assert port.host.recv(100) == framed(b"HELLO")


def test_after_a_rehearsal_there_is_another_message(port: Port) -> None:
    port.host.sendall(framed(b"?a"))
    assert port.handle_all() == selectors.EVENT_READ
    assert port.host.recv(100) == framed(b"?A")
    port.host.sendall(framed(b"b"))
    assert port.handle_all() == 0
    assert port.host.recv(100) == framed(b"B")


def test_after_a_rehearsal_a_host_that_hangs_up_is_not_waited_for(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that would wait serves other clients as well."""
    monkeypatch.setattr(time, "sleep", pytest.fail)
    port.host.sendall(framed(b"?a"))
    assert port.handle_all() == selectors.EVENT_READ
    port.host.shutdown(socket.SHUT_WR)
    assert port.handle_all() == 0


def test_a_host_that_reads_slowly_gets_it_all(port: Port) -> None:
    text = bytes(range(97, 123)) * (line.MAX_BYTES // 26)
    message, answer = framed(text), b""
    port.host.setblocking(False)
    while message:
        message = message[port.host.send(message) :]
        events = port.handle_all()
    assert events == selectors.EVENT_WRITE
    while events:
        with suppress(BlockingIOError):
            answer += port.host.recv(50_000)
        events = port.handle_all()
    port.host.setblocking(True)
    while len(answer) < len(framed(text)):
        answer += port.host.recv(50_000)
    assert answer == framed(text.upper())


def test_a_message_that_is_too_long_ends_it(port: Port) -> None:
    port.host.sendall((line.MAX_BYTES + 1).to_bytes(4, "big"))
    assert port.handle_all() == 0


def test_a_host_that_hangs_up_ends_it(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "PAUSE_S", 0)
    port.host.shutdown(socket.SHUT_WR)
    assert port.handle_all() == 0


def test_a_host_that_is_not_there_yet_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a port without a host, a read says at once that there is nothing, as of an empty file."""
    monkeypatch.setattr(line, "PAUSE_S", 0)
    (tmp_path / "port").touch()
    end = Line(shouted, str(tmp_path / "port"))
    for _ in range(line.PAUSES):
        assert end.handle() == selectors.EVENT_READ
    (tmp_path / "port").write_bytes(framed(b"late")[:4])
    assert end.handle() == selectors.EVENT_READ
    for _ in range(line.PAUSES):
        assert end.handle() == selectors.EVENT_READ
    assert end.handle() == 0
    end.close()


def test_the_port_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "PORTS", str(tmp_path))
    for name, word in (("vport1p1", "another"), ("vport1p2", line.NAME), ("vport1p3", "")):
        (tmp_path / name).mkdir()
        if word:
            (tmp_path / name / "name").write_text(f"{word}\n")
    with pytest.raises(FileNotFoundError, match="/dev/vport1p2"):
        Line(shouted)
    (tmp_path / "vport1p2" / "name").write_text("yet another\n")
    with pytest.raises(FileNotFoundError, match="no port in"):
        Line(shouted)
