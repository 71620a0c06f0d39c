"""Who waits, and who is next: owners take turns, and each owner's own come in their order. Pure.

However many of one owner's wait, another owner's first waits behind one of them.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")


class FairQueue(Generic[T]):
    """A queue of queues. The owner whose turn is next comes first."""

    def __init__(self) -> None:
        #: No queue is empty.
        self._of: dict[str, deque[T]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def __iter__(self) -> Iterator[T]:
        for mine in self._of.values():
            yield from mine

    def append(self, owner: str, one: T) -> None:
        """An owner of whom nothing waited has the last turn."""
        self._of.setdefault(owner, deque()).append(one)

    @property
    def head(self) -> T:
        """:raises StopIteration: if nothing waits"""
        return next(iter(self))

    def pop(self) -> T:
        """Take the head. Its owner has the last turn then."""
        owner = next(iter(self._of))
        mine = self._of.pop(owner)
        one = mine.popleft()
        if mine:
            self._of[owner] = mine
        return one

    def remove(self, owner: str, one: T) -> bool:
        """Whether it waited. The turns of the owners stay as they were."""
        mine = self._of.get(owner, deque())
        if one not in mine:
            return False
        mine.remove(one)
        if not mine:
            del self._of[owner]
        return True

    def is_crowded_by_another(self, owner: str) -> bool:
        """Whether *owner* would still have fewer than another if it had one more."""
        return len(self._most()) > len(self._of.get(owner, ())) + 1

    def drop_from_most(self) -> T:
        """Take the newest of the owner who has the most."""
        most = self._most()
        assert len(most) > 1, "only from an owner who keeps one"
        return most.pop()

    def _most(self) -> deque[T]:
        return max(self._of.values(), key=len, default=deque())

    def clear(self) -> None:
        self._of.clear()
