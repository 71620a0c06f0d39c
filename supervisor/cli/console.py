"""``console``: the terminal is the guest's, until Ctrl-]."""

from __future__ import annotations

import json
import os
import sys
import termios
import threading
import tty
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
import httpx
import httpx_ws

from supervisor.cli.client import find, one_vm, uses_supervisor
from supervisor.cli.environment import CommandFailed
from supervisor.cli.output import stderr
from supervisor.client import Refused, Unreachable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from supervisor.client import Client

#: Ctrl-], as of telnet and `virsh console`.
_ESCAPE = b"\x1d"
_MOST_KEYS = 1024


@click.command()
@one_vm
@click.option("--read-only", is_flag=True, help="Type nothing.")
@uses_supervisor
def console(client: Client, vm_id: str, read_only: bool) -> None:
    """Connect this terminal to a VM's serial console. Ctrl-] ends the command.

    Many may look at a console, and one types: who opened it last. What the guest prints reaches the
    terminal as it is, and may act on it, as with any console: see logs for a guest that you do not
    trust.
    """
    if not read_only and not sys.stdin.isatty():
        raise click.UsageError("standard input is no terminal: say --read-only, or see logs")
    found = find(client, vm_id)
    with _opened(client, f"/vms/{found}/console") as socket:
        if read_only:
            _print(socket)
            return
        stderr().print(f"connected to VM {found}; Ctrl-] ends this command")
        socket.send_text(json.dumps({"write": True}))
        printer = threading.Thread(target=_print_until_closed, args=(socket,), daemon=True)
        with _raw():
            printer.start()
            _type(socket, printer)
    stderr().print("\r\ndisconnected")


@contextmanager
def _opened(client: Client, path: str) -> Iterator[httpx_ws.WebSocketSession]:
    # While it can be read: httpx-ws closes what is no WebSocket.
    client.http.event_hooks["response"] = [_read_refusal]
    try:
        socket: httpx_ws.WebSocketSession
        with httpx_ws.connect_ws(path, client.http) as socket:
            yield socket
    except httpx_ws.WebSocketUpgradeError as error:
        raise Refused(error.response) from error
    except httpx.HTTPError as error:
        raise Unreachable(f"{client.url}: {error}") from error


def _read_refusal(response: httpx.Response) -> None:
    if response.is_error:
        response.read()


def _type(socket: httpx_ws.WebSocketSession, printer: threading.Thread) -> None:
    """Send what is typed, until the escape key, or the other side's end."""
    while printer.is_alive():
        keys = os.read(sys.stdin.fileno(), _MOST_KEYS)
        if not keys or _ESCAPE in keys:
            return
        try:
            socket.send_bytes(keys)
        except httpx_ws.HTTPXWSException:
            return


def _print_until_closed(socket: httpx_ws.WebSocketSession) -> None:
    try:
        _print(socket)
    except CommandFailed as error:
        stderr().print(f"\r\n{error.format_message()}\r", soft_wrap=True)
    finally:
        # Who waits for a key notices.
        stderr().print("\r\npress a key\r")


def _print(socket: httpx_ws.WebSocketSession) -> None:
    """:raises CommandFailed: with the server's reason, if it is not the VM's end"""
    typed = False
    while True:
        try:
            message = socket.receive()
        except httpx_ws.WebSocketDisconnect as error:
            if error.code != 1000:
                raise CommandFailed(error.reason or "the supervisor is gone") from error
            return
        except httpx_ws.WebSocketNetworkError as error:
            raise CommandFailed("the supervisor is gone") from error
        data = getattr(message, "data", b"")
        if isinstance(data, (bytes, bytearray)):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        elif data:
            state = json.loads(data)
            if typed and not state["you"]:
                who = state["writer"] or "nobody"
                stderr().print(f"\r\n{who} types now; open the console again to type\r")
            typed = state["you"]


@contextmanager
def _raw() -> Iterator[None]:
    """Each key goes to the guest as it is, Ctrl-C too."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
