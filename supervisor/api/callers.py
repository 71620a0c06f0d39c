"""The caller of the request that is being served, on either wire, and what the caller may.

Each wire finds out who calls before anything else and calls `serving`. Below, `current` says it.
Each handler `needs` a right; its wire calls `check` with that right before the handler.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from supervisor.caller import Caller, Right, roles_with
from supervisor.errors import Forbidden, SupervisorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Handler = TypeVar("Handler", bound="Callable[..., object]")

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
    """:raises Forbidden: if the present caller's role lacks the right"""
    caller = current()
    if right is not None and not caller.may(right):
        raise Forbidden(caller.role, right, roles_with(right))
