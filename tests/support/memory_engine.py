"""A broker in memory, whose members can be cut off, slowed, and lied to as brokers do."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, OrderedDict, defaultdict, deque
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from supervisor.errors import FleetUnavailable
from supervisor.fleet.engine import Conflict, Entry, Message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Answer = Callable[[str, bytes], Awaitable[bytes]]

#: As NATS is told.
_ACK_S, _ONCE_S = 30.0, 120.0
#: How long a way to the broker takes at most. All of them take whole milliseconds, so that what
#: happens at the same time is one step of trio's loop.
_WAY_MS = 4


class _Timer:
    def __init__(self, call: Callable[[], object]) -> None:
        self.call: Callable[[], object] | None = call


class _Timers:
    """Calls at their times, from one task: a task for each lease would be thousands."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, _Timer]] = []
        self._scope = trio.CancelScope()
        self._made = self._cancelled = 0

    def after(self, seconds: float, call: Callable[[], object]) -> _Timer:
        at, timer = trio.current_time() + seconds, _Timer(call)
        self._made += 1
        heapq.heappush(self._heap, (at, self._made, timer))
        self._scope.deadline = min(self._scope.deadline, at)
        return timer

    def cancel(self, timer: _Timer) -> None:
        timer.call = None
        self._cancelled += 1
        if 2 * self._cancelled > len(self._heap):
            self._heap = [one for one in self._heap if one[2].call]
            heapq.heapify(self._heap)
            self._cancelled = 0

    async def run(self) -> None:
        while True:
            deadline = self._heap[0][0] if self._heap else math.inf
            with trio.CancelScope(deadline=deadline) as self._scope:
                await trio.sleep_forever()
            while self._heap and self._heap[0][0] <= trio.current_time():
                timer = heapq.heappop(self._heap)[2]
                if timer.call:
                    timer.call()
                else:
                    self._cancelled -= 1


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
    timer: _Timer | None = None


