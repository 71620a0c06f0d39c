"""Text that a guest wrote, made safe to show: its console, its agent's words, its QEMU's log. Pure.

All such text passes through `clean` before a log, an error, an event or a terminal gets it.
"""

from __future__ import annotations

import re

#: A terminal's control strings and control sequences, in 7 and in 8 bits: ECMA-48, 5.3 to 5.6.
#: xterm ends a control string at BEL, too. An introducer without an end is an unprintable character
#: like any other. No alternative reads past the next introducer: else a text of introducers alone
#: would take a time that grows with the square of its length.
_ESCAPES = re.compile(
    r"(?:\x1b[PX\]^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|\x1b[ -/]*[0-~]"
)

#: What `str.splitlines` knows, with the two characters of Windows as one.
_LINE_END = re.compile("\r\n|[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")

#: Stands for what is cut off.
_CUT = "…"


def clean(text: str, limit_bytes: int, *, lines: bool = False) -> str:
    """What a person can read of ``text``, on one line.

    Control sequences go with their parameters. Characters that cannot be seen, such as those that
    change the direction of writing, go as well. A tab or a line end becomes a space.

    :param limit_bytes: the most bytes of the result as UTF-8; a longer text ends with ``…``
    :param lines: whether line ends and tabs stay; a carriage return is a line end
    """
    parts = _LINE_END.split(_ESCAPES.sub("", text))
    shown = [_printable(part.replace("\t", "\t" if lines else " ")) for part in parts]
    return _cut("\n".join(shown) if lines else " ".join(shown).strip(), limit_bytes)


def last_lines(text: str, count: int, limit_bytes: int) -> list[str]:
    """The last lines of ``text`` that have something to read, each made `clean`.

    :param count: how many lines at most
    :param limit_bytes: of one line
    """
    shown = (clean(line, limit_bytes) for line in _LINE_END.split(_ESCAPES.sub("", text)))
    return [line for line in shown if line][-count:]


def _printable(line: str) -> str:
    return line if line.isprintable() else "".join(c for c in line if c.isprintable() or c == "\t")


def _cut(text: str, limit_bytes: int) -> str:
    encoded = text.encode()
    if len(encoded) <= limit_bytes:
        return text
    kept = encoded[: max(0, limit_bytes - len(_CUT.encode()))]
    return kept.decode(errors="ignore") + _CUT
