"""Who calls, for every method of the server, the standard services' included.

Every method is a stream for the server: no message is read before there is room for it. A message
of any method may be as large as a computation.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import trio

from supervisor.api import trace
from supervisor.api.audit import Outcome
from supervisor.api.auth.certificates import Names
from supervisor.api.auth.door import STRANGER, Peer
from supervisor.api.budget import LARGEST, Budget
from supervisor.api.callers import current, is_known, serving, who
from supervisor.api.grpc.connections import Origin
from supervisor.api.grpc.errors import answer_error
from supervisor.api.rates import AtOnce, Who
from supervisor.bridge import aio_as_trio, trio_as_aio
from supervisor.errors import InvalidRequest, Stopping, SupervisorError, TooLarge, TooSlow

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from supervisor.api.auth.door import Door
    from supervisor.api.gate import Gate
    from supervisor.caller import Caller

    Context = grpc.aio.ServicerContext[Any, Any]
    Behaviour = Callable[[Any, Context], Awaitable[Any]]

#: Messages of methods other than Run that are read at once; one caller has half of them. Those of
#: strangers, who may only ask for health, are counted apart, and have little time.
_SMALL_MESSAGES, _STRANGERS_MESSAGES, _STRANGERS_S = 8, 4, 2.0
#: The largest message of a method other than Run: CreateVm's has three certificates.
_LARGEST_SMALL = 512 * 1024
#: Calls of strangers at once: of one address, and of all.
_STRANGERS_CALLS, _ALL_STRANGERS_CALLS = 8, 64
_NOWHERE = Origin("unix")
_PARENT = "traceparent"
_FOR_STRANGERS = "/grpc.health.v1.Health/Check"
_CHANGES_NOTHING = {
    *("List", "Get", "Watch", "Check", "ServerReflectionInfo"),
    *("CVMInfo", "AttestationPolicy"),
}
_STRANGERS = "calls"
_ALL = Who("", known=False)
_REFUSED = {
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAUTHENTICATED,
}
#: Refusals whose codes also tell of a VM or an agent that failed.
_REFUSALS = {Stopping.__name__, TooSlow.__name__}


class Callers(grpc.aio.ServerInterceptor):
    """Serves each call in the name of its caller. asyncio-flavoured.

    :param origins: where connections come from, by what grpc calls the peer
    """

    def __init__(self, door: Door, origins: Mapping[str, Origin], gate: Gate) -> None:
        self._door = door
        self._origins = origins
        self._gate = gate
        limits = gate.limits
        self._timeout_s = limits.body_timeout_s
        self._budget = Budget(_SMALL_MESSAGES * LARGEST, limits.body_wait_s)
        self._strangers_budget = Budget(_STRANGERS_MESSAGES * LARGEST, limits.body_wait_s)
        self._strangers = AtOnce(_STRANGERS_CALLS, _STRANGERS, "")
        self._all_strangers = AtOnce(_ALL_STRANGERS_CALLS, _STRANGERS, "")

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None  # grpc answers UNIMPLEMENTED
        way = "stream" if handler.request_streaming else "unary"
        back = "stream" if handler.response_streaming else "unary"
        behaviour = getattr(handler, f"{way}_{back}")
        make = getattr(grpc, f"stream_{back}_rpc_method_handler")
        if not handler.request_streaming:
            behaviour = self._once_read(behaviour)
        if details.method == _FOR_STRANGERS:
            behaviour = _if_known(self._limited(behaviour), self._few(behaviour))
        else:
            behaviour = self._limited(_known(behaviour))
        return make(
            self._watched(behaviour, details.method),
            handler.request_deserializer,
            handler.response_serializer,
        )

    def _once_read(self, behaviour: Behaviour) -> Behaviour:
        async def read(context: Context) -> Any:
            known = is_known()
            budget = self._budget if known else self._strangers_budget
            timeout_s = self._timeout_s if known else min(self._timeout_s, _STRANGERS_S)
            async with budget.reserve(who(), None):
                message = await read_message(context, timeout_s)
            # It stays for as long as the call, and what nobody knows in it stays as well.
            if (size := message.ByteSize()) > _LARGEST_SMALL:
                raise TooLarge(f"the message is {size} bytes, the limit is {_LARGEST_SMALL}")
            return message

        async def behave(_: object, context: Context) -> Any:
            try:
                message = await trio_as_aio(read)(context)
            except SupervisorError as error:
                await answer_error(error, context)
            trace.present().vm_id = getattr(message, "id", "") or getattr(message, "cvm_id", None)
            return await behaviour(message, context)

        return behave

    def _limited(self, behaviour: Behaviour) -> Behaviour:
        async def behave(request: Any, context: Context) -> Any:
            with ExitStack() as stack:
                try:
                    stack.enter_context(self._gate.one_more())
                except SupervisorError as error:
                    await answer_error(error, context)
                return await behaviour(request, context)

        return behave

    def _few(self, behaviour: Behaviour) -> Behaviour:
        """Of strangers: the server takes only so many calls."""

        async def behave(request: Any, context: Context) -> Any:
            with ExitStack() as stack:
                try:
                    stack.enter_context(self._strangers.one_more(who()))
                    stack.enter_context(self._all_strangers.one_more(_ALL))
                except SupervisorError as error:
                    await answer_error(error, context)
                return await behaviour(request, context)

        return behave

    def _watched(self, behaviour: Behaviour, method: str) -> Behaviour:
        """Here, and not in the interceptor: only a call's context knows the peer."""

        async def behave(request: Any, context: Context) -> Any:
            parents = _metadata(context, _PARENT)
            id_ = trace.request_id(_metadata(context, "x-request-id"), parents)
            peer = self._origin(context).address
            present = trace.Trace(id_, "grpc", peer, trace.parent(parents))
            outcome = Outcome(method, method.rpartition("/")[2] not in _CHANGES_NOTHING)
            with serving(partial(self._caller, context)), self._gate.watching(present, outcome):
                await context.send_initial_metadata((("x-request-id", id_),))
                try:
                    answer = await behaviour(request, context)
                except grpc.aio.AbortError:
                    outcome.status = context.code().name
                    outcome.refused = context.code() in _REFUSED or present.error in _REFUSALS
                    raise
                outcome.status = grpc.StatusCode.OK.name
                return answer

        return behave

    def _caller(self, context: Context) -> Caller:
        """:raises SupervisorError: if nobody is known to call"""
        return self._door.caller(self._peer(context), _metadata(context, "authorization"))

    def _origin(self, context: Context) -> Origin:
        """Who comes to an inner socket by himself is a stranger."""
        return self._origins.get(context.peer(), _NOWHERE)

    def _peer(self, context: Context) -> Peer:
        origin = self._origin(context)
        if origin.uid is not None:
            return Peer(uid=origin.uid)
        shown = context.auth_context()
        # Only of a client that was asked for a certificate.
        return Peer(names=Names.of_grpc(shown)) if "x509_subject" in shown else STRANGER


def _if_known(one: Behaviour, other: Behaviour) -> Behaviour:
    """*one* for callers that are known, *other* for strangers."""

    async def behave(request: Any, context: Context) -> Any:
        return await (one if is_known() else other)(request, context)

    return behave


def _known(behaviour: Behaviour) -> Behaviour:
    """For callers that are known, also if the method declares no right."""

    async def behave(request: Any, context: Context) -> Any:
        try:
            current()
        except SupervisorError as error:
            await answer_error(error, context)
        return await behaviour(request, context)

    return behave


async def read_message(context: Context, timeout_s: float) -> Any:
    """The only message of a call. trio-flavoured.

    :raises TooSlow: if it does not arrive in time
    """
    with trio.move_on_after(timeout_s):
        message = await aio_as_trio(context.read)()
        if message is grpc.aio.EOF:
            raise InvalidRequest("the call has no message")
        return message
    raise TooSlow(f"the message did not arrive within {timeout_s:g} s")


def _metadata(context: Context, name: str) -> list[str]:
    return [str(value) for key, value in context.invocation_metadata() or () if key == name]
