"""From another party, Alice, who has a good token: Bob's VM, its events, and his keys."""

from __future__ import annotations

import statistics
import time
import uuid
from typing import TYPE_CHECKING, Any

from supervisor.pb import manager_pb2, vm_pb2
from tests.attack.asking import BOBS, grpc, http, tenant
from tests.attack.kinds import Came, From, attack
from tests.attack.place import KEY, bobs_body

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.attack.kinds import Act
    from tests.attack.place import Place

OWNER = "the owner of a VM"

#: Each place of an id over HTTP, the most harmful last.
PLACES: list[tuple[str, str, str]] = [
    ("reads all about another's VM", "GET", f"/vms/{BOBS}"),
    ("reads the status of another's VM", "GET", f"/vms/{BOBS}/status?live=1"),
    ("reads another's reply", "GET", f"/vms/{BOBS}/reply"),
    ("follows the events of another's VM", "GET", f"/vms/{BOBS}/events"),
    ("reads the events of another's VM, by the page", "GET", f"/vms/{BOBS}/events?limit=9"),
    ("pauses another's VM", "POST", f"/vms/{BOBS}/pause"),
    ("lets another's VM go on", "POST", f"/vms/{BOBS}/resume"),
    ("resets another's VM", "POST", f"/vms/{BOBS}/reset"),
    ("shuts another's VM down", "POST", f"/vms/{BOBS}/shutdown"),
    ("deletes another's VM", "DELETE", f"/vms/{BOBS}"),
]
#: Bob's VM is a plain one: what they meet is its refusal, or that they said nothing.
CONFIDENTIAL: list[tuple[str, str, str, str]] = [
    ("reads what a report of another's VM says", "GET", "attestation-policy", "409"),
    ("reads what was measured of another's VM", "GET", "launch-measurement", "409"),
    ("launches another's guest", "POST", "launch", "409"),
    ("has another's guest ask for a report", "POST", "attestation", "415"),
    ("gives another's guest a secret", "POST", "launch-secret", "415"),
]
for _what, _method, _name, _through in CONFIDENTIAL:
    _ask = http("main", _method, f"/vms/{BOBS}/{_name}", by="alice")
    tenant(f"a party {_what}", _ask, OWNER, "404", through=_through)
for _what, _method, _path in PLACES:
    tenant(f"a party {_what}", http("main", _method, _path, by="alice"), OWNER, "404")

#: What needs an agent's algorithm, of which Bob's has none.
COMPUTING: list[tuple[str, str, str, str]] = [
    ("replaces the algorithm in another's VM", "PUT", "algorithm", "200|400"),
    ("replaces the data in another's VM", "PUT", "data/0", "200"),
    ("has another's VM compute", "POST", "compute", "200|409"),
    ("reads what another's algorithm printed", "GET", "outcome", "200|409"),
    ("takes another's result", "GET", "result", "200|409"),
]
for _what, _method, _name, _through in COMPUTING:
    _ask = http("main", _method, f"/vms/{BOBS}/{_name}", by="alice")
    tenant(f"a party {_what} through the API", _ask, OWNER, "404", through=_through)


# --- a VM in which each party has a part --------------------------------------------------------

PART = "the part of a party"


def shared(place: Place) -> str:
    """The id of a VM of Bob's: Alice brings the algorithm, Bob data, and Olivia gets the result."""
    parties = {"algorithm": "alice", "data": ["bob"], "result": ["olivia"]}
    run = place.parted.ask("POST", "/run", bobs_body() | {"parties": parties}, by="bob")
    assert run.status == 200, run.body
    return str(run.json()["id"])


def in_shared(method: str, what: str, by: str) -> Act:
    def act(place: Place) -> Came:
        vm_id = place.once("shared", shared)
        came: Came = place.parted.ask(method, f"/vms/{vm_id}/{what}", by=by).came
        return came

    return act


