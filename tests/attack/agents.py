"""From a local user: agents by the ports that lead to them, and while they boot."""

from __future__ import annotations

import http.client
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from supervisor.pb import agent_pb2, clone_pb2, compute_pb2, guest_pb2
from supervisor.pb.agent_pb2_grpc import AgentServiceStub
from supervisor.pb.clone_pb2_grpc import CloneServiceStub
from supervisor.pb.compute_pb2_grpc import ComputeServiceStub
from supervisor.pb.guest_pb2_grpc import GuestServiceStub
from tests.attack.kinds import Came, From, Need, attack
from tests.attack.place import bobs_body
from tests.attack.service import ANSWER_S

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.attack.kinds import Act
    from tests.attack.place import Place

CREDENTIAL = "the credential of an agent"
_AGENT = "the agent's port is not the API"
ROOT = frozenset({Need.ROOT})

# --- agents by their forwards --------------------------------------------------------------------

_RESULT = b"""
import socket, sys
with socket.socket(socket.AF_UNIX) as result:
    result.connect(sys.argv[2])
    result.sendall(b"mine")
"""


def calls(channel: Any) -> dict[str, tuple[Any, Any]]:
    """What a stranger may ask an agent for, with the message."""
    agent, compute = AgentServiceStub(channel), ComputeServiceStub(channel)
    upload = compute_pb2.UploadRequest
    chunk = upload(kind=upload.KIND_ALGORITHM, chunk=_RESULT)
    now = guest_pb2.SetClockRequest(unix_time_ns=time.time_ns())
    return {
        "replaces the algorithm in another's VM": (
            agent.Algo,
            agent_pb2.AlgoRequest(algorithm=_RESULT),
        ),
        "replaces the data in another's VM": (agent.Data, agent_pb2.DataRequest(dataset=b"mine")),
        "fills another's guest by uploads": (compute.Upload, iter([chunk])),
        "takes another's result": (agent.Result, agent_pb2.ResultRequest()),
        "reads how another's algorithm ended": (
            compute.LastOutcome,
            compute_pb2.LastOutcomeRequest(),
        ),
        "reads what another's algorithm prints": (compute.Printed, compute_pb2.PrintedRequest()),
        "sends another's agent a computation": (
            agent.Run,
            agent_pb2.RunRequest(computation=b'{"id": "mine"}'),
        ),
        "reads what another's guest does": (
            GuestServiceStub(channel).Status,
            guest_pb2.StatusRequest(),
        ),
        "sets the clock of another's guest": (GuestServiceStub(channel).SetClock, now),
    }


def code(method: Any, message: Any, metadata: Sequence[tuple[str, str]] = ()) -> str:
    try:
        answer: Any = method(message, timeout=ANSWER_S * 5, metadata=metadata)
        if isinstance(answer, grpc.Call):  # a stream
            next(answer)  # type: ignore[call-overload]
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def stranger(what: str, show: Callable[[Place], list[tuple[str, str]]] = lambda _: []) -> Act:
    """:param show: the metadata of the call"""

    def act(place: Place) -> Came:
        metadata = show(place)
        host, port = place.agent()
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"{host}:{port}", options) as channel:
            return Came(code(*calls(channel)[what], metadata))

    return act


REPLACES = "replaces the algorithm in another's VM"
with grpc.insecure_channel("localhost:1") as _channel:
    _NAMES = list(calls(_channel))
for _what in _NAMES:
    attack(
        From.LOCAL_USER,
        f"a user {_what}",
        held_by=CREDENTIAL,
        refusal="UNAUTHENTICATED",
        below=_AGENT,
    )(stranger(_what))


def argv_of(place: Place) -> str:
    """QEMU's command line, which every local user can read."""
    shown = place.main.ask("GET", f"/vms/{place.victim()}", by="bob").json()
    return " ".join(shown["argv"])


def _hash_in_argv(place: Place) -> list[tuple[str, str]]:
    found = re.search(r"credential-sha256,string=([0-9a-f]+)", argv_of(place))
    return [("authorization", f"Bearer {found[1] if found else 'nothing'}")]


_SHOWN: dict[str, Callable[[Place], list[tuple[str, str]]]] = {
    "with a made-up credential": lambda _: [("authorization", "Bearer " + "A" * 43)],
    "with what QEMU's command line tells of the credential": _hash_in_argv,
    "with a party's token for the API": lambda place: [
        ("authorization", f"Bearer {place.main.tokens['alice']}")
    ],
    "with the word that opens an agent to all": lambda _: [("agent-access", "open")],
}
for _words, _show in _SHOWN.items():
    attack(
        From.LOCAL_USER,
        f"a user {REPLACES} {_words}",
        held_by=CREDENTIAL,
        refusal="UNAUTHENTICATED",
        below=_AGENT,
    )(stranger(REPLACES, _show))


