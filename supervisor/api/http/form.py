"""The parts of a body of multipart/form-data, one after another while they arrive (RFC 7578)."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from supervisor.errors import InvalidRequest, TooLarge

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from werkzeug.sansio.multipart import Event

    from supervisor.api.http.bodies import Incoming

#: What the decoder keeps: a part of the content that may be the boundary, or a part's headers.
_HELD = 256 * 1024
_MOST_PARTS = 80


class Form:
    """For one reader: `next` for each part, then at most one of the others for its content.

    :raises InvalidRequest: while it is read, if it is no form
    """

    def __init__(self, body: Incoming, boundary: str) -> None:
        self._body = body
        self._decoder = MultipartDecoder(boundary.encode(), _HELD, max_parts=_MOST_PARTS)
        self._inside = False

    async def next(self) -> str | None:
        """The name of the next part; what is left of the one before is skipped. None at the end."""
        while True:
            event = await self._event()
            if isinstance(event, Field | File):
                self._inside = True
                return event.name or ""
            if isinstance(event, Epilogue):
                return None

    async def content(self) -> AsyncGenerator[bytes, None]:
        """Of the present part, as it arrives."""
        while self._inside:
            event = await self._event()
            if isinstance(event, Data):
                self._inside = event.more_data
                if event.data:
                    yield event.data

    async def collect(self, most: int) -> bytes:
        """All of the present part.

        :raises TooLarge: if it is longer than so many bytes
        """
        found = bytearray()
        async with aclosing(self.content()) as content:
            async for piece in content:
                found += piece
                if len(found) > most:
                    raise TooLarge(f"a part of the form is longer than {most} bytes")
        return bytes(found)

    async def _event(self) -> Event:
        try:
            while isinstance(event := self._decoder.next_event(), NeedData):
                self._decoder.receive_data(await anext(self._body, None))
        except RequestEntityTooLarge:
            raise TooLarge(
                "the form has too many parts, or a part's headers are too long"
            ) from None
        except ValueError as error:
            raise InvalidRequest(f"the body is no form: {error}") from None
        return event
