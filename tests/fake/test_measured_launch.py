"""The measured launch of SEV and SEV-ES: no step is skipped, done twice or raced.

On hosts that are data, with the stand-in for QEMU: its answers are those of QEMU's documents. What
the real QEMU answers where there is no SEV is in tests/vm/test_tee.py.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from supervisor.config import OnStop
from supervisor.state.record import EndCause, Launch
from tests.fake.test_control import events_of
from tests.fake.test_tee import made, milan
from tests.support.clones import pool, post
from tests.support.tenants import ALICE, BOB, Asking

if TYPE_CHECKING:
    import httpx

    from supervisor.vm.vm import Vm
    from tests.support.world import Supervisor, World

__all__ = ["milan"]

#: As an owner makes them: any base64.
CERTIFICATE, SESSION = (base64.b64encode(text).decode() for text in (b"certificate", b"session"))
PACKET = {"header": base64.b64encode(b"header").decode(), "secret": SESSION}
TIK, NONCE = bytes(range(16)), bytes(range(16, 32))
#: Both shapes of query-sev: of QEMU 7.2, and of 9.1 and later.
FLAT = {"enabled": True, "api-major": 1, "api-minor": 55, "build-id": 24, "policy": 0xB,
        "state": "launch-secret", "handle": 1}  # fmt: skip
UNION = FLAT | {"sev-type": "sev"}


def measured_by(policy: int, digest: bytes) -> str:
    said = bytes([4, 1, 55, 24]) + policy.to_bytes(4, "little") + digest + NONCE
    return base64.b64encode(hmac.digest(TIK, said, "sha256") + NONCE).decode()


@pytest.fixture(params=[FLAT, UNION], ids=["flat", "union"])
def host(milan: World, request: pytest.FixtureRequest) -> World:
    return measuring(milan, request.param)


def measuring(world: World, sev: dict[str, Any], **scenario: Any) -> World:
    digest = hashlib.sha256((world.directory / "OVMF.fd").read_bytes()).digest()
    world.scenario(sev=sev, measurement=measured_by(0xB, digest), **scenario)
    return world


async def begun(supervisor: Supervisor, **members: Any) -> Vm:
    """A VM that waits for its owner."""
    body = {"computation": list(b"{}"), "tee": "sev", "attest": True, **members}
    answer = await supervisor.http.post("/run", json=body, headers={"Prefer": "respond-async"})
    assert answer.status_code == 202, answer.text
    vm = supervisor.vm(answer.json()["id"])
    await vm.until(lambda: vm.awaits_owner)
    return vm


async def get(supervisor: Supervisor, vm: Vm) -> httpx.Response:
    return await supervisor.http.get(f"/vms/{vm.id}/launch-measurement")


async def tell(supervisor: Supervisor, vm: Vm, what: str, **body: str) -> httpx.Response:
    return await supervisor.http.post(f"/vms/{vm.id}/{what}", json=body)


async def test_owner_verifies_gives_a_secret_and_lets_it_run(host: World) -> None:
    async with host.serve() as supervisor:
        vm = await begun(supervisor, dh_cert=CERTIFICATE, session=SESSION)
        guest = await host.guest()
        found = (await get(supervisor, vm)).json()
        assert found == {
            "vm": vm.id,
            "data": measured_by(0xB, hashlib.sha256(b"firmware").digest()),
            "api_major": 1,
            "api_minor": 55,
            "build_id": 24,
            "policy": 0xB,
        }
        assert (await get(supervisor, vm)).json() == found
        assert (await tell(supervisor, vm, "launch-secret", **PACKET)).status_code == 200
        shown = (await tell(supervisor, vm, "launch")).json()
        assert (shown["state"], shown["launch"]) == ("running", "released")
        assert shown["attested"]["by"] is None  # nobody is asked for a name here
        await vm.wait_answered()
        steps = [one["step"] for one in events_of(host, vm.id) if one["event"] == "measured-launch"]
        assert steps == ["waiting", "measured", "secret", "released"]
        await supervisor.http.post(f"/vms/{vm.id}/shutdown")
        await guest.until("end")
        assert (guest.count("sev-inject-launch-secret"), guest.count("cont")) == (1, 1)


async def test_measurement_is_a_step_that_is_on_the_audit_log(host: World) -> None:
    async with host.serve() as supervisor:
        vm = await begun(supervisor)
        path = f"/vms/{vm.id}/launch-measurement"
        head = await supervisor.http.head(path)
        assert head.status_code == 405
        assert set(head.headers["Allow"].split(", ")) == {"GET", "OPTIONS"}
        assert (await supervisor.http.options(path)).status_code == 200
        assert vm.awaits_owner
        assert vm.record.launch == "waiting"
        assert (await get(supervisor, vm)).status_code == 200
        assert vm.record.launch == "measured"
    lines = map(json.loads, (host.tmp / "audit.jsonl").read_text().splitlines())
    assert [(one["what"], one["vm"], one["status"]) for one in lines] == [
        ("POST /run", vm.id, 202),
        ("HEAD of no path", None, 405),
        ("GET /vms/<vm_id>/launch-measurement", vm.id, 200),
    ]


async def test_qemu_gets_the_owners_session(host: World) -> None:
    async with host.serve() as supervisor:
        vm = await begun(supervisor, dh_cert=CERTIFICATE, session=SESSION)
        words = made({"argv": list(vm.record.command)})
        files = [Path(words[name]) for name in ("dh-cert-file", "session-file")]
        assert [file.read_text() for file in files] == [CERTIFICATE, SESSION]
        assert {file.parent for file in files} == {vm.dir.path}
        await supervisor.http.post(f"/vms/{vm.id}/shutdown")
        assert not any(file.exists() for file in files)


async def test_guest_does_not_run_before_its_owner_says_so(host: World) -> None:
    """Though it takes longer than any other guest may take to run."""
    async with host.serve(MANAGER_START_TIMEOUT="1s", MANAGER_HEARTBEAT="50ms") as supervisor:
        vm = await begun(supervisor)
        guest = await host.guest()
        while guest.count("query-status") < 40:  # heartbeats of two seconds
            await guest.until("query-status")
        assert vm.awaits_owner
        assert guest.count("cont") == 0
        for action in ("pause", "resume", "reset"):
            assert (await tell(supervisor, vm, action)).status_code == 409, action
        assert guest.count("cont") == 0


async def test_no_step_is_skipped_or_done_twice(host: World) -> None:
    async with host.serve() as supervisor:
        vm = await begun(supervisor)

        async def refused(what: str, words: str, **body: str) -> None:
            answer = await tell(supervisor, vm, what, **body)
            assert answer.status_code == 409, answer.text
            assert words in answer.json()["detail"]

        await refused("launch-secret", "ask for its launch measurement first", **PACKET)
        await refused("launch", "ask for its launch measurement first")
        await get(supervisor, vm)
        assert (await tell(supervisor, vm, "launch-secret", **PACKET)).status_code == 200
        await refused("launch-secret", "it has its secret; let it run", **PACKET)
        assert (await tell(supervisor, vm, "launch")).status_code == 200
        await refused("launch", "at the step 'released'")
        await refused("launch-secret", "at the step 'released'", **PACKET)
        assert (await get(supervisor, vm)).status_code == 409


@pytest.mark.parametrize("what", ["launch-secret", "launch"])
async def test_of_two_owners_at_once_one_does_it(host: World, what: str) -> None:
    async with host.serve() as supervisor:
        vm = await begun(supervisor)
        guest = await host.guest()
        await get(supervisor, vm)
        codes = []

        async def one() -> None:
            body = PACKET if what == "launch-secret" else {}
            codes.append((await tell(supervisor, vm, what, **body)).status_code)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(one)
        assert sorted(codes) == [200, 409, 409, 409, 409]
        command = {"launch-secret": "sev-inject-launch-secret", "launch": "cont"}[what]
        await guest.order("power-off")
        await guest.until("end")
        assert guest.count(command) == 1


async def test_secret_for_another_guest(milan: World) -> None:
    async with measuring(milan, FLAT, refuses_secret=True).serve() as supervisor:
        vm = await begun(supervisor)
        await get(supervisor, vm)
        answer = await tell(supervisor, vm, "launch-secret", **PACKET)
        assert (answer.status_code, answer.json()["member"]) == (400, "secret")
        assert "Bad measurement" in answer.json()["detail"]
        assert vm.record.launch is Launch.MEASURED
        assert vm.awaits_owner


async def test_nobody_attests_it_in_time(host: World) -> None:
    async with host.serve(MANAGER_ATTEST_TIMEOUT="50ms") as supervisor:
        answer = await post(supervisor.http, tee="sev", attest=True)
        assert answer.status_code == 502
        assert "MANAGER_ATTEST_TIMEOUT" in answer.json()["detail"]
        vm = supervisor.only_vm()
        assert (vm.ended, vm.record.end_cause) == (True, EndCause.UNATTESTED)
        guest = await host.guest()
        await guest.until("end")
        assert guest.count("cont") == 0


@pytest.mark.parametrize("step", ["waiting", "measured", "secret"])
async def test_next_supervisor_goes_on_with_the_launch(host: World, step: str) -> None:
    async with host.serve() as supervisor:
        vm = await begun(supervisor)
        guest = await host.guest()
        if step != "waiting":
            await get(supervisor, vm)
        if step == "secret":
            await tell(supervisor, vm, "launch-secret", **PACKET)
        await supervisor.leave(guest)
    async with host.serve() as supervisor:
        vm = supervisor.vm(vm.id)
        await vm.until(lambda: vm.session is not None)
        assert vm.awaits_owner
        assert vm.record.launch == step
        if step == "waiting":
            assert (await tell(supervisor, vm, "launch")).status_code == 409
            await get(supervisor, vm)
        assert (await tell(supervisor, vm, "launch")).status_code == 200
        await vm.wait_answered()
        await supervisor.http.post(f"/vms/{vm.id}/shutdown")
    await host.reap()


async def test_released_guest_runs_though_the_supervisor_was_killed_before_it_said_so(
    host: World,
) -> None:
    async with host.serve() as supervisor:
        vm = await begun(supervisor)
        guest = await host.guest()
        await get(supervisor, vm)
        await supervisor.leave(guest)
    record = json.loads(vm.dir.record.read_text())
    record["vm"]["launch"] = "released"
    vm.dir.record.write_text(json.dumps(record))
    async with host.serve() as supervisor:
        vm = supervisor.vm(vm.id)
        await vm.wait_answered()
        await supervisor.http.post(f"/vms/{vm.id}/shutdown")
    await host.reap()


async def test_released_guest_is_left_to_the_next_supervisor_before_it_runs(milan: World) -> None:
    """It may have its owner's secret, and cannot be launched again."""
    world = measuring(milan, FLAT, swallows=["cont"])
    async with world.serve(MANAGER_QMP_TIMEOUT="200ms") as supervisor:
        vm = await begun(supervisor)
        guest = await world.guest()
        await get(supervisor, vm)
        assert (await tell(supervisor, vm, "launch")).status_code == 503
        assert vm.record.launch is Launch.RELEASED
        await guest.order("swallow", commands=[])
        await supervisor.leave(guest)
    async with world.serve() as supervisor:
        vm = supervisor.vm(vm.id)
        await vm.wait_answered()
        await supervisor.http.post(f"/vms/{vm.id}/shutdown")
    await world.reap()


