"""How a kind of fault is declared, and how one is injected and judged."""

from __future__ import annotations

import contextlib
import subprocess
import traceback
from collections import Counter
from types import MappingProxyType
from typing import TYPE_CHECKING

import attrs

from tests.chaos import claim
from tests.chaos.case import GONE, Broken, Case, Dead, Skipped
from tests.chaos.place import IMAGE, kill_all_below

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.chaos.place import Place
    from tests.chaos.zygote import Zygote

    Harm = Callable[[Case], None]


@attrs.frozen
class Kind:
    """A kind of fault.

    :param times: how often it is injected in the full form
    :param short: and in the short one; more than that would only be the same again
    :param guests: whether it needs the real guest
    :param sudo: whether QEMU is started through sudo
    :param templates: whether VMs are started from a template
    :param pool: how many are kept ready
    :param held: how many clones are held
    """

    name: str
    harm: Harm
    settings: dict[str, str]
    times: int
    short: int
    guests: bool
    sudo: bool
    templates: bool
    pool: int
    held: int


#: Whether files are left that nothing is wrong with.
KEEP = False

#: All that are declared, in their order.
KINDS: list[Kind] = []


def kind(  # noqa: PLR0913 - each says something of its own
    name: str,
    *,
    times: int = 2,
    short: int = 1,
    guests: bool = False,
    sudo: bool = False,
    templates: bool = False,
    pool: int = 0,
    held: int = 0,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> Callable[[Harm], Harm]:
    """Declare a function as what a kind of fault does to a case.

    :param settings: of its supervisors, beside those of every case
    """

    def declare(harm: Harm) -> Harm:
        KINDS.append(
            Kind(name, harm, dict(settings), times, short, guests, sudo, templates, pool, held)
        )
        return harm

    return declare


@attrs.define
class Row:
    """A line of the table: all injections of one kind."""

    name: str
    injected: int = 0
    lost: int = 0
    processes: int = 0
    ports: int = 0
    files: int = 0
    states: Counter[str] = attrs.field(factory=Counter)
    #: What did not hold, and in which directory.
    problems: list[str] = attrs.field(factory=list)

    @property
    def held(self) -> bool:
        return not self.problems

    def add(self, verdict: claim.Verdict) -> None:
        if verdict.skipped:
            self.states[f"skipped: {verdict.skipped}"] += 1
            return
        self.injected += 1
        self.lost += bool(verdict.problems)
        self.processes += verdict.processes
        self.ports += verdict.ports
        self.files += verdict.files
        self.states += verdict.states
        self.problems += verdict.problems


def inject(one: Kind, place: Place, zygote: Zygote) -> claim.Verdict:
    """Do the harm once, in a directory of its own, and see what holds afterwards."""
    case = Case(place, zygote, one.settings)
    case.guests, case.sudo = one.guests, one.sudo
    case.templates, case.pool, case.held = one.templates, one.pool, one.held

    def harm(case: Case) -> None:
        if one.guests and not IMAGE.exists():
            case.skip(f"there is no {IMAGE}")
        one.harm(case)

    return judge(case, harm)


def judge(case: Case, harm: Harm) -> claim.Verdict:
    verdict = claim.Verdict()
    try:
        with contextlib.ExitStack() as undone:
            case.undo = undone
            harm(case)
            undone.close()
            claim.check(case, verdict)
    except (Broken, Dead) as problem:
        verdict.problems.append(str(problem))
    except GONE as problem:
        where = traceback.extract_tb(problem.__traceback__)
        ours = [f"{one.name}:{one.lineno}" for one in where if "/chaos/" in one.filename]
        verdict.problems.append(f"{problem!r} in {' > '.join(ours)}")
    except Skipped as why:
        verdict.skipped = str(why)
    finally:
        case.close()
        kill_all_below(case.tmp)
        for _ in range(case.unmounts):
            subprocess.run(["umount", "-l", str(case.tmp)], check=False)
    if verdict.problems:
        verdict.problems = [f"{case.tmp}: {problem}" for problem in verdict.problems]
    elif not KEEP:
        claim.clear(case)
    return verdict
