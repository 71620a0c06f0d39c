"""The caller of the request that is being served, on either wire.

Each wire finds out who calls before anything else and calls `serving`. Below, `current` says it.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from supervisor.caller import Caller
from supervisor.errors import SupervisorError

if TYPE_CHECKING:
    from collections.abc import Iterator

_caller: ContextVar[Caller] = ContextVar("caller")


def current() -> Caller:
    """:raises SupervisorError: outside of a request: nothing may run in the name of nobody"""
    caller = _caller.get(None)
    if caller is None:
        raise SupervisorError("bug: a request is served without a caller")
    return caller


@contextmanager
def serving(caller: Caller) -> Iterator[None]:
    token = _caller.set(caller)
    try:
        yield
    finally:
        _caller.reset(token)
