"""The table."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.attack.kinds import Row

_LONGEST = 100


def text(rows: Sequence[Row], took_s: float) -> str:
    """Every attack with what came of it, and the sums."""
    head = ("from", "attack", "met", "audit line")
    lines = [head, *((str(row.attack.origin), row.attack.what, *_came(row)) for row in rows)]
    held = sum(row.held is True for row in rows)
    through = sum(row.held is False for row in rows)
    idle = len(rows) - held - through
    sums = f"{held} refused, {through} not refused, {idle} not run"
    lines.append((f"{len(rows)}", sums, f"{took_s:.0f} s", ""))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _came(row: Row) -> tuple[str, str]:
    mark = "" if row.held is not False else "!! "
    return f"{mark}{row.met}"[:_LONGEST], row.audit[:_LONGEST]
