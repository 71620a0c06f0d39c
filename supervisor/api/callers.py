"""The caller of the request that is being served, on either wire, and what the caller may.

Each wire finds out who calls before anything else and calls `serving`. Below, `current` says it.
Each handler `needs` a right; its wire calls `check` with that right before the handler.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from supervisor.api import trace
from supervisor.api.rates import Who
from supervisor.caller import Caller, Right, roles_with
from supervisor.errors import Forbidden, SupervisorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Handler = TypeVar("Handler", bound="Callable[..., object]")

#: An error if nobody is known to call.
_caller: ContextVar[Caller | SupervisorError] = ContextVar("caller")


def current() -> Caller:
    """:raises SupervisorError: if nobody is known to call; also outside of a request, because
    nothing may run in the name of nobody
    """
    caller = _caller.get(None)
    if caller is None:
        raise SupervisorError("bug: a request is served without a caller")
    if isinstance(caller, SupervisorError):
        raise caller
    return caller


def is_known() -> bool:
    """Whether somebody is known to call."""
    return isinstance(_caller.get(None), Caller)


@contextmanager
def serving(caller: Caller | SupervisorError) -> Iterator[None]:
    """:param caller: or why nobody is known to call, which `current` then raises"""
    token = _caller.set(caller)
    try:
        yield
    finally:
        _caller.reset(token)


def who() -> Who:
    """Whose share of the limits the present request takes: its caller's, else its address's."""
    try:
        name = current().name
    except SupervisorError:
        name = ""
    return Who(name, known=True) if name else Who.at(trace.present().peer)


def needs(right: Right | None) -> Callable[[Handler], Handler]:
    """Declare what a handler's caller needs; None: nothing."""

    def declare(handler: Handler) -> Handler:
        handler.right = right  # type: ignore[attr-defined]
        return handler

    return declare


def right_of(handler: Callable[..., object]) -> Right | None:
    """What `needs` declared.

    :raises SupervisorError: if a handler was written without saying who may call it
    """
    try:
        right: Right | None = handler.right  # type: ignore[attr-defined]
    except AttributeError:
        name = getattr(handler, "__qualname__", handler)
        raise SupervisorError(f"bug: the handler {name} declares no right") from None
    return right


def check(right: Right | None) -> None:
    """Nobody needs to be known for None.

    :raises Unauthenticated: if nobody is known to call
    :raises Forbidden: if the present caller's role lacks the right
    """
    if right is None:
        return
    caller = current()
    if not caller.may(right):
        raise Forbidden(caller.role, right, roles_with(right))
