"""What the agent in a guest is called for: the computation, a copy's renewal, signs of life.

grpc.aio belongs to asyncio. The functions here are trio-flavoured and need
``bridge.open_loop()`` around them; the few that are asyncio-flavoured say so.
"""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import attrs
import grpc
import trio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from supervisor import spans
from supervisor.agent.channel import MAX_MESSAGE, Channel
from supervisor.bridge import aio_as_trio
from supervisor.errors import AgentError, HostError
from supervisor.guest_text import clean
from supervisor.pb import (
    agent_pb2,
    agent_pb2_grpc,
    clone_pb2,
    clone_pb2_grpc,
    guest_pb2,
    guest_pb2_grpc,
)
from supervisor.state.secret import hostname

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from contextlib import AbstractContextManager

    from supervisor.config import AgentConfig, Timing

    Metadata = tuple[tuple[str, str], ...]

#: How much is kept of each of an agent's words on itself.
_WORD_BYTES = 200

#: The largest answer to a question that is asked again and again: a guest must not make work.
CHECK_BYTES = 64 * 1024

#: The largest report, with the certificates behind it; a quote is shorter.
EVIDENCE_BYTES = 256 * 1024

#: Beside the credential: the agent answers everybody from now on.
_OPEN: Metadata = (("agent-access", "open"),)


@attrs.frozen
class Life:
    """An agent's sign of life.

    :ivar instance: drawn at each start of the agent; empty if the agent does not tell
    :ivar last_end: how the agent before this one ended; empty if there was none
    :ivar protected: whether it refused a caller without the credential. What other callers do has
        no part in that
    """

    instance: str = ""
    last_end: str = ""
    protected: bool = attrs.field(default=False, kw_only=True)


