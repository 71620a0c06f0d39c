"""A file as the body of an answer, opened before the answer begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import trio
from quart.wrappers.response import ResponseBody
from werkzeug.exceptions import RequestedRangeNotSatisfiable

if TYPE_CHECKING:
    from types import TracebackType
    from typing import BinaryIO

    Traceback = TracebackType | None

_PIECE = 2**18


class OpenFile(ResponseBody):
    """Of Quart, for ``Response.make_conditional``. quart-trio's own opens a file by its name, when
    the headers are sent, and knows no ranges beyond the end and none from the end (RFC 9110, 14.1).

    :param file: is closed with the answer
    :param size: in bytes
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.size = size
        self.begin, self.end = 0, size
        self._left = size

    async def __aenter__(self) -> Self:
        self._left = self.end - self.begin
        await trio.to_thread.run_sync(self._file.seek, self.begin)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: Traceback
    ) -> None:
        self.close()

    def close(self) -> None:
        """To be called if nobody reads it."""
        self._file.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        piece = await trio.to_thread.run_sync(self._file.read, min(_PIECE, self._left))
        if not piece:
            raise StopAsyncIteration
        self._left -= len(piece)
        return piece

    async def make_conditional(self, begin: int, end: int | None) -> int:
        """Keep to a part. The size of the whole.

        :param begin: from the end, if it is negative
        :param end: the first byte that is not wanted any more
        :raises RequestedRangeNotSatisfiable: if nothing of it is there
        """
        if begin >= self.size:
            raise RequestedRangeNotSatisfiable(self.size)
        self.begin = max(0, self.size + begin) if begin < 0 else begin
        self.end = self.size if end is None else min(end, self.size)
        return self.size
