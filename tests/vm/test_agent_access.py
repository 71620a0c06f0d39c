"""Whoever reaches the port of a real guest's agent gets nothing there without the credential."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import grpc
import httpx

from supervisor.pb import agent_pb2, clone_pb2, guest_pb2
from supervisor.pb.agent_pb2_grpc import AgentServiceStub
from supervisor.pb.clone_pb2_grpc import CloneServiceStub
from supervisor.pb.compute_pb2 import (
    ComputeRequest,
    LastOutcomeRequest,
    PrintedRequest,
    UploadRequest,
)
from supervisor.pb.compute_pb2_grpc import ComputeServiceStub
from supervisor.pb.guest_pb2_grpc import GuestServiceStub
from supervisor.state.secret import Secret
from tests.vm.conftest import PATIENCE_S, started
from tests.vm.test_run import computation, host_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.vm.conftest import Supervisor

KIND_ALGORITHM = UploadRequest.KIND_ALGORITHM
INTRUDER = b"raise SystemExit('the intruder was here')"
STRANGERS = {"UNAUTHENTICATED", 401}
#: Before the agent is there, and when QEMU's user network has given up a connection.
SILENCE = {"UNAVAILABLE", "DEADLINE_EXCEEDED", None}


@attrs.frozen
class Caller:
    """Somebody on this host who has found an agent's ports."""

    vm: dict[str, Any]
    credential: str = ""
    patience_s: float = PATIENCE_S

    def tries(self) -> dict[str, Any]:
        """What comes of each call that would give him something: a code, or OK."""
        vm_id, now_ns = self.vm["id"], 1_800_000_000_000_000_000
        renewal = clone_pb2.RenewRequest(
            vm_id=vm_id, hostname="mine", entropy=bytes(64), unix_time_ns=now_ns
        )
        metadata = [("agent-access", "open")]
        if self.credential:
            metadata = [("authorization", f"Bearer {self.credential}")]
        target = f"127.0.0.1:{host_port(self.vm, 7002)}"
        with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            agent, clone = AgentServiceStub(channel), CloneServiceStub(channel)
            compute, guest = ComputeServiceStub(channel), GuestServiceStub(channel)
            calls = {
                "Renew": (clone.Renew, renewal),
                "Prepare": (clone.Prepare, clone_pb2.PrepareRequest()),
                "Status": (guest.Status, guest_pb2.StatusRequest()),
                "SetClock": (guest.SetClock, guest_pb2.SetClockRequest(unix_time_ns=now_ns)),
                "Algo": (agent.Algo, agent_pb2.AlgoRequest(algorithm=INTRUDER)),
                "Upload": (
                    compute.Upload,
                    [UploadRequest(kind=KIND_ALGORITHM, chunk=INTRUDER)],
                ),
                "Run": (agent.Run, agent_pb2.RunRequest(computation=computation("mine"))),
                "Attestation": (agent.Attestation, agent_pb2.AttestationRequest()),
                "Compute": (compute.Compute, ComputeRequest()),
                "LastOutcome": (compute.LastOutcome, LastOutcomeRequest()),
                "Printed": (compute.Printed, PrintedRequest()),
            }
            told = {
                name: _code(method, message, metadata, self.patience_s)
                for name, (method, message) in calls.items()
            }
        return told | {"GET /metrics": self._get(), "POST /run": self._post()}

    def _get(self) -> int | None:
        return self._ask("GET", "/metrics")

    def _post(self) -> int | None:
        return self._ask("POST", "/run", json={"computation": list(computation("mine"))})

    def _ask(self, method: str, path: str, **body: Any) -> int | None:
        # The agent's HTTP comes up a moment after its gRPC.
        deadline = time.monotonic() + self.patience_s
        while (code := self._ask_once(method, path, **body)) is None:
            if time.monotonic() > deadline:
                break
        return code

    def _ask_once(self, method: str, path: str, **body: Any) -> int | None:
        url = f"http://127.0.0.1:{host_port(self.vm, 9031)}{path}"
        headers = {"Authorization": f"Bearer {self.credential}"} if self.credential else {}
        try:
            with httpx.Client(trust_env=False, verify=False, timeout=self.patience_s) as client:
                return client.request(method, url, headers=headers, **body).status_code
        except httpx.TransportError:
            return None


