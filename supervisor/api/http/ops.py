"""``/health``, ``/ready``, ``/metrics``, ``/whoami`` and the API's document."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client.exposition import CONTENT_TYPE_LATEST
from quart import Blueprint, Response

from supervisor.api.callers import current, needs
from supervisor.build import build_info
from supervisor.caller import Right

if TYPE_CHECKING:
    from supervisor.api.fleet.member import Member
    from supervisor.runs.service import Service


def blueprint(service: Service, instance_id: str, member: Member | None) -> Blueprint:
    routes = Blueprint("ops", __name__)
    build = build_info()
    document = Path(__file__).with_name("openapi.yaml").read_bytes()

    @routes.get("/health")
    @needs(None)
    async def health() -> Any:
        return {
            "status": "pass",
            "version": build.version,
            "commit": build.commit,
            "description": "QMP supervisor of virtual machines",
            "build_time": build.build_time,
            "instance_id": instance_id,
        }

    @routes.get("/ready")
    @needs(None)
    async def ready() -> Any:
        """VMs of before are taken up before the API listens."""
        if service.vms.closing:
            return {"status": "fail", "output": "the supervisor is stopping"}, 503
        if not service.vms.templates.looked:
            return {"status": "fail", "output": "templates are being looked at"}, 503
        return {"status": "pass"}

    @routes.get("/openapi.yaml")
    @needs(None)
    async def openapi() -> Any:
        return Response(document, content_type="application/yaml")

    @routes.get("/whoami")
    @needs(None)
    async def whoami() -> Any:
        caller = current()  # 401 for a stranger
        return {
            "name": caller.name or None,
            "role": caller.role,
            "known_by": caller.known_by,
            "rights": [right for right in Right if caller.may(right)],
            **({"host": member.fleet.name} if member else {}),
        }

    @routes.get("/metrics")
    @needs(Right.METRICS)
    async def metrics() -> Any:
        return Response(await service.metrics_text(), content_type=CONTENT_TYPE_LATEST)

    return routes
