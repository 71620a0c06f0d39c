"""The reference agent with what it does in a guest only, in this process, over real gRPC."""

from __future__ import annotations

import gc
import hashlib
import http.client
import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from supervisor.agent.reference import clone, guest_service, service
from supervisor.agent.reference.access import Access
from supervisor.agent.reference.clone import Clones
from supervisor.agent.reference.guest import Guest
from supervisor.agent.reference.http import serve_http
from supervisor.agent.reference.refusal import Refusal
from supervisor.agent.reference.renewal import Renewer
from supervisor.agent.reference.rpc import Server
from supervisor.agent.reference.service import Agent
from supervisor.pb import (
    agent_pb2,
    agent_pb2_grpc,
    clone_pb2,
    clone_pb2_grpc,
    guest_pb2,
    guest_pb2_grpc,
)
from supervisor.pb.guest_pb2 import StatusResponse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from supervisor.agent.reference.line import Line


HARDWARE_CLOCK_S = 1_700_000_000


class StandIn(Guest):
    """A guest that leaves this machine alone."""

    def wait_until_settled(self, _: float) -> bool:
        return True

    def waits(self) -> bool:
        return False

    def drop_caches(self) -> None: ...

    def have_it_wait(self) -> None: ...

    def wait_no_more(self) -> None: ...

    def hardware_clock_s(self) -> int:
        return HARDWARE_CLOCK_S

    def last_end(self) -> str:
        return "signal 9"

    def set_clock(self, unix_time_ns: int) -> None:
        assert abs(unix_time_ns - HARDWARE_CLOCK_S * 10**9) <= 5 * 10**9

    def start_renewer(self, _: Line | None = None) -> Renewer:
        return Renewer("printf w; printf r #")

    def machine_id(self) -> str:
        return "7f0c5f3e000040008000" + "0123456789ab"


class Cloned(NamedTuple):
    """An agent in this process, with all it serves in a guest."""

    channel: grpc.Channel
    http_port: int
    grpc_port: int

    def ask(self, method: str, **members: object) -> object:
        """The answer, or the code of the refusal."""
        try:
            if method == "Run":
                run = agent_pb2_grpc.AgentServiceStub(self.channel).Run
                request = agent_pb2.RunRequest(computation=b"{}")
                return run(request, timeout=30, metadata=list(members.items()))
            stub = clone_pb2_grpc.CloneServiceStub(self.channel)
            if method == "Prepare":
                return stub.Prepare(clone_pb2.PrepareRequest(), timeout=30)
            every: dict[str, Any] = {
                "vm_id": "7f0c5f3e-0000-4000-8000-0123456789ab",
                "hostname": "vm-7f0c5f3e",
                "entropy": bytes(32),
                "unix_time_ns": HARDWARE_CLOCK_S * 10**9,
                **members,
            }
            return stub.Renew(clone_pb2.RenewRequest(**every), timeout=30)
        except grpc.RpcError as error:
            return error.code()

    def post(self) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=30)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/run", b'{"computation":"e30="}', headers)
        status = connection.getresponse().status
        connection.close()
        return status


@pytest.fixture
def cloned() -> Iterator[Cloned]:
    agent = Agent(algorithm_timeout_s=60)
    guest = StandIn()
    clones = Clones(agent, guest, Access())
    methods = {
        **service.methods(agent),
        **clone.methods(clones),
        **guest_service.methods(agent, guest),
    }
    server = Server(methods, Access(), "127.0.0.1", 0)
    web = serve_http(agent, Access(), "127.0.0.1", 0)
    clones.agent_is_up.set()
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Cloned(channel, web.server_address[1], server.port)
    server.stop()
    web.stop()
    gc.unfreeze()


def test_a_stranger_is_refused_over_http_too(tmp_path: Path) -> None:
    given = tmp_path / "hash"
    given.write_text(hashlib.sha256(b"ours").hexdigest())
    opened = os.open(tmp_path / "open", os.O_RDWR | os.O_CREAT)
    access = Access(os.open(given, os.O_RDONLY), opened)
    web = serve_http(Agent(algorithm_timeout_s=60), access, "127.0.0.1", 0)
    told = {}
    for shown in ("", "Bearer other", "Bearer ours"):
        for method, path in (("GET", "/health"), ("GET", "/metrics"), ("POST", "/run")):
            connection = http.client.HTTPConnection("127.0.0.1", web.server_address[1], timeout=30)
            headers = {"Content-Type": "application/json", "Authorization": shown}
            connection.request(method, path, b'{"computation":"e30="}', headers)
            response = connection.getresponse()
            told[shown, path] = response.status
            assert (response.headers["WWW-Authenticate"] == "Bearer") is (response.status == 401)
            connection.close()
    web.stop()
    assert {key for key, status in told.items() if status == 401} == {
        *(("", "/metrics"), ("", "/run")),
        *(("Bearer other", "/metrics"), ("Bearer other", "/run")),
    }
    assert set(told.values()) == {200, 401}


REFUSED = grpc.StatusCode.FAILED_PRECONDITION


