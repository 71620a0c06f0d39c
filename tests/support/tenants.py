"""Requests in the name of somebody: who asks is what the test says, whatever a wire found out."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from supervisor.api import callers
from supervisor.caller import Caller, KnownBy, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextvars import ContextVar, Token

    import pytest

    from supervisor.errors import SupervisorError


def answer(found: Caller | SupervisorError) -> Caller:
    """As a wire finds out who calls."""
    if isinstance(found, Caller):
        return found
    raise found


def party(name: str, role: Role = Role.RUN) -> Caller:
    return Caller(name, role, KnownBy.TOKEN)


ALICE, BOB = party("alice"), party("bob")
OPERATOR = party("olivia", Role.OPERATE)


class Asking:
    """In the place of the variable that a wire sets when a request begins."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._as: Caller | None = None
        self._variable: ContextVar[Caller | SupervisorError] = callers._caller
        self.get, self.reset = self._variable.get, self._variable.reset
        monkeypatch.setattr(callers, "_caller", self)
        again = callers._ask
        asked = SimpleNamespace(get=again.get, reset=again.reset, set=partial(self._ask, again))
        monkeypatch.setattr(callers, "_ask", asked)

    def _ask(self, variable: ContextVar[Any], ask: Callable[[], Caller]) -> Token[Any]:
        """In the place of the question that an answer without an end asks again."""
        caller = self._as
        return variable.set(lambda: caller or ask())

    def set(self, found: Caller | SupervisorError) -> Token[Caller | SupervisorError]:
        return self._variable.set(self._as or found)

    @contextmanager
    def __call__(self, caller: Caller) -> Iterator[None]:
        """Requests that begin meanwhile are this caller's."""
        before, self._as = self._as, caller
        try:
            yield
        finally:
            self._as = before


def first_of(stream: Callable[..., Any]) -> Callable[..., Any]:
    """A call whose answer is a stream, as a call that is answered by the first message."""
    return lambda request, **options: next(stream(request, **options))
