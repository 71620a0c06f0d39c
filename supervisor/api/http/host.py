"""What this host is worth, for VMs and for confidential guests."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio
from quart import Blueprint

from supervisor.api.callers import needs
from supervisor.caller import Right
from supervisor.errors import LaunchError, TeeUnavailable
from supervisor.qemu import accel, trial
from supervisor.tee.judge import judge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from supervisor.runs.service import Service

    #: Makes all checks; blocking. Of each it has the attributes name, verdict, detail and advice.
    Examine = Callable[[], Iterable[Any]]

#: Of a check's attributes those that the answer has.
_OF_CHECK = ("name", "verdict", "detail", "advice")


def blueprint(service: Service, examine: Examine) -> Blueprint:
    routes = Blueprint("host", __name__)
    #: Each starts a QEMU.
    one_at_a_time, one_check = trio.CapacityLimiter(1), trio.CapacityLimiter(1)

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
        config, here = service.config.qemu, service.vms.host
        ask = partial(trial.sev_platform, sudo=config.use_sudo, user=here.users.shared)
        try:
            found = await trio.to_thread.run_sync(ask, here.qemu, limiter=one_at_a_time)
        except LaunchError as error:
            raise TeeUnavailable(
                f"this host has no certificates of an SEV platform: {error.detail}",
                advice="'qmp-supervisor doctor' tells the host's operator what is missing",
            ) from error
        return attrs.asdict(found)

    return routes
