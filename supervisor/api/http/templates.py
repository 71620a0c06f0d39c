"""``GET /templates``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quart import Blueprint

from supervisor.api.callers import needs
from supervisor.api.http import views
from supervisor.caller import Right

if TYPE_CHECKING:
    from supervisor.runs.service import Service


def blueprint(service: Service) -> Blueprint:
    routes = Blueprint("templates", __name__, url_prefix="/templates")

    @routes.get("")
    @needs(Right.TEMPLATES)
    async def list_templates() -> Any:
        templates = service.vms.templates
        return {
            "use": service.config.start.templates,
            "possible": templates.obstacle is None,
            "why": templates.obstacle,
            "templates": [views.template(one) for one in templates.entries.values()],
        }

    return routes
