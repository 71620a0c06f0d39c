"""What a caller may ask for, and that a wrong value gets the same words over both wires."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from supervisor import config
from supervisor.api.grpc import messages
from supervisor.api.requests import EventsRequest, RunRequest
from supervisor.api.words import event_number, page_size
from supervisor.config import MAX_COMPUTATION, Forwards, Policy, RestartPolicy, Tee, TemplateUse
from supervisor.errors import InvalidRequest, TooLarge
from supervisor.pb import manager_pb2, vm_pb2
from supervisor.state.record import RunOptions
from tests.unit.test_json_body import post

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULTS = config.load(
    {
        "MANAGER_TTL": "2h",
        "MANAGER_RESTART": "on-failure",
        "MANAGER_KEEP_DISKS": "true",
        "MANAGER_TEMPLATES": "off",
        "MANAGER_FORWARDS": "none",
        "MANAGER_TEE": "sev",
        "MANAGER_TEE_POLICY": "no-send",
    }
)


class Context:
    """A gRPC call as `messages` sees it."""

    def __init__(self, **metadata: str) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> Any:
        return tuple((name.replace("_", "-"), value) for name, value in self._metadata.items())


def grpc_run(computation: bytes = b"1", **metadata: str) -> RunRequest:
    context: Any = Context(**metadata)
    return messages.run_request(manager_pb2.RunRequest(computation=computation), context)


def grpc_shutdown(mode: Any) -> object:
    return messages.shutdown_request(vm_pb2.ShutdownRequest(mode=mode))


@pytest.mark.parametrize(
    ("path", "body", "same"),
    [
        ("/run", {"computation": ""}, lambda: grpc_run(b"")),
        ("/run", {"computation": "AA==", "template": ""}, lambda: grpc_run(template="")),
        ("/run", {"computation": "AA==", "template": "on"}, lambda: grpc_run(template="on")),
        ("/run", {"computation": "AA==", "forwards": ""}, lambda: grpc_run(forwards="")),
        ("/run", {"computation": "AA==", "forwards": "no"}, lambda: grpc_run(forwards="no")),
        ("/run", {"computation": "AA==", "tee": "sgx"}, lambda: grpc_run(tee="sgx")),
        ("/run", {"computation": "AA==", "tee_policy": "x"}, lambda: grpc_run(tee_policy="x")),
        ("/shutdown", {"mode": "kill"}, lambda: grpc_shutdown(7)),
    ],
    ids=[
        *("computation", "template-empty", "template", "forwards-empty", "forwards"),
        *("tee", "tee_policy", "mode"),
    ],
)
async def test_both_wires_say_the_same(path: str, body: object, same: Callable[[], object]) -> None:
    problem = await (await post(path, body)).get_json()
    with pytest.raises(InvalidRequest) as caught:
        same()
    assert (problem["detail"], problem["member"]) == (str(caught.value), caught.value.member)


def test_computation_over_the_limit() -> None:
    assert RunRequest(bytes(MAX_COMPUTATION))
    with pytest.raises(TooLarge, match=f"{MAX_COMPUTATION + 1} bytes"):
        RunRequest(bytes(MAX_COMPUTATION + 1))


def test_members_that_are_not_given_get_the_settings() -> None:
    options = RunRequest(b"1").options(DEFAULTS, None)
    assert options == RunOptions(
        ttl_s=7200,
        restart=RestartPolicy.ON_FAILURE,
        keep_disk=True,
        template=TemplateUse.OFF,
        forwards=Forwards.NONE,
        tee=Tee.SEV,
        tee_policy="no-send",
    )


def test_members_that_are_given_win() -> None:
    request = RunRequest(
        b"1",
        1.5,
        RestartPolicy.NEVER,
        False,
        TemplateUse.REQUIRE,
        Forwards.HOST,
        Tee.NONE,
        Policy(),
    )
    options = request.options(DEFAULTS, None)
    assert options == RunOptions(ttl_s=1.5, template=TemplateUse.REQUIRE)


def test_the_request_behind_a_key_is_the_same_over_both_wires() -> None:
    members: dict[str, Any] = {
        "template": TemplateUse.REQUIRE,
        "forwards": Forwards.NONE,
        "tee": Tee.SEV_SNP,
        "tee_policy": Policy.read("no-smt"),
    }
    http = RunRequest(b"1", **members).options(DEFAULTS, "k")
    words = {name: str(value) for name, value in members.items()}
    assert grpc_run(b"1", **words).options(DEFAULTS, "k") == http
    assert http.request_hash
    for name in members:
        other = RunRequest(b"1", **(members | {name: None}))
        assert other.options(DEFAULTS, "k").request_hash != http.request_hash


def test_an_empty_policy_is_one() -> None:
    """It asks for what holds if nobody says, and not for the setting's."""
    given = config.load({"MANAGER_TEE_POLICY": "debug", "MANAGER_TEE": "sev"})
    assert RunRequest(b"1").options(given, None).tee_policy == "debug"
    assert RunRequest(b"1", tee_policy=Policy()).options(given, None).tee_policy == ""


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_keys_that_are_none(key: str) -> None:
    with pytest.raises(InvalidRequest, match="Idempotency-Key must have 1 to 255 characters"):
        RunRequest(b"1").options(DEFAULTS, key)


@pytest.mark.parametrize("given", ["", "x", "-1", "1.5", "٣", "9" * 19, -1, 10**18])
def test_what_is_no_number_of_an_event(given: str | int) -> None:
    with pytest.raises(InvalidRequest, match="must be an event's number"):
        event_number(given)


@pytest.mark.parametrize(
    "given",
    ["", "x", "0", "-1", "1.5", "٣", "1001", "0" * 17 + "199999", "0" * 17 + "1" + "0" * 5000],
)
def test_what_is_no_size_of_a_page(given: str) -> None:
    with pytest.raises(InvalidRequest, match="limit must be a number from 1 to 1000"):
        page_size(given)


@pytest.mark.parametrize(("given", "size"), [("1", 1), ("1000", 1000), ("007", 7)])
def test_size_of_a_page(given: str, size: int) -> None:
    assert page_size(given) == size


@pytest.mark.parametrize(
    ("message", "request_"),
    [
        (vm_pb2.WatchRequest(), EventsRequest()),
        (vm_pb2.WatchRequest(after=0), EventsRequest(after=0)),
        (vm_pb2.WatchRequest(id="v", after=7), EventsRequest("v", 7)),
    ],
    ids=str,
)
def test_watch(message: vm_pb2.WatchRequest, request_: EventsRequest) -> None:
    assert messages.events_request(message) == request_
