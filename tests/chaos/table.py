"""The table."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.chaos.kinds import Row

_OUTCOMES = 4


def text(rows: Sequence[Row], took_s: float, seed: int) -> str:
    """Every kind with its figures, and the sums."""
    head = ("fault", "times", "not held", "processes", "ports", "files", "what became of the VMs")
    lines = [head, *(_cells(row) for row in rows)]
    totals = [
        sum(getattr(row, name) for row in rows)
        for name in ("injected", "lost", "processes", "ports", "files")
    ]
    lines.append((f"{len(rows)} kinds", *map(str, totals), f"seed {seed}, {took_s:.0f} s"))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (0, 6) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cells(row: Row) -> tuple[str, ...]:
    outcomes = [f"{state} {count}" for state, count in row.states.most_common(_OUTCOMES)]
    return (row.name, *map(str, _numbers(row)), ", ".join(outcomes))


def _numbers(row: Row) -> tuple[int, ...]:
    return (row.injected, row.lost, row.processes, row.ports, row.files)
