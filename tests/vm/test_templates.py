"""Templates, clones and the pool, on real QEMU with the real guest.

One guest boots, and all others are started from it, but for the one whose template is damaged.
"""

from __future__ import annotations

import hashlib
import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from uuid import UUID

import attrs
import httpx
import psutil
import pytest

from supervisor.pb import agent_pb2
from tests.support.namespaces import needs_namespaces
from tests.vm.conftest import PATIENCE_S, Supervisor, started, workplace
from tests.vm.test_run import agent_of, computation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CLONES, AT_ONCE = 20, 5

SETTINGS = {
    "MANAGER_TEMPLATES": "auto",
    "MANAGER_MAX_VMS": "10",
    "MANAGER_HELD_CLONES": "0",  # runs are to start from the template as it is then
}

#: How far a guest's time of day may be from the host's.
CLOCK_S = 2.0

#: The first of what a guest draws, and what it takes itself to be. A TLS client's first message
#: has its random number, a session's id and the key that it offers.
DRAW = b"""
import os, time
drawn = {"random": os.urandom(32).hex(), "now": time.time()}
import json, random, socket, ssl, sys, uuid
drawn["uuid"] = str(uuid.uuid4())
drawn["python"] = random.random()
incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
client = context.wrap_bio(incoming, outgoing, server_hostname="example.org")
try:
    client.do_handshake()
except ssl.SSLWantReadError:
    pass
drawn["hello"] = outgoing.read().hex()
drawn["hostname"] = socket.gethostname()
with open("/etc/machine-id") as file:
    drawn["machine_id"] = file.read().strip()
with open("/proc/sys/kernel/random/uuid") as file:
    drawn["kernel_uuid"] = file.read().strip()
with socket.socket(socket.AF_UNIX) as result:
    result.connect(sys.argv[2])
    result.sendall(json.dumps(drawn).encode())
"""


@attrs.frozen
class Draw:
    """What one clone has drawn, between two looks at the host's clock."""

    vm: dict[str, Any]
    shown: dict[str, Any]
    drawn: dict[str, Any]
    before: float
    after: float


@pytest.fixture(scope="module")
def tmp() -> Iterator[Path]:
    with workplace() as path:
        yield path


@pytest.fixture(scope="module")
def first(tmp: Path) -> Iterator[Supervisor]:
    """The one that builds the template. A test ends it."""
    with ExitStack() as stack:
        yield stack.enter_context(started(tmp, **SETTINGS))


@pytest.fixture(scope="module")
def template(first: Supervisor) -> dict[str, Any]:
    return ready(first)


def ready(supervisor: Supervisor) -> dict[str, Any]:
    listed = supervisor.until("/templates", lambda now: bool(in_state(now, "ready")))
    (one,) = in_state(listed, "ready")
    return dict(one)


def in_state(listed: dict[str, Any], state: str) -> list[dict[str, Any]]:
    return [one for one in listed["templates"] if one["state"] == state]


def digest_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@pytest.fixture(scope="module")
def draws(first: Supervisor, template: dict[str, Any], tmp: Path) -> list[Draw]:
    """Clones, some at a time; each is deleted when it has drawn."""
    ram = tmp / "templates" / template["digest"] / "ram"
    before = digest_of(ram)
    names = [f"clone-{number}" for number in range(CLONES)]
    found: list[Draw] = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for group in (names[at : at + AT_ONCE] for at in range(0, CLONES, AT_ONCE)):
            vms = list(pool.map(lambda name: _clone(first, name), group))
            found += pool.map(lambda vm: _draw(first, vm), vms)
            for vm in vms:
                assert first.http.delete(f"/vms/{vm['id']}").status_code == 204
    assert digest_of(ram) == before, "a clone has written to its template's memory"
    return found


def _clone(supervisor: Supervisor, name: str) -> dict[str, Any]:
    vm = supervisor.run(computation(name), template="require")
    assert json.loads(vm["computation"])["id"] == name
    return vm


def _draw(supervisor: Supervisor, vm: dict[str, Any]) -> Draw:
    stub = agent_of(vm)
    stub.Algo(agent_pb2.AlgoRequest(algorithm=DRAW))
    stub.Data(agent_pb2.DataRequest(dataset=b"-"))
    before = time.time()
    drawn = json.loads(stub.Result(agent_pb2.ResultRequest(), timeout=PATIENCE_S).file)
    return Draw(vm, supervisor.show(vm["id"]), drawn, before, time.time())


# --- clones ---------------------------------------------------------------------------------


def test_template_is_listed(template: dict[str, Any]) -> None:
    assert template["built_in_s"] > 0
    assert template["size_bytes"] > 0
    assert template["problem"] is None