async def test_answer_that_does_not_come_counts_as_a_secret_given(milan: World) -> None:
    world = measuring(milan, FLAT, swallows=["sev-inject-launch-secret"])
    async with world.serve(MANAGER_QMP_TIMEOUT="200ms") as supervisor:
        vm = await begun(supervisor)
        await get(supervisor, vm)
        assert (await tell(supervisor, vm, "launch-secret", **PACKET)).status_code == 503
        again = await tell(supervisor, vm, "launch-secret", **PACKET)
        assert (again.status_code, vm.record.launch) == (409, Launch.SECRET)


async def test_waiting_guest_ends_with_a_supervisor_that_ends_all(host: World) -> None:
    async with host.serve() as supervisor:
        vm = await begun(supervisor)
        supervisor.running.stop(OnStop.END)
        await vm.wait_ended()
        assert vm.ended


@pytest.mark.parametrize(
    ("members", "member"),
    [
        ({"tee": "sev-snp", "attest": True}, "attest"),
        ({"tee": "none", "attest": True}, "attest"),
        ({"attest": True}, "attest"),
        ({"tee": "sev", "attest": 1}, "attest"),
        ({"tee": "sev", "attest": True, "restart": "on-failure"}, "restart"),
        ({"tee": "sev", "attest": True, "session": SESSION}, "session"),
        ({"tee": "sev", "session": SESSION, "dh_cert": CERTIFICATE}, "session"),
    ],
)
async def test_wrong_members(milan: World, members: dict[str, Any], member: str) -> None:
    async with milan.serve() as supervisor:
        answer = await post(supervisor.http, **members)
        assert (answer.status_code, answer.json()["member"]) == (400, member), answer.text


