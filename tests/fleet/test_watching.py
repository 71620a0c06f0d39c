"""``Watch`` of gRPC at a member: what happens on every host, each event once."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import grpc
import pytest
import trio

from supervisor.api.auth import tokens
from supervisor.caller import Role
from supervisor.pb import vm_pb2
from tests.fleet.posting import SOUTH, ZONE
from tests.fleet.test_wires import Wire, wire
from tests.support.world import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.fleet.conftest import Fleet
    from tests.support.guest import Apart


@attrs.define
class Watched:
    """One answer of ``Watch``. ``told`` has all of it that was read."""

    stream: Any
    told: list[vm_pb2.Event] = attrs.field(factory=list)

    async def until(self, is_it: Callable[[vm_pb2.Event], bool]) -> vm_pb2.Event:
        """The first such event from here on."""
        while True:
            event: vm_pb2.Event = await trio.to_thread.run_sync(next, self.stream)
            self.told.append(event)
            if is_it(event):
                return event

    @property
    def numbers(self) -> list[tuple[str, int]]:
        """Of those that are on record: a present state has a host's last number, or none."""
        return [(one.host, one.sequence) for one in self.told if one.kind != "host"]


@contextmanager
def watching(at: Wire, token: str = "", **wanted: Any) -> Iterator[Watched]:
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    request = vm_pb2.WatchRequest(**wanted)
    stream = at.vms.Watch(request, timeout=PATIENCE_S, metadata=metadata)
    try:
        yield Watched(stream)
    finally:
        stream.cancel()


def is_over(vm_id: str) -> Callable[[vm_pb2.Event], bool]:
    return lambda event: event.id == vm_id and event.state == vm_pb2.VM_STATE_SHUTOFF


async def end(member: Apart, vm_id: str, token: str = "") -> None:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    wanted = {"mode": "force"}
    answer = await member.http.post(f"/vms/{vm_id}/shutdown", json=wanted, headers=headers)
    assert answer.status_code == 200, answer.text


async def run(member: Apart, body: dict[str, Any], token: str = "") -> str:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = await member.http.post("/run", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def test_a_vm_on_another_host_is_watched_as_one_here(fleet: Fleet) -> None:
    async with fleet.serve_both(**ZONE) as (a, b):
        there = await run(a, SOUTH)
        with wire(a) as at_a, wire(b) as at_b:
            with watching(at_a, id=there) as watched:
                first = await watched.until(lambda _: True)
                assert (first.id, first.state, first.host) == (there, vm_pb2.VM_STATE_RUNNING, "b")
                await end(a, there)
                last = await watched.until(is_over(there))
            # Whoever goes on after the present state misses nothing, here and there.
            for at in (at_a, at_b):
                with watching(at, id=there, after=first.sequence) as later:
                    await later.until(is_over(there))
                    assert [one.sequence for one in later.told] == [
                        one.sequence for one in watched.told[1:]
                    ]
            tales = []
            for at in (at_a, at_b):
                with watching(at, id=there, after=0) as whole:
                    await whole.until(lambda event: event.sequence == last.sequence)
                    tales.append([(one.sequence, one.kind, one.at, one.data) for one in whole.told])
            assert tales[0] == tales[1]


async def test_all_hosts_are_watched_at_any(fleet: Fleet) -> None:
    async with fleet.serve_both(**ZONE) as (a, b):
        here, there = await run(a, {"computation": [1]}), await run(a, SOUTH)
        with wire(a) as at_a, wire(b) as at_b:
            with watching(at_a) as watched:
                await watched.until(lambda _: True)
                await watched.until(lambda _: True)
                present = {(one.id, one.host, one.state) for one in watched.told}
                running = vm_pb2.VM_STATE_RUNNING
                assert present == {(here, "a", running), (there, "b", running)}
                await end(b, there)
                last = await watched.until(is_over(there))
                assert last.host == "b"
            await end(a, here)
            # Another member goes on where the first one was left.
            with watching(at_b, position=last.position) as later:
                await later.until(is_over(here))
                again = set(later.numbers) & {(one.host, one.sequence) for one in watched.told[2:]}
                assert not again
            # From what is first told nothing is missed.
            with watching(at_b, position=watched.told[0].position) as same:
                await same.until(is_over(here))
            whole = [*watched.told[2:], *later.told]
            for host in "ab":
                found = [one.sequence for one in whole if one.host == host]
                # What came before that host's VMs were told was told with them.
                begun = [one.sequence for one in same.told if one.host == host]
                wanted = [number for number in begun if number >= found[0]]
                assert wanted
                assert found[: len(wanted)] == wanted[: len(found)]
            with watching(at_a, after=0) as all_of_it:
                await all_of_it.until(is_over(here))
                assert ("a", 1) in all_of_it.numbers


async def test_what_cannot_be_watched(fleet: Fleet) -> None:
    async with fleet.serve_both(**ZONE) as (a, _):
        there = await run(a, SOUTH)
        with wire(a) as at_a:
            refused: dict[grpc.StatusCode, list[dict[str, Any]]] = {
                grpc.StatusCode.INVALID_ARGUMENT: [
                    {"after": 17},
                    {"position": "17"},
                    {"id": there, "position": "0"},
                ],
                grpc.StatusCode.NOT_FOUND: [{"id": "00000000-0000-4000-8000-000000000000"}],
            }
            for code, requests in refused.items():
                for wanted in requests:
                    with watching(at_a, **wanted) as watched:
                        with pytest.raises(grpc.RpcError) as refusal:
                            await watched.until(lambda _: True)
                        assert refusal.value.code() is code, (wanted, refusal.value)


async def test_another_tenants_vms_are_not_watched(fleet: Fleet) -> None:
    file = fleet.worlds["a"].tmp / "tokens.json"
    file.parent.mkdir(exist_ok=True)
    alice, bob = (
        tokens.create(file, name, Role.RUN, None, tokens.now())[1] for name in ("alice", "bob")
    )
    for world in fleet.worlds.values():
        world.settings["MANAGER_AUTH"] = "on"
    async with fleet.serve_both(**ZONE) as (a, _):
        hers, his = await run(a, SOUTH, alice), await run(a, SOUTH, bob)
        with wire(a) as at_a:
            with watching(at_a, bob) as watched:
                assert (await watched.until(lambda _: True)).id == his
                with watching(at_a, alice, position=watched.told[0].position) as later:
                    await end(a, his, bob)
                    await end(a, hers, alice)
                    await later.until(is_over(hers))
                    assert {one.id for one in later.told if one.kind != "host"} == {hers}
                await watched.until(is_over(his))
                assert {one.id for one in watched.told if one.kind != "host"} == {his}
            with pytest.raises(grpc.RpcError) as refused, watching(at_a, bob, id=hers) as watched:
                await watched.until(lambda _: True)
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_host_that_dies_ends_the_watch_of_its_vm(fleet: Fleet) -> None:
    async with fleet.serve("a") as a:
        async with fleet.serve("b", **ZONE) as b:
            await a.wait_said("host joined", host="b")
            there = await run(b, SOUTH)
            with wire(a) as at_a, watching(at_a, id=there) as watched:
                await watched.until(lambda _: True)
                await b.kill()
                with pytest.raises(grpc.RpcError) as broken:
                    await watched.until(is_over(there))
                assert broken.value.code() is grpc.StatusCode.UNAVAILABLE
                assert "member b" in str(broken.value.details())
        # Its next supervisor ends what it has left.
        async with fleet.serve("b", **ZONE):
            pass
