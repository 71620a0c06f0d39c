"""What the supervisor says of a VM's confidentiality: to its owner, and to whoever sees the VM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from supervisor.config import Policy
from supervisor.errors import Busy
from supervisor.qemu.cmdline import values_in
from supervisor.state.record import Purpose
from supervisor.tee import corim, policy
from supervisor.tee.expected import Claims

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.tee.facts import Technology
    from supervisor.vm.vm import Vm

_PLAIN = "it is a plain VM: the host can read and change the guest's memory"
_BOUND_BY = dict.fromkeys(Purpose, "the computation") | {
    Purpose.CVM: "the guest's file environment"
}
_IGVM = "the policy may be what its IGVM file says, and that could not be read"


def tee_policy(vm: Vm) -> str | None:
    """The guest's policy in words; None for a plain VM."""
    technology = vm.record.options.technology
    if technology is None:
        return None
    number = _number(vm, technology)
    return policy.spelled(technology, _asked_for(vm, technology) if number is None else number)


def insecure(vm: Vm) -> list[str]:
    """What keeps the VM from being confidential; nothing if nothing is known to."""
    technology = vm.record.options.technology
    if technology is None:
        return [_PLAIN]
    number = _number(vm, technology)
    if number is None:
        return [*policy.openings(technology, _asked_for(vm, technology)), _IGVM]
    return policy.openings(technology, number)


def of(vm: Vm) -> Claims:
    """What its last launch was made of.

    :raises Busy: if it is a plain VM, or not launched yet
    """
    record, technology = vm.record, vm.record.options.technology
    if technology is None:
        raise Busy(
            f"VM {vm.id} is a plain one, of which no processor reports",
            advice='send its run with "tee": "auto", or with the technology that GET /host names',
        )
    if not record.command:
        raise Busy(f"VM {vm.id} is not launched yet", advice="try again in a moment")
    return Claims(
        vm_id=vm.id,
        technology=technology,
        number=_number(vm, technology),
        bound_to=record.bound_to,
        bound_by=_BOUND_BY[record.purpose],
        measurement=record.measurement,
    )


def as_corim(vm: Vm, key: Path | None) -> bytes:
    """The same in CBOR, signed if there is a key. Blocking.

    :raises Busy: as `of` does
    :raises SupervisorError: if the key cannot be used
    """
    encoded = corim.encode(of(vm))
    return encoded if key is None else corim.sign(encoded, corim.load_key(key))


def _has_igvm(vm: Vm) -> bool:
    objects = values_in(vm.record.command, "-object")
    return any(word.startswith("igvm-cfg,") for word in objects)


def _number(vm: Vm, technology: Technology) -> int | None:
    """The guest's policy; None if an IGVM file may say it, and could not be read."""
    if not _has_igvm(vm):
        return _asked_for(vm, technology)
    measured = vm.record.measurement
    if measured.policy is None and measured.digest:
        return _asked_for(vm, technology)  # the file says nothing of it
    return measured.policy


def _asked_for(vm: Vm, technology: Technology) -> int:
    return policy.encode(technology, Policy.read(vm.record.options.tee_policy))