@pytest.mark.parametrize("secret", ["", "!", "A" * 40000, None, 7])
async def test_secret_that_is_none(host: World, secret: Any) -> None:
    async with host.serve() as supervisor:
        vm = await begun(supervisor)
        await get(supervisor, vm)
        answer = await tell(supervisor, vm, "launch-secret", header="AAAA", secret=secret)
        assert answer.status_code == 400
        assert vm.record.launch is Launch.MEASURED


async def test_vm_that_did_not_ask_for_it(milan: World) -> None:
    async with milan.serve() as supervisor:
        vm_id = (await post(supervisor.http, tee="sev")).json()["id"]
        for answer in (
            await supervisor.http.get(f"/vms/{vm_id}/launch-measurement"),
            await supervisor.http.post(f"/vms/{vm_id}/launch"),
        ):
            assert answer.status_code == 409
            assert '"attest": true' in answer.json()["detail"]


async def test_pool_has_no_guest_for_a_measured_launch(milan: World) -> None:
    settings = {"MANAGER_TEE": "sev", "MANAGER_POOL_SIZE": "1", "MANAGER_MAX_VMS": "5"}
    async with measuring(milan, FLAT).serve(**settings) as supervisor:
        waiting = await pool(supervisor.http, 1)
        vm = await begun(supervisor)
        assert vm.id not in waiting


