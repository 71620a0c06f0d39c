"""The HTTP API of a supervisor for programs without an event loop.

Made of aio.py by scripts/client, which has the documentation.
"""

# a476022bf4eea781634b67b41803eba5297c602b6db87ec6e147cc00affd6818

from __future__ import annotations

import base64
import json
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import quote

import httpx

from supervisor.client.place import SILENCE, TIMEOUT, place
from supervisor.client.problems import ClientError, Refused, Unreachable

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from supervisor.client import models

    Query = Mapping[str, str | int | Sequence[str]]
    Bytes = bytes | Iterable[bytes]

_RETRY_S = 1.0
#: What a proxy answers while the supervisor behind it is restarted.
_AWAY = (502, 503, 504)


class Client:
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
        self.http = httpx.Client(
            base_url=there.base,
            transport=httpx.HTTPTransport(verify=there.verify, uds=there.socket),
            headers=there.headers,
            timeout=TIMEOUT,
            # A supervisor is reached directly, never through the proxy of the environment.
            trust_env=False,
        )

    def __enter__(self) -> Self:
        self.http.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.http.__exit__(kind, error, traceback)

    # --- runs and VMs ---------------------------------------------------------------------------

    def run(
        self, request: models.RunRequest, *, idempotency_key: str | None = None
    ) -> models.Answer:
        """Start a VM, have the computation relayed, and wait for the agent's answer.

        :param idempotency_key: the same key and request get the same answer, from one VM
        """
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        answer = self._ask("POST", "/run", json=request, headers=headers, timeout=None)
        return cast("models.Answer", self._json(answer))

    def start(
        self, request: models.RunRequest, *, idempotency_key: str | None = None
    ) -> models.Summary:
        """A new VM, on record: `vm` and `events` tell of it, `reply` has the agent's answer.

        Waits for room, and for a template if the run requires one.
        """
        headers = {"Prefer": "respond-async"}
        headers |= {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        answer = self._ask("POST", "/run", json=request, headers=headers, timeout=None)
        return cast("models.Summary", self._json(answer))

    def vms(self, query: Query | None = None) -> models.Page:
        """VMs, and where the next page is: ``{"state": ["running"], "label": ["team=a"]}``."""
        return cast("models.Page", self._get("/vms", query))

    def vm(self, vm_id: str) -> models.Vm:
        """All that is known of a VM."""
        return cast("models.Vm", self._get(f"/vms/{_part(vm_id)}"))

    def status(self, vm_id: str, *, live: bool = False) -> models.Status:
        """A VM's state.

        :param live: QEMU is asked now
        """
        return cast("models.Status", self._get(f"/vms/{_part(vm_id)}/status", {"live": int(live)}))

    def reply(self, vm_id: str) -> str:
        """The agent's answer."""
        return (self._ask("GET", f"/vms/{_part(vm_id)}/reply")).text

    def shutdown(self, vm_id: str, mode: Literal["graceful", "force"] = "graceful") -> models.Vm:
        """End a VM, and wait until it has ended."""
        path = f"/vms/{_part(vm_id)}/shutdown"
        return cast("models.Vm", self._post(path, {"mode": mode}, timeout=None))

    def delete(self, vm_id: str) -> None:
        """Forget a VM, its result included. One that runs is ended by force."""
        self._ask("DELETE", f"/vms/{_part(vm_id)}", timeout=None)

    def pause(self, vm_id: str) -> models.Status:
        """Hold the guest."""
        return cast("models.Status", self._post(f"/vms/{_part(vm_id)}/pause", {}))

    def resume(self, vm_id: str) -> models.Status:
        """Let a paused guest go on."""
        return cast("models.Status", self._post(f"/vms/{_part(vm_id)}/resume", {}))

    def reset(self, vm_id: str) -> models.Status:
        """Press the reset button."""
        return cast("models.Status", self._post(f"/vms/{_part(vm_id)}/reset", {}))

    # --- what is told of them -------------------------------------------------------------------

    @contextmanager
    def events(
        self, vm_id: str | None = None, *, after: int | str | None = None
    ) -> Iterator[Iterator[models.Event]]:
        """Events as they come, of one VM or of all. Goes on after a restart of the supervisor.

        :param after: all after this sequence number, or of a fleet this id, the past ones first;
            None: from now on
        """
        path = f"/vms/{_part(vm_id)}/events" if vm_id else "/events"
        with closing(self._events(path, after)) as events:
            yield events

    def _events(self, path: str, after: int | str | None) -> Generator[models.Event]:
        import time  # it takes longer to import than most commands have to do

        while True:
            headers = {} if after is None else {"Last-Event-ID": str(after)}
            named = after
            try:
                streamed = self.http.stream("GET", path, headers=headers, timeout=SILENCE)
                with streamed as response:
                    if after is None or response.status_code not in _AWAY:
                        self._check(response)
                    for line in response.iter_lines():
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
            time.sleep(_RETRY_S)

    @contextmanager
    def logs(self, vm_id: str, query: Query | None = None) -> Iterator[Iterator[bytes]]:
        """What was printed, as it comes: ``{"source": "algorithm", "tail": 10, "follow": 1}``."""
        with closing(self._stream(f"/vms/{_part(vm_id)}/logs", query)) as pieces:
            yield pieces

    def _stream(self, path: str, query: Query | None) -> Generator[bytes]:
        try:
            params = dict(query or {})
            streamed = self.http.stream("GET", path, params=params, timeout=None)
            with streamed as response:
                self._check(response)
                for piece in response.iter_bytes():
                    yield piece
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    # --- algorithms and results -----------------------------------------------------------------

    def send_algorithm(
        self, vm_id: str, content: Bytes, *, size: int | None = None, sha256: bytes | None = None
    ) -> models.Stored:
        """Send the agent its algorithm: see `send_data`."""
        return self._put(f"/vms/{_part(vm_id)}/algorithm", content, size, sha256)

    def send_data(
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
        return self._put(f"/vms/{_part(vm_id)}/data/{number}", content, size, sha256)

    def compute(self, vm_id: str, request: models.ComputeRequest | None = None) -> models.Outcome:
        """Have the agent run its algorithm, and wait for what becomes of it."""
        answer = self._post(f"/vms/{_part(vm_id)}/compute", request or {}, timeout=None)
        return cast("models.Outcome", answer)

    def outcome(self, vm_id: str) -> models.Outcome:
        """Of the last run of an algorithm."""
        return cast("models.Outcome", self._get(f"/vms/{_part(vm_id)}/outcome"))

    @contextmanager
    def result(self, vm_id: str) -> Iterator[Iterator[bytes]]:
        """The last result in pieces. If the connection breaks, it goes on where it was."""
        with closing(self._pieces(f"/vms/{_part(vm_id)}/result")) as pieces:
            yield pieces

    def _pieces(self, path: str) -> Generator[bytes]:
        came, etag = 0, ""
        while True:
            headers = {"Range": f"bytes={came}-", "If-Range": etag} if came else {}
            before = came
            try:
                with self.http.stream("GET", path, headers=headers) as response:
                    self._check(response)
                    if came and response.status_code != httpx.codes.PARTIAL_CONTENT:
                        raise ClientError(f"{self.url}{path} has changed meanwhile")
                    etag = response.headers.get("ETag", "")
                    for piece in response.iter_bytes():
                        came += len(piece)
                        yield piece
                    return
            except httpx.HTTPError as error:
                if came == before or not etag:
                    raise self._unreachable(error) from error

    # --- confidential guests, and agents that dial ----------------------------------------------

    def attestation(
        self, vm_id: str, nonce: str, *, leaf: str | None = None, verify: bool = False
    ) -> models.Evidence:
        """What the guest's processor says of it.

        :param nonce: 1 to 64 bytes in hexadecimal digits
        :param leaf: PEM certificate of the key that signs, if the host gives its guests none
        :param verify: with the host's own verdict
        """
        body = {"nonce": nonce} | ({"leaf": leaf} if leaf else {})
        path = f"/vms/{_part(vm_id)}/attestation" + ("?verify=1" if verify else "")
        return cast("models.Evidence", self._post(path, body, timeout=None))

    def attestation_policy(self, vm_id: str) -> models.Policy:
        """What a report of this guest should say."""
        return cast("models.Policy", self._get(f"/vms/{_part(vm_id)}/attestation-policy"))

    def launch_measurement(self, vm_id: str) -> models.LaunchMeasurement:
        """Of a guest under SEV or SEV-ES that has not run yet."""
        path = f"/vms/{_part(vm_id)}/launch-measurement"
        return cast("models.LaunchMeasurement", self._get(path))

    def launch_secret(self, vm_id: str, header: str, secret: str) -> models.Status:
        """Give such a guest a secret; both in base64."""
        body = {"header": header, "secret": secret}
        return cast("models.Status", self._post(f"/vms/{_part(vm_id)}/launch-secret", body))

    def launch(self, vm_id: str) -> models.Status:
        """Let such a guest run."""
        return cast("models.Status", self._post(f"/vms/{_part(vm_id)}/launch", {}))

    def computation(self, vm_id: str) -> models.Computation:
        """How an agent that dials says that its computation is."""
        return cast("models.Computation", self._get(f"/vms/{_part(vm_id)}/computation"))

    def stop_computation(self, vm_id: str) -> models.Status:
        """Have such an agent stop its computation."""
        return cast("models.Status", self._post(f"/vms/{_part(vm_id)}/computation/stop", {}))

    # --- the host -------------------------------------------------------------------------------

    def templates(self) -> models.Templates:
        """Guests that are booted once and then copied."""
        return cast("models.Templates", self._get("/templates"))

    def hosts(self) -> models.Hosts:
        """The hosts of the fleet."""
        return cast("models.Hosts", self._get("/hosts"))

    def drain_host(self) -> models.Drained:
        """Have the host take no runs, and give back those that no agent has."""
        return cast("models.Drained", self._post("/host/drain", {}))

    def resume_host(self) -> models.Drained:
        """Have the host take runs again."""
        return cast("models.Drained", self._post("/host/resume", {}))

    def host(self) -> models.Host:
        """What the host can do for confidential guests."""
        return cast("models.Host", self._get("/host"))

    def checks(self) -> models.Checks:
        """What would keep a VM from starting."""
        return cast("models.Checks", self._get("/host/checks"))

    def sev_platform(self) -> models.SevPlatform:
        """The platform's certificates for a launch under SEV."""
        return cast("models.SevPlatform", self._get("/host/sev"))

    def whoami(self) -> models.WhoAmI:
        """Who the supervisor takes this client for, and what it may do."""
        return cast("models.WhoAmI", self._get("/whoami"))

    def health(self) -> models.Health:
        """Whether it is alive."""
        return cast("models.Health", self._get("/health"))

    def ready(self) -> models.Readiness:
        """Whether it serves runs: it has taken up the VMs of before, and knows its templates."""
        return cast("models.Readiness", self._get("/ready"))

    def metrics(self) -> str:
        """For Prometheus."""
        return (self._ask("GET", "/metrics")).text

    # --- how ------------------------------------------------------------------------------------

    def _get(self, path: str, query: Query | None = None) -> Any:
        return self._json(self._ask("GET", path, params=dict(query or {})))

    def _post(self, path: str, body: object, **options: Any) -> Any:
        return self._json(self._ask("POST", path, json=body, **options))

    def _put(
        self, path: str, content: Bytes, size: int | None, sha256: bytes | None
    ) -> models.Stored:
        headers = {"Content-Type": "application/octet-stream"}
        if size is not None:
            headers["Content-Length"] = str(size)
        if sha256 is not None:
            headers["Content-Digest"] = f"sha-256=:{base64.b64encode(sha256).decode()}:"
        answer = self._ask("PUT", path, content=content, headers=headers, timeout=None)
        return cast("models.Stored", self._json(answer))

    def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self.http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if not response.is_success:
            raise Refused(response)
        return response

    def _check(self, response: httpx.Response) -> None:
        if not response.is_success:
            response.read()
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
