"""``GET /host``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio
from quart import Blueprint

from supervisor.api.callers import needs
from supervisor.caller import Right
from supervisor.qemu import accel
from supervisor.tee.judge import judge

if TYPE_CHECKING:
    from supervisor.runs.service import Service


def blueprint(service: Service) -> Blueprint:
    routes = Blueprint("host", __name__)

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

    return routes
