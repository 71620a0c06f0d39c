"""How results are shown: tables for people, JSON for programs."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

import click
from rich.console import Console

from supervisor.guest_text import clean

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

#: Without a screen there is no width to keep, and no line should be cut.
_PIPE_WIDTH = 10_000


def stdout() -> Console:
    """For results. A pipe gets plain text, and no line is wrapped."""
    return _console(stderr=False)


def stderr() -> Console:
    """For progress and remarks, which a person reads and a pipe does not get."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    # Ids and paths are not markup, and numbers need no colours.
    return Console(stderr=stderr, width=width, markup=False, highlight=False)


def shown(text: str, *, err: bool = False) -> str:
    """The text as standard output, or standard error, may have it.

    A guest may have written parts of it. A terminal must not get them as they are: control
    sequences would act on it. A pipe gets every byte.
    """
    stream = sys.stderr if err else sys.stdout
    return clean(text, sys.maxsize, lines=True) if stream.isatty() else text


def echo(text: str, *, err: bool = False) -> None:
    """Print a text of which a guest may have written parts."""
    click.echo(shown(text, err=err), err=err, color=True)  # else click takes from a pipe's bytes


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


def forward(one: dict[str, Any]) -> str:
    """``127.0.0.1:7020 -> guest 7002``"""
    return f"{one['host_address']}:{one['host_port']} -> guest {one['guest_port']}"