class Agent(Channel):
    """The agent of one VM. `connect` makes it, and closes its channel.

    :param credential: what it is shown at each call; None for a VM that has none
    """

    #: The original's agents say nothing but their answers.
    last_words = ""

    def __init__(
        self,
        vm_id: str,
        address: str,
        config: AgentConfig,
        timing: Timing,
        credential: str | None,
        reply_bytes: int = 2 * MAX_MESSAGE,
    ) -> None:
        super().__init__(address, config, timing, reply_bytes)
        shown = (("authorization", f"Bearer {credential}"),)
        self.metadata: Metadata = shown if credential else ()
        self.vm_id = vm_id

    async def run(self, computation: bytes, *, open_to_all: bool) -> str:
        """The agent's reply to *computation*.

        :param open_to_all: whether the agent answers everybody from now on
        :raises AgentError: if the agent answers with an error, or not at all
        """
        method = agent_pb2_grpc.AgentServiceStub(self.channel).Run
        request = agent_pb2.RunRequest(computation=computation)
        shown = (*self.metadata, *(_OPEN if open_to_all else ()))
        response = await self._ask(method, request, shown)
        return str(response.Computation)

    async def warm_up(self) -> None:
        """Ask for the agent's health and status, and ignore the answers.

        A guest's first answer is slow. To the one it works as for a computation, for the other it
        looks at the credential.
        """
        stub: Any = health_pb2_grpc.HealthStub(self.channel)  # its types have no methods
        with suppress(AgentError):
            await self._ask(stub.Check, health_pb2.HealthCheckRequest())
            await self._status(self.metadata)

    async def prepare(self) -> None:
        """Have the guest make itself ready to be frozen: ``protos/clone.proto``.

        :raises AgentError: if the agent refuses
        """
        method = clone_pb2_grpc.CloneServiceStub(self.channel).Prepare
        await self._ask(method, clone_pb2.PrepareRequest())

    async def renew(self, entropy: bytes) -> None:
        """Tell a guest that was started from a template which VM it is.

        :param entropy: at least 32 bytes that nobody else has
        :raises AgentError: if the agent refuses
        """
        request = clone_pb2.RenewRequest(
            vm_id=self.vm_id,
            hostname=hostname(self.vm_id),
            entropy=entropy,
            unix_time_ns=time.time_ns(),
        )
        await self._ask(clone_pb2_grpc.CloneServiceStub(self.channel).Renew, request)

    async def check(self, timeout_s: float, *, open_to_all: bool = False) -> Life:
        """Whether the agent answers, and which one. Makes a connection if there is none.

        An agent that refuses the call lives as well: the original one does not know it.

        :param open_to_all: whether the agent answers everybody from now on
        :raises AgentError: ``UNAVAILABLE`` if nothing listens there, ``DEADLINE_EXCEEDED`` if there
            is no answer in time; then the connection is closed
        :raises HostError: if a certificate cannot be read, or this process has no descriptor left
        """
        try:
            with trio.move_on_after(timeout_s):
                return await self._life(timeout_s, open_to_all)
            raise AgentError(self.vm_id, "DEADLINE_EXCEEDED", f"no answer within {timeout_s:g} s")
        except AgentError as error:
            if error.code == "UNAVAILABLE":
                _check_own_descriptors()
            await self.close()
            raise

    async def _life(self, attempt_s: float, open_to_all: bool) -> Life:
        if self.channel is None:
            if not await self._look(attempt_s):
                raise AgentError(self.vm_id, "UNAVAILABLE", "nothing speaks TLS there")
            self.channel = await aio_as_trio(self._open)(attempt_s)
        # A stranger first: an agent that answers a stranger asks nobody.
        status, code = await self._status(())
        protected = code == "UNAUTHENTICATED"
        if protected:
            shown = (*self.metadata, *(_OPEN if open_to_all else ()))
            status, code = await self._status(shown)
            protected = not open_to_all or code == "UNAUTHENTICATED"
        last_end = clean(status.last_end, _WORD_BYTES)
        return Life(status.instance_id[:_WORD_BYTES], last_end, protected=protected)

    async def _status(self, metadata: Metadata) -> tuple[guest_pb2.StatusResponse, str]:
        """What the agent says of itself, or nothing and the code of its refusal."""
        method = guest_pb2_grpc.GuestServiceStub(self.channel).Status
        try:
            return await self._ask(method, guest_pb2.StatusRequest(), metadata), "OK"
        except AgentError as error:
            if error.code == "UNAVAILABLE":
                raise
            return guest_pb2.StatusResponse(), error.code

    async def set_clock(self) -> float | None:
        """Have the guest set its clock, which stood still while it was paused. After `check`.

        :return: by how many seconds the clock was moved; None if the agent cannot do it
        :raises AgentError: if the agent refuses
        """
        method = guest_pb2_grpc.GuestServiceStub(self.channel).SetClock
        try:
            now = guest_pb2.SetClockRequest(unix_time_ns=time.time_ns())
            response = await self._ask(method, now)
        except AgentError as error:
            if error.code != "UNIMPLEMENTED":
                raise
            return None
        return float(response.moved_ns / 1e9)

    async def attest(self, report_data: bytes, kind: int) -> bytes:
        """The processor's word on the guest.

        :param report_data: at most 64 bytes
        :param kind: ``type`` of ``protos/agent.proto``
        :raises AgentError: if the agent has none, or does not answer
        """
        # The original's later agents answer with a stream, and one message is a stream too.
        ask = self.channel.unary_stream(
            "/agent.AgentService/Attestation",
            request_serializer=agent_pb2.AttestationRequest.SerializeToString,
            response_deserializer=agent_pb2.AttestationResponse.FromString,
        )
        request = agent_pb2.AttestationRequest(report_data=report_data, type=kind)

        async def collect(given: object, *, metadata: Metadata) -> bytearray:  # asyncio-flavoured
            found = bytearray()
            async for part in ask(given, metadata=metadata):
                found += part.file
                if len(found) > EVIDENCE_BYTES:
                    why = f"its evidence is longer than {EVIDENCE_BYTES} bytes"
                    raise AgentError(self.vm_id, "RESOURCE_EXHAUSTED", why)
            return found

        return bytes(await self._ask(collect, request))

    async def _ask(
        self,
        method: Callable[..., Awaitable[Any]],
        request: object,
        metadata: Metadata | None = None,
    ) -> Any:
        """:param metadata: in place of the credential"""

        async def ask() -> Any:  # asyncio-flavoured
            shown = self.metadata if metadata is None else metadata
            return await method(request, metadata=(*shown, *more))

        name = getattr(method, "_method", b"").decode().removeprefix("/")
        with told(self.vm_id), self._span_of(name) as more:
            response = await aio_as_trio(ask)()
        if response is None:  # so grpc.aio reports bytes that do not parse
            raise AgentError(self.vm_id, "INTERNAL", "its answer is not what its protocol says")
        return response

    @contextmanager
    def told_of(self, name: str) -> Iterator[Metadata]:
        """What a call is shown that others make: its span is the block.

        :param name: of service and method
        """
        with self._span_of(name) as more:
            yield (*self.metadata, *more)

    def _span_of(self, name: str) -> AbstractContextManager[Metadata]:
        about = {"rpc.system.name": "grpc", "rpc.method": name, "vm.id": self.vm_id}
        return spans.asking(name, about)


@contextmanager
def told(vm_id: str) -> Iterator[None]:
    """Have what grpc and grpc.aio raise be an `AgentError`."""
    try:
        yield
    except grpc.RpcError as error:
        code, text = error.code().name, error.details() or "without a word"
        raise AgentError(vm_id, code, text) from error
    except asyncio.CancelledError:
        # Trio reports its own cancellation otherwise: the channel was closed, the VM has ended.
        raise AgentError(vm_id, "UNAVAILABLE", "the channel was closed") from None


@asynccontextmanager
async def connect(
    vm_id: str,
    target: str,
    config: AgentConfig,
    timing: Timing,
    credential: str | None,
    reply_bytes: int = 2 * MAX_MESSAGE,
) -> AsyncIterator[Agent]:
    """An `Agent`, which may not be there yet. Its channel is closed at the end of the block.

    :param target: ``host:port``
    :param credential: what it is shown at each call; None for a VM that has none
    """
    guest_agent = Agent(vm_id, target, config, timing, credential, reply_bytes)
    try:
        yield guest_agent
    finally:
        await guest_agent.close()


def _check_own_descriptors() -> None:
    """Tell our own want of descriptors from a peer that is gone: grpc calls both UNAVAILABLE.

    :raises HostError: if this process cannot open a socket
    """
    try:
        socket.socket().close()
    except OSError as error:
        raise HostError(
            f"no connection to an agent can be made: {error.strerror}",
            advice="raise the supervisor's limit of open files",
        ) from error
