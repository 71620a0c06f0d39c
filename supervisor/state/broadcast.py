"""One sender and many readers. A slow reader is cut off, so that it cannot slow the sender."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")


def everything(_: object) -> bool:
    """What a reader wants who wants all."""
    return True


class Broadcast(Generic[T]):
    """Every subscriber gets every value that it wants of those sent after it subscribed.

    A subscriber that falls ``buffer`` such values behind is cut off: its channel ends early.
    """

    def __init__(self, buffer: int) -> None:
        self._buffer = buffer
        self._channels: dict[trio.MemorySendChannel[T], Callable[[T], bool]] = {}

    @property
    def subscribers(self) -> int:
        """The number of subscribers now."""
        return len(self._channels)

    def send(self, value: T) -> None:
        for channel, wants in tuple(self._channels.items()):
            try:
                if wants(value):
                    channel.send_nowait(value)
            except trio.WouldBlock:
                del self._channels[channel]
                channel.close()

    def close(self) -> None:
        """End every channel. Values that were sent can still be received."""
        for channel in self._channels:
            channel.close()
        self._channels.clear()

    @contextmanager
    def subscribe(
        self, wants: Callable[[T], bool] = everything
    ) -> Iterator[trio.MemoryReceiveChannel[T]]:
        """Subscribe until the context ends. Yields the channel to read from.

        What a subscriber does not want neither wakes it nor brings it nearer to being cut off:
        it cannot notice that there was something.
        """
        send, receive = trio.open_memory_channel[T](self._buffer)
        self._channels[send] = wants
        try:
            with send, receive:
                yield receive
        finally:
            self._channels.pop(send, None)
