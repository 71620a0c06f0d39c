"""From what was measured of each way to figures, and what each compares with what."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from scripts.benchmarks.figures import Figure, percentile, skipped
from scripts.benchmarks.ways import (
    BARE,
    BURST,
    CALLERS,
    COLD,
    HELD,
    LIBVIRT,
    LIVE,
    POOL,
    TEMPLATE,
    at_once,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scripts.benchmarks.ways import Samples

_COLD = "the guest's whole boot, firmware included, to the agent's answer"


def figures(samples: Samples, clones: int, pool: int) -> list[Figure]:
    """All, in the order in which they are told; what was not measured says why.

    :param clones: how many were started at once
    :param pool: how many VMs were kept ready
    """
    return [
        _ratio(samples, "cold / bare QEMU", COLD, BARE, 1.05, detail=f"{_COLD};{_BARE}"),
        _seconds(samples, TEMPLATE, 200, _clone_detail(samples)),
        _ratio(samples, "cold / from a template", COLD, TEMPLATE, 25, at_least=True),
        _seconds(samples, HELD, 120, "one of those that wait before their first instruction"),
        _ratio(samples, "cold / from a held clone", COLD, HELD, 100, at_least=True),
        _own_share(samples),
        _seconds(samples, POOL, 20, f"one of {pool} VMs that are ready; the pool was full before"),
        *_idle(samples),
        _burst(samples, clones),
        _ratio(
            samples, "libvirt / cold", LIBVIRT, COLD, 1, at_least=True, detail=_libvirt(samples)
        ),
        _ratio(
            samples,
            "libvirt / from a template",
            LIBVIRT,
            TEMPLATE,
            25,
            at_least=True,
            detail="the same domain against a run from a template: what a caller waits for",
        ),
        *_questions(samples),
        _power_off(samples),
    ]


_BARE = (
    " bare: from exec, with this VM's command line, its disk made before; both wait for the agent"
    " in the same manner"
)


def _clone_detail(samples: Samples) -> str:
    built = samples.built_in_s
    made = "" if built is None else f"; the template was made before, in {built:.1f} s"
    return f"from POST /run to the agent's answer, over HTTP{made}"


def _libvirt(samples: Samples) -> str:
    mine, theirs = samples.pci.get(BARE), samples.pci.get(LIBVIRT)
    if mine and theirs:
        differ = sorted(set(mine) ^ set(theirs))
        devices = "the same PCI devices" if not differ else f"PCI devices differ: {differ}"
    else:
        devices = "PCI devices not compared"
    return (
        f"libvirt {samples.libvirt}, qemu:///session: define, start, {_COLD};"
        f" its disk made before, its capabilities known; {devices}"
    )


# --- seconds --------------------------------------------------------------------------------


def _spread(values: Sequence[float], unit: str = "s", factor: float = 1) -> str:
    scaled = [value * factor for value in values]
    return (
        f"median {median(scaled):.4g}, {min(scaled):.4g} to {max(scaled):.4g} {unit},"
        f" n={len(scaled)}"
    )


def _why(samples: Samples, *wanted: str) -> str:
    """Why there is nothing of these."""
    reasons = [f"{one}: {samples.problems[one]}" for one in wanted if one in samples.problems]
    return "; ".join(reasons) or "not reached"


def _cut_short(samples: Samples, *wanted: str) -> str:
    """A word on rounds that were not made."""
    stopped = [one for one in wanted if one in samples.problems]
    return f"; NOT ALL ROUNDS: {_why(samples, *stopped)}" if stopped else ""


def _ratio(
    samples: Samples,
    name: str,
    above: str,
    below: str,
    goal: float,
    *,
    at_least: bool = False,
    detail: str = "",
) -> Figure:
    """Of the medians of two ways."""
    over, under = samples.seconds(above), samples.seconds(below)
    if not over or not under:
        return skipped(name, _why(samples, above, below))
    spread = f"{above}: {_spread(over)}; {below}: {_spread(under)}"
    return Figure(
        name,
        "x",
        median(over) / median(under),
        goal,
        at_least,
        f"{spread}{_cut_short(samples, above, below)}{'; ' if detail else ''}{detail}",
    )


def _seconds(samples: Samples, way: str, goal_ms: float, detail: str) -> Figure:
    values = samples.seconds(way)
    if not values:
        return skipped(way, _why(samples, way))
    text = f"{_spread(values, 'ms', 1000)}{_cut_short(samples, way)}; {detail}"
    return Figure(way, "ms", median(values) * 1000, goal_ms, detail=text)


def _own_share(samples: Samples) -> Figure:
    """Of a run from a held clone: all but the time between the guest's start and its answer."""
    name = "the supervisor's own share of it"
    own = [one["answer"] - (one["relay"] - one["running"]) for one in samples.phases.get(HELD, ())]
    if not own:
        return skipped(name, _why(samples, HELD))
    detail = (
        f"{_spread(own, 'ms', 1000)}; to the guest's first instruction, QMP's way there included,"
        " and from the agent's answer to the whole of ours"
    )
    return Figure(name, "ms", median(own) * 1000, 10, detail=detail)


