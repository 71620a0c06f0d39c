"""How soon a computation is answered: bare QEMU, libvirt, the supervisor's ways.

    scripts/bench start [--rounds 10] [--cold-rounds 10] [--results DIR]

Every way boots the same guest on the same host, with two virtual CPUs and 512 MB, emulated unless
--kvm is given; the results name what the VMs' command lines say. A way has its answer when the
guest's agent has answered a computation of its own. Cold boots and runs from a template take turns,
so what else the host does meets all of them. What counts are the ratios of medians within one run,
for seconds differ from machine to machine and from day to day.
libvirt (Debian: libvirt-daemon-driver-qemu, python3-libvirt) is left out, with a word, where it is
not installed; it needs no root. Look at the load before a figure is believed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import psutil
from rich.console import Console
from rich.markup import escape

from scripts.benchmarks import (
    client,
    facts,
    figures,
    guest,
    host,
    libvirtd,
    supervised,
    verdicts,
    ways,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from scripts.benchmarks.ways import Samples

console = Console()

#: As many clones are held as by default.
_HELD = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=10, help="of all that is quick; default: 10")
    parser.add_argument(
        "--cold-rounds", type=int, default=10, help="of cold boots, of each kind; default: 10"
    )
    parser.add_argument(
        "--clones", type=int, default=20, help="runs at once, and idle clones; default: 20"
    )
    parser.add_argument("--pool", type=int, default=2, help="VMs kept ready; default: 2")
    parser.add_argument(
        "--kvm", action="store_true", help="with KVM; the supervisor refuses if it does not work"
    )
    parser.add_argument("--settle", type=float, default=5, help="seconds until clones are idle")
    parser.add_argument("--seconds", type=float, default=30, help="time to look at idle clones")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="directory for JSON and picture"
    )


def main(wanted: argparse.Namespace) -> None:
    # As Ctrl-C: nothing that was started here stays.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not guest.IMAGE.exists():
        sys.exit(f"bench: {guest.IMAGE} is missing: build it with 'qmp-supervisor image build'")
    samples, load, begun = ways.Samples(), os.getloadavg(), time.monotonic()
    complete = False
    try:
        with directory() as place:
            _measure(samples, place, wanted)
        complete = True
    except KeyboardInterrupt:
        console.print("interrupted; what was measured until then:")
    found = verdicts.figures(samples, wanted.clones, wanted.pool)
    for figure in found:
        _say(figures.line(figure))
    console.print(figures.table(found, "from a request to an agent's answer"))
    before = ", ".join(f"{one:.2f}" for one in load)
    took = (time.monotonic() - begun) / 60
    console.print(f"{os.cpu_count()} CPUs; load before {before}; {took:.0f} minutes")
    if not complete:
        sys.exit(130)  # as shells have it for Ctrl-C
    accelerator = "+".join(sorted(samples.accelerators)) or None
    _write(wanted.results, samples, found, facts.facts(load, samples.libvirt, accelerator))


@contextmanager
def directory() -> Iterator[Path]:
    """A directory; with it goes all that runs there. Short, for sockets are in it."""
    made = Path(tempfile.mkdtemp(prefix="bench-", dir="/tmp"))
    try:
        yield made
    finally:
        for process in host.left(made / "t"):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(made, ignore_errors=True)


def _measure(samples: Samples, directory: Path, wanted: argparse.Namespace) -> None:
    tmp = directory / "t"  # both supervisors', so that both have the same template
    without_held = {"MANAGER_HELD_CLONES": "0"}
    environ = guest.environ(tmp, kvm=wanted.kvm, **without_held)
    with host.running(directory, environ) as supervisor:
        _take_turns(samples, directory, supervisor, wanted)
        for number in range(wanted.rounds):
            if ways.TEMPLATE in samples.problems or ways.BURST in samples.problems:
                break
            last = number == wanted.rounds - 1
            with samples.attempt(ways.BURST, _say):
                idle = (wanted.settle, wanted.seconds) if last else None
                ways.many_at_once(samples, supervisor, wanted.clones, idle)
                _say(f"{number + 1}: {wanted.clones} at once, {samples.bursts[-1]:.2f} s")
    for way, size, settings, one_round in (
        (ways.HELD, _HELD, {"MANAGER_HELD_CLONES": str(_HELD)}, ways.from_held),
        (
            ways.POOL,
            wanted.pool,
            without_held | {"MANAGER_POOL_SIZE": str(wanted.pool)},
            ways.from_pool,
        ),
    ):
        environ = guest.environ(tmp, kvm=wanted.kvm, **settings)
        with (
            samples.attempt(way, _say),
            host.running(directory, environ) as supervisor,
            client.Connection(supervisor.port) as connection,
        ):
            for number in range(wanted.rounds):
                one_round(samples, supervisor, connection, size)
                _say(f"{number + 1}: {_last(samples, way)}")


def _take_turns(
    samples: Samples, directory: Path, supervisor: host.Supervisor, wanted: argparse.Namespace
) -> None:
    """Rounds of cold boots and of runs from a template, each time in another order."""
    rounds = ways.Rounds(samples, supervisor, directory)
    with ExitStack() as stack:
        connection = stack.enter_context(client.Connection(supervisor.port))
        with samples.attempt(ways.TEMPLATE, _say):
            samples.built_in_s = supervised.wait_for_template(connection)["built_in_s"]
        cold = {ways.COLD: lambda: rounds.cold(connection), ways.BARE: rounds.bare}
        with samples.attempt(ways.LIBVIRT, _say):
            if wanted.kvm:
                raise guest.Unmeasured("the domain here is emulated: nothing to compare with KVM")
            libvirt = stack.enter_context(libvirtd.opened(directory / "l"))
            samples.libvirt = libvirt.version
            cold[ways.LIBVIRT] = lambda: rounds.libvirt(libvirt)
        for number in range(max(wanted.rounds, wanted.cold_rounds)):
            turns = _turned(cold, number) if number < wanted.cold_rounds else {}
            if number < wanted.rounds:
                turns[ways.TEMPLATE] = lambda: rounds.template(connection)
            for way, turn in turns.items():
                if way in samples.problems:
                    continue
                with samples.attempt(way, _say):
                    turn()
                    _say(f"{number + 1}: {_last(samples, way)}")


def _turned(by_name: dict[str, Any], number: int) -> dict[str, Any]:
    """The same, from another one on."""
    names = list(by_name)
    first = number % len(names)
    return {name: by_name[name] for name in names[first:] + names[:first]}


def _last(samples: Samples, way: str) -> str:
    return f"{way} {samples.seconds(way)[-1]:.3f} s"


def _say(text: str) -> None:
    console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {escape(text)}", highlight=False)


def _write(
    directory: Path, samples: Samples, found: list[figures.Figure], machine: dict[str, Any]
) -> None:
    """The figures and all that they are made of, and a picture of the ways."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{machine['date'][:10]}-start.json"
    result = {
        "machine": machine,
        "figures": [one.as_json() for one in found],
        "samples": attrs.asdict(samples),
    }
    # To the microsecond; clocks give more digits than they mean.
    text = json.dumps(result, default=sorted)  # what JSON does not know is a set
    rounded = json.loads(text, parse_float=lambda digits: round(float(digits), 6))
    file.write_text(json.dumps(rounded, indent=2) + "\n")
    _say(f"written: {file}")
    if not samples.phases:
        return
    try:
        from scripts.benchmarks import picture  # needs what is installed only for it

        picture.draw(samples, machine, file.with_suffix(".svg"))
    except ImportError:
        _say("no picture: matplotlib is not installed (pip install -e .[bench])")
    else:
        _say(f"written: {file.with_suffix('.svg')}")
