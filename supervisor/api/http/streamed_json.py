"""A JSON body whose one large member is decoded while the body arrives. Pure.

A computation of 16 MiB is up to 80 MiB of JSON. As Python's numbers it would take hundreds of
megabytes. So the member ``computation`` is decoded piece by piece: what is kept of a body is the
computation's bytes so far, the piece at hand and the text around it, which is short in every
request. A streaming parser from a library gives one event a number, which takes six times as long.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any, NoReturn, Protocol

from supervisor.config import MAX_COMPUTATION
from supervisor.errors import InvalidRequest, TooLarge

#: Bytes that are decoded at a time. The interpreter does nothing else meanwhile.
PIECE = 32 * 1024
#: The longest text of a body without its computation.
_LONGEST_TEXT = 64 * 1024
#: The longest text of one number, and of one escaped character of a string.
_LONGEST_NUMBER, _LONGEST_ESCAPE = 64, 6
_LONGEST_SHOWN = 40

#: Strings before it in a request have no quotes in them, so this is no part of one. In a body in
#: which it is, that string is wrong anyway.
_MEMBER = re.compile(rb'"computation"\s*:\s*(["\[])')
_NO_NUMBER = re.compile(rb"[^0-9, \t\r\n]")


def not_json(why: object) -> InvalidRequest:
    return InvalidRequest(f"the body is not JSON: {why}")


class Body:
    """:raises InvalidRequest: while it is fed, or at the end, if it is not a JSON object;
    TooLarge if the computation, or the rest, is over its limit
    """

    def __init__(self) -> None:
        self._text = b""
        self._computation: _Decoder | None = None
        self._inside = False

    def feed(self, part: bytes) -> None:
        """:param part: at most `PIECE` bytes; longer ones hold the interpreter for long"""
        if self._inside and self._computation:
            rest = self._computation.feed(part)
            if rest is None:
                return
            self._inside, part = False, rest
        self._text += part
        if not self._computation and (found := _MEMBER.search(self._text)):
            self._computation = _Numbers() if found[1] == b"[" else _Base64()
            rest, self._inside = self._text[found.end() :], True
            self._text = self._text[: found.start(1)] + b"null"
            self.feed(rest)
        if len(self._text) > _LONGEST_TEXT:
            raise TooLarge(f"the body has more than {_LONGEST_TEXT} bytes beside its computation")

    def finish(self) -> dict[str, Any]:
        """The members; ``computation`` is bytes."""
        if self._inside:
            raise not_json("it ends within the computation")
        try:
            value = json.loads(self._text, object_pairs_hook=_members)
        except (ValueError, RecursionError) as error:
            raise not_json(error) from None
        if not isinstance(value, dict):
            raise InvalidRequest("the body must be a JSON object")
        if self._computation and "computation" in value:
            value["computation"] = bytes(self._computation.decoded)
        return value


def decoded(value: str | list[object]) -> bytes:
    """A computation that was not fed as such, for example because its name has escapes in it.

    :raises InvalidRequest:
    """
    decoder = _Numbers() if isinstance(value, list) else _Base64()
    decoder.feed(json.dumps(value).encode()[1:])
    return bytes(decoder.decoded)


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two members of one name mean different things to different readers."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InvalidRequest(f"{name[:64]!r} is there twice", member=name[:64])
        found[name] = value
    return found


class _Decoder(Protocol):
    decoded: bytearray

    def feed(self, part: bytes) -> bytes | None:
        """What follows the computation; None until its end has come."""


class _Numbers:
    """An array of numbers, after its bracket."""

    def __init__(self) -> None:
        self.decoded = bytearray()
        self._pending = b""

    def feed(self, part: bytes) -> bytes | None:
        pending = self._pending + part
        if found := _NO_NUMBER.search(pending):
            before, after = pending[: found.start()], pending[found.start() :]
            if after[:1] != b"]":
                self._refuse(before, after)
            if before.strip() or self.decoded:
                self._take(before)
            return after[1:]
        piece, comma, pending = pending.rpartition(b",")
        if comma:
            self._take(piece)
        if len(pending) > _LONGEST_NUMBER:
            pending = pending.strip() + b" "
            if len(pending) > _LONGEST_NUMBER + 1:
                self._refuse(b"", pending)
        self._pending = pending
        return None

    def _take(self, piece: bytes) -> None:
        """:param piece: numbers with commas between them, at least one"""
        if not piece.strip():
            raise not_json(f"computation[{len(self.decoded)}] is missing")
        try:
            numbers = json.loads(b"[%b]" % piece)
        except ValueError as error:
            raise not_json(f"near computation[{len(self.decoded)}]: {error}") from None
        try:
            self.decoded += bytes(numbers)
        except (ValueError, OverflowError):
            index = next(i for i, number in enumerate(numbers) if number > 255)
            self._fail(len(self.decoded) + index, str(numbers[index]))
        _check_size(self.decoded)

    def _refuse(self, before: bytes, after: bytes) -> NoReturn:
        """:param after: begins with what is no part of an array of numbers"""
        piece, comma, begun = before.rpartition(b",")
        if comma:
            self._take(piece)
        text = (begun + after).strip().decode(errors="replace")
        try:
            value, _ = json.JSONDecoder().raw_decode(text)
        except (ValueError, RecursionError):
            shown = text
        else:
            shown = json.dumps(value)
        self._fail(len(self.decoded), shown)

    def _fail(self, index: int, shown: str) -> NoReturn:
        member = f"computation[{index}]"
        shown = shown[:_LONGEST_SHOWN]
        raise InvalidRequest(f"{member} is {shown}, not a number from 0 to 255", member=member)


class _Base64:
    """A string, after its quotation mark."""

    def __init__(self) -> None:
        self.decoded = bytearray()
        self._pending = b""
        self._characters = b""
        self._padded = False

    def feed(self, part: bytes) -> bytes | None:
        piece, end, rest = (self._pending + part).partition(b'"')
        self._pending = b""
        if not end and (escape := piece.rfind(b"\\", -_LONGEST_ESCAPE)) >= 0:
            piece, self._pending = piece[:escape], piece[escape:]
        try:
            piece = json.loads(b'"%b"' % piece).encode()
        except ValueError as error:
            raise not_json(f"in computation: {error}") from None
        # Go's decoder, and so the original, accepts base64 in lines.
        self._take(self._characters + piece.translate(None, b"\r\n"), last=bool(end))
        return rest if end else None

    def _take(self, characters: bytes, *, last: bool) -> None:
        whole = len(characters) if last else len(characters) // 4 * 4
        characters, self._characters = characters[:whole], characters[whole:]
        try:
            if characters and self._padded:
                raise binascii.Error("data after the padding")
            self.decoded += base64.b64decode(characters, validate=True)
        except ValueError as error:
            detail = f"computation is not base64: {error}"
            raise InvalidRequest(detail, member="computation") from None
        self._padded = self._padded or characters.endswith(b"=")
        _check_size(self.decoded)


def _check_size(decoded: bytearray) -> None:
    if len(decoded) > MAX_COMPUTATION:
        raise TooLarge(
            f"computation is over the limit of {MAX_COMPUTATION} bytes", member="computation"
        )