for _what, _method, _name, _by, _through in (
    ("the owner replaces the algorithm of a party", "PUT", "algorithm", "bob", "200|400"),
    ("a party replaces the data of another", "PUT", "data/0", "alice", "200"),
    ("a party has the algorithm run over another's data", "POST", "compute", "alice", "200|409"),
    ("the owner takes the result that is for another", "GET", "result", "bob", "200|409"),
    ("the owner reads what a party's algorithm prints", "GET", "logs?source=algorithm", "bob",
     "200"),
    ("a party takes the result that is for another", "GET", "result", "alice", "200|409"),
    ("a party reads what the algorithm printed of another's data", "GET", "outcome", "alice",
     "200|409"),
):  # fmt: skip
    # Not in the short form: it takes a second guest.
    tenant(_what, in_shared(_method, _name, _by), PART, "403", through=_through, short=False)

tenant(
    "a party has the host examined", http("main", "GET", "/host/checks", by="alice"), "roles", "403"
)

CALLS: list[tuple[str, str, Callable[[str], Any]]] = [
    ("reads all about another's VM", "Get", lambda id_: vm_pb2.GetRequest(id=id_)),
    ("watches another's VM", "Watch", lambda id_: vm_pb2.WatchRequest(id=id_)),
    ("pauses another's VM", "Pause", lambda id_: vm_pb2.PauseRequest(id=id_)),
    ("lets another's VM go on", "Resume", lambda id_: vm_pb2.ResumeRequest(id=id_)),
    ("resets another's VM", "Reset", lambda id_: vm_pb2.ResetRequest(id=id_)),
    ("shuts another's VM down", "Shutdown", lambda id_: vm_pb2.ShutdownRequest(id=id_)),
    ("deletes another's VM", "Delete", lambda id_: vm_pb2.DeleteRequest(id=id_)),
]
SUCCESSORS: list[tuple[str, str, Callable[[str], Any]]] = [
    ("reads what another's VM is made of", "CVMInfo", lambda id_: manager_pb2.CVMInfoReq(id=id_)),
    ("removes another's VM", "RemoveVm", lambda id_: manager_pb2.RemoveReq(cvm_id=id_)),
]


def of_victim(make: Callable[[str], Any]) -> Callable[[Place], Any]:
    return lambda place: make(place.victim())


for _service, _calls in (("vms", CALLS), ("manager", SUCCESSORS)):
    for _what, _name, _make in _calls:
        _call = grpc("main", f"{_service}.{_name}", of_victim(_make), by="alice")
        tenant(f"a party {_what}, over gRPC", _call, OWNER, "NOT_FOUND")
tenant(
    "a party reads what a report of another's VM says, over gRPC",
    grpc(
        "main",
        "manager.AttestationPolicy",
        lambda place: manager_pb2.AttestationPolicyReq(id=place.victim()),
        by="alice",
    ),
    OWNER,
    "NOT_FOUND",
    through="FAILED_PRECONDITION",  # it is a plain one
)

# --- lists and streams -------------------------------------------------------------------------

_OWN = "the answer is a good one, of what is the party's own: nothing"


def told_of(place: Place, text: str) -> Came:
    """What came of an answer in which Bob's VM must not be."""
    return Came("through" if place.victim() in text else "nothing", detail=text[:60])


def listing(what: str, look: Callable[[Place], str], held_by: str) -> None:
    def act(place: Place) -> Came:
        place.victim()
        return told_of(place, look(place))

    tenant(what, act, held_by, "nothing", below=_OWN)


LISTS, EVENTS = "lists of what is one's own", "events of what is one's own"
listing(
    "a party lists all VMs",
    lambda place: place.main.ask("GET", "/vms", by="alice").body.decode(),
    LISTS,
)
listing(
    "a party lists all VMs over gRPC",
    lambda place: str(place.main.call("vms.List", vm_pb2.ListRequest(), by="alice")[1]),
    LISTS,
)
listing(
    "a party reads all events on record, by the page",
    lambda place: place.main.ask("GET", "/events?limit=1000", by="alice").body.decode(),
    EVENTS,
)


