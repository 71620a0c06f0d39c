"""Who calls, for every method of the server except health."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from supervisor.api.auth.certificates import Names
from supervisor.api.auth.door import STRANGER, Peer
from supervisor.api.callers import serving
from supervisor.api.grpc.errors import code_of, message_of
from supervisor.errors import SupervisorError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from supervisor.api.auth.door import Door

    Context = grpc.aio.ServicerContext[Any, Any]
    Behaviour = Callable[[Any, Context], Awaitable[Any]]

_HEALTH = "/grpc.health.v1.Health/"

_KINDS = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}


class Callers(grpc.aio.ServerInterceptor):
    """Serves each call in the name of its caller. asyncio-flavoured.

    :param local: the users of connections over the unix socket, by what grpc calls the peer
    """

    def __init__(self, door: Door, local: Mapping[str, int]) -> None:
        self._door = door
        self._local = local

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if handler is None or details.method.startswith(_HEALTH):
            return handler  # grpc answers UNIMPLEMENTED if there is none
        # All requests are streams here, and alike on the wire: grpc would read one of 16 MiB
        # before it asked who calls.
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        behaviour = self._in_the_callers_name(handler)
        return make(behaviour, handler.request_deserializer, handler.response_serializer)

    def _in_the_callers_name(self, handler: Any) -> Behaviour:
        """Here, and not in the interceptor: only a call's context knows the peer."""
        behaviour = getattr(handler, _KINDS[handler.request_streaming, handler.response_streaming])

        async def behave(requests: Any, context: Context) -> Any:
            try:
                caller = self._door.caller(self._peer(context), _authorization(context))
            except SupervisorError as error:
                await context.abort(code_of(error), message_of(error))
            with serving(caller):
                if handler.request_streaming:
                    return await behaviour(requests, context)
                request = await context.read()
                if request is grpc.aio.EOF:
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "there is no message")
                return await behaviour(request, context)

        return behave

    def _peer(self, context: Context) -> Peer:
        uid = self._local.get(context.peer())
        if uid is not None:
            return Peer(uid=uid)
        shown = context.auth_context()
        # Only of a client that was asked for a certificate.
        return Peer(names=Names.of_grpc(shown)) if "x509_subject" in shown else STRANGER


def _authorization(context: Context) -> list[str]:
    metadata = context.invocation_metadata() or ()
    return [str(value) for key, value in metadata if key == "authorization"]
