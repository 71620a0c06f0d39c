"""What this host is worth, for VMs and for confidential guests."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio
from quart import Blueprint

from supervisor.api.callers import needs
from supervisor.api.http import json_body, views
from supervisor.api.requests import NoMembers
from supervisor.caller import Right
from supervisor.errors import Busy, LaunchError, TeeUnavailable
from supervisor.qemu import accel, trial
from supervisor.tee.judge import judge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from supervisor.api.fleet.member import Member
    from supervisor.fleet.fleet import Fleet
    from supervisor.qemu.trial import SevPlatform
    from supervisor.runs.service import Service

    #: Makes all checks; blocking. Of each it has the attributes name, verdict, detail and advice.
    Examine = Callable[[], Iterable[Any]]

#: For so long what QEMU has said of SEV is the answer to all who ask.
_SEV_KEPT_S = 10.0
#: Of a check's attributes those that the answer has.
_OF_CHECK = ("name", "verdict", "detail", "advice")


class _Sev:
    """What QEMU says of this host's SEV. Every tenant may ask, and each asking starts a QEMU.

    :param ask: blocking. Raises LaunchError if the host has none
    """

    def __init__(self, ask: Callable[[], SevPlatform]) -> None:
        self._ask = ask
        self._asking = trio.Lock()
        self._said: SevPlatform | LaunchError
        self._until = -math.inf

    async def platform(self) -> SevPlatform:
        """:raises TeeUnavailable: if the host has none"""
        async with self._asking:
            if trio.current_time() >= self._until:
                try:
                    self._said = await trio.to_thread.run_sync(self._ask)
                except LaunchError as error:
                    self._said = error
                self._until = trio.current_time() + _SEV_KEPT_S
        if isinstance(self._said, LaunchError):
            raise TeeUnavailable(
                f"this host has no certificates of an SEV platform: {self._said.detail}",
                advice="'qmp-supervisor doctor' tells the host's operator what is missing",
            ) from self._said
        return self._said


def blueprint(service: Service, examine: Examine, member: Member | None) -> Blueprint:
    routes = Blueprint("host", __name__)
    one_check = trio.CapacityLimiter(1)  # each starts a QEMU
    sev = _Sev(partial(_ask_sev, service))

    @routes.get("/host")
    @needs(Right.HOST)
    async def show_host() -> Any:
        qemu, here = service.config.qemu, service.vms.host
        read = partial(accel.host_facts, kvm=here.accel.kvm)
        facts = await trio.to_thread.run_sync(read, qemu, here.qemu, here.users.shared)
        return {
            "technologies": {
                technology: {layer: attrs.asdict(cell) for layer, cell in row.items()}
                for technology, row in judge(facts, qemu.memory_bytes).items()
            }
        }

    @routes.get("/host/checks")
    @needs(Right.HOST)
    async def show_checks() -> Any:
        found = await trio.to_thread.run_sync(lambda: list(examine()), limiter=one_check)
        return {
            "checks": [{name: getattr(check, name) for name in _OF_CHECK} for check in found],
        }

    @routes.get("/host/sev")
    @needs(Right.RUN)
    async def show_sev_platform() -> Any:
        return attrs.asdict(await sev.platform())

    @routes.get("/hosts")
    @needs(Right.HOST)
    async def list_hosts() -> Any:
        fleet = _fleet(member)
        known, lost = fleet.members.hosts, fleet.members.lost
        return {
            "self": fleet.name,
            "reached": fleet.engine.connected and fleet.members.is_safe,
            "hosts": [views.host(facts) for _, facts in sorted(known.items())],
            "lost": [{"name": name, "lost_s": round(for_s, 1)} for name, for_s in lost.items()],
        }

    @routes.post("/host/drain")
    @needs(Right.DRAIN)
    async def drain() -> Any:
        fleet = _fleet(member)
        await json_body.read_optional(NoMembers)
        fleet.drain()
        return _state(fleet)

    @routes.post("/host/resume")
    @needs(Right.DRAIN)
    async def resume() -> Any:
        fleet = _fleet(member)
        await json_body.read_optional(NoMembers)
        fleet.resume()
        return _state(fleet)

    return routes


def _ask_sev(service: Service) -> SevPlatform:
    here = service.vms.host
    sudo, user = service.config.qemu.use_sudo, here.users.shared
    return trial.sev_platform(here.qemu, sudo=sudo, user=user)


def _state(fleet: Fleet) -> dict[str, Any]:
    return {
        "host": fleet.name,
        "draining": fleet.draining,
        "vms": fleet.busy,
        "callers": fleet.entry.callers,
    }


def _fleet(member: Member | None) -> Fleet:
    """:raises Busy: if this host is alone"""
    if member is None:
        raise Busy("this host is a member of no fleet", advice="see MANAGER_FLEET")
    return member.fleet
