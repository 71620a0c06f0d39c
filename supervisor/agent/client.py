"""The gRPC client of the agent in a guest: wait until it is there, hand it the computation.

grpc.aio is asyncio's; this module and ``rpc`` are the only ones that know. The methods of
`Agent` are trio-flavoured and need ``trio_asyncio.open_loop()`` around them.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import grpc
import trio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from trio_asyncio import aio_as_trio

from supervisor.config import MAX_COMPUTATION
from supervisor.errors import AgentError, HostError
from supervisor.pb import agent_pb2, agent_pb2_grpc, clone_pb2, clone_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from supervisor.config import AgentConfig
    from supervisor.qemu.cmdline import Forward

#: QEMU's user network accepts a connection before the guest can, and lets it hang: an attempt is
#: given up after this time and made anew. But one that is given up too soon has a guest on a busy
#: host do its part in vain, for ever perhaps; so each may take this share of all the time before.
ATTEMPT_S, ATTEMPT_SHARE = 0.5, 1 / 20

_CLOSE_S = 2.0

#: The largest message on any of our channels: a computation and the field around it.
MAX_MESSAGE = MAX_COMPUTATION + 64 * 1024

_CHANNEL_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE),
    # A reply may be longer than what it answers: the agent re-marshals the computation.
    ("grpc.max_receive_message_length", 2 * MAX_MESSAGE),
    # A guest that comes up refuses connections for a while.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Each VM's channel must see its own failures only, and a proxy has no place on this way.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


class Agent:
    """The agent of one VM, at one address. Nothing is asked of it before `wait_ready`."""

    #: Of grpc.aio. Not there yet, what is asked of it would be a bug.
    _channel: Any = None

    def __init__(self, vm_id: str, address: str, config: AgentConfig) -> None:
        self._vm_id = vm_id
        self.address = address
        self._config = config

    async def wait_ready(self, attempt_s: float = ATTEMPT_S) -> None:
        """Return once something speaks HTTP/2 at the agent's port, however long that takes.

        :param attempt_s: how long the first attempts may take
        :raises HostError: if a certificate cannot be read
        """
        began = trio.current_time()
        while True:
            this_s = max(attempt_s, (trio.current_time() - began) * ATTEMPT_SHARE)
            channel = await self._open(this_s)
            with trio.move_on_after(this_s):
                await aio_as_trio(channel.channel_ready)()
                return

    async def _open(self, attempt_s: float) -> grpc.aio.Channel:
        """Another channel in place of the one before."""

        async def opened() -> grpc.aio.Channel:  # asyncio-flavoured
            # A connection that is being made is not ended with its channel, but by this.
            longest = ("grpc.min_reconnect_backoff_ms", int(attempt_s * 1000))
            options = [*_CHANNEL_OPTIONS, longest]
            if not self._config.client_tls:
                return grpc.aio.insecure_channel(self.address, options=options)
            # The VM is reached at a forwarded port of the host, whose name no certificate has.
            name = self._config.server_name or self._config.url.host
            options.append(("grpc.ssl_target_name_override", name))
            credentials = _credentials(self._config)
            return grpc.aio.secure_channel(self.address, credentials, options=options)

        await self.close()
        channel: grpc.aio.Channel = await aio_as_trio(opened)()
        self._channel = channel
        return channel

    async def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_S):
                await aio_as_trio(channel.close)()

    async def run(self, computation: bytes) -> str:
        """The agent's answer to ``Run``.

        :raises AgentError: if that is an error, or no answer at all
        """
        method = agent_pb2_grpc.AgentServiceStub(self._channel).Run
        response = await self._ask(method, agent_pb2.RunRequest(computation=computation))
        return str(response.Computation)

    async def warm_up(self) -> None:
        """Ask for its health, whatever it answers: a guest's first answer is its slowest."""
        stub: Any = health_pb2_grpc.HealthStub(self._channel)  # its types have no methods
        with suppress(AgentError):
            await self._ask(stub.Check, health_pb2.HealthCheckRequest())

    async def prepare(self) -> None:
        """Have the guest make itself ready to be frozen: ``protos/clone.proto``.

        :raises AgentError: if it refuses
        """
        method = clone_pb2_grpc.CloneServiceStub(self._channel).Prepare
        await self._ask(method, clone_pb2.PrepareRequest())

    async def renew(self, entropy: bytes) -> None:
        """Tell a guest that was started from a template which VM it is.

        :param entropy: at least 32 bytes that nobody else has
        :raises AgentError: if it refuses
        """
        request = clone_pb2.RenewRequest(
            vm_id=self._vm_id,
            hostname=f"vm-{self._vm_id.partition('-')[0]}",
            entropy=entropy,
            unix_time_ns=time.time_ns(),
        )
        await self._ask(clone_pb2_grpc.CloneServiceStub(self._channel).Renew, request)

    async def _ask(self, method: Callable[[Any], Awaitable[Any]], request: object) -> Any:
        async def ask() -> Any:  # asyncio-flavoured
            return await method(request)

        try:
            response = await aio_as_trio(ask)()
        except grpc.aio.AioRpcError as error:
            code, text = error.code().name, error.details() or "without a word"
            raise AgentError(self._vm_id, code, text) from error
        except asyncio.CancelledError:
            # Not ours, which trio would tell: the channel was closed, for the VM has ended.
            raise AgentError(self._vm_id, "UNAVAILABLE", "the channel was closed") from None
        if response is None:  # grpc.aio's word for bytes that do not parse
            raise AgentError(self._vm_id, "INTERNAL", "its answer is not what its protocol says")
        return response


def address(config: AgentConfig, forwards: Sequence[Forward]) -> str:
    """Where the agent of the VM with these forwards is reached, as ``host:port``.

    With a loopback URL, the VM's own host port; else the fixed address, in which ``{port}``
    stands for that port.
    """
    url = config.url
    # The declaration of the forwards puts the agent's last, where the URL names no port.
    wanted = [one for one in forwards if one.guest_port == url.port] or [forwards[-1]]
    forward = wanted[0]
    if url.is_loopback:
        host = "127.0.0.1" if forward.host_address == "0.0.0.0" else forward.host_address
        return f"{host}:{forward.host_port}"
    return str(url).replace("{port}", str(forward.host_port))


@asynccontextmanager
async def connect(vm_id: str, target: str, config: AgentConfig) -> AsyncIterator[Agent]:
    """An agent that may not be there yet. What is open to it is closed on leaving.

    :param target: ``host:port``
    """
    guest_agent = Agent(vm_id, target, config)
    try:
        yield guest_agent
    finally:
        await guest_agent.close()


def _credentials(config: AgentConfig) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root_certificates=read_pem(config.ca_certs),
        private_key=read_pem(config.client_key),
        certificate_chain=read_pem(config.client_cert),
    )


def read_pem(file: Path | None) -> bytes | None:
    """A certificate's or key's bytes, None for none.

    :raises HostError: if it cannot be read
    """
    if file is None:
        return None
    try:
        return file.read_bytes()
    except OSError as error:
        raise HostError(f"{file} cannot be read: {error.strerror}") from error
