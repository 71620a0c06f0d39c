"""How results are shown: tables for people, JSON for programs."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.text import Text

from supervisor.guest_text import clean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.status import Status

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

#: Without a screen there is no width to keep, and no line should be cut.
_PIPE_WIDTH = 10_000


class _Console(Console):
    """Shows each text, a table's cells as well, as `shown` has it."""

    def render_str(self, text: str, **options: Any) -> Text:
        """What rich calls for every text that it gets."""
        return super().render_str(shown(text, err=self.stderr), **options)


def stdout() -> Console:
    """For results. A pipe gets plain text, and no line is wrapped."""
    return _console(stderr=False)


def stderr() -> Console:
    """For progress and remarks, which a person reads and a pipe does not get."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    # Ids, paths and what a stranger wrote are not markup or emoji, and numbers need no colours.
    return _Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


def update(status: Status, text: str) -> None:
    """Have a status, of `stderr`, show a text. By itself it would take the text for markup."""
    status.update(Text(shown(text, err=True)))


def shown(text: str, *, err: bool = False, lines: bool = True) -> str:
    """The text as standard output, or standard error, may have it.

    A guest may have written parts of it. A terminal must not get them as they are: control
    sequences would act on it. A pipe gets every byte.

    :param lines: whether it may be more than one line
    """
    stream = sys.stderr if err else sys.stdout
    return clean(text, sys.maxsize, lines=lines) if stream.isatty() else text


def echo(text: str, *, err: bool = False, lines: bool = True) -> None:
    """Print a text of which a guest may have written parts."""
    text = shown(text, err=err, lines=lines)
    click.echo(text, err=err, color=True)  # else click takes from a pipe's bytes


def print_json(value: Any) -> None:
    """One document on standard output."""
    echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_reply(reply: str) -> None:
    """An agent's answer, byte for byte. On a terminal, JSON gets indentation and colours."""
    console = stdout()
    if console.is_terminal:
        with contextlib.suppress(ValueError):
            # Parsed first: what is escaped in JSON is not when rich has printed it.
            console.print_json(shown(json.dumps(json.loads(reply), ensure_ascii=False)))
            return
    echo(reply)


def print_piece(text: str) -> None:
    """A part of a log, as `echo` has it, without a line end of its own.

    :param text: with bytes that are no text as surrogates
    """
    if sys.stdout.isatty():
        text = text.encode(errors="surrogateescape").decode(errors="replace")
        click.echo(shown(text), nl=False, color=True)
    else:
        sys.stdout.buffer.write(text.encode(errors="surrogateescape"))
        sys.stdout.buffer.flush()


def duration(seconds: float | None) -> str:
    """``5.2s``, ``3m 20s``, ``2h 5m`` or ``4d 1h``; ``-`` for None."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h {minutes}m"
    days, hours = divmod(hours, 24)
    return f"{days}d {hours}h"


def forward(one: Mapping[str, object]) -> str:
    """``127.0.0.1:7020 -> guest 7002``"""
    return f"{one['host_address']}:{one['host_port']} -> guest {one['guest_port']}"
