"""Runs in a fleet of two: where they go, and how they are reached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.fleet.posting import ZONE
from tests.support.clones import clonable

if TYPE_CHECKING:
    from tests.fleet.conftest import Fleet
    from tests.support.guest import Apart


async def vms_of(member: Apart) -> list[dict[str, Any]]:
    """Its own, and no other member's."""
    answer = await member.http.get("/vms?host=self")
    assert answer.status_code == 200, answer.text
    return list(answer.json()["vms"])


async def test_members_know_what_each_can_do(fleet: Fleet) -> None:
    async with fleet.serve_both(MANAGER_FLEET_LABELS="zone=south") as (a, _):
        answer = (await a.http.get("/hosts")).json()
        assert answer["self"] == "a"
        assert [one["name"] for one in answer["hosts"]] == ["a", "b"]
        assert answer["hosts"][1]["labels"] == {"zone": "south"}
        assert answer["hosts"][0]["room"] > 0


async def test_a_run_is_served_where_it_was_posted_if_there_is_room(fleet: Fleet) -> None:
    async with fleet.serve_both() as (a, b):
        answer = await a.run(b"one")
        assert [vm["id"] for vm in await vms_of(a)] == [answer["id"]]
        assert not await vms_of(b)


async def test_a_run_goes_to_the_host_that_has_what_it_needs(fleet: Fleet) -> None:
    async with fleet.serve_both(MANAGER_FLEET_LABELS="zone=south") as (a, b):
        body = {"computation": list(b"two"), "host": {"labels": {"zone": "south"}}}
        answer = await a.http.post("/run", json=body)
        assert answer.status_code == 200, answer.text
        vm_id = answer.json()["id"]
        assert [vm["id"] for vm in await vms_of(b)] == [vm_id]
        assert not await vms_of(a)
        # Its VM is reached through either.
        for member in (a, b):
            shown = await member.http.get(f"/vms/{vm_id}/status")
            assert shown.status_code == 200, shown.text
            assert shown.json()["id"] == vm_id
        gone = await a.http.delete(f"/vms/{vm_id}")
        assert gone.status_code == 204
        assert (await a.http.get(f"/vms/{vm_id}")).status_code == 404


async def test_a_run_that_nobody_can_serve_is_told_what_is_missing(fleet: Fleet) -> None:
    async with fleet.serve_both() as (a, _):
        body = {"computation": [1], "host": {"labels": {"zone": "north"}}, "tee": "sev-snp"}
        answer = await a.http.post("/run", json=body)
        assert answer.status_code == 409
        for word in ("a: ", "b: ", "tee=sev-snp", "zone=north"):
            assert word in answer.json()["detail"]


async def test_a_run_that_requires_a_template_goes_where_there_are_any(fleet: Fleet) -> None:
    north = {"MANAGER_TEMPLATES": "off", "MANAGER_FLEET_LABELS": "zone=north"}
    body = {"computation": [1], "template": "require"}
    clonable(fleet.worlds["b"])
    async with (
        fleet.serve("a", **north) as a,
        fleet.serve("b", MANAGER_TEMPLATES="auto", **ZONE) as b,
    ):
        await a.wait_said("host joined", host="b")
        answer = await a.http.post("/run", json=body)
        assert answer.status_code == 200, answer.text
        (vm,) = (await b.http.get("/vms?host=self")).json()["vms"]
        assert (vm["id"], bool(vm["template"])) == (answer.json()["id"], True)
        assert answer.json()["host"] == "b"
        answer = await a.http.post("/run", json=body | {"host": {"labels": {"zone": "north"}}})
        assert answer.status_code == 409
        assert "a: template: it makes none" in answer.json()["detail"]
