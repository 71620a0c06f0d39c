"""Two parties over both wires: each has its own VMs, and the other's do not exist for it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import trio

from supervisor.caller import ANYBODY, Role
from supervisor.pb import manager_pb2, vm_pb2
from supervisor.state.record import EventKind
from tests.support.clones import COLD, pool, pooling
from tests.support.event_reader import reading
from tests.support.routes import application
from tests.support.tenants import ALICE, BOB, OPERATOR, Asking, first_of, party
from tests.support.world import watching

if TYPE_CHECKING:
    import httpx

    from supervisor.caller import Caller
    from tests.support.world import Supervisor, World

UNKNOWN = "00000000-0000-4000-8000-000000000000"

BY_ID = [
    (method, rule.rule)
    for rule in application().url_map.iter_rules()
    for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
    if "vm_id" in rule.arguments and not rule.websocket  # test_console.py has that
]
CALLS_BY_ID = [
    (method.name, vm_pb2.DESCRIPTOR.message_types_by_name[method.input_type.name])
    for method in vm_pb2.DESCRIPTOR.services_by_name["VmService"].methods
    if "id" in method.input_type.fields_by_name
]


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> Asking:
    return Asking(monkeypatch)


async def listed(supervisor: Supervisor) -> dict[str, str | None]:
    vms = (await supervisor.http.get("/vms")).json()["vms"]
    return {vm["id"]: vm["owner"] for vm in vms}


async def page(supervisor: Supervisor, path: str = "/events", **params: str) -> Any:
    return (await supervisor.http.get(path, params={"limit": "1000", **params})).json()


#: Else each answer would have an id of its own.
SAME_REQUEST = {"X-Request-Id": "the-same"}


async def failure(supervisor: Supervisor, method: str, request: object) -> tuple[Any, ...]:
    """How a call ends that must fail: all that its caller gets."""
    call = getattr(supervisor.vm_service, method)
    if method == "Watch":
        call = first_of(call)
    with pytest.raises(grpc.RpcError) as caught:
        await supervisor.call(call, request)
    error: Any = caught.value
    told = [one for one in error.trailing_metadata() if one.key != "x-request-id"]
    return error.code(), error.details(), told


# --- ids ------------------------------------------------------------------------------------


async def test_anothers_id_is_an_unknown_id(world: World, asking: Asking) -> None:
    """Each route and each method with an id: nothing of the answer tells the two apart."""
    assert len(BY_ID) > 8
    assert len(CALLS_BY_ID) > 6
    async with world.serve() as supervisor:
        with asking(ALICE):
            mine = (await supervisor.run())["id"]
            everything = (await supervisor.http.get(f"/vms/{mine}")).json()
        with asking(BOB):
            for method, path in BY_ID:
                for more in ("", "?live=1", "?limit=5", "?after=0"):
                    gone, theirs = [
                        await supervisor.http.request(
                            method, path.replace("<vm_id>", one) + more, headers=SAME_REQUEST
                        )
                        for one in (UNKNOWN, mine)
                    ]
                    assert theirs.status_code == 404, (method, path)
                    assert theirs.text == gone.text.replace(UNKNOWN, mine)
                    assert without_date(theirs) == without_date(gone)
            for name, message in CALLS_BY_ID:
                make = getattr(vm_pb2, message.name)
                code, words, trailing = await failure(supervisor, name, make(id=mine))
                assert code is grpc.StatusCode.NOT_FOUND, name
                unknown = await failure(supervisor, name, make(id=UNKNOWN))
                assert (code, words.replace(mine, UNKNOWN), trailing) == unknown
        with asking(ALICE):
            after = (await supervisor.http.get(f"/vms/{mine}")).json()
        assert after["sequence"] == everything["sequence"], "something was done to it"


def without_date(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name != "date"}


async def test_each_has_its_own_and_an_operator_has_all(world: World, asking: Asking) -> None:
    async with world.serve() as supervisor:
        ids = {}
        for caller in (ALICE, BOB):
            with asking(caller):
                answer = await supervisor.call(
                    supervisor.manager.Run, manager_pb2.RunRequest(computation=b"1")
                )
                ids[caller.name] = answer.ID
                reply = await supervisor.http.get(f"/vms/{answer.ID}/reply")
                assert reply.status_code == 200
                shown = (await supervisor.http.get(f"/vms/{answer.ID}")).json()
                assert shown["owner"] == caller.name
        for caller in (ALICE, BOB):
            with asking(caller):
                assert await listed(supervisor) == {ids[caller.name]: caller.name}
                (vm,) = (
                    await supervisor.call(supervisor.vm_service.List, vm_pb2.ListRequest())
                ).vms
                assert (vm.id, vm.owner) == (ids[caller.name], caller.name)
        for caller in (OPERATOR, party("rita", Role.READ)):
            with asking(caller):
                assert await listed(supervisor) == {vm: owner for owner, vm in ids.items()}
        with asking(OPERATOR):
            assert (await supervisor.http.delete(f"/vms/{ids['alice']}")).status_code == 204
        with asking(BOB):
            assert (await supervisor.http.post(f"/vms/{ids['bob']}/shutdown")).status_code == 200


async def test_vm_of_nobody_is_no_partys(world: World, asking: Asking) -> None:
    """The pool's, until a run has taken it; and what was posted when nobody was asked."""
    pooling(world)
    async with world.serve(**COLD) as supervisor:
        waiting = await pool(supervisor.http, 2)
        nobodys = (await supervisor.run())["id"]
        assert nobodys in waiting
        for caller in (ALICE, party("")):
            with asking(caller):
                assert await listed(supervisor) == {}
                assert (await page(supervisor))["events"] == []
        waiting = await pool(supervisor.http, 2)
        with asking(ALICE):
            mine = (await supervisor.run())["id"]
            assert mine in waiting
            assert await listed(supervisor) == {mine: "alice"}
            told = (await page(supervisor, f"/vms/{mine}/events"))["events"]
            # What came before is nobody's.
            assert told[0]["event"] == "taken"
            assert (await supervisor.http.delete(f"/vms/{mine}")).status_code == 204


