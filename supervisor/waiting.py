"""One thing, unless another happens first."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")
Args = TypeVarTuple("Args")


class CutShort(Exception):
    """What was raced against happened first."""


async def unless(
    ending: Callable[[], Awaitable[object]], fn: Callable[[*Args], Awaitable[T]], *args: *Args
) -> T:
    """What ``fn`` returns or raises, unless ``ending()`` returns first: then it is cancelled.

    Unlike a bare nursery it does not wrap what ``fn`` raises into a group.

    :raises CutShort: if ``ending()`` was first
    """
    results: list[T] = []
    errors: list[Exception] = []

    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            await ending()
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        try:
            results.append(await fn(*args))
        except Exception as error:
            errors.append(error)
        nursery.cancel_scope.cancel()
    if errors:
        raise errors[0]
    if not results:
        raise CutShort
    return results[0]
