"""What was measured, beside what was wanted."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import attrs
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@attrs.frozen
class Figure:
    """One number. A value of None was not measured; ``detail`` says why.

    :param at_least: whether more is better
    :param detail: how it came about, for a person
    :param more: what else was seen, for a program
    """

    name: str
    unit: str
    value: float | None
    goal: float | None = None
    at_least: bool = False
    detail: str = ""
    more: dict[str, Any] = attrs.field(factory=dict)

    @property
    def met(self) -> bool | None:
        """None where there is nothing to judge."""
        if self.value is None or self.goal is None:
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    def as_json(self) -> dict[str, Any]:
        return {**attrs.asdict(self), "met": self.met}


def skipped(name: str, why: object) -> Figure:
    return Figure(name, "", None, detail=str(why))


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that so many percent of them do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p99 and the longest, of seconds."""
    return {
        "p50_ms": percentile(seconds, 50) * 1000,
        "p99_ms": percentile(seconds, 99) * 1000,
        "max_ms": max(seconds) * 1000,
    }


def line(figure: Figure) -> str:
    value = "skipped" if figure.value is None else f"{figure.value:,.4g} {figure.unit}"
    return f"{figure.name}: {value} ({figure.detail})"


def table(figures: Iterable[Figure], title: str) -> Table:
    """Without the details, which were told as they came."""
    shown = Table("", title=title)
    for column in ("measured", "goal"):
        shown.add_column(column, justify="right")
    shown.add_column("")
    for one in figures:
        value = "skipped" if one.value is None else f"{one.value:,.4g} {one.unit}"
        sign = ">=" if one.at_least else "<="
        goal = "" if one.goal is None else f"{sign} {one.goal:,g} {one.unit}"
        verdict = {True: "[green]met", False: "[red]missed", None: ""}[one.met]
        shown.add_row(one.name, value, goal, verdict)
    return shown