# --- events ---------------------------------------------------------------------------------


async def test_each_is_told_of_its_own(world: World, asking: Asking) -> None:
    async with world.serve() as supervisor:
        note = supervisor.running.service.journal.note
        with asking(BOB):
            his = (await supervisor.run())["id"]
            async with reading(supervisor) as bobs, watching(supervisor) as bobs_watch:
                assert (await bobs_watch()).id == his
                with asking(ALICE):
                    hers = (await supervisor.run())["id"]
                    await supervisor.http.delete(f"/vms/{hers}")
                    told = (await page(supervisor))["events"]
                    assert {event["vm"] for event in told} == {hers}
                    assert told[-1]["event"] == "deleted"
                await note(EventKind.MONITOR, None, monitor="ok")
                await supervisor.http.post(f"/vms/{his}/shutdown")
                told = await bobs.until("state", state="shutoff")
                assert {event["vm"] for event in told} == {his}
                while (change := await bobs_watch()).state != vm_pb2.VM_STATE_SHUTOFF:
                    assert change.id == his
                assert change.id == his
        for caller, vms in ((ALICE, {hers}), (BOB, {his}), (OPERATOR, {hers, his, None})):
            with asking(caller):
                found = (await page(supervisor))["events"]
                assert {event["vm"] for event in found} == vms - {hers} | (
                    # Of a VM that is deleted only that is on record.
                    {hers} if caller is not BOB else set()
                )
                assert "owner" not in {name for event in found for name in event}
                assert "alice" not in str(found)


async def test_pages_lead_only_to_ones_own(world: World, asking: Asking) -> None:
    """Others' events make no page, and no address of a page."""
    async with world.serve() as supervisor:
        with asking(BOB):
            his = (await supervisor.run())["id"]
            count = len((await page(supervisor))["events"])
        with asking(ALICE):
            await supervisor.run()
        with asking(BOB):
            exactly = await page(supervisor, limit=str(count))
            assert (len(exactly["events"]), exactly["next"]) == (count, None)
            last = exactly["events"][-1]["sequence"]
            assert await page(supervisor, after=str(last)) == {"events": [], "next": None}
            assert {event["vm"] for event in exactly["events"]} == {his}


async def test_a_reader_notices_nothing_of_others(world: World, asking: Asking) -> None:
    """No event, no keep-alive that comes later than without them, no end of its stream."""
    async with world.serve() as supervisor:
        journal = supervisor.running.service.journal
        following = partial(supervisor.running.service.follow, after=None)
        async with following(ALICE) as (_, news), following(OPERATOR) as (_, all_news):
            for _ in range(world.timing.reader_buffer + 10):
                await journal.note(EventKind.MONITOR, None, owner="bob", monitor="ok")
            with pytest.raises(trio.WouldBlock):
                news.receive_nowait()
            assert len([event async for event in all_news]) == world.timing.reader_buffer
            await journal.note(EventKind.MONITOR, None, owner="alice", monitor="ok")
            assert (await news.receive()).owner == "alice"


