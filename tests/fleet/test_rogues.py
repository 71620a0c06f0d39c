"""A member that was taken over, and says what no member says: nobody else ends or hangs of it."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import trio

from supervisor import config
from supervisor.api.fleet.asked import Asked
from supervisor.api.fleet.others import open_others
from supervisor.errors import MemberBroke
from supervisor.fleet.facts import Needs
from supervisor.fleet.identity import Identity
from supervisor.fleet.ledger import Run
from supervisor.membership import open_fleet
from supervisor.pb import vm_pb2
from supervisor.qemu.host import Clock
from tests.fleet.posting import SOUTH
from tests.fleet.rogue import answering, having_all, rogue, said, take
from tests.fleet.test_events import reading
from tests.fleet.test_members import ALICE, address, client
from tests.fleet.test_wires import wire
from tests.support.world import PATIENCE_S

if TYPE_CHECKING:
    from tests.fleet.conftest import Fleet


@pytest.mark.parametrize("given", ["\ud800", "[::1", "xn--a", f"{'x' * 70}:1"])
async def test_an_address_that_is_none_is_of_a_host_that_is_not_reached(
    fleet: Fleet, given: str
) -> None:
    async with fleet.serve("a") as a, rogue(fleet, given):
        await a.wait_said("host joined", host="b")
        answer = await a.http.get("/vms")
        assert answer.status_code == 200, answer.text
        assert answer.json()["missing"] == ["b"]
        with wire(a) as wired:
            listed = await wired.ask(wired.vms.List, vm_pb2.ListRequest())
            assert list(listed.missing) == ["b"]
        async with reading(a.http) as reader:
            await reader.until(event="host", host="b", state="unreached")
            own = await a.run()
            await reader.until(vm=own["id"], event="relay", state="answered")


async def test_a_name_that_is_none_ends_nobody_who_asks_that_host(fleet: Fleet) -> None:
    needs = Needs()
    async with fleet.serve("a"), rogue(fleet) as b:
        await b.offer(needs.kind)
        await b.create("kinds", needs.kind, needs.encode())
        for entry in ("\ud800", "nobody"):
            run = Run(id=str(uuid.uuid4()), entry=entry, needs=needs)
            await b.create("runs", run.id, run.encode())
            await b.enqueue(needs.kind, b"0 " + run.encode(), run.id)
        # It goes on to the second.
        async with b.watch("runs", run.id) as seen:
            with trio.fail_after(PATIENCE_S):
                while not (one := await seen.receive()) or b"owned" not in (one.value or b""):
                    pass


REFUSED = {"type": "urn:qmp-supervisor:problem:at-capacity", "detail": "no"}


@pytest.mark.parametrize(
    "answer",
    [
        said(429, json.dumps(REFUSED).encode(), Retry_After="9" * 5000),
        said(429, b'{"detail": ' + b"[" * 100_000),
        said(429, json.dumps(REFUSED | {"detail": "no" * 100_000}).encode()),
    ],
)
async def test_a_refusal_is_short_whatever_it_says(fleet: Fleet, answer: bytes) -> None:
    signer = Identity.read(fleet.brokers.files("b"))
    run = Run(id=str(uuid.uuid4()), entry="a", needs=Needs())
    copy = f"/runs/{run.id}/copy"
    async with (
        fleet.serve("a") as a,
        answering(fleet, lambda _: answer),
        rogue(fleet) as b,
        client(fleet.brokers.files("b")) as http,
    ):
        await a.wait_said("host joined", host="b")
        # It sees to the run for nobody who waits: an error would be the supervisor's own.
        await a.http.post("/host/drain")
        await b.create("runs", run.id, run.encode())
        token = signer.sign(ALICE, "a", "POST", copy, run.id)
        headers = {"Authorization": f"Bearer {token}"}
        body = {"computation": [1]}
        kept = await http.post(address(fleet, "a") + copy, json=body, headers=headers)
        assert kept.status_code == 204, kept.text
        await take(b)
        found = await a.wait_said("run not taken", run=run.id)
        assert len(found["problem"]) <= 1 << 16


async def test_a_spoilt_key_is_refused(fleet: Fleet) -> None:
    body, key = {"computation": [1]}, {"Idempotency-Key": "k"}
    async with fleet.serve("a") as a, rogue(fleet) as b:
        assert (await a.http.post("/run", json=body, headers=key)).status_code == 200
        async with b.watch("keys") as seen:
            found = await seen.receive()
        assert found
        assert found.value
        known = json.loads(found.value)["hash"]
        never = json.dumps({"run": "a b.>", "hash": known, "at": "never"}).encode()
        revision = found.revision
        for spoilt in (b"{", b"[" * 10_000, b"{}", b"7", never):
            revision = await b.update("keys", found.key, spoilt, revision)
            refused = await a.http.post("/run", json=body, headers=key)
            assert refused.status_code == 409, (spoilt, refused.text)
            assert refused.json()["type"].endswith(":key-reused")


async def test_an_answer_that_is_none_ends_no_more_than_its_request(fleet: Fleet) -> None:
    answer = b""
    form: dict[str, Any] = {
        "run": (None, json.dumps({"host": SOUTH["host"]}), "application/json"),
        "algorithm": ("algorithm", b"x"),
    }
    async with (
        fleet.serve("a") as a,
        answering(fleet, lambda _: said(200, answer)),
        rogue(fleet, zone="south") as b,
        trio.open_nursery() as nursery,
    ):
        await a.wait_said("host joined", host="b")
        for answer in (b"", b"[]", b"{}", b"[" * 100_000):
            nursery.start_soon(take, b)
            with trio.fail_after(PATIENCE_S):
                refused = await a.http.post("/run", files=form)
            assert refused.status_code == 502, (answer, refused.text)
        await a.run()


async def test_a_time_that_is_none_leaves_the_list_of_all_hosts(fleet: Fleet) -> None:
    listed = vm_pb2.ListResponse(vms=[vm_pb2.Vm(id="one")])
    listed.vms[0].created_at.seconds = 1 << 62
    answer = said(200, listed.SerializeToString())
    async with fleet.serve("a") as a, answering(fleet, lambda _: answer), rogue(fleet):
        await a.wait_said("host joined", host="b")
        own = await a.run()
        with wire(a) as wired:
            found = await wired.ask(wired.vms.List, vm_pb2.ListRequest())
        assert [vm.id for vm in found.vms] == [own["id"], "one"]


async def test_what_a_member_says_to_browsers_does_not_count_at_anothers_origin(
    fleet: Fleet,
) -> None:
    answer = said(
        200,
        b"<script src=/evil></script>",
        Content_Type="text/html",
        Set_Cookie="who=b",
        Clear_Site_Data="*",
        Access_Control_Allow_Origin="*",
        Content_Security_Policy="script-src *",
        X_Content_Type_Options="sniff",
        Server_Timing="b;dur=1",
    )
    async with (
        fleet.serve("a") as a,
        answering(fleet, lambda _: answer),
        rogue(fleet) as b,
        having_all(b),
    ):
        await a.wait_said("host joined", host="b")
        here = await a.http.get("/vms")
        there = await a.http.get(f"/vms/{uuid.uuid4()}/logs")
        assert there.headers["Content-Type"] == "text/html"
        assert there.headers["Server-Timing"] == "b;dur=1"
        for name in ("Set-Cookie", "Clear-Site-Data", "Access-Control-Allow-Origin"):
            assert name not in there.headers
        for name in ("Content-Security-Policy", "X-Content-Type-Options"):
            assert there.headers[name] == here.headers[name]


async def test_a_member_that_sets_cookies_has_none_kept(fleet: Fleet) -> None:
    """Each answer could set others, and all of them would stay."""
    heads = list[bytes]()

    def answer(head: bytes) -> bytes:
        heads.append(head)
        return said(200, Set_Cookie=f"number{len(heads)}=kept")

    settings = fleet.worlds["a"].environ(**fleet.brokers.settings("a"))
    member = open_fleet(config.load(settings), Clock())
    assert member
    (at,) = (str(one.address) for one in fleet.brokers.members if one.name == "b")
    async with answering(fleet, answer), open_others(member, member.tls()) as others:
        for _ in range(2):
            await others.read("b", await others.send("b", at, Asked(ALICE, "GET", "/health")))
    assert len(heads) == 2
    assert b"kept" not in heads[1]


async def test_who_is_no_member_has_nothing_kept(fleet: Fleet) -> None:
    """A member that was taken over can say of any name that it has a run."""
    settings = fleet.worlds["a"].environ(**fleet.brokers.settings("a"))
    member = open_fleet(config.load(settings), Clock())
    assert member
    async with open_others(member, member.tls()) as others:
        with pytest.raises(MemberBroke):
            await others.send("nobody", "", Asked(ALICE, "POST", "/run"))
        assert not others._clients
