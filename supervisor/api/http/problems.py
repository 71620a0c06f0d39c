"""From an error to a status and an ``application/problem+json`` body: the one table of this wire.

Source: RFC 9457.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import structlog
from quart import (
    Response,
    current_app,
    has_request_context,
    has_websocket_context,
    request,
    websocket,
)
from werkzeug.exceptions import (
    HTTPException,
    MethodNotAllowed,
    NotFound,
    RequestEntityTooLarge,
)

from supervisor import errors
from supervisor.api import trace

if TYPE_CHECKING:
    from quart import Request, Websocket
    from quart_trio import QuartTrio

log = structlog.stdlib.get_logger()

#: Characters of a path that the log has; a caller may send kilobytes.
_LONGEST_PATH = 200

#: The first class that fits decides; the root at the end fits all.
_STATUS: dict[type[errors.SupervisorError], HTTPStatus] = {
    errors.UnsupportedMedia: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.TooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.TooSlow: HTTPStatus.REQUEST_TIMEOUT,
    errors.InvalidRequest: HTTPStatus.BAD_REQUEST,
    errors.Unauthenticated: HTTPStatus.UNAUTHORIZED,
    errors.UnknownCertificate: HTTPStatus.FORBIDDEN,
    errors.Forbidden: HTTPStatus.FORBIDDEN,
    errors.NotTheirs: HTTPStatus.FORBIDDEN,
    errors.Misdirected: HTTPStatus.MISDIRECTED_REQUEST,
    errors.CrossSite: HTTPStatus.FORBIDDEN,
    errors.VmNotFound: HTTPStatus.NOT_FOUND,
    errors.Busy: HTTPStatus.CONFLICT,
    errors.Overloaded: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.AtCapacity: HTTPStatus.TOO_MANY_REQUESTS,
    errors.Stopping: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.TeeUnavailable: HTTPStatus.CONFLICT,
    errors.FleetUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.NoHost: HTTPStatus.CONFLICT,
    errors.NotOwner: HTTPStatus.CONFLICT,
    errors.HandedBack: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.HostLost: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.FleetError: HTTPStatus.BAD_GATEWAY,
    errors.PortsTaken: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.VmEnded: HTTPStatus.BAD_GATEWAY,
    errors.RunFailed: HTTPStatus.BAD_GATEWAY,
    errors.MonitorError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.TemplateError: HTTPStatus.CONFLICT,
    errors.CloneFailed: HTTPStatus.BAD_GATEWAY,
    errors.AgentTimeout: HTTPStatus.GATEWAY_TIMEOUT,
    errors.AgentError: HTTPStatus.BAD_GATEWAY,
    errors.SupervisorError: HTTPStatus.INTERNAL_SERVER_ERROR,
}

#: From fields of errors to members for programs, which should not have to read the text.
_MEMBERS = {
    "member": "member",
    "code": "agent_code",
    "text": "agent_message",
    "vm_id": "vm",
    "role": "role",
    "right": "right",
}


def register(app: QuartTrio) -> None:
    app.register_error_handler(errors.SupervisorError, _ours)
    app.register_error_handler(HTTPException, _https)
    app.register_error_handler(Exception, _bug)


def document(status: int, kind: str, detail: str, **members: Any) -> bytes:
    """A problem document. ``kind`` is the class's name; its words make type and title."""
    word = errors.problem_word(kind)
    body = {
        "type": f"urn:qmp-supervisor:problem:{word}",
        "title": word.replace("-", " ").capitalize(),
        "status": status,
        "detail": detail,
        **members,
    }
    return json.dumps(body).encode() + b"\n"


def problem(status: int, kind: str, detail: str, **members: Any) -> Response:
    """The answer to the present request."""
    present = trace.present()
    present.error = kind
    if present.id:
        members["request_id"] = present.id
    body = document(status, kind, detail, instance=_asked().path, **members)
    return Response(body, status, content_type="application/problem+json")


def _asked() -> Request | Websocket:
    return request if has_request_context() else websocket


async def _ours(error: errors.SupervisorError) -> Response:
    kind = error.kind if isinstance(error, errors.RefusedElsewhere) else type(error)
    status = next(status for one, status in _STATUS.items() if issubclass(kind, one))
    members = {
        shown: value
        for name, shown in _MEMBERS.items()
        if (value := getattr(error, name, None)) is not None
    }
    if error.advice:
        members["advice"] = error.advice
    answer = problem(status, kind.__name__, str(error), **members)
    if isinstance(error, errors.Unauthenticated):
        answer.headers["WWW-Authenticate"] = 'Bearer realm="qmp-supervisor"'
    if error.retry_after_s is not None:
        answer.headers["Retry-After"] = str(error.retry_after_s)
    return answer


async def _https(error: HTTPException) -> Response:
    """An error of the framework, in our words."""
    status = error.code or HTTPStatus.INTERNAL_SERVER_ERROR
    allowed = dict(error.get_headers()).get("Allow")
    members = {}
    match error:
        case NotFound():
            paths = ", ".join(sorted({str(rule) for rule in current_app.url_map.iter_rules()}))
            detail, advice = f"there is no path {_asked().path}", f"the paths are {paths}"
        case MethodNotAllowed():
            detail = f"{_asked().path} has no method {request.method}"
            advice = f"its methods are {allowed}"
        case RequestEntityTooLarge():
            detail = "the body is over the limit"
            advice = f"send at most {current_app.config['MAX_CONTENT_LENGTH']} bytes"
        case _ if has_websocket_context():
            detail = f"there is no websocket {_asked().path}"
            advice = "send the request without Upgrade, or to the console of a VM"
        case _:
            detail, advice = error.description or type(error).__name__, ""
    if advice:
        members["advice"] = advice
        detail = f"{detail}; {advice}"
    answer = problem(status, type(error).__name__, detail, **members)
    if allowed:
        answer.headers["Allow"] = allowed
    return answer


async def _bug(error: Exception) -> Response:
    log.error("bug in a request handler", path=_asked().path[:_LONGEST_PATH], exc_info=error)
    return problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "InternalError",
        "the supervisor failed in a way it does not know; its log has the particulars",
    )
