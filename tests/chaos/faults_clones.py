"""What may happen to what is started from a template, and to those who start it."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from tests.chaos.faults_templates import OF_NO_USE, QUICK, fell_back, go_on
from tests.chaos.kinds import kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.case import Case

    Harm = Callable[[Case], None]

#: The steps of the second QEMU: the first became the template.
_RESTORES = {
    "starts": "QMP set-action, before #2",
    "is restored": "QMP migrate-incoming, before #1",
    "has been restored": "migrate-incoming to its end, after #1",
    "runs": "QMP cont, after #2",
    "is renewed": "agent Renew, before #1",
    "has been renewed": "agent Renew, after #1",
}


def _as_it_restores(point: str, number: int) -> Harm:
    def harm(case: Case) -> None:
        case.serve(stop_at=point)
        case.until_template()
        vm_id = case.run(wait=False)
        case.until_stopped()
        case.signal_qemu(vm_id, number)
        go_on(case)
        # An agent here lives on without its QEMU; a VM that is renewed crashes like any other.
        renewed = "Renew" in point
        case.until(
            vm_id, lambda vm: vm["relay"]["state"] == "answered" or (vm["ended"] and renewed)
        )
        if number == signal.SIGSTOP:
            case.delete(vm_id)  # unless it was booted from cold, it is stopped

    return harm


for _name, _point in _RESTORES.items():
    _short = int(_name == "is restored")
    kind(f"clone: QEMU SIGKILLed as it {_name}", templates=True, times=1, short=_short)(
        _as_it_restores(_point, signal.SIGKILL)
    )
    kind(f"clone: QEMU SIGSTOPped as it {_name}", templates=True, times=1, short=0, settings=QUICK)(
        _as_it_restores(_point, signal.SIGSTOP)
    )


@kind("clone: its agent does not answer Renew", templates=True, settings=QUICK)
def mute(case: Case) -> None:
    case.serve()
    case.until_template()
    case.place.agents.mute = True
    vm_id = case.run()
    case.wait(lambda: fell_back(case, vm_id) == 1, "the event that tells that it is booted")
    required = case.run(template="require", wait=False)
    case.expect(case.until_ended(required)["relay"]["state"] == "failed", "it was answered")


@kind("clone: its agent refuses Renew, until the template is made anew", templates=True, short=0)
def unwilling(case: Case) -> None:
    case.serve()
    case.until_template()
    case.place.agents.unwilling = True
    for _ in range(OF_NO_USE):
        case.run()
    case.place.agents.unwilling = False


@kind("clone: supervisor SIGKILLed before it is renewed", templates=True, short=0)
def killed_as_it_renews(case: Case) -> None:
    case.serve(stop_at="agent Renew, before #1")
    case.until_template()
    vm_id = case.run(wait=False)
    case.until_stopped()
    case.crash()
    case.serve()
    case.until(vm_id, lambda vm: vm["relay"]["state"] == "answered")


@kind("clone: SIGKILLed while its supervisor is down, before it was renewed", templates=True,
      short=0)  # fmt: skip
def gone_unrenewed(case: Case) -> None:
    case.serve(stop_at="agent Renew, before #1")
    case.until_template()
    vm_id = case.run(wait=False)
    case.until_stopped()
    case.crash()
    case.signal_qemu(vm_id, signal.SIGKILL)
    case.wait_no_qemu(vm_id)
    case.serve()
    case.wait(
        lambda: case.show(vm_id)["ended"] or case.show(vm_id)["relay"]["state"] == "answered",
        "its fate",
    )
