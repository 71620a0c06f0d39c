"""SIGKILL at every step: each scenario is watched once, then repeated once for each crash point."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from tests.chaos.case import GONE, Broken, Case, Dead
from tests.chaos.kinds import judge

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.claim import Verdict
    from tests.chaos.place import Place
    from tests.chaos.zygote import Zygote


@attrs.frozen
class Scenario:
    """What clients do while a supervisor dies of it.

    :param before: done first, by a supervisor that is not harmed unless it is the same one
    :param act: the steps of which each is a crash point
    :param until: the last step that is of interest; the rest is another scenario's
    :param short: whether some of it are in the short form
    :param adopted: whether the supervisor that is harmed is a second one, and ``act`` its start
    :param first: whether ``act`` is the start of the first one
    :param templates: whether VMs are started from a template
    :param pool: how many are kept ready
    :param held: how many clones are held
    """

    name: str
    before: Callable[[Case], None]
    act: Callable[[Case], None]
    adopted: bool = False
    until: str = ""
    short: bool = False
    first: bool = False
    templates: bool = False
    pool: int = 0
    held: int = 0


def points_of(scenario: Scenario, place: Place, zygote: Zygote) -> list[str]:
    """The names of the scenario's steps.

    :raises Broken: if the scenario does not even work unharmed
    """
    case = _case(scenario, place, zygote)
    trace = Path(f"{case.tmp}.trace")
    passed: list[str] = []

    def watch(case: Case) -> None:
        _begin(scenario, case, trace=str(trace))
        from_start = scenario.adopted or scenario.first
        before = 0 if from_start else len(trace.read_text().splitlines())
        scenario.act(case)
        passed.extend(trace.read_text().splitlines()[before:])

    verdict = judge(case, watch)
    trace.unlink(missing_ok=True)
    if verdict.problems:
        raise Broken(f"{scenario.name}, unharmed: {verdict.problems}")
    last = next((n for n, point in enumerate(passed, 1) if scenario.until in point), 0)
    if not last:
        raise Broken(f"{scenario.name}, unharmed: no step is {scenario.until or 'seen'}")
    return passed[:last] if scenario.until else passed


def die_at(point: str, scenario: Scenario, place: Place, zygote: Zygote) -> Verdict | None:
    """One crash there and what became of it; None if the supervisor did not come that way."""
    case = _case(scenario, place, zygote)
    died = False

    def harm(case: Case) -> None:
        nonlocal died
        try:
            _begin(scenario, case, die_at=point)
            scenario.act(case)
        except (*GONE, Dead, Broken):
            if case.supervisor and not case.dies():
                raise
        if case.dies():
            case.wait_dead()
        if case.supervisor is None:
            died = case.exit_code == -signal.SIGKILL
            case.expect(died or case.exit_code == 0, f"it exits with {case.exit_code}")

    verdict = judge(case, harm)
    verdict.problems = [f"at {point}: {problem}" for problem in verdict.problems]
    return verdict if died or verdict.problems else None


def _case(scenario: Scenario, place: Place, zygote: Zygote) -> Case:
    case = Case(place, zygote, {})
    case.templates, case.pool, case.held = scenario.templates, scenario.pool, scenario.held
    return case


def _begin(scenario: Scenario, case: Case, **launch: Any) -> None:
    if scenario.adopted:
        case.serve()
        scenario.before(case)
        case.crash()
        case.serve(wait=False, **launch)
    elif scenario.first:
        case.serve(wait=False, **launch)
    else:
        case.serve(**launch)
        scenario.before(case)


# --- the scenarios ----------------------------------------------------------------------------


def _nothing(case: Case) -> None:
    pass


def _only(case: Case) -> str:
    (vm_id,) = case.records()
    return vm_id


def _answered(case: Case) -> None:
    case.run()


def _resume_then_pause(case: Case) -> None:
    case.control(_only(case), "pause")
    case.control(_only(case), "resume")


def _end_gracefully(case: Case) -> None:
    case.shut_down(_only(case))


def _end_by_force(case: Case) -> None:
    case.shut_down(_only(case), "force")


def _reset(case: Case) -> None:
    case.control(_only(case), "reset")
    case.until(_only(case), lambda vm: vm["agent"]["ready"])


def _ended(case: Case) -> None:
    case.run()
    case.shut_down(_only(case), "force")


def _delete(case: Case) -> None:
    case.delete(_only(case))


def _answered_may_restart(case: Case) -> None:
    case.restarts = 1
    case.run(restart="on-failure")


def _crash_and_restart(case: Case) -> None:
    case.signal_qemu(_only(case), signal.SIGKILL)
    case.until(
        _only(case),
        lambda vm: vm["restart"]["count"] == 1 and vm["relay"]["state"] == "answered"
        and vm["agent"]["ready"],
    )  # fmt: skip


def _one_of_each(case: Case) -> None:
    """Answered and running, held, with its agent, waiting to be removed, gone meanwhile."""
    case.run()
    case.control(case.run(), "pause")
    case.run(hold=True)
    ended = case.run()
    case.shut_down(ended, "force")
    gone = case.run()
    case.signal(signal.SIGSTOP)
    case.signal_qemu(gone, signal.SIGKILL)
    case.wait_no_qemu(gone)


def _ready(case: Case) -> None:
    case.wait_ready(case.log.read_bytes().rfind(b'"ready"') + 1)
    case.wait(
        lambda: all(
            row["ended"] or row["monitor"] == "ok" for row in case.ask("GET", "/vms")[1]["vms"]
        ),
        "all monitors",
    )


def _stop_ending(case: Case) -> None:
    case.signal(signal.SIGINT)
    case.wait_dead()


def _template(case: Case) -> None:
    case.until_template()


def _template_and_pool(case: Case) -> None:
    case.until_template()
    case.until_pool()


def _first_template(case: Case) -> None:
    case.wait_ready()
    case.until_template()
    case.wait(
        lambda: any(one["event"] == "deleted" for one in case.reader.seen),
        "the removal of what it was made of",
    )


def _cloned(case: Case) -> None:
    vm = case.show(case.run())
    case.expect(vm["template"] is not None, "it was booted")


def _template_and_held(case: Case) -> None:
    case.until_held()


def _held(case: Case) -> None:
    case.run()
    case.until_held()


def _pooled(case: Case) -> None:
    case.run()
    case.until_pool()


def _one_of_each_cloned(case: Case) -> None:
    """Answered and running, held, with its agent, and one that was booted."""
    case.until_template()
    case.run(template="require")
    case.control(case.run(template="require"), "pause")
    case.run(template="require", hold=True)
    case.run(template="off")


SCENARIOS = (
    Scenario("run", _nothing, _answered, short=True),
    Scenario("graceful shutdown", _answered, _end_gracefully),
    Scenario("forced shutdown", _answered, _end_by_force),
    Scenario("delete", _ended, _delete, short=True),
    Scenario("pause, resume", _answered, _resume_then_pause),
    Scenario("reset", _answered, _reset),
    Scenario(
        "restart by policy", _answered_may_restart, _crash_and_restart, until="QMP cont, after"
    ),
    Scenario("a stop that ends VMs", _answered, _stop_ending),
    Scenario("adoption", _one_of_each, _ready, adopted=True, short=True),
    Scenario("build a template", _nothing, _first_template, first=True, templates=True, short=True),
    Scenario("run from a template", _template, _cloned, templates=True),
    Scenario(
        "adoption with a template and VMs from it",
        _one_of_each_cloned,
        _ready,
        adopted=True,
        templates=True,
    ),
    Scenario(
        "run from a held clone", _template_and_held, _held, templates=True, held=1, short=True
    ),
    Scenario("run from the pool", _template_and_pool, _pooled, templates=True, pool=1, short=True),
)
