"""A broker in memory, whose members can be cut off, slowed, and lied to as brokers do."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import trio

from supervisor.errors import FleetUnavailable
from supervisor.fleet.engine import Conflict, Entry, Message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Answer = Callable[[str, bytes], Awaitable[bytes]]

#: As NATS is told.
_ACK_S = 30.0


@attrs.define(eq=False)
class _Pull:
    rank: int
    engine: MemoryEngine
    got: trio.Event = attrs.field(factory=trio.Event)
    message: Message | None = None


@attrs.define
class _Kept:
    value: bytes
    revision: int
    scope: trio.CancelScope | None = None


class Broker:
    """What all members share.

    :param lies: how often, of 1, an answer is lost, a message comes twice or an acknowledgement
        does not arrive
    :ivar messages: that went to it and from it
    """

    def __init__(self, nursery: trio.Nursery, lies: float = 0.0, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.lies = lies
        self.messages = 0
        self.nursery = nursery
        self.tables: dict[str, dict[str, _Kept]] = defaultdict(dict)
        self.watchers: list[tuple[str, str, trio.MemorySendChannel[Entry | None]]] = []
        self.queues: dict[str, deque[bytes]] = defaultdict(deque)
        self.pulls: dict[str, list[_Pull]] = defaultdict(list)
        self.unacknowledged: dict[str, tuple[str, bytes, trio.CancelScope]] = {}
        self.once: set[str] = set()
        self.answers: dict[str, tuple[MemoryEngine, Answer]] = {}
        self._revision = 0
        self._tokens = 0

    def lie(self) -> bool:
        return self.random.random() < self.lies

    # --- records ---

    def set(self, table: str, key: str, value: bytes | None, ttl_s: float | None) -> int:
        self._revision += 1
        before = self.tables[table].pop(key, None)
        if before and before.scope:
            before.scope.cancel()
        if value is not None:
            kept = self.tables[table][key] = _Kept(value, self._revision)
            if ttl_s is not None:
                kept.scope = trio.CancelScope()
                self.nursery.start_soon(self._expire, table, key, kept.scope, ttl_s)
        for watched, wanted, send in self.watchers:
            if watched == table and wanted in (">", key):
                send.send_nowait(Entry(key, value, self._revision))
        return self._revision

    async def _expire(self, table: str, key: str, scope: trio.CancelScope, ttl_s: float) -> None:
        with scope:
            await trio.sleep(ttl_s)
            self.tables[table][key].scope = None
            self.set(table, key, None, None)

    # --- the queue ---

    def push(self, kind: str, body: bytes, *, first: bool = False) -> None:
        if first:
            self.queues[kind].appendleft(body)
        else:
            self.queues[kind].append(body)
        self.serve(kind)

    def serve(self, kind: str) -> None:
        """Give messages to those who wait for them, the lowest rank first."""
        waiting = self.pulls[kind]
        while self.queues[kind] and waiting:
            pull = min(waiting, key=lambda one: one.rank)
            waiting.remove(pull)
            body = self.queues[kind].popleft()
            self._tokens += 1
            token = f"{self._tokens}"
            scope = trio.CancelScope()
            self.unacknowledged[token] = kind, body, scope
            self.nursery.start_soon(self._redeliver, token, scope)
            if pull.engine.reachable:
                self.messages += 1
                pull.message = Message(body, token)
                pull.got.set()
            if self.lie():
                self.queues[kind].append(body)  # it comes twice

    async def _redeliver(self, token: str, scope: trio.CancelScope) -> None:
        with scope:
            await trio.sleep(_ACK_S)
            kind, body, _ = self.unacknowledged.pop(token)
            self.push(kind, body)


class MemoryEngine:
    """One member's connection.

    :ivar reachable: whether anything gets through
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._watching: list[trio.MemorySendChannel[Entry | None]] = []
        self.reachable = True
        #: Until this is set, nothing happens on its host.
        self.runs = trio.Event()
        self.runs.set()

    def cut(self) -> None:
        """Nothing gets through any more; what it watched has ended."""
        self.reachable = False
        broker = self._broker
        for one in [one for one in broker.watchers if one[2] in self._watching]:
            broker.watchers.remove(one)
            one[2].close()
        self._watching.clear()

    async def _step(self) -> None:
        """One way to the broker, or from it."""
        self._broker.messages += 1
        await trio.sleep(self._broker.random.random() * 0.004)
        await self.runs.wait()
        if not self.reachable:
            await trio.sleep(1)
            raise FleetUnavailable("cut off")

    async def _answer(self) -> None:
        if self._broker.lie():
            raise FleetUnavailable("the answer was lost")
        await self._step()

    async def get(self, table: str, key: str) -> Entry | None:
        await self._step()
        kept = self._broker.tables[table].get(key)
        found = Entry(key, kept.value, kept.revision) if kept else None
        await self._answer()
        return found

    async def create(self, table: str, key: str, value: bytes, ttl_s: float | None = None) -> int:
        await self._step()
        if key in self._broker.tables[table]:
            raise Conflict(key)
        made = self._broker.set(table, key, value, ttl_s)
        await self._answer()
        return made

    async def update(
        self, table: str, key: str, value: bytes, revision: int, ttl_s: float | None = None
    ) -> int:
        await self._step()
        kept = self._broker.tables[table].get(key)
        if kept is None or kept.revision != revision:
            raise Conflict(key)
        made = self._broker.set(table, key, value, ttl_s)
        await self._answer()
        return made

    async def remove(self, table: str, key: str, revision: int) -> None:
        await self._step()
        kept = self._broker.tables[table].get(key)
        if kept is None or kept.revision != revision:
            raise Conflict(key)
        self._broker.set(table, key, None, None)

    @asynccontextmanager
    async def watch(
        self, table: str, key: str = ">"
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Entry | None]]:
        await self._step()
        send, receive = trio.open_memory_channel[Entry | None](100_000)
        for name, kept in self._broker.tables[table].items():
            if key in (">", name):
                send.send_nowait(Entry(name, kept.value, kept.revision))
        send.send_nowait(None)
        watcher = table, key, send
        self._broker.watchers.append(watcher)
        self._watching.append(send)
        try:
            yield receive
        finally:
            if watcher in self._broker.watchers:
                self._broker.watchers.remove(watcher)
            if send in self._watching:
                self._watching.remove(send)
            send.close()
            receive.close()

    async def enqueue(self, kind: str, body: bytes, once: str) -> None:
        await self._step()
        if once not in self._broker.once:
            self._broker.once.add(once)
            self._broker.push(kind, body)
        await self._answer()

    async def offer(self, kind: str) -> None:
        await self._step()

    async def pull(self, kind: str, patience_s: float, rank: int) -> Message | None:
        await self._step()
        pull = _Pull(rank, self)
        self._broker.pulls[kind].append(pull)
        self._broker.serve(kind)
        try:
            with trio.move_on_after(patience_s):
                await pull.got.wait()
        finally:
            if pull in self._broker.pulls[kind]:
                self._broker.pulls[kind].remove(pull)
        return pull.message

    async def done(self, message: Message) -> None:
        await self._acknowledge(message, again=False)

    async def give_back(self, message: Message) -> None:
        await self._acknowledge(message, again=True)

    async def _acknowledge(self, message: Message, *, again: bool) -> None:
        await self._step()
        if message.token in self._broker.unacknowledged and not self._broker.lie():
            kind, body, scope = self._broker.unacknowledged.pop(message.token)
            scope.cancel()
            if again:
                self._broker.push(kind, body, first=True)

    @asynccontextmanager
    async def answering(self, host: str, answer: Answer) -> AsyncIterator[None]:
        self._broker.answers[host] = self, answer
        try:
            yield
        finally:
            if self._broker.answers.get(host, (None,))[0] is self:
                del self._broker.answers[host]

    async def call(self, host: str, subject: str, body: bytes, patience_s: float) -> bytes | None:
        await self._step()
        engine, answer = self._broker.answers.get(host, (None, None))
        if engine is None or answer is None or not engine.reachable or self._broker.lie():
            await trio.sleep(patience_s)
            return None
        said = await answer(subject, body)
        await self._answer()
        return said

    async def ask_all(self, subject: str, body: bytes, patience_s: float, hosts: int) -> bytes:
        for host in list(self._broker.answers):
            if said := await self.call(host, subject, body, patience_s):
                return said
        return b""
