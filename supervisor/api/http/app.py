"""The HTTP application: one blueprint a subject, one table of errors."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from quart import request
from quart_trio import QuartTrio

from supervisor.api.callers import check, right_of
from supervisor.api.http import events, ops, problems, runs, templates, vms
from supervisor.api.http.connections import Exchange
from supervisor.config import MAX_COMPUTATION

if TYPE_CHECKING:
    from supervisor.api.auth.door import Door
    from supervisor.runs.service import Service

#: A computation as an array of numbers, up to "255, " each, and the other members.
MAX_BODY = 5 * MAX_COMPUTATION + 64 * 1024


def create_app(service: Service, instance_id: str, door: Door) -> QuartTrio:
    app = QuartTrio("supervisor", static_folder=None)
    app.asgi_http_class = partial(Exchange, door)  # type: ignore[assignment]
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    # An answer takes as long as its guest; deadlines elsewhere bound the wait.
    app.config["RESPONSE_TIMEOUT"] = None
    app.url_map.merge_slashes = False  # else /vms//status would be another path
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.register_blueprint(runs.blueprint(service))
    app.register_blueprint(vms.blueprint(service))
    app.register_blueprint(events.blueprint(service))
    app.register_blueprint(templates.blueprint(service))
    app.register_blueprint(ops.blueprint(service, instance_id))
    problems.register(app)
    rights = {name: right_of(view) for name, view in app.view_functions.items()}

    @app.before_request
    async def check_right() -> None:
        if request.url_rule:  # else there is no such path
            check(rights[request.url_rule.endpoint])

    return app
