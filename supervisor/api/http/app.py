"""The HTTP application: one blueprint a subject, one table of errors."""

from __future__ import annotations

from functools import cached_property, partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from quart import has_websocket_context, request, websocket
from quart_trio import QuartTrio

from supervisor.api.audit import Outcome
from supervisor.api.callers import check, current, right_of
from supervisor.api.http import (
    attestation,
    computations,
    compute,
    console,
    events,
    host,
    json_body,
    logs,
    members,
    ops,
    page,
    problems,
    runs,
    templates,
    vms,
)
from supervisor.api.http.connections import Exchange, Talk
from supervisor.api.http.elsewhere import Elsewhere
from supervisor.api.http.web_pages import Sent, check_origin
from supervisor.api.trace import Trace, parent, request_id
from supervisor.config import MAX_COMPUTATION
from supervisor.errors import HostLost, TooOften

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from quart import Request, Websocket
    from quart.wrappers.base import BaseRequestWebsocket

    from supervisor.api.auth.door import Door, MemberDoor
    from supervisor.api.fleet.member import Member
    from supervisor.api.gate import Gate
    from supervisor.api.http.host import Examine
    from supervisor.api.http.web_pages import Hosts
    from supervisor.runs.service import Service

#: A computation as an array of numbers, up to "255, " each, and the other members.
MAX_BODY = 5 * MAX_COMPUTATION + 64 * 1024

_CHANGES_NOTHING = {"GET", "HEAD", "OPTIONS"}
#: Endpoints of which GET changes something, and HEAD does not exist: it would change it unseen.
_CHANGED_BY_GET = {"attestation.launch_measurement"}
#: In the audit log, for a method that no route has: a caller may send kilobytes as one.
_OTHER_METHOD = "another method"
#: For browsers: no other site's page shows or embeds an answer, and none runs what a guest wrote.
_FOR_BROWSERS = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


class App(QuartTrio):
    """Quart, with the gate before it."""

    def __init__(self, gate: Gate) -> None:
        super().__init__("supervisor", static_folder=None)
        self._gate = gate

    @cached_property
    def _methods(self) -> set[str]:
        """Those that a route has."""
        return {method for rule in self.url_map.iter_rules() for method in rule.methods or ()}

    async def handle_request(self, request: Request) -> Any:
        return await self._watched(request, super().handle_request)

    async def handle_websocket(self, websocket: Websocket) -> Any:
        return await self._watched(websocket, super().handle_websocket)

    async def _watched(
        self, asked: BaseRequestWebsocket, handle: Callable[[Any], Awaitable[Any]]
    ) -> Any:
        headers = asked.headers
        peer = (asked.scope.get("client") or ("unix",))[0]
        given, parents = headers.getlist("X-Request-Id"), headers.getlist("traceparent")
        where = asked.path, asked.scheme
        trace = Trace(request_id(given, parents), "http", peer, parent(parents), *where)
        method = asked.method if asked.method in self._methods else _OTHER_METHOD
        outcome = Outcome(method, method not in _CHANGES_NOTHING)
        with self._gate.watching(trace, outcome):
            try:
                answer = await handle(asked)
            finally:
                rule = asked.url_rule
                outcome.what = f"{method} {rule or 'of no path'}"
                if rule and method == "GET" and rule.endpoint in _CHANGED_BY_GET:
                    outcome.changes = True
                outcome.changes |= trace.changed
                trace.vm_id = trace.vm_id or (asked.view_args or {}).get("vm_id")
            if answer is None:  # a WebSocket that is over
                outcome.status = HTTPStatus.SWITCHING_PROTOCOLS
                return None
            outcome.status = answer.status_code
            outcome.refused = 400 <= answer.status_code < 500 or answer.status_code == 503
        answer.headers["X-Request-Id"] = trace.id
        for name, value in _FOR_BROWSERS.items():
            answer.headers.setdefault(name, value)
        return answer

    async def full_dispatch_request(self, request_context: Any = None) -> Any:
        """Around the checks as well: who guesses tokens is refused, and asks too often."""
        if _is_health():
            return await super().full_dispatch_request(request_context)
        try:
            with self._gate.one_more():
                return await super().full_dispatch_request(request_context)
        except TooOften as error:
            answer = await self.handle_user_exception(error)
            return await self.finalize_request(answer, request_context)