class Broker:
    """What all members share.

    :param lies: how often, of 1, an answer is lost, a message comes twice or an acknowledgement
        does not arrive
    :ivar messages: that went to it and from it, by what they were for
    """

    def __init__(self, nursery: trio.Nursery, lies: float = 0.0, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.lies = lies
        self.messages: Counter[str] = Counter()
        self.nursery = nursery
        self.tables: dict[str, dict[str, _Kept]] = defaultdict(dict)
        #: By table, with the key that they want.
        self.watchers: dict[str, list[tuple[str, trio.MemorySendChannel[Entry | None]]]] = (
            defaultdict(list)
        )
        self.queues: dict[str, deque[tuple[int, bytes]]] = defaultdict(deque)
        #: By kind and rank, in their order.
        self.pulls: dict[str, dict[int, OrderedDict[_Pull, None]]] = defaultdict(
            lambda: defaultdict(OrderedDict)
        )
        self.unacknowledged: dict[str, tuple[str, int, bytes, _Timer]] = {}
        self.once: set[str] = set()
        self.answers: dict[str, tuple[MemoryEngine, Answer]] = {}
        self._revision = 0
        self._tokens = self._pushed = 0
        self._timers = _Timers()
        self._arrivals: dict[int, trio.Event] = {}
        nursery.start_soon(self._timers.run)

    def lie(self) -> bool:
        return self.random.random() < self.lies

    async def way(self) -> None:
        """What a message takes to arrive. Those that arrive together share one event."""
        passed = self.random.random() * _WAY_MS / 1000
        at = math.ceil((trio.current_time() + passed) * 1000)
        if at not in self._arrivals:
            self._arrivals[at] = trio.Event()
            self._timers.after(at / 1000 - trio.current_time(), partial(self._arrive, at))
        await self._arrivals[at].wait()

    def _arrive(self, at: int) -> None:
        self._arrivals.pop(at).set()

    # --- records ---

    def set(
        self,
        table: str,
        key: str,
        value: bytes | None,
        ttl_s: float | None,
        expired: bool = False,
    ) -> int:
        self._revision += 1
        before = self.tables[table].pop(key, None)
        if before and before.timer:
            self._timers.cancel(before.timer)
        if value is not None:
            kept = self.tables[table][key] = _Kept(value, self._revision)
            if ttl_s is not None:
                kept.timer = self._timers.after(ttl_s, partial(self._expire, table, key))
        for wanted, send in self.watchers[table]:
            if wanted in (">", key):
                self.messages[f"{table} told"] += 1
                send.send_nowait(Entry(key, value, self._revision, expired))
        return self._revision

    def _expire(self, table: str, key: str) -> None:
        self.tables[table][key].timer = None
        self.set(table, key, None, None, expired=True)

    # --- the queue ---

    def push(self, kind: str, body: bytes) -> None:
        self._pushed += 1
        self.queues[kind].append((self._pushed, body))
        self.serve(kind)

    def push_again(self, kind: str, number: int, body: bytes) -> None:
        """Of what comes again, as the broker has it from before."""
        self.queues[kind].appendleft((number, body))
        self.serve(kind)

    def serve(self, kind: str) -> None:
        """Give messages to those who wait for them, the lowest rank first."""
        queue, waiting = self.queues[kind], self.pulls[kind]
        while queue and (ranks := [rank for rank, pulls in waiting.items() if pulls]):
            pull, _ = waiting[min(ranks)].popitem(last=False)
            number, body = queue.popleft()
            self._tokens += 1
            token = f"{self._tokens}"
            timer = self._timers.after(_ACK_S, partial(self._redeliver, token))
            self.unacknowledged[token] = kind, number, body, timer
            if pull.engine.reachable:
                self.messages["queue"] += 1
                pull.message = Message(body, token, number)
                pull.got.set()
            if self.lie():
                queue.append((number, body))  # it comes twice

    def _redeliver(self, token: str) -> None:
        kind, number, body, _ = self.unacknowledged.pop(token)
        self.push_again(kind, number, body)

    def acknowledge(self, token: str) -> tuple[str, int, bytes] | None:
        """The message, by kind, number and body, if it is given to somebody."""
        if token not in self.unacknowledged:
            return None
        kind, number, body, timer = self.unacknowledged.pop(token)
        self._timers.cancel(timer)
        return kind, number, body

    def is_new(self, once: str) -> bool:
        """Whether no such message was sent in the last two minutes."""
        if once in self.once:
            return False
        self.once.add(once)
        self._timers.after(_ONCE_S, partial(self.once.discard, once))
        return True


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
        for watchers in self._broker.watchers.values():
            watchers[:] = [one for one in watchers if one[1] not in self._watching]
        for send in self._watching:
            send.close()
        self._watching.clear()

    async def _step(self, about: str) -> None:
        """One way to the broker, or from it.

        :param about: what it is counted as
        """
        self._broker.messages[about] += 1
        await self._broker.way()
        if not self.runs.is_set():
            await self.runs.wait()
        if not self.reachable:
            await trio.sleep(1)
            raise FleetUnavailable("cut off")

    async def _answer(self, about: str) -> None:
        if self._broker.lie():
            raise FleetUnavailable("the answer was lost")
        await self._step(about)

    async def get(self, table: str, key: str) -> Entry | None:
        await self._step(table)
        kept = self._broker.tables[table].get(key)
        found = Entry(key, kept.value, kept.revision) if kept else None
        await self._answer(table)
        return found

    async def create(self, table: str, key: str, value: bytes, ttl_s: float | None = None) -> int:
        await self._step(table)
        if key in self._broker.tables[table]:
            raise Conflict(key)
        made = self._broker.set(table, key, value, ttl_s)
        await self._answer(table)
        return made

    async def update(
        self, table: str, key: str, value: bytes, revision: int, ttl_s: float | None = None
    ) -> int:
        await self._step(table)
        kept = self._broker.tables[table].get(key)
        if kept is None or kept.revision != revision:
            raise Conflict(key)
        made = self._broker.set(table, key, value, ttl_s)
        await self._answer(table)
        return made

    async def remove(self, table: str, key: str, revision: int) -> None:
        await self._step(table)
        kept = self._broker.tables[table].get(key)
        if kept is None or kept.revision != revision:
            raise Conflict(key)
        self._broker.set(table, key, None, None)

    @asynccontextmanager
    async def watch(
        self, table: str, key: str = ">"
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Entry | None]]:
        await self._step(table)
        send, receive = trio.open_memory_channel[Entry | None](100_000)
        for name, kept in self._broker.tables[table].items():
            if key in (">", name):
                send.send_nowait(Entry(name, kept.value, kept.revision))
        send.send_nowait(None)
        watcher = key, send
        self._broker.watchers[table].append(watcher)
        self._watching.append(send)
        try:
            yield receive
        finally:
            if watcher in self._broker.watchers[table]:
                self._broker.watchers[table].remove(watcher)
            if send in self._watching:
                self._watching.remove(send)
            send.close()
            receive.close()

    async def enqueue(self, kind: str, body: bytes, once: str) -> None:
        await self._step("queue")
        if self._broker.is_new(once):
            self._broker.push(kind, body)
        await self._answer("queue")

    async def offer(self, kind: str) -> None:
        await self._step("queue")

    async def pull(self, kind: str, patience_s: float, rank: int) -> Message | None:
        await self._step("queue")
        pull = _Pull(rank, self)
        waiting = self._broker.pulls[kind][rank]
        waiting[pull] = None
        self._broker.serve(kind)
        try:
            with trio.move_on_after(patience_s):
                await pull.got.wait()
        finally:
            waiting.pop(pull, None)
        return pull.message

    async def done(self, message: Message) -> None:
        await self._acknowledge(message, again=False)

    async def give_back(self, message: Message) -> None:
        await self._acknowledge(message, again=True)

    async def _acknowledge(self, message: Message, *, again: bool) -> None:
        await self._step("queue")
        if self._broker.lie():
            return
        sent = self._broker.acknowledge(message.token)
        if sent and again:
            self._broker.push_again(*sent)

    @asynccontextmanager
    async def answering(self, host: str, answer: Answer) -> AsyncIterator[None]:
        self._broker.answers[host] = self, answer
        try:
            yield
        finally:
            if self._broker.answers.get(host, (None,))[0] is self:
                del self._broker.answers[host]

    async def call(self, host: str, subject: str, body: bytes, patience_s: float) -> bytes | None:
        await self._step("calls")
        engine, answer = self._broker.answers.get(host, (None, None))
        if engine is None or answer is None or not engine.reachable or self._broker.lie():
            await trio.sleep(patience_s)
            return None
        said: list[bytes] = []
        over = trio.Event()

        async def serve() -> None:  # also if nobody waits any more
            await engine.runs.wait()
            if engine.reachable:
                said.append(await answer(subject, body))
            over.set()

        self._broker.nursery.start_soon(serve)
        with trio.move_on_after(patience_s):
            await over.wait()
        if not said:
            return None
        await self._answer("calls")
        return said[0]

    async def ask_all(self, subject: str, body: bytes, patience_s: float, hosts: int) -> bytes:
        for host in list(self._broker.answers):
            if said := await self.call(host, subject, body, patience_s):
                return said
        return b""
