"""What the tests of templates, clones and the pool share: an image that allows them, and waits."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import trio

from supervisor.image.manifest import File, Manifest
from tests.support.world import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import httpx

    from tests.support.guest import Guest
    from tests.support.world import World

#: Many of these fit on any host.
SMALL = {"MANAGER_QEMU_MEMORY_SIZE": "16M", "MANAGER_QEMU_SMP_COUNT": "1"}

#: Of supervisors whose clones do not come up. A stand-in takes half a second to start, where the
#: machine is quiet.
IMPATIENT = {"MANAGER_CLONE_TIMEOUT": "5s"}


COLD = {"MANAGER_TEMPLATES": "off"}

#: The files of a template.
FILES = {
    *("ram", "state", "overlay.qcow2", "firmware_vars.fd", "clone.qcow2", "manifest.json"),
}

#: The steps to an answer.
COLD_STEPS = ["queue", "directory", "overlay", "spawn", "greeting", "running", "agent", "relay"]
CLONE_STEPS = [
    *("queue", "directory", "overlay", "spawn", "greeting"),
    *("restore", "running", "renew", "agent", "relay"),
]
POOL_STEPS = ["pool", "relay"]
HELD_STEPS = ["held", "running", "renew", "agent", "relay"]


def clonable(world: World) -> World:
    """The world, with an image that may be copied while it runs."""
    declare(world.image)
    world.settings |= SMALL | {"MANAGER_HELD_CLONES": "0"}
    # The stand-in has come to rest when it says so.
    world.hasten(template_settle_s=0.0)
    return world


def pooling(world: World) -> World:
    """One whose pool has two VMs, started one right after the other."""
    world.settings |= {"MANAGER_POOL_SIZE": "2", "MANAGER_POOL_INTERVAL": "1ms"}
    return clonable(world)


def holding(world: World) -> World:
    """One that holds two clones, and no more while a run may take one."""
    clonable(world).settings["MANAGER_HELD_CLONES"] = "2"
    return world


def declare(image: Path, *, clone_safe: bool = True, renews_itself: bool = False) -> None:
    """Write the manifest beside the image as it is now."""
    Manifest(
        agent="program",
        clone_safe=clone_safe,
        kernel="vmlinuz",
        command_line="console=ttyS0",
        built_at="2024-01-01T00:00:00Z",
        packages={},
        files={image.name: File.of(image)},
        renews_itself=renews_itself,
    ).write(image.parent)


def change(image: Path) -> None:
    """Put another image in its place; the manifest stays that of the one before."""
    new = image.with_suffix(".new")
    size = str(image.stat().st_size + 2**20)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(new), size], check=True)
    new.rename(image)


async def until(http: httpx.AsyncClient, path: str, condition: Callable[[Any], bool]) -> Any:
    """What is answered there of VMs, once this is so of it: it is asked again at each event."""
    with trio.fail_after(PATIENCE_S):
        async with http.stream("GET", "/events") as events:
            lines = events.aiter_lines()
            while True:
                answer = await http.get(path)
                if answer.status_code == 200 and condition(answer.json()):
                    return answer.json()
                await anext(lines)


async def ask_until(http: httpx.AsyncClient, path: str, condition: Callable[[Any], bool]) -> Any:
    """The same of what no event tells: templates, and that an agent in the pool is ready."""
    with trio.fail_after(PATIENCE_S):
        while True:
            answer = (await http.get(path)).json()
            if condition(answer):
                return answer
            await trio.sleep(0.01)


def in_state(listed: dict[str, Any], state: str) -> list[dict[str, Any]]:
    """Of what ``GET /templates`` answers."""
    return [one for one in listed["templates"] if one["state"] == state]


async def ready(http: httpx.AsyncClient, other_than: str = "") -> dict[str, Any]:
    """The template that is ready, once there is one, and nothing is left of its builder.

    :param other_than: the digest of an earlier one, which may not be known to be stale yet
    """

    def is_there(listed: dict[str, Any]) -> bool:
        found = in_state(listed, "ready")
        return [(one["vm"], one["digest"] != other_than) for one in found] == [(None, True)]

    (one,) = in_state(await ask_until(http, "/templates", is_there), "ready")
    return dict(one)


async def failed(http: httpx.AsyncClient) -> dict[str, Any]:
    """The template that could not be made, once that is known."""
    listed = await ask_until(http, "/templates", lambda listed: bool(in_state(listed, "failed")))
    (one,) = in_state(listed, "failed")
    return dict(one)


async def pool(http: httpx.AsyncClient, size: int, *others: str) -> list[str]:
    """Ids of the VMs that wait in the pool, once so many are ready there beside these others."""

    def waiting(listed: Any) -> list[str]:
        rows = [one for one in listed["vms"] if one["purpose"] == "pool" and one["agent_ready"]]
        return [one["id"] for one in rows if not one["ended"] and one["id"] not in others]

    return waiting(await ask_until(http, "/vms", lambda listed: len(waiting(listed)) == size))


async def held(http: httpx.AsyncClient, size: int, *others: str) -> list[str]:
    """Ids of the held clones, once there are so many beside these others."""

    def found(listed: Any) -> list[str]:
        return [one["id"] for one in listed["vms"] if not one["ended"] and one["id"] not in others]

    def are_there(rows: Any) -> bool:
        return len(found(rows)) == size

    listed = await ask_until(http, "/vms?purpose=held", are_there)
    await ask_metric(http, "qmp_supervisor_held_clones", size)
    return found(listed)


async def ask_metric(http: httpx.AsyncClient, name: str, value: float) -> None:
    """Return once a metric has this value."""
    with trio.fail_after(PATIENCE_S):
        while (await metrics(http))[name] != value:  # noqa: ASYNC110 - no event tells of it
            await trio.sleep(0.01)


async def post(
    http: httpx.AsyncClient, computation: bytes = b"{}", *, key: str = "", **members: Any
) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    body = {"computation": list(computation), **members}
    return await http.post("/run", json=body, headers=headers)


async def show(http: httpx.AsyncClient, vm_id: str) -> dict[str, Any]:
    answer = await http.get(f"/vms/{vm_id}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def run(http: httpx.AsyncClient, **members: Any) -> dict[str, Any]:
    """The VM of a run that must succeed, as ``GET /vms/<id>`` shows it after the answer."""
    answer = await post(http, **members)
    assert answer.status_code == 200, answer.text
    return await show(http, answer.json()["id"])


async def guest_of(world: World, vm_id: str) -> Guest:
    """The next run of the stand-in for this VM; those before it are not asked for any more."""
    with trio.fail_after(PATIENCE_S):
        while True:
            guest = await world.guest()
            if guest.vm_id == vm_id:
                return guest


def is_clone(shown: dict[str, Any]) -> bool:
    """Whether QEMU was started to restore a state."""
    return "-incoming" in shown["argv"]


def timing(answer: httpx.Response) -> dict[str, float]:
    """Server-Timing: milliseconds by step, in order."""
    entries = [one.strip().split(";dur=") for one in answer.headers["Server-Timing"].split(",")]
    return {name: float(duration) for name, duration in entries}


async def metrics(http: httpx.AsyncClient) -> dict[str, float]:
    lines = (await http.get("/metrics")).text.splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name: float(value) for name, value in pairs}


def directories(world: World) -> set[str]:
    home = world.tmp / "templates"
    return {path.name for path in home.iterdir()} if home.exists() else set()


async def templates(http: httpx.AsyncClient) -> dict[str, Any]:
    return dict((await http.get("/templates")).json())


async def gone(http: httpx.AsyncClient, path: Path) -> None:
    """Return once there is no such file."""
    await ask_until(http, "/templates", lambda _: not path.exists())


def events(world: World, vm_id: str, kind: str) -> list[dict[str, Any]]:
    lines = (world.tmp / vm_id / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


async def both_guests(world: World, vm_id: str) -> tuple[Guest, Guest]:
    """The runs of the stand-in for a VM that was started twice."""
    return await guest_of(world, vm_id), await guest_of(world, vm_id)


async def heard(guest: Guest, what: str) -> int:
    """How often this was seen there until its end; it has to be over."""
    while (await guest.next())["saw"] != "end":
        pass
    return guest.count(what)


async def guests_of(world: World, ids: Sequence[str]) -> list[Guest]:
    """The runs of the stand-in for these VMs, whatever others were started between them."""
    found: dict[str, Guest] = {}
    while found.keys() != set(ids):
        guest = await world.guest()
        if guest.vm_id in ids:
            found[guest.vm_id] = guest
    return [found[vm_id] for vm_id in ids]
