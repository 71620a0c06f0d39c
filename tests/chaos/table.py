"""The table."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.chaos.kinds import Row

_OUTCOMES = 4


#: Columns of figures: heads, and the members of a row.
_FIGURES = {
    "times": "injected",
    "not held": "lost",
    "processes": "processes",
    "ports": "ports",
    "files": "files",
}


def text(rows: Sequence[Row], took_s: float, seed: int) -> str:
    """Every kind with its figures, and the sums."""
    return _text(rows, _FIGURES, "what became of the VMs", f"seed {seed}, {took_s:.0f} s")


def fleet_text(rows: Sequence[Row], took_s: float) -> str:
    """The same for a fleet, where what is left counts as not held."""
    figures = {"times": "injected", "not held": "lost"}
    return _text(rows, figures, "what callers were told", f"{took_s:.0f} s")


def _text(rows: Sequence[Row], figures: dict[str, str], outcomes: str, last: str) -> str:
    lines = [("fault", *figures, outcomes), *(_cells(row, figures) for row in rows)]
    totals = [sum(getattr(row, name) for row in rows) for name in figures.values()]
    lines.append((f"{len(rows)} kinds", *map(str, totals), last))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if 0 < column <= len(figures) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cells(row: Row, figures: dict[str, str]) -> tuple[str, ...]:
    outcomes = [f"{state} {count}" for state, count in row.states.most_common(_OUTCOMES)]
    numbers = [str(getattr(row, name)) for name in figures.values()]
    return (row.name, *numbers, ", ".join(outcomes))
