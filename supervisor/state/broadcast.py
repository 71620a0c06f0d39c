"""One sender and many readers. A slow reader is cut off, so that it cannot slow the sender."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")


class Broadcast(Generic[T]):
    """Every subscriber gets every value sent after it subscribed.

    A subscriber that falls ``buffer`` values behind is cut off: its channel ends early.
    """

    def __init__(self, buffer: int) -> None:
        self._buffer = buffer
        self._channels: set[trio.MemorySendChannel[T]] = set()

    @property
    def subscribers(self) -> int:
        """The number of subscribers now."""
        return len(self._channels)

    def send(self, value: T) -> None:
        for channel in tuple(self._channels):
            try:
                channel.send_nowait(value)
            except trio.WouldBlock:
                self._channels.discard(channel)
                channel.close()

    def close(self) -> None:
        """End every channel. Values that were sent can still be received."""
        for channel in self._channels:
            channel.close()
        self._channels.clear()

    @contextmanager
    def subscribe(self) -> Iterator[trio.MemoryReceiveChannel[T]]:
        """Subscribe until the context ends. Yields the channel to read from."""
        send, receive = trio.open_memory_channel[T](self._buffer)
        self._channels.add(send)
        try:
            with send, receive:
                yield receive
        finally:
            self._channels.discard(send)
