"""From an error to a status code: the one table of this wire."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

import grpc
import structlog

from supervisor import errors
from supervisor.api import trace
from supervisor.api.callers import check, needs

if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.caller import Right

log = structlog.stdlib.get_logger()

#: Bytes of a message as it is encoded. All trailing metadata together may have 8 KiB.
_LONGEST_MESSAGE = 6000

#: The first class that fits decides; the root at the end fits all.
_CODE: dict[type[errors.SupervisorError], grpc.StatusCode] = {
    errors.TooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.TooSlow: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.UnknownCertificate: grpc.StatusCode.PERMISSION_DENIED,
    errors.Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotTheirs: grpc.StatusCode.PERMISSION_DENIED,
    errors.VmNotFound: grpc.StatusCode.NOT_FOUND,
    errors.Busy: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AtCapacity: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Stopping: grpc.StatusCode.UNAVAILABLE,
    errors.TeeUnavailable: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NoHost: grpc.StatusCode.FAILED_PRECONDITION,
    errors.FleetError: grpc.StatusCode.UNAVAILABLE,
    errors.PortsTaken: grpc.StatusCode.UNAVAILABLE,
    errors.LaunchError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.VmEnded: grpc.StatusCode.UNAVAILABLE,
    errors.RunFailed: grpc.StatusCode.UNAVAILABLE,
    errors.MonitorError: grpc.StatusCode.UNAVAILABLE,
    errors.TemplateError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.CloneFailed: grpc.StatusCode.UNAVAILABLE,
    errors.AgentTimeout: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.AgentError: grpc.StatusCode.UNAVAILABLE,
    errors.SupervisorError: grpc.StatusCode.INTERNAL,
}


def code_of(error: errors.SupervisorError) -> grpc.StatusCode:
    """The status of an error. No guest chooses it: a client may act on it."""
    kind = error.kind if isinstance(error, errors.RefusedElsewhere) else type(error)
    return next(code for one, code in _CODE.items() if issubclass(kind, one))


def metadata_of(error: errors.SupervisorError) -> tuple[tuple[str, str], ...]:
    """Trailing metadata: ``retry-after``, in seconds, as HTTP's header; ``agent-code``, a word."""
    if isinstance(error, errors.AgentError | errors.RefusedElsewhere) and error.code:
        return (("agent-code", error.code),)
    if error.retry_after_s is not None:
        return (("retry-after", str(error.retry_after_s)),)
    return ()


def message_of(error: errors.SupervisorError) -> str:
    """The error's text, cut so that grpc can send it.

    grpc writes it into a header, percent-encoded, and makes ``RESOURCE_EXHAUSTED`` of one that is
    too long.
    """
    text = str(error).encode(errors="replace").decode()
    room = _LONGEST_MESSAGE
    for index, character in enumerate(text):
        plain = " " <= character <= "~" and character != "%"
        room -= 1 if plain else 3 * len(character.encode())
        if room < 0:
            return f"{text[:index]}…"
    return text


async def answer_error(
    error: errors.SupervisorError, context: grpc.aio.ServicerContext[Any, Any]
) -> None:
    """asyncio-flavoured. :raises grpc.aio.AbortError:"""
    trace.present().error = type(error).__name__
    await context.abort(code_of(error), message_of(error), metadata_of(error))


def answers(right: Right) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A servicer's method for callers with this right. Its errors become statuses."""
    return lambda method: needs(right)(_answers_errors(right, method))


def _answers_errors(right: Right, method: Callable[..., Any]) -> Callable[..., Any]:
    """asyncio-flavoured, as the method is."""

    @wraps(method)
    async def answer(self: Any, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            check(right)
            return await method(self, request, context)
        except errors.SupervisorError as error:
            await answer_error(error, context)
        except grpc.aio.BaseError:
            raise  # grpc's own: ``abort`` ends with one, and so does a call whose caller has gone
        except Exception as error:
            log.error("bug in a gRPC handler", method=method.__name__, exc_info=error)
            await context.abort(
                grpc.StatusCode.INTERNAL,
                "the supervisor failed in a way it does not know; its log has the particulars",
            )

    return answer
