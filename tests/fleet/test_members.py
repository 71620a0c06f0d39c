"""What a member believes of others: certificates, names, tokens."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import httpx
import pytest

from supervisor import config
from supervisor.api.fleet.asked import Asked
from supervisor.api.fleet.others import Others, open_others
from supervisor.caller import Caller, KnownBy, Role
from supervisor.config import Address
from supervisor.errors import MemberBroke
from supervisor.fleet import authority
from supervisor.fleet.authority import Member
from supervisor.fleet.connection import client_context
from supervisor.fleet.identity import Identity
from supervisor.membership import open_fleet
from supervisor.qemu.host import Clock
from tests.support.world import PATIENCE_S

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fleet.conftest import Fleet

ALICE = Caller("alice", Role.RUN, KnownBy.TOKEN)


def address(fleet: Fleet, name: str) -> str:
    (found,) = (one.address for one in fleet.brokers.members if one.name == name)
    return f"https://{found}"


def client(files: Path) -> httpx.AsyncClient:
    return httpx.AsyncClient(verify=client_context(files), trust_env=False, timeout=PATIENCE_S)


async def test_a_member_serves_nobody_without_a_certificate_of_the_fleet(
    fleet: Fleet, tmp_path: Path
) -> None:
    stranger = Member("a", Address("127.0.0.1", 1))
    authority.make(tmp_path, [stranger], installed=tmp_path, store=tmp_path)
    context = ssl.create_default_context(cafile=fleet.brokers.files("a") / "ca.pem")
    async with fleet.serve("b"):
        async with httpx.AsyncClient(verify=context, trust_env=False) as nobody:
            with pytest.raises(httpx.TransportError):
                await nobody.get(f"{address(fleet, 'b')}/vms")
        context.load_cert_chain(tmp_path / "a" / "cert.pem", tmp_path / "a" / "key.pem")
        async with httpx.AsyncClient(verify=context, trust_env=False) as foreign:
            with pytest.raises(httpx.TransportError):
                await foreign.get(f"{address(fleet, 'b')}/health")


@pytest.mark.parametrize("there", [b"", None], ids=["half of one", "none"])
async def test_a_member_whose_key_is_being_replaced_goes_on(
    fleet: Fleet, there: bytes | None
) -> None:
    """With the certificate and the key of before."""
    files = fleet.brokers.files("b")
    key = files / "key.pem"
    whole = key.read_bytes()
    async with fleet.serve("b") as b:
        key.unlink() if there is None else key.write_bytes(there)
        async with client(fleet.brokers.files("a")) as http:
            assert (await http.get(f"{address(fleet, 'b')}/health")).is_success
        await b.wait_said("files cannot be read again")
        key.write_bytes(whole)
        async with client(fleet.brokers.files("a")) as http:
            assert (await http.get(f"{address(fleet, 'b')}/health")).is_success
        await b.wait_said("files read again")


async def test_a_token_is_for_one_request_of_one_member_to_another(fleet: Fleet) -> None:
    signer = Identity.read(fleet.brokers.files("a"))
    async with fleet.serve_both() as (_, _), client(fleet.brokers.files("a")) as http:
        at = address(fleet, "b")

        async def ask(token: str, path: str = "/vms") -> int:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            return (await http.get(f"{at}{path}", headers=headers)).status_code

        assert await ask(signer.sign(ALICE, "b", "GET", "/vms")) == 200
        assert await ask("") == 401
        assert await ask("a.b.c") == 401
        assert await ask(signer.sign(ALICE, "a", "GET", "/vms")) == 401
        assert await ask(signer.sign(ALICE, "b", "DELETE", "/vms")) == 401
        assert await ask(signer.sign(ALICE, "b", "GET", "/vms"), "/vms?limit=1") == 401
        # Signed by another member than the one that asks.
        other = Identity.read(fleet.brokers.files("b"))
        assert await ask(other.sign(ALICE, "b", "GET", "/vms")) == 401
        # The rights are checked here again.
        assert await ask(signer.sign(ALICE, "b", "GET", "/hosts"), "/hosts") == 403


async def test_a_run_that_no_member_has_given_to_this_one_is_not_started(fleet: Fleet) -> None:
    signer = Identity.read(fleet.brokers.files("a"))
    async with fleet.serve_both() as (_, b), client(fleet.brokers.files("a")) as http:
        token = signer.sign(ALICE, "b", "POST", "/run", "11111111-1111-4111-8111-111111111111", 1)
        answer = await http.post(
            f"{address(fleet, 'b')}/run",
            json={"computation": [1]},
            headers={"Authorization": f"Bearer {token}"},
        )
        assert answer.status_code == 409, answer.text
        assert not (await b.http.get("/vms?host=self")).json()["vms"]


async def test_a_member_whose_lease_is_over_is_not_answered(fleet: Fleet) -> None:
    signer = Identity.read(fleet.brokers.files("a"))
    async with fleet.serve("b") as b, client(fleet.brokers.files("a")) as http:
        async with fleet.serve("a"):
            await b.wait_said("host joined", host="a")
        await b.wait_said("host left", host="a")
        headers = {"Authorization": f"Bearer {signer.sign(ALICE, 'b', 'GET', '/vms')}"}
        answer = await http.get(f"{address(fleet, 'b')}/vms", headers=headers)
        assert answer.status_code == 401
        assert "no member" in answer.json()["detail"]


async def test_two_supervisors_with_one_name_are_not_both_members(fleet: Fleet) -> None:
    world, settings = fleet.worlds["b"], fleet.brokers.settings("a")
    settings["MANAGER_FLEET_ADDRESS"] = str(Address(fleet.brokers.members[1].address.host, 9022))
    async with fleet.serve("a") as a, world.serve_apart(**settings) as second:
        await second.wait_said("not a member: another supervisor has this name")
        answer = await second.http.post("/run", json={"computation": [1]})
        assert answer.status_code == 409
        await a.run()


async def test_metrics_of_a_member(fleet: Fleet) -> None:
    async with fleet.serve("a") as a:
        await a.run()
        shown = dict(
            line.rsplit(" ", 1)
            for line in (await a.http.get("/metrics")).text.splitlines()
            if line.startswith("qmp_supervisor_fleet_")
        )
        assert shown["qmp_supervisor_fleet_lease"] == "1.0"
        assert shown["qmp_supervisor_fleet_connected"] == "1.0"
        assert shown["qmp_supervisor_fleet_hosts"] == "1.0"
        assert shown["qmp_supervisor_fleet_draining"] == "0.0"
        assert shown["qmp_supervisor_fleet_waiting"] == "0.0"
        assert shown['qmp_supervisor_fleet_runs_total{where="here"}'] == "1.0"
        assert shown["qmp_supervisor_fleet_place_seconds_count"] == "1.0"


async def test_what_a_caller_says_of_its_content_reaches_the_other_member(fleet: Fleet) -> None:
    async with fleet.serve_both(MANAGER_FLEET_LABELS="zone=south") as (a, b):
        body = {"computation": [1], "host": {"labels": {"zone": "south"}}}
        vm_id = (await a.http.post("/run", json=body)).json()["id"]
        for member in (b, a):
            answer = await member.http.put(
                f"/vms/{vm_id}/algorithm", content=b"x", headers={"Content-Digest": "md5=:eA==:"}
            )
            assert answer.status_code == 400, answer.text
            assert "Content-Digest" in answer.json()["detail"]


async def test_a_member_that_does_not_know_this_one_is_no_fault_of_the_caller(
    fleet: Fleet,
) -> None:
    """As one that has just started, and has not heard of the others yet."""
    settings = fleet.worlds["a"].environ(**fleet.brokers.settings("a"))
    member = open_fleet(config.load(settings), Clock())
    assert member
    stranger = httpx.MockTransport(lambda _: httpx.Response(401, stream=httpx.ByteStream(b"")))
    async with httpx.AsyncClient(transport=stranger) as http:
        with pytest.raises(MemberBroke):
            await Others(member, lambda: http).send("b", "127.0.0.1:1", Asked(ALICE, "GET", "/vms"))


async def test_a_member_is_known_by_its_name_wherever_its_record_says_that_it_is(
    fleet: Fleet,
) -> None:
    """Who could change a record of NATS would else get what is meant for another member."""
    settings = fleet.worlds["a"].environ(**fleet.brokers.settings("a"))
    member = open_fleet(config.load(settings), Clock())
    assert member
    async with fleet.serve("b"), open_others(member, member.tls()) as others:
        (at,) = (str(one.address) for one in fleet.brokers.members if one.name == "b")
        asked = Asked(ALICE, "GET", "/health")
        # The connection to b is there, and not a's for that.
        assert (await others.send("b", at, asked)).status_code
        with pytest.raises(MemberBroke, match=r"a\.fleet\.internal"):
            await others.send("a", at, asked)