def create_app(
    service: Service,
    instance_id: str,
    door: Door | MemberDoor,
    gate: Gate,
    hosts: Hosts,
    examine: Examine,
    member: Member | None = None,
) -> QuartTrio:
    """
    :param examine: what looks at the host, as ``qmp-supervisor doctor`` does
    :param member: of a fleet; None: this host is alone
    """
    app = App(gate)
    app.asgi_http_class = partial(Exchange, door)  # type: ignore[assignment]
    app.asgi_websocket_class = partial(Talk, door)  # type: ignore[assignment]
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    app.config["CALLERS"] = gate.limits
    # An answer takes as long as its guest; deadlines elsewhere bound the wait.
    app.config["RESPONSE_TIMEOUT"] = None
    app.url_map.merge_slashes = False  # else /vms//status would be another path
    app.json.sort_keys = False  # type: ignore[attr-defined]
    for blueprint in (
        runs.blueprint(service, gate.budget, member),
        vms.blueprint(service, member),
        attestation.blueprint(service),
        computations.blueprint(service),
        compute.blueprint(service),
        events.blueprint(service, gate.readers, member),
        logs.blueprint(service, gate.readers),
        console.blueprint(service, gate.readers, member),
        templates.blueprint(service),
        host.blueprint(service, examine, member),
        ops.blueprint(service, instance_id, member),
        page.blueprint(),
    ):
        app.register_blueprint(blueprint)
    if member and member.calls:
        app.register_blueprint(members.blueprint(member, member.calls, service, gate.budget))
    for rule in app.url_map.iter_rules():
        if rule.methods and rule.endpoint in _CHANGED_BY_GET:
            rule.methods.discard("HEAD")
    problems.register(app)
    rights = {name: right_of(view) for name, view in app.view_functions.items()}

    @app.before_request
    async def check_request() -> None:
        sent = Sent.of(request.scope)
        hosts.check_host(sent)
        if _is_health():  # which needs no right
            return
        if not _is_page():
            check_origin(sent)
        if not request.url_rule:
            current()  # a stranger learns no path and no method, and nobody's body is waited for
            return
        check(rights[request.url_rule.endpoint])
        await json_body.check_type(app.view_functions[request.url_rule.endpoint])

    if member and member.asks:
        _ask_others(app, service, member)

    @app.before_websocket
    async def check_sender_of_websocket() -> None:
        sent = Sent.of(websocket.scope)
        with gate.one_more():
            hosts.check_host(sent)
            check_origin(sent)
            if websocket.url_rule:
                check(rights[websocket.url_rule.endpoint])
            else:
                current()  # as above

    return app


def _ask_others(app: QuartTrio, service: Service, member: Member) -> None:
    """Have requests for VMs that are not here answered by the members that have them."""
    elsewhere = Elsewhere(member.others)

    @app.before_request
    async def ask_member() -> Any:
        """The checks before it have passed."""
        vm_id = (request.view_args or {}).get("vm_id")
        if vm_id is None or vm_id in service.vms:
            return None
        return await elsewhere.answer(vm_id)

    @app.after_request
    @app.after_websocket
    async def deny_alike(answer: Any) -> Any:
        """Another caller's VM as one that nobody has, whichever host has it."""
        asked = websocket if has_websocket_context() else request
        vm_id = (asked.view_args or {}).get("vm_id")
        if answer and answer.status_code == HTTPStatus.NOT_FOUND and vm_id is not None:
            try:
                member.fleet.check_lost(vm_id)
            except HostLost as error:
                return await app.make_response(await app.handle_user_exception(error))
        return answer


def _is_page() -> bool:
    """Others may link to it: its answer is the same for everybody."""
    return request.path == "/" and request.method == "GET"


def _is_health() -> bool:
    """Tells nothing that a stranger may not know, and is asked by who has no other right."""
    return request.path in ("/health", "/ready")
