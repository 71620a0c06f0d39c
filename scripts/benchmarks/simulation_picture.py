"""A picture of a simulated fleet: how long runs wait for a host, by needs and by tenants.

Needs matplotlib; the import fails where it is not installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

from scripts.benchmarks.picture import STYLE
from scripts.benchmarks.simulate import waits
from tests.support.simulated_load import CLASSES, NORMAL, OVERLOAD, TENANTS

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from tests.support.simulated_load import Load, Tally

_COLOURS = dict(zip(CLASSES, ("#3d6fa5", "#5b8e7d", "#f4a259", "#bc4b51"), strict=True))
_POINTS = 1000
_SHORTEST_S = 0.002


def draw(tallies: list[Tally], found: dict[str, Any], load: Load, file: Path) -> None:
    """Write an SVG."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.6), facecolor="white")
        left, right = figure.subplots(1, 2)
        _curves(left, tallies)
        _tenants(right, found["seconds_to_place"])
        title = f"{load.hosts:,} simulated hosts: from a run's post to its host"
        figure.suptitle(title, x=0.02, ha="left", weight="bold", size=13)
        told = (
            f"{found['runs']:,} runs in {found['simulated_hours']} simulated hours,"
            f" {found['deaths']} hosts died; utilisation {load.normal:.0%},"
            f" and {load.overload:.0%} of the room asked for in overloads, by one tenant's flood"
        )
        figure.text(0.02, 0.015, told, size=8, color="#666666")
        figure.subplots_adjust(left=0.08, right=0.98, top=0.87, bottom=0.18, wspace=0.3)
        figure.savefig(file, format="svg", metadata={"Date": None})


def _curves(axes: Axes, tallies: list[Tally]) -> None:
    """What part of the runs of each class was placed within a time."""
    for phase, line in ((NORMAL, ":"), (OVERLOAD, "-")):
        for name, colour in _COLOURS.items():
            seconds = sorted(waits(tallies, phase, name))
            if seconds:
                at = [seconds[(len(seconds) - 1) * part // _POINTS] for part in range(_POINTS + 1)]
                parts = [part / _POINTS * 100 for part in range(_POINTS + 1)]
                axes.plot(
                    [max(one, _SHORTEST_S) for one in at],
                    parts,
                    line,
                    color=colour,
                    label=f"{name}, {phase}",
                )
    axes.set_xscale("log")
    axes.set_xlabel("seconds", fontsize=9)
    axes.set_ylabel("% of runs placed", fontsize=9)
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center", bbox_to_anchor=(0.43, 0.5))


def _tenants(axes: Axes, spreads: dict[str, dict[str, dict[str, float]]]) -> None:
    """The median and the 99th percentile of each tenant."""
    for phase, colour in ((NORMAL, "#7fb7be"), (OVERLOAD, "#bc4b51")):
        for row, name in enumerate(TENANTS):
            one = spreads[phase][name]
            if one["runs"]:
                label = f"{phase}: p50, p99" if not row else None
                ends = [one["p50"], one["p99"]]
                axes.plot(ends, [row, row], "o-", color=colour, label=label, markersize=4)
    axes.set_yticks(range(len(TENANTS)), [f"{name}, {part:.1%}" for name, part in TENANTS.items()])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("seconds; tenants by their part of the demand in normal times", fontsize=9)
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
