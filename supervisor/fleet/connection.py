"""A member's connection to NATS, which is made again whenever it breaks.

nats-py uses asyncio; only this module and `nats` call it.
"""

from __future__ import annotations

import json
import ssl
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import nats
import structlog
import trio
from nats.errors import Error as NatsError

from supervisor.bridge import aio_as_trio
from supervisor.errors import FleetUnavailable
from supervisor.tls import as_tolerant_as_others
from supervisor.waiting import Signal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nats.aio.client import Client

log = structlog.stdlib.get_logger()

#: What a broker answers within, a change of its leader included.
_ANSWER_S = 4.0
_RECONNECT_S = 0.25


class Connection:
    """
    :ivar changed: notified when the connection is made or lost
    """

    def __init__(self, host: str) -> None:
        self.changed = Signal()
        self._host = host
        self._client: Client | None = None
        self._said = ""

    @property
    def connected(self) -> bool:
        return self._client is not None and self._client.is_connected

    async def keep_connected(self, servers: tuple[str, ...], directory: Path) -> None:
        """Connect, and stay connected until cancelled. asyncio's loop must be there."""
        context = await trio.to_thread.run_sync(client_context, directory)
        try:
            while self._client is None:
                try:
                    with trio.fail_after(2 * _ANSWER_S):
                        await self._connect(servers, context)
                except (NatsError, OSError, trio.TooSlowError, FleetUnavailable) as error:
                    # What NATS says of a certificate that it does not know is the last of this.
                    said = [words(error), self._said] if self._said else [words(error)]
                    log.warning("fleet not reached", problem=": ".join(said))
                    self._said = ""
                    await self._close()
                    await trio.sleep(1)
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(2, shield=True):
                await self._close()

    async def _connect(self, servers: tuple[str, ...], context: ssl.SSLContext) -> None:
        self._client = await aio_as_trio(nats.connect)(
            servers=list(servers),
            tls=context,
            tls_handshake_first=True,  # else a server could ask for no TLS
            name=self._host,
            inbox_prefix=f"_INBOX_{self._host}".encode(),
            max_reconnect_attempts=-1,
            reconnect_time_wait=_RECONNECT_S,
            connect_timeout=2,
            ping_interval=2,
            max_outstanding_pings=2,
            allow_reconnect=True,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
        )
        await self._begin(len(servers))
        log.info("fleet reached", server=self._client.connected_url.netloc)  # type: ignore[union-attr]
        self.changed.notify()

    async def _close(self) -> None:
        client, self._client = self._client, None
        self._broke()
        if client is not None:
            with suppress(NatsError, OSError):
                await aio_as_trio(client.close)()

    async def _on_error(self, error: Exception) -> None:
        self._said = words(error)
        log.debug("fleet connection", problem=self._said)

    async def _on_disconnected(self) -> None:
        if self._client is not None:
            log.warning("fleet lost")
        self._broke()
        self.changed.notify()

    async def _on_reconnected(self) -> None:
        log.info("fleet reached again")
        self._broke()  # of what was begun meanwhile
        self.changed.notify()

    async def _begin(self, servers: int) -> None:
        """Do what comes before anything else, once there is a connection.

        :param servers: how many NATS has
        :raises FleetUnavailable: to have it closed, and made anew
        """

    def _broke(self) -> None:
        """End what nats-py does not go on with after a break."""

    async def _api(self, subject: str, body: dict[str, Any]) -> Any:
        return await self._request(f"$JS.API.{subject}", json.dumps(body).encode())

    async def _request(
        self, subject: str, body: bytes, headers: dict[str, str] | None = None
    ) -> Any:
        """:raises Refused: if the server understood, and says no"""
        with as_ours():
            answer = await aio_as_trio(self._connected().request)(
                subject, body, timeout=_ANSWER_S, headers=headers
            )
        found = json.loads(answer.data)
        if error := found.get("error"):
            raise Refused(error.get("err_code", 0), error.get("description", "no reason given"))
        return found

    def _connected(self) -> Client:
        if self._client is None or not self._client.is_connected:
            raise FleetUnavailable("no server of the fleet's NATS is reached")
        return self._client


class Refused(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@contextmanager
def as_ours() -> Iterator[None]:
    """:raises FleetUnavailable: for what nats-py raises; of a subject that is none, too: a part of
    it may be a name that another member has put on record
    """
    try:
        yield
    except (NatsError, OSError, UnicodeError) as error:
        raise FleetUnavailable(f"the fleet's NATS does not answer: {words(error)}") from error


def words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def client_context(directory: Path) -> ssl.SSLContext:
    """What a member shows to others, and whom it believes. Blocking."""
    context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    return as_tolerant_as_others(context)