def test_clones_are_vms_of_their_own(draws: list[Draw], template: dict[str, Any]) -> None:
    assert {draw.shown["template"] for draw in draws} == {template["digest"]}
    assert len({draw.vm["id"] for draw in draws}) == CLONES
    for draw in draws:
        assert "-incoming" in draw.shown["argv"]
        steps = list(draw.shown["phases_s"])
        assert steps.index("restore") < steps.index("running") < steps.index("agent")
        assert "renew" not in steps, "its guest renews itself"


def client_random(hello: bytes) -> bytes:
    """Of a record with a ClientHello: 5 bytes of header, 4 of handshake, 2 of version."""
    assert (hello[0], hello[5]) == (22, 1)
    return hello[11:43]


def key_share(hello: bytes) -> bytes:
    """The client's public key, of the extension 51 in RFC 8446."""
    at = 43
    at += 1 + hello[at]  # the session's id
    at += 2 + int.from_bytes(hello[at : at + 2])  # cipher suites
    at += 1 + hello[at]  # compression methods
    end = at + 2 + int.from_bytes(hello[at : at + 2])
    at += 2
    while at < end:
        kind, size = int.from_bytes(hello[at : at + 2]), int.from_bytes(hello[at + 2 : at + 4])
        if kind == 51:
            return hello[at + 4 : at + 4 + size]
        at += 4 + size
    raise AssertionError("no key share")


@pytest.mark.parametrize("what", ["random", "uuid", "python", "kernel_uuid"])
def test_no_two_clones_draw_the_same(draws: list[Draw], what: str) -> None:
    assert len({draw.drawn[what] for draw in draws}) == CLONES


@pytest.mark.parametrize("part", [client_random, key_share])
def test_no_two_clones_say_hello_alike(draws: list[Draw], part: Any) -> None:
    assert len({part(bytes.fromhex(draw.drawn["hello"])) for draw in draws}) == CLONES


def test_clones_know_who_they_are(draws: list[Draw]) -> None:
    for draw in draws:
        assert draw.drawn["machine_id"] == UUID(draw.vm["id"]).hex
        assert draw.drawn["hostname"].startswith("vm-")
    assert len({draw.drawn["hostname"] for draw in draws}) == CLONES


def test_clones_know_the_time(draws: list[Draw]) -> None:
    for draw in draws:
        assert draw.before - CLOCK_S <= draw.drawn["now"] <= draw.after + CLOCK_S


def test_clone_is_ended_by_its_guest(first: Supervisor, template: dict[str, Any]) -> None:
    vm = _clone(first, "powers-off")
    assert first.show(vm["id"])["template"] == template["digest"]
    ended = first.post(vm["id"], "shutdown")
    assert (ended["state"], ended["reason"]) == ("shutoff", "guest-shutdown")


@needs_namespaces
def test_clone_without_forwards_answers_and_has_no_port(
    first: Supervisor, template: dict[str, Any]
) -> None:
    answer = first.run(computation("alone"), forwards="none")
    assert json.loads(answer["computation"])["id"] == "alone"
    assert answer["forwards"] == []
    shown = first.show(answer["id"])
    assert shown["template"] == template["digest"]
    qemu = psutil.Process(shown["pid"])
    (proxy,) = qemu.children(recursive=True)
    pids = {qemu.pid, proxy.pid}
    assert not [one for one in psutil.net_connections("tcp") if one.pid in pids]
    assert first.post(answer["id"], "shutdown")["state"] == "shutoff"
    proxy.wait(PATIENCE_S)


def test_clone_of_a_damaged_template_boots_from_cold(
    first: Supervisor, template: dict[str, Any], tmp: Path
) -> None:
    state = tmp / "templates" / template["digest"] / "state"
    whole = state.read_bytes()
    state.write_bytes(bytes(len(whole)))
    vm = first.run(computation("damaged"))
    state.write_bytes(whole)
    assert json.loads(vm["computation"])["id"] == "damaged"
    assert first.show(vm["id"])["template"] is None
    with first.events(vm["id"], after=0) as events:
        told = next(one for one in events if one["event"] == "fallback")
    assert told["template"] == template["digest"]
    assert "load of migration failed" in told["why"]
    assert first.http.delete(f"/vms/{vm['id']}").status_code == 204


# --- the next supervisor --------------------------------------------------------------------


@pytest.fixture(scope="module")
def left(first: Supervisor, template: dict[str, Any], draws: list[Draw]) -> dict[str, Any]:
    """A clone whose supervisor has gone."""
    vm = _clone(first, "left")
    shown = first.show(vm["id"])
    assert first.end(signal.SIGTERM) == 0
    return shown


