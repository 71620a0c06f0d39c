"""A picture of the ways to an agent's answer: a bar each, its phases in colours.

Seconds above, for the ways that boot; below, the quick ones enlarged. Needs matplotlib; the
import fails where it is not installed.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Patch

from scripts.benchmarks.ways import BARE, COLD, HELD, LIBVIRT, POOL, TEMPLATE

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from scripts.benchmarks.ways import Samples

#: From top to bottom.
_WAYS = (LIBVIRT, BARE, COLD, TEMPLATE, HELD, POOL)
_QUICK = (TEMPLATE, HELD, POOL)

#: Kinds of time, their colours, and the phases that count as each.
_KINDS = {
    "files, queue": ("#8e9aaf", ("queue", "directory", "overlay", "pool", "held")),
    "QEMU starts": ("#f4a259", ("spawn", "greeting", "definition", "creation")),
    "memory and devices restored": ("#5b8e7d", ("restore", "running")),
    "guest boots": ("#3d6fa5", ("agent",)),
    "guest resumes, is renewed": ("#7fb7be", ("renew",)),
    "computation and answer": ("#bc4b51", ("relay", "answer")),
}
_INK, _FAINT = "#222222", "#dddddd"
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "svg.fonttype": "path",
    "svg.hashsalt": "qmp-supervisor",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def draw(samples: Samples, machine: dict[str, Any], file: Path) -> None:
    """Write an SVG of the ways that were measured."""
    bars = {way: _bar(samples, way) for way in _WAYS if samples.phases.get(way)}
    quick = {way: bar for way, bar in bars.items() if way in _QUICK}
    with mpl.rc_context(STYLE):
        heights = [len(bars), len(quick)] if quick else [len(bars)]
        figure = Figure(figsize=(10, 1.9 + 0.62 * sum(heights)), facecolor="white")
        panels = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        _panel(panels[0], bars, 1, "s")
        if quick:
            _panel(panels[1], quick, 1000, "ms")
            _zoom(figure, panels[0], panels[1], list(bars).index(next(iter(quick))))
        _legend(figure, bars)
        figure.suptitle(
            "From a request to the agent's answer", x=0.02, ha="left", weight="bold", size=13
        )
        figure.text(0.02, 0.015, _caption(samples, machine), size=8, color="#666666")
        figure.subplots_adjust(left=0.21, right=0.94, top=0.84, bottom=0.13, hspace=0.5)
        figure.savefig(file, format="svg", metadata={"Date": None})


def _bar(samples: Samples, way: str) -> list[tuple[str, float]]:
    """The way's kinds of time and their seconds: medians of each phase, made to fit the median.

    Medians of parts do not add up to the median of the whole; the difference is spread.
    """
    rounds = samples.phases[way]
    spent: dict[str, list[float]] = {}
    for phases in rounds:
        before = 0.0
        for name, at in sorted(phases.items(), key=lambda item: item[1]):
            spent.setdefault(name, []).append(at - before)
            before = at
    parts = {name: median(values) for name, values in spent.items() if len(values) == len(rounds)}
    scale = median(samples.seconds(way)) / sum(parts.values())
    bar: list[tuple[str, float]] = []
    for name, seconds in parts.items():
        kind = _kind(name, way)
        if bar and bar[-1][0] == kind:
            bar[-1] = kind, bar[-1][1] + seconds * scale
        else:
            bar.append((kind, seconds * scale))
    return bar


def _kind(phase: str, way: str) -> str:
    if way in (TEMPLATE, HELD) and phase == "agent":
        return "guest resumes, is renewed"  # the agent is there: it ran when it was frozen
    if way not in _QUICK and phase == "running":
        return "QEMU starts"
    return next(kind for kind, (_, phases) in _KINDS.items() if phase in phases)


def _panel(axes: Axes, bars: dict[str, list[tuple[str, float]]], factor: float, unit: str) -> None:
    """One bar a way, its total at its end."""
    longest = max(sum(seconds for _, seconds in bar) for bar in bars.values()) * factor
    for row, (_, bar) in enumerate(bars.items()):
        left = 0.0
        for kind, seconds in bar:
            width = seconds * factor
            colour = _KINDS[kind][0]
            axes.barh(row, width, left=left, height=0.62, color=colour, linewidth=0)
            if width > 0.08 * longest:
                label = f"{width:.1f}" if unit == "s" else f"{width:.0f}"
                axes.text(left + width / 2, row, label, ha="center", va="center",
                          color="white", size=9)  # fmt: skip
            left += width
        total = f" {left:.2f} {unit}" if unit == "s" else f" {left:.0f} {unit}"
        axes.text(left + longest * 0.004, row, total, va="center", weight="bold")
    axes.set_yticks(range(len(bars)), list(bars))
    axes.set_xlim(0, longest * 1.09)
    axes.invert_yaxis()
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=_FAINT, linewidth=0.8)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
    axes.set_xlabel(
        {"s": "seconds", "ms": "milliseconds: the last of these, enlarged"}[unit], fontsize=9
    )


def _zoom(figure: Figure, above: Axes, below: Axes, row: int) -> None:
    """Two lines from the short bars to the panel that enlarges them."""
    width = below.get_xlim()[1] / 1000
    low = above.get_ylim()[0]
    for x, x_below in ((0.0, 0.0), (width, below.get_xlim()[1])):
        ends = (x, low), (x_below, below.get_ylim()[1])
        line = ConnectionPatch(*ends, "data", "data", axesA=above, axesB=below)
        line.set(color="#999999", linewidth=0.8, linestyle=(0, (3, 3)))
        figure.add_artist(line)
    above.axvspan(0, width, ymin=0, ymax=1 - row / (low + 0.5), color="#f2f2f2", zorder=0)


def _legend(figure: Figure, bars: dict[str, list[tuple[str, float]]]) -> None:
    shown = {kind for bar in bars.values() for kind, _ in bar}
    patches = [
        Patch(color=colour, label=kind) for kind, (colour, _) in _KINDS.items() if kind in shown
    ]
    figure.legend(handles=patches, loc="upper left", bbox_to_anchor=(0.012, 0.935), ncols=6,
                  frameon=False, fontsize=8.5, handlelength=1, columnspacing=1.2)  # fmt: skip


def _caption(samples: Samples, machine: dict[str, Any]) -> str:
    counts = {len(samples.phases[way]) for way in _WAYS if samples.phases.get(way)}
    rounds = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    guest = machine["guest"]
    programs = f"QEMU {machine['qemu']} ({machine['accelerator']})"
    if machine["libvirt"]:
        programs += f", libvirt {machine['libvirt']}"
    commit = f", commit {machine['commit']}" if machine["commit"] else ""
    return (
        f"Medians of {rounds} rounds. {machine['cpu']}, {machine['cores']} cores; {programs};"
        f" guest with {guest['vcpus']} vCPU, {guest['memory_mb']} MB. {machine['date'][:10]}"
        f"{commit}"
    )
