"""The other members of the fleet, asked in the name of a caller."""

from __future__ import annotations

import json
import re
from contextlib import aclosing, asynccontextmanager
from functools import partial
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any

import httpx
import trio

from supervisor.api.event_stream import heard
from supervisor.errors import MemberBroke, RefusedElsewhere
from supervisor.fleet.identity import server_name

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from supervisor.api.fleet.asked import Asked
    from supervisor.fleet.fleet import Fleet

#: Until it is connected, and until a stream begins.
_CONNECT_S, _BEGIN_S = 3.0, 5.0
#: Connections to one member that nobody uses just now.
_KEPT = 10
#: Bytes of an answer that is read here: the longest reply of an agent in JSON, or thousands of VMs.
_LONGEST = 1 << 27
#: A member that set some would have them kept for as long as this supervisor runs.
_NO_COOKIES = DefaultCookiePolicy(allowed_domains=())
#: Characters of a refusal, which goes into the log as well.
_MOST_WORDS = 1 << 16
_SECONDS = re.compile(r"[0-9]{1,9}")
#: What comes of asking; the last of an address that is none, as a member says it of itself.
_NO_ANSWER = (httpx.TransportError, httpx.InvalidURL, UnicodeError)
#: What comes of a stream that breaks, or is none.
_NO_STREAM = (
    *(httpx.HTTPError, httpx.StreamError, trio.TooSlowError),
    *(ValueError, TypeError, RecursionError),
)


class Others:
    """This member as a client of them.

    :param open_client: each member is asked over connections of its own, on which it has shown its
        name: two that say that they have one address are not taken for each other
    """

    def __init__(self, fleet: Fleet, open_client: Callable[[], httpx.AsyncClient]) -> None:
        self.fleet = fleet
        self._open_client = open_client
        self._clients: dict[str, httpx.AsyncClient] = {}

    async def aclose(self) -> None:
        for client in self._clients.values():
            await client.aclose()

    async def ask(self, name: str, asked: Asked) -> httpx.Response:
        """What a member answers, as soon as its headers are here. Whoever asks closes it.

        :raises MemberBroke:
        """
        facts = self.fleet.members.hosts.get(name)
        if facts is None:
            raise MemberBroke(f"the member {name} has left, or is lost")
        return await self.send(name, facts.address, asked)

    async def begin(self, name: str, asked: Asked) -> httpx.Response:
        """What a member answers, of a stream: its headers come at once.

        :raises MemberBroke: also if they do not
        """
        with trio.move_on_after(_BEGIN_S):
            return await self.ask(name, asked)
        raise MemberBroke(f"the member {name} does not answer")

    async def send(self, name: str, address: str, asked: Asked) -> httpx.Response:
        """As `ask`, of a member whose address is known.

        :param address: empty if there is no such member
        """
        if not address:  # what a member that was taken over calls itself has no end
            raise MemberBroke(f"there is no member {name}, or it is lost")
        identity, target = self.fleet.identity, asked.target
        token = identity.sign(asked.caller, name, asked.method, target, *asked.claim)
        headers = {"Authorization": f"Bearer {token}", "X-Request-Id": asked.request_id}
        client = self._clients.get(name) or self._clients.setdefault(name, self._open_client())
        try:
            request = client.build_request(
                asked.method,
                f"https://{address}/",
                headers=asked.headers | headers,
                content=asked.content,
                # As it was signed: of an URL httpx quotes more.
                extensions={
                    "sni_hostname": server_name(name),
                    "target": target.encode("latin-1"),
                },
            )
            answer = await client.send(request, stream=True)
        except _NO_ANSWER as error:
            raise _broke(name, error) from error
        if answer.status_code == HTTPStatus.UNAUTHORIZED:
            # It is this member that it does not know, such as just after its start.
            try:
                await self.read(name, answer)
            except RefusedElsewhere as error:
                raise MemberBroke(f"the member {name} does not let this one in: {error}") from error
        return answer

    async def read(self, name: str, answer: httpx.Response) -> bytes:
        """All of an answer, which is closed.

        :raises MemberBroke: also if it is longer than any that a member gives
        :raises RefusedElsewhere: if it is a problem document
        """
        content = bytearray()
        try:
            async for piece in answer.aiter_raw():
                content += piece
                if len(content) > _LONGEST:
                    raise MemberBroke(f"the member {name} answers without an end")
        except httpx.TransportError as error:
            raise _broke(name, error) from error
        finally:
            with trio.move_on_after(1, shield=True):
                await answer.aclose()
        if answer.status_code >= HTTPStatus.BAD_REQUEST:
            raise _refusal(answer, bytes(content))
        return bytes(content)

    async def heard(
        self, name: str, answer: httpx.Response, keep_alive_s: float
    ) -> AsyncGenerator[tuple[str, Any]]:
        """What a stream of events says, as `event_stream.messages`. In the end it is closed.

        :raises MemberBroke: also if it is no such stream, or gives no sign of life
        """
        try:
            async with aclosing(heard(answer.aiter_raw(), keep_alive_s)) as found:
                async for one in found:
                    yield one
        except _NO_STREAM as error:
            raise _broke(name, error) from error
        finally:
            with trio.move_on_after(1, shield=True):
                await answer.aclose()


def _broke(name: str, error: Exception) -> MemberBroke:
    said: BaseException | None = error
    while said and not str(said):  # what TLS says is the cause of the cause
        said = said.__cause__ or said.__context__
    return MemberBroke(f"the member {name}: {said or type(error).__name__}")


def _refusal(answer: httpx.Response, content: bytes) -> RefusedElsewhere:
    """What a problem document says."""
    try:
        document = json.loads(content)
        kind, detail = document["type"], document["detail"]
        code = document.get("agent_code")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        kind, detail, code = "", f"a member answered with status {answer.status_code}", None
    after = answer.headers.get("Retry-After", "")
    return RefusedElsewhere(
        str(detail)[:_MOST_WORDS],
        word=str(kind).rpartition(":")[2],
        retry_after_s=int(after) if _SECONDS.fullmatch(after) else None,
        code=code if isinstance(code, str) else None,
    )


@asynccontextmanager
async def open_others(fleet: Fleet, tls: ssl.SSLContext) -> AsyncIterator[Others]:
    """:param tls: what this member shows to the others, and whom it believes"""
    open_client = partial(
        httpx.AsyncClient,
        verify=tls,
        trust_env=False,
        cookies=CookieJar(_NO_COOKIES),
        timeout=httpx.Timeout(None, connect=_CONNECT_S),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=_KEPT),
    )
    others = Others(fleet, open_client)
    try:
        yield others
    finally:
        with trio.move_on_after(_CONNECT_S, shield=True):
            await others.aclose()
