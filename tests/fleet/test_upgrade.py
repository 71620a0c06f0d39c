"""Members that are upgraded one after another, while runs come in."""

from __future__ import annotations

import hashlib
import signal
from contextlib import suppress
from itertools import permutations
from typing import TYPE_CHECKING

import attrs
import httpx
import trio

from tests.support.world import PATIENCE_S

if TYPE_CHECKING:
    from tests.fleet.conftest import Fleet
    from tests.support.guest import Apart

NAMES = "abc"
CALLERS, RUNS = 3, 4


class Load:
    """Callers that ask another member if one cannot answer, with the same key.

    :ivar answers: by the keys
    """

    def __init__(self) -> None:
        self.members: dict[str, Apart] = {}
        self.answers: dict[str, dict[str, object]] = {}
        self.attempts = 0

    async def call(self, number: int, over: trio.Event) -> None:
        count = 0
        while count < RUNS or not over.is_set():
            await self._run(f"{number}-{count}", NAMES[(number + count) % len(NAMES)])
            count += 1

    async def _run(self, key: str, at: str) -> None:
        while True:
            self.attempts += 1
            member = self.members.get(at)
            at = NAMES[(NAMES.index(at) + 1) % len(NAMES)]
            if member is None:
                await trio.sleep(0.1)
                continue
            try:
                answer = await member.http.post(
                    "/run",
                    json={"computation": list(key.encode())},
                    headers={"Idempotency-Key": key},
                )
            except httpx.TransportError:
                continue
            if answer.status_code == 200:
                self.answers[key] = answer.json()
                await self._delete(answer.json()["id"])
                return
            assert answer.status_code == 503, answer.text  # it stops

    async def _delete(self, vm_id: str) -> None:
        while True:
            for member in list(self.members.values()):
                with suppress(httpx.TransportError):
                    answer = await member.http.delete(f"/vms/{vm_id}")
                    if answer.status_code == 204:
                        return
                    # Its host is being started again.
                    assert answer.status_code in (404, 502, 503), answer.text
            await trio.sleep(0.1)


@attrs.define
class Upgraded:
    """A member that is replaced when it is told to be."""

    fleet: Fleet
    name: str
    load: Load
    begin: trio.Event = attrs.field(factory=trio.Event)
    done: trio.Event = attrs.field(factory=trio.Event)
    over: trio.Event = attrs.field(factory=trio.Event)

    async def live(self, *, task_status: trio.TaskStatus[Apart] = trio.TASK_STATUS_IGNORED) -> None:
        async with self.fleet.serve(self.name) as member:
            self.load.members[self.name] = member
            task_status.started(member)
            await self.begin.wait()
            with trio.fail_after(PATIENCE_S):
                while (await member.http.post("/host/drain")).json()["vms"]:
                    pass
            del self.load.members[self.name]
            member.process.send_signal(signal.SIGTERM)
            assert await member.process.wait() == 0
        async with self.fleet.serve(self.name) as member:
            self.load.members[self.name] = member
            self.done.set()
            await self.over.wait()


async def test_a_rolling_upgrade_under_load_loses_nothing(three: Fleet) -> None:
    load, enough = Load(), trio.Event()
    hosts = {name: Upgraded(three, name, load) for name in NAMES}
    async with trio.open_nursery() as nursery:
        first = {name: await nursery.start(one.live) for name, one in hosts.items()}
        for name, other in permutations(NAMES, 2):
            await first[name].wait_said("host joined", host=other)
        async with trio.open_nursery() as calling:
            for number in range(CALLERS):
                calling.start_soon(load.call, number, enough)
            for one in hosts.values():
                one.begin.set()
                await one.done.wait()
            enough.set()
        received = 0
        for world in three.worlds.values():
            while world.unasked:
                guest = await world.guest()
                await guest.until_end()
                received += guest.count("Run")
        assert received == len(load.answers) >= CALLERS * RUNS
        for key, answer in load.answers.items():
            assert answer["computation"] == hashlib.sha256(key.encode()).hexdigest()
        for one in hosts.values():
            one.over.set()