def test_nothing_is_answered_between_prepare_and_renew(cloned: Cloned) -> None:
    assert cloned.ask("Prepare") == clone_pb2.PrepareResponse()
    assert cloned.ask("Run") is REFUSED
    assert cloned.post() == 409
    assert cloned.ask("Renew") == clone_pb2.RenewResponse()
    assert isinstance(cloned.ask("Run"), agent_pb2.RunResponse)
    assert cloned.post() == 200


def test_health(cloned: Cloned) -> None:
    stub: Any = health_pb2_grpc.HealthStub(cloned.channel)
    serving, not_serving = 1, 2

    def check(service: str) -> object:
        return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=30).status

    assert check("") == check("agent.AgentService") == serving
    with pytest.raises(grpc.RpcError) as caught:
        check("agent.Else")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    cloned.ask("Prepare")
    assert check("") == not_serving
    cloned.ask("Renew")
    assert check("") == serving


def test_status_is_told_while_the_guest_waits_for_its_renewal(cloned: Cloned) -> None:
    stub = guest_pb2_grpc.GuestServiceStub(cloned.channel)

    def state() -> tuple[int, str]:
        answer = stub.Status(guest_pb2.StatusRequest(), timeout=30)
        return answer.state, answer.last_end

    assert state() == (StatusResponse.STATE_IDLE, "signal 9")
    cloned.ask("Prepare")
    assert state() == (StatusResponse.STATE_HELD, "signal 9")
    cloned.ask("Renew")
    assert state() == (StatusResponse.STATE_IDLE, "signal 9")


@pytest.mark.parametrize(
    ("off_ns", "code"),
    [
        (0, None),
        (5 * 10**9, None),
        (-5 * 10**9, None),
        (5 * 10**9 + 1, grpc.StatusCode.INVALID_ARGUMENT),
        (-5 * 10**9 - 1, grpc.StatusCode.INVALID_ARGUMENT),
        (-2 * HARDWARE_CLOCK_S * 10**9, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_clock_is_set_to_the_hardware_clocks_time_only(
    cloned: Cloned, off_ns: int, code: grpc.StatusCode | None
) -> None:
    stub = guest_pb2_grpc.GuestServiceStub(cloned.channel)
    request = guest_pb2.SetClockRequest(unix_time_ns=HARDWARE_CLOCK_S * 10**9 + off_ns)
    if code is None:
        answer = stub.SetClock(request, timeout=30)
        ago_ns = time.time_ns() - request.unix_time_ns + answer.moved_ns
        assert 0 <= ago_ns < 30 * 10**9
    else:
        with pytest.raises(grpc.RpcError) as caught:
            stub.SetClock(request, timeout=30)
        assert caught.value.code() is code


def test_clock_of_a_guest_that_waits_for_its_renewal_is_not_set(cloned: Cloned) -> None:
    cloned.ask("Prepare")
    stub = guest_pb2_grpc.GuestServiceStub(cloned.channel)
    request = guest_pb2.SetClockRequest(unix_time_ns=HARDWARE_CLOCK_S * 10**9)
    with pytest.raises(grpc.RpcError) as caught:
        stub.SetClock(request, timeout=30)
    assert caught.value.code() is REFUSED


def test_a_guest_is_renewed_as_one_only(cloned: Cloned) -> None:
    assert cloned.ask("Renew") is REFUSED
    cloned.ask("Prepare")
    assert cloned.ask("Renew") == clone_pb2.RenewResponse()
    assert cloned.ask("Renew") == clone_pb2.RenewResponse()  # who missed the answer asks again
    later = HARDWARE_CLOCK_S * 10**9 + 1
    assert cloned.ask("Renew", unix_time_ns=later) == clone_pb2.RenewResponse()
    assert cloned.ask("Renew", vm_id="7f0c5f3e-0000-4000-8000-ba9876543210") is REFUSED


def test_a_bad_renewal_is_refused_and_waited_for(cloned: Cloned) -> None:
    cloned.ask("Prepare")
    for bad in ({"vm_id": "vm"}, {"unix_time_ns": 0}):
        assert cloned.ask("Renew", **bad) is grpc.StatusCode.INVALID_ARGUMENT
    assert cloned.ask("Run") is REFUSED
    assert cloned.ask("Renew") == clone_pb2.RenewResponse()


def test_an_agent_that_was_used_is_not_prepared(cloned: Cloned) -> None:
    cloned.ask("Run")
    assert cloned.ask("Prepare") is REFUSED


def test_algorithms_and_reports_find_the_guest_brought_up() -> None:
    """The agent answers before the last modules are loaded; these may need the devices."""
    settled: list[str] = []
    agent = Agent(60, settle=lambda: settled.append("now"))
    for method, payload in (("Run", b"{}"), ("Algo", b"pass"), ("Data", b"x")):
        agent.call(method, payload, lambda _: True)
    assert settled == []
    for method in ("Result", "Attestation"):
        with pytest.raises(Refusal):
            agent.call(method, b"", lambda _: True)
    assert settled == ["now", "now"]
