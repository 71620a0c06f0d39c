"""Tasks that want room under limits, and what they want."""

from __future__ import annotations

from typing import Any

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

from supervisor.config import LimitsConfig
from supervisor.config.settings import Ratio
from supervisor.runs.admission import Admission, Resources

GIB = 2**30
SMALL = Resources(1, 1 * GIB, 1)
BIG = Resources(1, 4 * GIB, 4)


def make_admission(
    *, max_vms: int = 100, memory_gib: int = 1000, vcpus: int = 1000, **limits: Any
) -> Admission:
    """Resources that has no limits but those given."""
    given = LimitsConfig(max_vms=max_vms, vcpu_overcommit=Ratio(1.0), **limits)
    return Admission(given, Resources(0, memory_gib * GIB, vcpus))


@attrs.define
class Crowd:
    """Tasks that each enter once, by name. Who is in stays in until it is told to leave."""

    admission: Admission
    nursery: trio.Nursery
    inside: list[str] = attrs.field(factory=list)
    failed: dict[str, Exception] = attrs.field(factory=dict)
    scopes: dict[str, trio.CancelScope] = attrs.field(factory=dict)

    async def arrives(self, name: str, need: Resources = SMALL, owner: str = "") -> None:
        """Return once it is in, waits or was turned away."""
        scope = self.scopes[name] = trio.CancelScope()

        async def enter() -> None:
            with scope:
                try:
                    await self.admission.enter(need, owner)
                except Exception as error:
                    self.failed[name] = error
                else:
                    self.inside.append(name)

        self.nursery.start_soon(enter)
        await wait_all_tasks_blocked()

    async def all_arrive(self, names: str, need: Resources = SMALL, owner: str = "") -> None:
        for name in names:
            await self.arrives(name, need, owner)

    async def leaves(self, need: Resources = SMALL) -> None:
        self.admission.leave(need)
        await wait_all_tasks_blocked()

    @property
    def order(self) -> str:
        """Who has come in so far, one letter each."""
        return "".join(self.inside)


def crowd(nursery: trio.Nursery, **given: Any) -> Crowd:
    return Crowd(make_admission(**given), nursery)