async def test_who_attested_it_is_on_record(host: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asking = Asking(monkeypatch)
    async with host.serve() as supervisor:
        with asking(ALICE):
            vm = await begun(supervisor)
            assert (await get(supervisor, vm)).status_code == 200
        with asking(BOB):
            assert (await get(supervisor, vm)).status_code == 404
            for what, body in (("launch-secret", PACKET), ("launch", {})):
                assert (await tell(supervisor, vm, what, **body)).status_code == 404
        with asking(ALICE):
            attested = (await tell(supervisor, vm, "launch")).json()["attested"]
            (row,) = (await supervisor.http.get("/vms")).json()["vms"]
        assert attested["by"] == "alice"
        assert row["attested"] == attested


async def test_guest_that_dies_when_it_is_let_run(milan: World) -> None:
    world = measuring(milan, FLAT, swallows=("cont",))
    async with world.serve() as supervisor:
        vm = await begun(supervisor)
        guest = await world.guest()
        await get(supervisor, vm)
        answers = []

        async def let_run() -> None:
            answers.append(await tell(supervisor, vm, "launch"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(let_run)
            await guest.until("cont")
            await guest.exit(1)
        (answer,) = answers
        assert answer.status_code == 502, answer.text
        assert answer.json()["title"] == "Vm ended"
