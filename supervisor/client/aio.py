"""The HTTP API of a supervisor for programs of trio, and of asyncio. `sync` is made of this file.

Bodies and answers are dictionaries as openapi.yaml has them; `models` has their types. Each call
raises `Refused` if the supervisor refuses it and `Unreachable` if none answers.
"""

from __future__ import annotations

import base64
import json
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import quote

import httpx

from supervisor.client.place import SILENCE, TIMEOUT, place
from supervisor.client.problems import ClientError, Refused, Unreachable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from supervisor.client import models

    Query = Mapping[str, str | int | Sequence[str]]
    Bytes = bytes | AsyncIterable[bytes]

_RETRY_S = 1.0
#: What a proxy answers while the supervisor behind it is restarted.
_AWAY = (502, 503, 504)


class AsyncClient:
    """One supervisor. A context manager, which closes the connections.

    :param url: or ``unix:`` and a path; None: QMP_SUPERVISOR_URL, or where one listens on this host
    :param token: None: QMP_SUPERVISOR_TOKEN, if there is one
    :param cacert: PEM file of the CAs to trust
    :param cert: PEM file of the certificate to show, with its ``key``
    :raises ValueError: if a file is of no use, or the token would go over the network in the clear
    :ivar url: as it is shown in errors
    :ivar http: for what has no method here, such as consoles
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        cacert: str | Path | None = None,
        cert: str | Path | None = None,
        key: str | Path | None = None,
    ) -> None:
        there = place(url, token=token, cacert=cacert, cert=cert, key=key)
        self.url = there.url
        self.http = httpx.AsyncClient(
            base_url=there.base,
            transport=httpx.AsyncHTTPTransport(verify=there.verify, uds=there.socket),
            headers=there.headers,
            timeout=TIMEOUT,
            # A supervisor is reached directly, never through the proxy of the environment.
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        await self.http.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.http.__aexit__(kind, error, traceback)

    # --- runs and VMs ---------------------------------------------------------------------------

    async def run(
        self, request: models.RunRequest, *, idempotency_key: str | None = None
    ) -> models.Answer:
        """Start a VM, have the computation relayed, and wait for the agent's answer.

        :param idempotency_key: the same key and request get the same answer, from one VM
        """
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        answer = await self._ask("POST", "/run", json=request, headers=headers, timeout=None)
        return cast("models.Answer", self._json(answer))

    async def start(
        self, request: models.RunRequest, *, idempotency_key: str | None = None
    ) -> models.Summary:
        """A new VM, on record: `vm` and `events` tell of it, `reply` has the agent's answer.

        Waits for room, and for a template if the run requires one.
        """
        headers = {"Prefer": "respond-async"}
        headers |= {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        answer = await self._ask("POST", "/run", json=request, headers=headers, timeout=None)
        return cast("models.Summary", self._json(answer))

    async def vms(self, query: Query | None = None) -> models.Page:
        """VMs, and where the next page is: ``{"state": ["running"], "label": ["team=a"]}``."""
        return cast("models.Page", await self._get("/vms", query))

    async def vm(self, vm_id: str) -> models.Vm:
        """All that is known of a VM."""
        return cast("models.Vm", await self._get(f"/vms/{_part(vm_id)}"))

    async def status(self, vm_id: str, *, live: bool = False) -> models.Status:
        """A VM's state.

        :param live: QEMU is asked now
        """
        return cast(
            "models.Status", await self._get(f"/vms/{_part(vm_id)}/status", {"live": int(live)})
        )

    async def reply(self, vm_id: str) -> str:
        """The agent's answer."""
        return (await self._ask("GET", f"/vms/{_part(vm_id)}/reply")).text

    async def shutdown(
        self, vm_id: str, mode: Literal["graceful", "force"] = "graceful"
    ) -> models.Vm:
        """End a VM, and wait until it has ended."""
        path = f"/vms/{_part(vm_id)}/shutdown"
        return cast("models.Vm", await self._post(path, {"mode": mode}, timeout=None))

    async def delete(self, vm_id: str) -> None:
        """Forget a VM, its result included. One that runs is ended by force."""
        await self._ask("DELETE", f"/vms/{_part(vm_id)}", timeout=None)

    async def pause(self, vm_id: str) -> models.Status:
        """Hold the guest."""
        return cast("models.Status", await self._post(f"/vms/{_part(vm_id)}/pause", {}))

    async def resume(self, vm_id: str) -> models.Status:
        """Let a paused guest go on."""
        return cast("models.Status", await self._post(f"/vms/{_part(vm_id)}/resume", {}))

    async def reset(self, vm_id: str) -> models.Status:
        """Press the reset button."""
        return cast("models.Status", await self._post(f"/vms/{_part(vm_id)}/reset", {}))

    # --- what is told of them -------------------------------------------------------------------

    @asynccontextmanager
    async def events(
        self, vm_id: str | None = None, *, after: int | str | None = None
    ) -> AsyncIterator[AsyncIterator[models.Event]]:
        """Events as they come, of one VM or of all. Goes on after a restart of the supervisor.

        :param after: all after this sequence number, or of a fleet this id, the past ones first;
            None: from now on
        """
        path = f"/vms/{_part(vm_id)}/events" if vm_id else "/events"
        async with aclosing(self._events(path, after)) as events:
            yield events

    async def _events(self, path: str, after: int | str | None) -> AsyncGenerator[models.Event]:
        import anyio  # it takes longer to import than most commands have to do

        while True:
            headers = {} if after is None else {"Last-Event-ID": str(after)}
            named = after
            try:
                streamed = self.http.stream("GET", path, headers=headers, timeout=SILENCE)
                async with streamed as response:
                    if after is None or response.status_code not in _AWAY:
                        await self._check(response)
                    async for line in response.aiter_lines():
                        if line.startswith("id:"):
                            named = line.removeprefix("id:").strip()
                        elif line.startswith("data:"):
                            event: models.Event = json.loads(line.removeprefix("data:"))
                            after = named
                            yield event
                        elif not line:
                            after = named
            except httpx.ConnectError as error:
                if after is None:
                    raise self._unreachable(error) from error
            except httpx.HTTPError:
                pass  # it was restarted, or is out of reach for a while
            await anyio.sleep(_RETRY_S)

    @asynccontextmanager
    async def logs(
        self, vm_id: str, query: Query | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """What was printed, as it comes: ``{"source": "algorithm", "tail": 10, "follow": 1}``."""
        async with aclosing(self._stream(f"/vms/{_part(vm_id)}/logs", query)) as pieces:
            yield pieces

    async def _stream(self, path: str, query: Query | None) -> AsyncGenerator[bytes]:
        try:
            params = dict(query or {})
            streamed = self.http.stream("GET", path, params=params, timeout=None)
            async with streamed as response:
                await self._check(response)
                async for piece in response.aiter_bytes():
                    yield piece
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    # --- algorithms and results -----------------------------------------------------------------

    async def send_algorithm(
        self, vm_id: str, content: Bytes, *, size: int | None = None, sha256: bytes | None = None
    ) -> models.Stored:
        """Send the agent its algorithm: see `send_data`."""
        return await self._put(f"/vms/{_part(vm_id)}/algorithm", content, size, sha256)

    async def send_data(
        self,
        vm_id: str,
        number: int,
        content: Bytes,
        *,
        size: int | None = None,
        sha256: bytes | None = None,
    ) -> models.Stored:
        """Send the agent a data set, as fast as it takes it.

        :param content: bytes, or their pieces: then ``size`` is needed
        :param sha256: the agent refuses anything else
        """
        return await self._put(f"/vms/{_part(vm_id)}/data/{number}", content, size, sha256)

    async def compute(
        self, vm_id: str, request: models.ComputeRequest | None = None
    ) -> models.Outcome:
        """Have the agent run its algorithm, and wait for what becomes of it."""
        answer = await self._post(f"/vms/{_part(vm_id)}/compute", request or {}, timeout=None)
        return cast("models.Outcome", answer)

    async def outcome(self, vm_id: str) -> models.Outcome:
        """Of the last run of an algorithm."""
        return cast("models.Outcome", await self._get(f"/vms/{_part(vm_id)}/outcome"))

    @asynccontextmanager
    async def result(self, vm_id: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """The last result in pieces. If the connection breaks, it goes on where it was."""
        async with aclosing(self._pieces(f"/vms/{_part(vm_id)}/result")) as pieces:
            yield pieces

    async def _pieces(self, path: str) -> AsyncGenerator[bytes]:
        came, etag = 0, ""
        while True:
            headers = {"Range": f"bytes={came}-", "If-Range": etag} if came else {}
            before = came
            try:
                async with self.http.stream("GET", path, headers=headers) as response:
                    await self._check(response)
                    if came and response.status_code != httpx.codes.PARTIAL_CONTENT:
                        raise ClientError(f"{self.url}{path} has changed meanwhile")
                    etag = response.headers.get("ETag", "")
                    async for piece in response.aiter_bytes():
                        came += len(piece)
                        yield piece
                    return
            except httpx.HTTPError as error:
                if came == before or not etag:
                    raise self._unreachable(error) from error

    # --- confidential guests, and agents that dial ----------------------------------------------

    async def attestation(
        self, vm_id: str, nonce: str, *, leaf: str | None = None, verify: bool = False
    ) -> models.Evidence:
        """What the guest's processor says of it.

        :param nonce: 1 to 64 bytes in hexadecimal digits
        :param leaf: PEM certificate of the key that signs, if the host gives its guests none
        :param verify: with the host's own verdict
        """
        body = {"nonce": nonce} | ({"leaf": leaf} if leaf else {})
        path = f"/vms/{_part(vm_id)}/attestation" + ("?verify=1" if verify else "")
        return cast("models.Evidence", await self._post(path, body, timeout=None))

    async def attestation_policy(self, vm_id: str) -> models.Policy:
        """What a report of this guest should say."""
        return cast("models.Policy", await self._get(f"/vms/{_part(vm_id)}/attestation-policy"))

    async def launch_measurement(self, vm_id: str) -> models.LaunchMeasurement:
        """Of a guest under SEV or SEV-ES that has not run yet."""
        path = f"/vms/{_part(vm_id)}/launch-measurement"
        return cast("models.LaunchMeasurement", await self._get(path))

    async def launch_secret(self, vm_id: str, header: str, secret: str) -> models.Status:
        """Give such a guest a secret; both in base64."""
        body = {"header": header, "secret": secret}
        return cast("models.Status", await self._post(f"/vms/{_part(vm_id)}/launch-secret", body))

    async def launch(self, vm_id: str) -> models.Status:
        """Let such a guest run."""
        return cast("models.Status", await self._post(f"/vms/{_part(vm_id)}/launch", {}))

    async def computation(self, vm_id: str) -> models.Computation:
        """How an agent that dials says that its computation is."""
        return cast("models.Computation", await self._get(f"/vms/{_part(vm_id)}/computation"))

    async def stop_computation(self, vm_id: str) -> models.Status:
        """Have such an agent stop its computation."""
        return cast("models.Status", await self._post(f"/vms/{_part(vm_id)}/computation/stop", {}))

    # --- the host -------------------------------------------------------------------------------

    async def templates(self) -> models.Templates:
        """Guests that are booted once and then copied."""
        return cast("models.Templates", await self._get("/templates"))

    async def hosts(self) -> models.Hosts:
        """The hosts of the fleet."""
        return cast("models.Hosts", await self._get("/hosts"))

    async def drain_host(self) -> models.Drained:
        """Have the host take no runs, and give back those that no agent has."""
        return cast("models.Drained", await self._post("/host/drain", {}))

    async def resume_host(self) -> models.Drained:
        """Have the host take runs again."""
        return cast("models.Drained", await self._post("/host/resume", {}))

    async def host(self) -> models.Host:
        """What the host can do for confidential guests."""
        return cast("models.Host", await self._get("/host"))

    async def checks(self) -> models.Checks:
        """What would keep a VM from starting."""
        return cast("models.Checks", await self._get("/host/checks"))

    async def sev_platform(self) -> models.SevPlatform:
        """The platform's certificates for a launch under SEV."""
        return cast("models.SevPlatform", await self._get("/host/sev"))

    async def whoami(self) -> models.WhoAmI:
        """Who the supervisor takes this client for, and what it may do."""
        return cast("models.WhoAmI", await self._get("/whoami"))

    async def health(self) -> models.Health:
        """Whether it is alive."""
        return cast("models.Health", await self._get("/health"))

    async def ready(self) -> models.Readiness:
        """Whether it serves runs: it has taken up the VMs of before, and knows its templates."""
        return cast("models.Readiness", await self._get("/ready"))

    async def metrics(self) -> str:
        """For Prometheus."""
        return (await self._ask("GET", "/metrics")).text

    # --- how ------------------------------------------------------------------------------------

    async def _get(self, path: str, query: Query | None = None) -> Any:
        return self._json(await self._ask("GET", path, params=dict(query or {})))

    async def _post(self, path: str, body: object, **options: Any) -> Any:
        return self._json(await self._ask("POST", path, json=body, **options))

    async def _put(
        self, path: str, content: Bytes, size: int | None, sha256: bytes | None
    ) -> models.Stored:
        headers = {"Content-Type": "application/octet-stream"}
        if size is not None:
            headers["Content-Length"] = str(size)
        if sha256 is not None:
            headers["Content-Digest"] = f"sha-256=:{base64.b64encode(sha256).decode()}:"
        answer = await self._ask("PUT", path, content=content, headers=headers, timeout=None)
        return cast("models.Stored", self._json(answer))

    async def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = await self.http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if not response.is_success:
            raise Refused(response)
        return response

    async def _check(self, response: httpx.Response) -> None:
        if not response.is_success:
            await response.aread()
            raise Refused(response)

    def _json(self, response: httpx.Response) -> Any:
        try:
            return response.json()
        except ValueError as error:
            raise ClientError(f"{self.url} is not a supervisor: its answer is not JSON") from error

    def _unreachable(self, error: httpx.HTTPError) -> Unreachable:
        return Unreachable(f"{self.url}: {str(error) or type(error).__name__}")


def _part(vm_id: str) -> str:
    """One part of a path, whatever is in it.

    :raises ValueError: if it would be none
    """
    if vm_id in ("", ".", ".."):
        raise ValueError(f"{vm_id!r} is not the id of a VM")
    return quote(vm_id, safe="")