def _burst(samples: Samples, clones: int) -> Figure:
    name = f"{clones} runs at once, from a template"
    if not samples.bursts:
        return skipped(name, _why(samples, TEMPLATE, BURST))
    middle = median(percentile(crowd, 50) for crowd in samples.crowds)
    return Figure(
        name,
        "s",
        median(samples.bursts),
        3,
        detail=f"to the last answer: {_spread(samples.bursts)}{_cut_short(samples, BURST)};"
        f" half of them within {middle:.2f} s; each has a VM and an agent of its own, and the"
        " answer to its own computation",
    )


# --- clones that idle -----------------------------------------------------------------------


def _idle(samples: Samples) -> list[Figure]:
    names = ("memory of an idle clone", "CPU of an idle clone")
    found = samples.idle
    if not found:
        return [skipped(name, _why(samples, TEMPLATE, BURST)) for name in names]
    count = found["vms"]
    megabytes = {what: median(found[f"{what}_bytes"]) / 1e6 for what in ("pss", "rss", "private")}
    return [
        Figure(
            names[0],
            "MB",
            megabytes["pss"],
            70,
            detail=f"PSS of QEMU, median of {count} that run at the same time and share one"
            f" template; private to each {megabytes['private']:.0f}, RSS {megabytes['rss']:.0f}"
            f" MB; largest PSS {max(found['pss_bytes']) / 1e6:.0f} MB",
        ),
        Figure(
            names[1],
            "% of a core",
            found["cpu_percent_median"],
            detail=f"median of {count} over {found['seconds']:.0f} s; together"
            f" {sum(found['cpu_percent']):.0f} %",
        ),
    ]


# --- QMP ------------------------------------------------------------------------------------


def _questions(samples: Samples) -> list[Figure]:
    http, theirs = samples.rates.get(LIVE), samples.rates.get(LIBVIRT)
    ratios = [
        _asked(samples, "QMP questions, ours / libvirt's", BARE, LIBVIRT),
        _asked(
            samples,
            f"the same, {CALLERS} callers at once",
            at_once(BARE),
            at_once(LIBVIRT),
        ),
    ]
    if not http:
        return [*ratios, skipped(LIVE, _why(samples, COLD))]
    detail = f"{_spread(http, '/s')}; one connection, one after another; HTTP, and QEMU asked"
    if theirs:
        detail += f"; {median(http) / median(theirs):.2f} times libvirt's, daemon against daemon"
    return [*ratios, Figure(LIVE, "/s", median(http), detail=detail)]


def _asked(samples: Samples, name: str, own: str, others: str) -> Figure:
    ours, theirs = samples.rates.get(own), samples.rates.get(others)
    if not ours or not theirs:
        return skipped(name, _why(samples, BARE, LIBVIRT))
    return Figure(
        name,
        "x",
        median(ours) / median(theirs),
        4,
        at_least=True,
        detail=f"query-status, of each caller one after another: {_spread(ours, '/s')} over the"
        f" supervisor's link to QEMU, in one program; {_spread(theirs, '/s')} with"
        " qemuMonitorCommand, which goes through libvirt's daemon; idle guests of the same kind",
    )


# --- the end --------------------------------------------------------------------------------


def _power_off(samples: Samples) -> Figure:
    name = "graceful shutdown / the guest's own"
    ours, own = samples.power_offs.get(COLD), samples.power_offs.get(BARE)
    if not ours or not own:
        return skipped(name, _why(samples, COLD, BARE))
    return Figure(
        name,
        "x",
        median(ours) / median(own),
        1.1,
        detail=f"POST /vms/<id>/shutdown to the process gone: {_spread(ours)}; bare QEMU, from"
        f" system_powerdown: {_spread(own)}",
    )