# --- keys -----------------------------------------------------------------------------------


async def post(supervisor: Supervisor, body: bytes = b"1", key: str = "k") -> httpx.Response:
    return await supervisor.post(body, **{"Idempotency-Key": key})


async def test_the_same_key_of_two_owners_is_two_runs(world: World, asking: Asking) -> None:
    async with world.serve() as supervisor:
        with asking(ALICE):
            hers = (await post(supervisor)).json()["id"]
        with asking(BOB):
            other = await post(supervisor, b"2")
            assert other.status_code == 200, "her key is no key of his"
            his = other.json()["id"]
            reused = await post(supervisor)
            assert reused.status_code == 409
            assert hers not in reused.text
            assert his in reused.text
        with asking(ALICE):
            assert (await post(supervisor)).json()["id"] == hers
        assert hers != his


async def test_keys_that_arrive_at_once_are_two_runs(world: World, asking: Asking) -> None:
    found: dict[str, str] = {}
    async with world.serve() as supervisor:

        async def run(caller: Caller) -> None:
            service = supervisor.running.service
            options = (await only_options(supervisor)).options
            vm = await service.submit(b"1", options, caller)
            found[caller.name] = vm.id

        with asking(ALICE):
            await post(supervisor)
        async with trio.open_nursery() as nursery:
            for caller in (BOB, party("carol")):
                nursery.start_soon(run, caller)
        assert len({*found.values(), supervisor_id(supervisor, "alice")}) == 3


async def only_options(supervisor: Supervisor) -> Any:
    return next(iter(supervisor.running.service.vms)).record


def supervisor_id(supervisor: Supervisor, owner: str) -> str:
    (vm,) = [vm for vm in supervisor.running.service.vms if vm.record.owner == owner]
    return vm.id


# --- what errors tell -----------------------------------------------------------------------


async def test_refusal_does_not_count_others(world: World, asking: Asking) -> None:
    async with world.serve(MANAGER_MAX_VMS="1", MANAGER_QUEUE="0") as supervisor:
        with asking(ALICE):
            await supervisor.run()
        with asking(BOB):
            refused = await supervisor.post(b"1")
            assert refused.status_code == 429
            assert int(refused.headers["Retry-After"]) > 0
            assert refused.json()["detail"].startswith("there is no room for one more VM now")
        with asking(OPERATOR):
            assert "1 of 1 VMs run" in (await supervisor.post(b"1")).json()["detail"]


async def test_holder_of_the_only_agent_is_not_named_to_others(
    world: World, asking: Asking
) -> None:
    world.scenario(agent="none")
    async with world.serve(MANAGER_AGENT_GRPC_URL="agent.invalid:1") as supervisor:
        with asking(ALICE):
            mine = await supervisor.begin()
            assert mine in (await supervisor.post(b"1")).text
        with asking(BOB):
            refused = await supervisor.post(b"1")
            assert refused.status_code == 409
            assert mine not in refused.text
            assert refused.json()["detail"].startswith("another VM has the only agent")


async def test_party_is_not_told_why_there_is_no_template(world: World, asking: Asking) -> None:
    body = {"computation": "aGk=", "template": "require"}
    async with world.serve(**COLD) as supervisor:
        with asking(ALICE):
            refused = (await supervisor.http.post("/run", json=body)).json()
            assert (refused["title"], refused["status"]) == ("Template error", 409)
            assert refused["detail"].startswith("no template is ready")
        with asking(OPERATOR):
            refused = (await supervisor.http.post("/run", json=body)).json()
            assert "MANAGER_TEMPLATES is off" in refused["detail"]