@attack(
    From.TENANT,
    "a party follows all events from the first on",
    held_by=EVENTS,
    refusal="nothing",
    below=_OWN,
    short=False,  # a quarter of a minute, if there is nothing to tell
)
def all_events(place: Place) -> Came:
    """Until an event that comes later than Bob's."""
    place.victim()
    connection = place.main.connection()
    try:
        headers = {"Authorization": f"Bearer {place.main.tokens['alice']}", "Last-Event-ID": "0"}
        connection.request("GET", "/events", headers=headers)
        stream = connection.getresponse()
        # What is on record comes before a comment that is sent if there is nothing else to tell.
        told = b""
        while b"keep-alive" not in told and place.victim().encode() not in told:
            told += stream.readline()
        return told_of(place, told.decode())
    finally:
        connection.close()


# --- keys, room, time --------------------------------------------------------------------------


@attack(
    From.TENANT,
    "a party repeats another's run under the same idempotency key, to get its answer",
    held_by="the owner of a key",
    refusal="429",
)
def anothers_key(place: Place) -> Came:
    place.victim()
    headers = [("Idempotency-Key", KEY)]
    return place.main.ask("POST", "/run", bobs_body(), by="alice", headers=headers).came


@attack(
    From.TENANT,
    "a party repeats another's run under the same idempotency key, over gRPC",
    held_by="the owner of a key",
    refusal="RESOURCE_EXHAUSTED",
)
def anothers_key_grpc(place: Place) -> Came:
    place.victim()
    message = manager_pb2.RunRequest(computation=bytes(bobs_body()["computation"]))
    metadata = [("idempotency-key", KEY)]
    return place.main.call("manager.Run", message, by="alice", metadata=metadata)[0]


@attack(
    From.TENANT,
    "a party posts a run to be told what others have on a full host",
    held_by="errors that do not tell of others",
    refusal="429",
    through="429, with what others have",
)
def told_of_others(place: Place) -> Came:
    place.victim()
    answer = place.main.ask("POST", "/run", {"computation": [1]}, by="alice")
    came = answer.came
    if b"MANAGER_MAX_VMS" in answer.body:
        return Came(f"{came.status}, with what others have", came.request, came.detail)
    return came


@attack(
    From.TENANT,
    "a party tells another's id from an unknown one by the answer",
    held_by=OWNER,
    refusal="the same answer",
    below="the answer is compared, not its status",
    through="another answer",
)
def by_the_answer(place: Place) -> Came:
    answers = []
    for vm_id in (place.victim(), str(uuid.uuid4())):
        answer = place.main.ask("GET", f"/vms/{vm_id}", by="alice")
        # The second may have changed between the two.
        headers = sorted(item for item in answer.headers.items() if item[0].lower() != "date")
        text = f"{answer.status} {headers} {answer.body.decode()}"
        for ours in (answer.request.id, vm_id):
            text = text.replace(ours, "")
        answers.append(text)
    if answers[0] == answers[1]:
        return Came("the same answer", detail="")
    return Came("another answer", detail=" / ".join(answers))


@attack(
    From.TENANT,
    "a party tells another's id from an unknown one by the time of the answer",
    held_by="the owner first",
    refusal="the same time",
    below="the time is compared, not the status",
    through="another time",
)
def by_the_time(place: Place) -> Came:
    """In how many pairs the one takes longer: half of them if nothing but chance decides.

    What else the machine does changes both alike.
    """
    theirs, unknown = place.victim(), str(uuid.uuid4())
    connection = place.main.connection()

    def took_s(vm_id: str) -> float:
        begun = time.perf_counter()
        place.main.send(connection, "GET", f"/vms/{vm_id}", by="carol")
        return time.perf_counter() - begun

    try:
        took_s(theirs), took_s(unknown)
        pairs = [(took_s(theirs), took_s(unknown)) for _ in range(150)]
    finally:
        connection.close()
    longer = statistics.mean(one > other for one, other in pairs)
    even = 0.1 < longer < 0.9
    return Came("the same time" if even else "another time", detail=f"longer in {longer:.0%}")
