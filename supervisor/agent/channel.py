"""The connection to the agent in a guest: where it is, how it is made, and with which certificates.

grpc.aio belongs to asyncio. The functions here are trio-flavoured and need
``bridge.open_loop()`` around them; the few that are asyncio-flavoured say so.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import trio

from supervisor import tls
from supervisor.bridge import aio_as_trio
from supervisor.config import MAX_COMPUTATION, Timing
from supervisor.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from supervisor.config import AgentConfig
    from supervisor.qemu.cmdline import Forward

_CLOSE_S = 2.0

#: The name in a certificate that the reference agent has made.
_OWN_NAME = "agent"

#: How long to wait before an agent is looked for again.
_LOOK_AGAIN_S = 0.1

#: How much longer than an attempt its connection may last.
_CLOSE_LAG_S = 0.2

#: The largest message on any of our channels: a computation and the field around it.
MAX_MESSAGE = MAX_COMPUTATION + 64 * 1024

_CHANNEL_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE),
    # An error's text comes percent-encoded in a header. With grpc's 16 KiB, a longer text of an
    # agent would be replaced with an error of grpc's own.
    ("grpc.max_metadata_size", 64 * 1024),
    ("grpc.absolute_max_metadata_size", 64 * 1024),
    # A guest that is booting refuses connections for a while.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A channel must see the failures of its own VM only. No proxy is between host and guest.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


class Channel:
    """To the agent of one VM, at one address. Call `wait_ready` first.

    QEMU's user network accepts a connection before the guest does, and that connection hangs. So
    `wait_ready` gives up an attempt and makes another. If attempts were too short, a guest on a
    busy host would never finish its part of one; so the longer the wait, the longer an attempt.

    :param address: ``host:port``
    :param reply_bytes: the largest answer that is taken. A reply may be longer than its
        computation: the agent writes the computation again
    :ivar refused: whether the last attempt of `wait_ready` was turned down: the guest's network is
        up, and nothing listens there
    """

    refused = False

    #: What an agent with a certificate of its own showed last, in PEM; else None.
    certificate: bytes | None = None

    #: Of grpc.aio; None before `wait_ready`.
    channel: Any = None

    def __init__(self, address: str, config: AgentConfig, timing: Timing, reply_bytes: int) -> None:
        self.address = address
        self._reply_bytes = reply_bytes
        self._config = config
        self._timing = timing

    async def wait_ready(self, attempt_s: float | None = None) -> None:
        """Return when something speaks HTTP/2 at the agent's port, however long that takes.

        :param attempt_s: in place of ``agent_attempt_s`` of `Timing`
        :raises HostError: if a certificate cannot be read
        """
        shortest_s = self._timing.agent_attempt_s if attempt_s is None else attempt_s
        self.refused = False
        began = trio.current_time()
        while True:
            waited_s = trio.current_time() - began
            this_s = max(shortest_s, waited_s * self._timing.agent_attempt_share)
            await self.close()
            with trio.move_on_after(this_s):
                while True:
                    if await self._look(this_s):
                        break
                    await trio.sleep(_LOOK_AGAIN_S)
                self.channel = await aio_as_trio(self._open)(this_s)
                await aio_as_trio(self.channel.channel_ready)()
                return
            if self.channel:
                failed = grpc.ChannelConnectivity.TRANSIENT_FAILURE
                self.refused = self.channel.get_state() is failed

    async def _look(self, attempt_s: float) -> bool:
        """Have the certificate that the agent has made itself; False if it is not there."""
        if not self._config.own_certs:
            return True
        look = partial(tls.shown_by, self.address, attempt_s)
        try:
            self.certificate = await trio.to_thread.run_sync(look, abandon_on_cancel=True)
        except OSError as error:
            self.refused = isinstance(error, ConnectionRefusedError)
            return False
        return True

    async def _open(self, attempt_s: float) -> grpc.aio.Channel:
        """A new channel. Asyncio-flavoured: grpc.aio asks for the running loop.

        :raises HostError: if a certificate cannot be read
        """
        # Closing a channel does not end a connection that is still being made; this option does.
        # Not before we give it up: then what has failed by then was refused.
        longest = ("grpc.min_reconnect_backoff_ms", int((attempt_s + _CLOSE_LAG_S) * 1000))
        replies = ("grpc.max_receive_message_length", self._reply_bytes)
        options = [*_CHANNEL_OPTIONS, longest, replies]
        channel: grpc.aio.Channel = self._channel_of(grpc.aio, options)
        return channel

    def open_blocking(self) -> grpc.Channel:
        """Another channel, for calls that threads make. After `wait_ready`; the caller closes it.

        :raises HostError: if a certificate cannot be read
        """
        channel: grpc.Channel = self._channel_of(grpc, list(_CHANNEL_OPTIONS))
        return channel

    def _channel_of(self, library: Any, options: list[tuple[str, str | int]]) -> Any:
        """:param library: ``grpc``, or ``grpc.aio``"""
        if not self._config.client_tls:
            return library.insecure_channel(self.address, options=options)
        # The address is a forwarded port of the host, and no certificate has the host's name.
        default = _OWN_NAME if self._config.own_certs else self._config.url.host
        options.append(("grpc.ssl_target_name_override", self._config.server_name or default))
        credentials = _credentials(self._config, self.certificate)
        return library.secure_channel(self.address, credentials, options=options)

    async def close(self) -> None:
        """Close the channel, if there is one. What is asked over the channel ends."""
        channel, self.channel = self.channel, None
        if channel:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_S):
                await aio_as_trio(channel.close)()


def forward_to_agent(config: AgentConfig, forwards: Sequence[Forward]) -> Forward:
    """The forward to the URL's port; if none leads there, the last one: it is declared for that."""
    return next((one for one in forwards if one.guest_port == config.url.port), forwards[-1])


def address(config: AgentConfig, forwards: Sequence[Forward]) -> str:
    """The address of the agent of a VM with these forwards, as ``host:port``.

    If the URL is a loopback address, that is the VM's own host port. Otherwise that is the URL's
    address, with the host port in place of ``{port}``.
    """
    url = config.url
    forward = forward_to_agent(config, forwards)
    if url.is_loopback:
        host = "127.0.0.1" if forward.host_address == "0.0.0.0" else forward.host_address
        return f"{host}:{forward.host_port}"
    return str(url).replace("{port}", str(forward.host_port))


def _credentials(config: AgentConfig, own: bytes | None) -> grpc.ChannelCredentials:
    """:param own: the certificate that the agent has made itself, if it is to be taken"""
    return grpc.ssl_channel_credentials(
        root_certificates=own or read_pem(config.ca_certs),
        private_key=read_pem(config.client_key),
        certificate_chain=read_pem(config.client_cert),
    )


def read_pem(file: Path | None) -> bytes | None:
    """The bytes of a certificate or a key; None if there is no file.

    :raises HostError: if the file cannot be read
    """
    if file is None:
        return None
    try:
        return file.read_bytes()
    except OSError as error:
        raise HostError(f"{file.absolute()} cannot be read: {error.strerror}") from error