def _agents_http(method: str, path: str, body: bytes | None, place: Place) -> Came:
    """Tried again until the agent listens there: its gRPC answers some seconds before."""
    host, port = place.agent(9031)
    deadline = time.monotonic() + ANSWER_S * 5
    while True:
        connection = http.client.HTTPConnection(host, port, timeout=ANSWER_S * 5)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            return Came(str(connection.getresponse().status))
        except ConnectionError:
            if time.monotonic() > deadline:
                raise
        finally:
            connection.close()


for _what, _method, _path, _body in (
    (
        "sends another's agent a computation over HTTP",
        "POST",
        "/run",
        b'{"computation": [123, 125]}',
    ),
    ("reads the metrics of another's agent", "GET", "/metrics", None),
):
    attack(From.LOCAL_USER, f"a user {_what}", held_by=CREDENTIAL, refusal="401", below=_AGENT)(
        partial(_agents_http, _method, _path, _body)
    )


# --- VMs before anybody has them ----------------------------------------------------------------


def _target(vm: dict[str, Any]) -> str:
    port = next(one for one in vm["forwards"] if one["guest_port"] == 7002)
    return f"{port['host_address']}:{port['host_port']}"


def _intrude(place: Place, purpose: str) -> Came:
    """What a VM's agent answers to who tries from before it is there until it would obey."""
    service = place.pooled
    vm = service.until_listed(lambda vm: bool(vm["forwards"]), "olivia", purpose)
    target = _target(vm)
    renewal = clone_pb2.RenewRequest(vm_id=vm["id"], hostname="mine", entropy=bytes(64))
    deadline = time.monotonic() + 10 * ANSWER_S
    with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        tries = [
            partial(code, AgentServiceStub(channel).Algo, agent_pb2.AlgoRequest(algorithm=_RESULT)),
            partial(code, CloneServiceStub(channel).Prepare, clone_pb2.PrepareRequest()),
            partial(code, CloneServiceStub(channel).Renew, renewal),
        ]
        told = set[str]()
        # What it answers to one call says nothing of the next.
        while not told & {"OK", "UNAUTHENTICATED"} and time.monotonic() < deadline:
            told |= {one() for one in tries}
    return Came("OK" if "OK" in told else ", ".join(sorted(told - {"UNAVAILABLE"})))


for _purpose in ("template", "pool"):
    attack(
        From.LOCAL_USER,
        f"a user plants an algorithm in a VM of the kind {_purpose} while it boots",
        held_by=CREDENTIAL,
        refusal="UNAUTHENTICATED",
        below=_AGENT,
        short=False,
    )(partial(lambda purpose, place: _intrude(place, purpose), _purpose))


@attack(
    From.LOCAL_USER,
    "a user is the first to call a held clone, and renews it",
    held_by=CREDENTIAL,
    refusal="UNAUTHENTICATED",
    below=_AGENT,
    short=False,
)
def first_caller(place: Place) -> Came:
    """His connection waits in QEMU since before the guest's first instruction."""
    service = place.holding
    held = service.until_listed(lambda vm: bool(vm["forwards"]), "olivia", "held")
    mine = agent_pb2.RunRequest(computation=b'{"id": "mine"}')
    # Its id is on QEMU's command line.
    renewal = clone_pb2.RenewRequest(vm_id=held["id"], unix_time_ns=time.time_ns())
    with grpc.insecure_channel(_target(held)) as channel, ThreadPoolExecutor(1) as threads:

        def call() -> str:
            renew = partial(CloneServiceStub(channel).Renew, wait_for_ready=True)
            said = code(renew, renewal)
            return code(AgentServiceStub(channel).Run, mine) if said == "OK" else said

        came = threads.submit(call)
        answer = service.ask("POST", "/run", bobs_body(), by="bob").json()
        assert answer["id"] == held["id"], "the run took another VM"
        return Came(came.result())


@attack(
    From.LOCAL_USER,
    "a user connects to a port that the command line of a VM without forwards names",
    held_by="no forwards",
    refusal="ConnectionRefusedError",
    below=_AGENT,
    short=False,
)
def port_of_a_namespace(place: Place) -> Came:
    service = place.serve("portless", {"MANAGER_FORWARDS": "none"})
    run = service.ask(
        "POST", "/run", bobs_body(), by="bob", headers=[("Prefer", "respond-async")]
    ).json()
    service.until(run["id"], "running", by="bob")
    argv = " ".join(service.ask("GET", f"/vms/{run['id']}", by="bob").json()["argv"])
    (port,) = re.findall(r":(\d+)-:7002", argv)
    try:
        socket.create_connection(("127.0.0.1", int(port)), ANSWER_S).close()
    except OSError as error:
        return Came(type(error).__name__)
    return Came("through")
