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
from supervisor.errors import Forbidden, SupervisorError, Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Handler = TypeVar("Handler", bound="Callable[..., object]")

#: An error if nobody is known to call.
_caller: ContextVar[Caller | SupervisorError] = ContextVar("caller")
_ask: ContextVar[Callable[[], Caller]] = ContextVar("ask")


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


def token_id() -> str:
    """The id of the token that the caller shows, also of one that is not valid any more; empty if
    there is none, or it is not on file.
    """
    found = _caller.get(None)
    return found.token_id if isinstance(found, Caller | Unauthenticated) else ""


def is_known() -> bool:
    """Whether somebody is known to call."""
    return isinstance(_caller.get(None), Caller)


@contextmanager
def serving(ask: Callable[[], Caller]) -> Iterator[None]:
    """:param ask: finds out who calls. If it raises a SupervisorError, so does `current`"""
    found: Caller | SupervisorError
    try:
        found = ask()
    except SupervisorError as error:
        found = error
    caller, asking = _caller.set(found), _ask.set(ask)
    try:
        yield
    finally:
        _ask.reset(asking)
        _caller.reset(caller)


def standing() -> Callable[[], None]:
    """For an answer without an end: a function to call before each part of it.

    It raises Unauthenticated if the caller's token was revoked or has expired, or if the caller is
    another one by now: of another role, or without an entry on file.
    """
    ask = _ask.get()
    first = ask()

    def check_again() -> None:
        if ask() != first:
            raise Unauthenticated("the caller's name or role has changed since the answer began")

    return check_again


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
