"""Who calls, for every method of the server, the standard services' included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from supervisor.api.callers import serving
from supervisor.caller import ANYBODY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Behaviour = Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Awaitable[Any]]

_KINDS: dict[tuple[bool, bool], tuple[str, Callable[..., grpc.RpcMethodHandler[Any, Any]]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


class Callers(grpc.aio.ServerInterceptor):
    """Serves each call in the name of its caller. asyncio-flavoured."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None  # grpc answers UNIMPLEMENTED
        name, make = _KINDS[handler.request_streaming, handler.response_streaming]
        behaviour = _in_the_callers_name(getattr(handler, name))
        return make(behaviour, handler.request_deserializer, handler.response_serializer)


def _in_the_callers_name(behaviour: Behaviour) -> Behaviour:
    """Here, and not in the interceptor: only a call's context knows the peer."""

    async def behave(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        with serving(ANYBODY):
            return await behaviour(request, context)

    return behave