@pytest.fixture(scope="module")
def second(left: dict[str, Any], tmp: Path) -> Iterator[Supervisor]:
    """One with a pool, that holds clones."""
    kept = {
        "MANAGER_LOG_LEVEL": "debug",
        "MANAGER_POOL_SIZE": "2",
        "MANAGER_POOL_INTERVAL": "1ms",
        "MANAGER_HELD_CLONES": "1",
    }
    with started(tmp, **SETTINGS | kept) as supervisor:
        yield supervisor


def held(listed: dict[str, Any]) -> list[str]:
    return [one["id"] for one in listed["vms"] if not one["ended"] and one["monitor"] == "ok"]


def pooled(listed: dict[str, Any]) -> list[str]:
    rows = [one for one in listed["vms"] if one["purpose"] == "pool" and one["agent_ready"]]
    return [one["id"] for one in rows if not one["ended"]]


def closed_lines(supervisor: Supervisor) -> set[str]:
    """The VMs whose guests have closed their line, as QEMU has told."""
    return {
        entry["vm"]
        for entry in list(supervisor.log)
        if entry.get("qmp_event") == "VSERPORT_CHANGE" and not entry["data"]["open"]
    }


def address(vm: dict[str, Any], guest_port: int) -> str:
    (one,) = [one for one in vm["forwards"] if one["guest_port"] == guest_port]
    return f"{one['host_address']}:{one['host_port']}"


def test_template_outlives_its_supervisor(
    second: Supervisor, left: dict[str, Any], template: dict[str, Any]
) -> None:
    assert ready(second)["digest"] == template["digest"]
    taken_up = second.until(f"/vms/{left['id']}", lambda vm: bool(vm["agent"]["ready"]))
    for name in ("pid", "template", "state", "argv"):
        assert taken_up[name] == left[name], name


def test_pool_is_ready_and_filled_again(second: Supervisor, template: dict[str, Any]) -> None:
    waiting = pooled(second.until("/vms", lambda listed: len(pooled(listed)) == 2))
    draws = [_draw(second, second.run(computation(f"pooled-{number}"))) for number in range(2)]
    assert {draw.vm["id"] for draw in draws} == set(waiting)
    assert {draw.shown["template"] for draw in draws} == {template["digest"]}
    assert [list(draw.shown["phases_s"]) for draw in draws] == [["pool", "relay"]] * 2
    assert len({draw.drawn["random"] for draw in draws}) == 2
    # They rehearsed and had their computations over the line, which each then closed.
    second.until("/vms", lambda _: closed_lines(second) >= set(waiting))
    for draw in draws:
        calls = httpx.get(f"http://{address(draw.vm, 9031)}/metrics").text
        counted = dict(line.rsplit(" ", 1) for line in calls.splitlines() if "method=" in line)
        assert counted['agent_calls_total{method="Rehearsal",code="OK"}'] == "1"
        assert counted['agent_calls_total{method="Run",code="OK"}'] == "1"
        # Its guest waited with the right time, and waits no more.
        assert draw.before - CLOCK_S <= draw.drawn["now"] <= draw.after + CLOCK_S
    again = pooled(second.until("/vms", lambda listed: len(pooled(listed)) == 2))
    assert not set(again) & set(waiting)
    for draw in draws:
        assert second.http.delete(f"/vms/{draw.vm['id']}").status_code == 204


def test_held_clone_is_a_vm_of_its_own(second: Supervisor, template: dict[str, Any]) -> None:
    """Of three runs at once two have the pool's VMs."""
    second.until("/vms", lambda listed: len(pooled(listed)) == 2)
    listed = second.until("/vms?purpose=held", lambda listed: held(listed) != [])
    with ThreadPoolExecutor(3) as threads:
        names = [f"beside-{number}" for number in range(3)]
        vms = list(threads.map(lambda name: second.run(computation(name)), names))
    draws = [_draw(second, vm) for vm in vms]
    (one,) = [draw for draw in draws if draw.vm["id"] in held(listed)]
    assert list(one.shown["phases_s"]) == ["held", "running", "agent", "relay"]
    assert one.shown["template"] == template["digest"]
    assert one.drawn["machine_id"] == UUID(one.vm["id"]).hex
    assert one.before - CLOCK_S <= one.drawn["now"] <= one.after + CLOCK_S
    for what in ("random", "uuid", "python", "kernel_uuid"):
        assert len({draw.drawn[what] for draw in draws}) == 3
    for vm in vms:
        assert second.http.delete(f"/vms/{vm['id']}").status_code == 204