def _code(method: Any, message: Any, metadata: Sequence[tuple[str, str]], patience_s: float) -> str:
    sent = iter(message) if isinstance(message, list) else message
    try:
        answer: Any = method(sent, timeout=patience_s, metadata=metadata)
        if isinstance(answer, grpc.Call):  # a stream
            next(answer)  # type: ignore[call-overload]
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


@contextmanager
def intruder(vm: dict[str, Any]) -> Iterator[None]:
    """Tries all calls again and again, from before the agent is there, and gets nothing."""
    caller, told, stopped = Caller(vm, patience_s=2), set[Any](), threading.Event()

    def intrude() -> None:
        while not stopped.is_set():
            told.update(caller.tries().values())

    thread = threading.Thread(target=intrude)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
    assert told - SILENCE <= STRANGERS


def next_launch(supervisor: Supervisor, purpose: str, known: set[str]) -> dict[str, Any]:
    """A VM of this purpose that has host ports, and is not one of the known."""

    def mine(answer: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            vm
            for vm in answer["vms"]
            if vm["purpose"] == purpose and vm["forwards"] and vm["id"] not in known
        ]

    return mine(supervisor.until("/vms", lambda answer: bool(mine(answer))))[0]


def test_vm_of_the_pool_is_nobodys_until_it_is_given_out() -> None:
    with started(MANAGER_AUTH="off", MANAGER_POOL_SIZE="1") as supervisor:
        vm = next_launch(supervisor, "pool", set())
        with intruder(vm):
            supervisor.until(f"/vms/{vm['id']}", lambda vm: bool(vm["agent"]["ready"]))
        assert set(Caller(vm).tries().values()) == STRANGERS

        answer = supervisor.run(computation("owner"))
        assert (answer["id"], answer["credential"]) == (vm["id"], None)
        # From here on as the original's clients expect.
        told = Caller(vm).tries()
        assert [told[name] for name in ("Algo", "Status", "GET /metrics", "POST /run")] == [
            *("OK", "OK"),
            *(200, 200),
        ]
        assert told["Renew"] == told["Prepare"] == "FAILED_PRECONDITION"
        assert supervisor.show(vm["id"])["agent"]["protected"] is False


def test_template_and_its_clones_have_secrets_of_their_own() -> None:
    with started(MANAGER_AUTH="on", MANAGER_TEMPLATES="auto", MANAGER_POOL_SIZE="1") as supervisor:
        template = next_launch(supervisor, "template", set())
        of_template = Secret.read(supervisor.tmp / template["id"] / "secret")
        assert of_template
        with intruder(template):
            first = next_launch(supervisor, "pool", set())
        with intruder(first):
            supervisor.until(f"/vms/{first['id']}", lambda vm: bool(vm["agent"]["ready"]))
        answer = supervisor.run(computation("owner"))
        assert answer["id"] == first["id"]
        assert supervisor.show(first["id"])["template"]
        shown = supervisor.until(
            f"/vms/{first['id']}", lambda vm: vm["agent"]["protected"] is not None
        )
        assert shown["agent"]["protected"] is True

        for credential in ("", "wrong", of_template.credential):
            assert set(Caller(first, credential).tries().values()) == STRANGERS
        told = Caller(first, answer["credential"]).tries()
        assert told["Algo"] == told["Status"] == "OK"
        assert told["POST /run"] == told["GET /metrics"] == 200
        assert told["Prepare"] == "FAILED_PRECONDITION"
        assert told["Renew"] == "OK", "it is renewed as this VM already, and nothing changes"

        second = next_launch(supervisor, "pool", {first["id"]})
        supervisor.until(f"/vms/{second['id']}", lambda vm: bool(vm["agent"]["ready"]))
        assert set(Caller(second, answer["credential"]).tries().values()) == STRANGERS
