"""Which VMs ``GET /vms`` lists: labels, filters, order, pages."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.fake.test_cli import Cli, cli
from tests.fake.test_control import events_of
from tests.support.clones import post

if TYPE_CHECKING:
    from tests.support.world import Supervisor, World

LABELS = [{"team": "a", "kind/of": "nightly"}, {"team": "b"}, {"team": "a"}, {}]


async def four(supervisor: Supervisor) -> list[str]:
    """The ids of four VMs, of which the second has ended."""
    ids = []
    for labels in LABELS:
        answer = await post(supervisor.http, labels=labels)
        assert answer.status_code == 200, answer.text
        ids.append(str(answer.json()["id"]))
    await supervisor.http.post(f"/vms/{ids[1]}/shutdown", json={"mode": "force"})
    return ids


async def listed(supervisor: Supervisor, query: str) -> Any:
    answer = await supervisor.http.get(f"/vms?{query}" if "/" not in query[:1] else query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_filters(world: World) -> None:
    async with world.serve() as supervisor:
        ids = await four(supervisor)
        for query, wanted in {
            "label=team%3Da": [0, 2],
            "label=team": [0, 1, 2],
            "label=team%3Da&label=kind%2Fof%3Dnightly": [0],
            "label=team%3Dc": [],
            "ended=true": [1],
            "ended=false&label=team": [0, 2],
            "state=shutoff": [1],
            "state=shutoff&state=running": [0, 1, 2, 3],
            "relay=answered&purpose=run": [0, 1, 2, 3],
            "purpose=pool": [],
            "order=newest": [3, 2, 1, 0],
            "owner=alice": [],
            "computed=succeeded": [],
        }.items():
            found = await listed(supervisor, query)
            assert [vm["id"] for vm in found["vms"]] == [ids[at] for at in wanted], query
            assert found["next"] is None
        (shown,) = (await listed(supervisor, "label=kind/of"))["vms"]
        assert (shown["labels"], shown["relay"]) == (LABELS[0], {"state": "answered"})
    assert events_of(world, ids[0])


@pytest.mark.parametrize("order", ["oldest", "newest"])
async def test_pages(world: World, order: str) -> None:
    async with world.serve() as supervisor:
        ids = await four(supervisor)
        wanted = ids if order == "oldest" else ids[::-1]
        found, path = [], f"/vms?order={order}&limit=3&state=running&state=shutoff"
        first = await listed(supervisor, path)
        found = [vm["id"] for vm in first["vms"]]
        # What a page ended with may be gone before the next one is asked for.
        await supervisor.http.delete(f"/vms/{found[-1]}")
        last = await listed(supervisor, first["next"])
        assert [*found, *(vm["id"] for vm in last["vms"])] == wanted
        assert last["next"] is None


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("stat=running", "'stat' is no filter"),
        ("state=runing", "state must be one of"),
        ("ended=yes", "ended must be true or false"),
        ("order=name", "order must be oldest or newest"),
        ("order=oldest&order=newest", "order is said twice"),
        ("limit=0", "limit must be a number from 1"),
        ("label=a b", "label must be NAME=VALUE"),
    ],
)
async def test_queries_that_are_none(world: World, query: str, words: str) -> None:
    async with world.serve() as supervisor:
        answer = await supervisor.http.get(f"/vms?{query}")
        assert (answer.status_code, words in answer.json()["detail"]) == (400, True), answer.text


@pytest.mark.parametrize(
    "labels", [[], {"a b": ""}, {"a": 7}, {"a": "b=c"}, {"a": "x\n"}, {"a": "x" * 64},
               {f"l{n}": "" for n in range(17)}],
)  # fmt: skip
async def test_labels_that_are_none(world: World, labels: Any) -> None:
    async with world.serve() as supervisor:
        answer = await post(supervisor.http, labels=labels)
        assert (answer.status_code, answer.json()["member"]) == (400, "labels")


async def test_a_shell_completes_ids(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        for words, offered in {
            f"show {vm_id[:3]}": vm_id,
            f"compute --vm {vm_id[:3]}": vm_id,
            "pau": "pause",
            "show zz": "",
        }.items():
            asked = {
                "_QMP_SUPERVISOR_COMPLETE": "bash_complete",
                "COMP_WORDS": f"qmp-supervisor {words}",
                "COMP_CWORD": str(len(words.split())),
            }
            command = Cli(cli(supervisor).environ | asked)
            # As its script has the name from.
            told = await trio.run_process(
                ["qmp-supervisor"],
                executable=str(Path(sys.prefix, "bin", "qmp-supervisor")),
                env=command.command()["env"],
                capture_stdout=True,
            )
            assert told.stdout.decode().partition(",")[2].strip() == offered


async def test_ls_finds_vms(world: World) -> None:
    async with world.serve() as supervisor:
        command = cli(supervisor)
        for team in ("a", "b"):
            await command("run", "-", "--label", f"team={team}", "--label", "x", stdin=b"{}")
        ids = [vm.id for vm in supervisor.running.service.vms]
        told = (await command("ls", "--label", "team=a")).stdout.decode()
        assert (ids[0] in told, ids[1] in told) == (True, False)
        assert "team=a x" in told
        assert "answered" in told
        assert "OWNER" not in told
        newest = json.loads((await command("ls", "--newest", "--limit", "1", "--json")).stdout)
        assert [vm["id"] for vm in newest["vms"]] == [ids[1]]
        paused = await command("pause", *ids)
        assert [line.split()[:2] for line in paused.stdout.decode().splitlines()] == [
            [vm_id, "paused"] for vm_id in ids
        ]
        ended = json.loads((await command("shutdown", "--force", "--json", *ids)).stdout)
        assert [vm["id"] for vm in ended] == ids
        assert ids[0] not in (await command("ls")).stdout.decode()
        assert ids[0] in (await command("ls", "--state", "shutoff")).stdout.decode()
        shown = json.loads((await command("show", "--json", *ids)).stdout)
        assert [vm["labels"]["team"] for vm in shown] == ["a", "b"]
        none = await command("rm", ids[0], "nobody", check=False)
        assert b"no VM has the id nobody" in none.stderr
        assert len(supervisor.running.service.vms) == 2
