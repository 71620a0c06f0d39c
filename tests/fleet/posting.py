"""Runs that are posted to a member, and not waited for at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from tests.support.world import PATIENCE_S

if TYPE_CHECKING:
    import httpx

    from tests.support.guest import Apart

SOUTH = {"computation": list(b"south"), "host": {"labels": {"zone": "south"}}}
ZONE = {"MANAGER_FLEET_LABELS": "zone=south"}


class Posted:
    """A run that a test does not wait for at once."""

    def __init__(self) -> None:
        self._answered = trio.Event()
        self._answer: httpx.Response | None = None

    async def post(self, member: Apart, body: dict[str, Any], **headers: str) -> None:
        self._answer = await member.http.post("/run", json=body, headers=headers)
        self._answered.set()

    async def answer(self) -> httpx.Response:
        with trio.fail_after(PATIENCE_S):
            await self._answered.wait()
        assert self._answer is not None
        return self._answer


async def record_of(member: Apart) -> dict[str, Any]:
    """The first VM of a member."""
    (vm,) = (await member.http.get("/vms?host=self")).json()["vms"]
    return dict(vm)
