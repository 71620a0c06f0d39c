"""Callers of a fleet, and what each was told."""

from __future__ import annotations

import hashlib
import uuid
from typing import TYPE_CHECKING, Any

import attrs
import httpx
import trio

if TYPE_CHECKING:
    from tests.chaos.fleet.place import Machine

#: How a run is posted.
WAITS, ASYNC, KEY = "waits", "async", "key"
FORMS = (WAITS, ASYNC, KEY)
_AGAIN_S = 0.5
#: With a key a caller comes back after these.
_UNDECIDED = (429, 503)


@attrs.frozen
class Told:
    """One answer to one request.

    :param status: 0 if the connection broke
    """

    at: str
    status: int
    kind: str = ""
    detail: str = ""
    vm: str = ""
    answer: str = ""


@attrs.define(eq=False)
class Caller:
    """Posts one computation. With a key it asks again, anywhere, until it is told of its end."""

    form: str
    labels: dict[str, str]
    computation: bytes = attrs.field(factory=lambda: uuid.uuid4().bytes)
    key: str = attrs.field(factory=lambda: str(uuid.uuid4()))
    told: list[Told] = attrs.field(factory=list)
    has_left: bool = False
    over: trio.Event = attrs.field(factory=trio.Event)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.computation).hexdigest()

    @property
    def failed(self) -> bool:
        """Whether it was told of an error, and asks no more."""
        return self.over.is_set() and not (self.last and self.last.vm)

    @property
    def last(self) -> Told | None:
        return self.told[-1] if self.told else None

    async def call(self, machines: list[Machine]) -> None:
        """Post it to the first of them; with a key, to the next ones if need be."""
        with self.scope:
            number = 0
            while True:
                told = await self._post(machines[number % len(machines)])
                self.told.append(told)
                if self.form != KEY or (told.status and told.status not in _UNDECIDED):
                    break
                await trio.sleep(_AGAIN_S)
                number += 1
        self.over.set()

    def leave(self) -> None:
        self.has_left = True
        self.scope.cancel()

    async def _post(self, machine: Machine) -> Told:
        headers = {"Idempotency-Key": self.key} if self.form == KEY else {}
        if self.form == ASYNC:
            headers["Prefer"] = "respond-async"
        body: dict[str, Any] = {"computation": list(self.computation)}
        if self.labels:
            body["host"] = {"labels": self.labels}
        try:
            async with machine.client() as http:
                answer = await http.post("/run", json=body, headers=headers, timeout=None)
                found = answer.json()
        except (httpx.TransportError, ValueError) as error:
            return Told(machine.name, 0, detail=repr(error))
        if answer.is_success:
            reply = str(found.get("computation", ""))
            return Told(machine.name, answer.status_code, vm=found["id"], answer=reply)
        kind = str(found.get("type", "")).rpartition(":")[2]
        return Told(machine.name, answer.status_code, kind, found.get("detail", ""))