# --- quotas and turns -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"MANAGER_MAX_VMS_PER_OWNER": "1"}, "you have 1 of the 1 VMs"),
        ({"MANAGER_MAX_MEMORY_PER_OWNER": "3G"}, "your VMs have 2048 MiB of the 3072 MiB"),
    ],
    ids=["vms", "memory"],
)
async def test_quota(world: World, asking: Asking, settings: dict[str, str], words: str) -> None:
    (name,) = settings
    async with world.serve(**settings) as supervisor:
        with asking(ALICE):
            mine = (await supervisor.run())["id"]
            refused = await supervisor.post(b"1")
            assert refused.status_code == 429
            assert "Retry-After" not in refused.headers, "nobody knows when she ends her VM"
            assert words in refused.json()["detail"]
            assert name in refused.json()["detail"]
            assert refused.json()["advice"] == "end one of your VMs first"
            assert len(supervisor.running.service.vms) == 1
        with asking(BOB):
            await supervisor.run()
        for free in (OPERATOR, ANYBODY):
            with asking(free):
                for _ in range(2):
                    await supervisor.run()
        refusals = supervisor.running.service.vms.admission.refused
        assert sum(refusals.values()) == 1
        with asking(ALICE):
            await supervisor.http.post(f"/vms/{mine}/shutdown")
            await supervisor.run()


async def test_run_that_waits_counts_and_leaves_with_its_caller(
    world: World, asking: Asking
) -> None:
    settings = {"MANAGER_MAX_VMS": "1", "MANAGER_MAX_VMS_PER_OWNER": "1"}
    async with world.serve(**settings) as supervisor:
        await supervisor.run()
        admission = supervisor.running.service.vms.admission
        with asking(ALICE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(supervisor.run)
                while not admission.waiting:
                    await trio.lowlevel.checkpoint()
                refused = await supervisor.post(b"1")
                assert "MANAGER_MAX_VMS_PER_OWNER" in refused.json()["detail"]
                nursery.cancel_scope.cancel()
        while admission.waiting:
            await trio.lowlevel.checkpoint()
        assert not supervisor.running.service._quotas._coming


async def test_another_owner_waits_behind_one(world: World, asking: Asking) -> None:
    async with world.serve(MANAGER_MAX_VMS="1") as supervisor:
        running = (await supervisor.run())["id"]
        admission = supervisor.running.service.vms.admission
        async with trio.open_nursery() as nursery:
            for number, caller in enumerate([ALICE, ALICE, ALICE, ALICE, BOB], start=1):
                with asking(caller):
                    nursery.start_soon(supervisor.begin)
                    while admission.waiting < number:
                        await trio.lowlevel.checkpoint()
            order = []
            for waiting in (4, 3, 2, 1, 0):
                await supervisor.http.delete(f"/vms/{running}")
                while admission.waiting > waiting or not len(supervisor.running.service.vms):
                    await trio.lowlevel.checkpoint()
                vm = supervisor.only_vm()
                running = vm.id
                order.append(vm.record.owner)
        assert order == ["alice", "bob", "alice", "alice", "alice"]


# --- over time ------------------------------------------------------------------------------


@pytest.mark.parametrize("damaged", [False, True])
async def test_owner_outlives_the_supervisor(world: World, asking: Asking, damaged: bool) -> None:
    """Also if the record is lost: the events have the owner."""
    async with world.serve() as supervisor:
        with asking(ALICE):
            await supervisor.run()
        guest = await world.guest()
        await supervisor.leave(guest)
    if damaged:
        (world.tmp / guest.vm_id / "vm.json").write_text("garbage")
    async with world.serve() as supervisor:
        with asking(BOB):
            assert await listed(supervisor) == {}
        with asking(ALICE):
            assert await listed(supervisor) == {guest.vm_id: "alice"}
            told = (await page(supervisor))["events"]
            assert {event["vm"] for event in told} == {guest.vm_id}
            await supervisor.http.post(f"/vms/{guest.vm_id}/shutdown")


async def test_many_ended_runs_of_one_do_not_remove_anothers(world: World, asking: Asking) -> None:
    async with world.serve(MANAGER_KEEP_ENDED="2") as supervisor:

        async def run_and_end(caller: Caller) -> str:
            with asking(caller):
                vm_id = str((await supervisor.run())["id"])
                await supervisor.http.post(f"/vms/{vm_id}/shutdown")
                return vm_id

        hers = await run_and_end(ALICE)
        his = [await run_and_end(BOB) for _ in range(4)]
        vms = supervisor.running.service.vms
        while len(vms) > 2:
            await trio.lowlevel.checkpoint()
        assert [vm.id for vm in vms] == [hers, his[-1]]
        with asking(ALICE):
            assert (await supervisor.http.get(f"/vms/{hers}/reply")).status_code == 200
