"""From an error to a status and an ``application/problem+json`` body: the one table of this wire.

Source: RFC 9457.
"""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import structlog
from quart import Response, request
from werkzeug.exceptions import HTTPException

from supervisor import errors

if TYPE_CHECKING:
    from quart_trio import QuartTrio

log = structlog.stdlib.get_logger()

#: The first class that fits decides; the root at the end fits all.
_STATUS: dict[type[errors.SupervisorError], HTTPStatus] = {
    errors.UnsupportedMedia: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.TooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.InvalidRequest: HTTPStatus.BAD_REQUEST,
    errors.VmNotFound: HTTPStatus.NOT_FOUND,
    errors.Busy: HTTPStatus.CONFLICT,
    errors.AtCapacity: HTTPStatus.TOO_MANY_REQUESTS,
    errors.Stopping: HTTPStatus.SERVICE_UNAVAILABLE,
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
_MEMBERS = {"member": "member", "code": "agent_code", "text": "agent_message", "vm_id": "vm"}


def register(app: QuartTrio) -> None:
    app.register_error_handler(errors.SupervisorError, _ours)
    app.register_error_handler(HTTPException, _https)
    app.register_error_handler(Exception, _bug)


def problem(status: int, kind: str, detail: str, **members: Any) -> Response:
    """A problem document. ``kind`` is the class's name; its words make type and title."""
    words = re.sub(r"(?<!^)(?=[A-Z])", " ", kind)
    body = {
        "type": f"urn:qmp-supervisor:problem:{words.lower().replace(' ', '-')}",
        "title": words.capitalize(),
        "status": status,
        "detail": detail,
        "instance": request.path,
        **members,
    }
    return Response(json.dumps(body) + "\n", status, content_type="application/problem+json")


async def _ours(error: errors.SupervisorError) -> Response:
    status = next(status for kind, status in _STATUS.items() if isinstance(error, kind))
    members = {
        shown: value
        for name, shown in _MEMBERS.items()
        if (value := getattr(error, name, None)) is not None
    }
    if error.advice:
        members["advice"] = error.advice
    answer = problem(status, type(error).__name__, str(error), **members)
    if isinstance(error, errors.AtCapacity) and error.retry_after_s is not None:
        answer.headers["Retry-After"] = str(error.retry_after_s)
    return answer


async def _https(error: HTTPException) -> Response:
    status = error.code or HTTPStatus.INTERNAL_SERVER_ERROR
    kind = type(error).__name__
    answer = problem(status, kind, error.description or kind)
    for name, value in error.get_headers():
        if name.lower() == "allow":
            answer.headers[name] = value
    return answer


async def _bug(error: Exception) -> Response:
    log.error("bug in a request handler", path=request.path, exc_info=error)
    return problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "InternalError",
        "the supervisor failed in a way it does not know; its log has the particulars",
    )
