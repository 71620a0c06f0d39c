"""The engine over NATS JetStream, of at least version 2.12.

A record is the last message of a subject of its own, and its revision is that message's number in
its stream. The server compares and sets: a message that expects another number than the last one
is refused.

Sources: NATS documentation, "JetStream wire API reference"; ADR-8 (key and value), ADR-42 (priority
groups) and ADR-43 (time to live of a message) of nats-architecture-and-design.
"""

from __future__ import annotations

import base64
import json
import secrets
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import nats
import structlog
import trio
from nats.errors import Error as NatsError
from nats.js.api import DeliverPolicy

from supervisor.bridge import aio_as_trio
from supervisor.errors import FleetUnavailable
from supervisor.fleet.connection import Connection, Refused, as_ours
from supervisor.fleet.engine import QUEUED_S, Conflict, Entry, Message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

log = structlog.stdlib.get_logger()

_LOOK_S = 0.02
#: The server's numbers of errors. Source: server/errors.json of nats-server.
_WRONG_LAST, _NO_MESSAGE, _EXISTS = {10071, 10164}, {10037}, {10058, 10013, 10148}
#: What the queue answers at the end of the time that is waited.
_NOTHING_CAME = {"404", "408"}
#: What has a stream publish, or take, what no member may.
_NOT_OURS = {"mirror", "sources", "republish", "subject_transform"}
#: How long the mark of a removed record stays, for those who watch.
_MARK_S = 60
#: How long a member may think about a message before another one gets it.
_ACK_S = 30
_ONCE_S = 120
#: Of each record, on as many servers.
_COPIES = 3
_QUEUE, _GROUP = "fleet-queue", "members"
TABLES = ("hosts", "runs", "keys", "kinds")

_REMOVED = "Fleet-Removed"
#: What the answers to calls go to: then the host that has asked, and a word that is new each time.
_ANSWERS = "fleet.answers."
_MOST_WAITING = 4096


class NatsEngine(Connection):
    """As one member has it."""

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self._watchers: list[trio.MemorySendChannel[Entry | None]] = []

    def _broke(self) -> None:
        for one in self._watchers:
            one.close()
        self._watchers.clear()

    # --- streams ----------------------------------------------------------------------------

    async def _begin(self, servers: int) -> None:
        """Make the streams that are not there. Members that start together ask for the same."""
        replicas = _COPIES if servers >= _COPIES else 1
        for table in TABLES:
            await self._make(
                f"fleet-{table}",
                subjects=[f"fleet.{table}.>"],
                num_replicas=replicas,
                max_msgs_per_subject=1,
                allow_msg_ttl=True,
                subject_delete_marker_ttl=_MARK_S * 10**9,
                discard="new",
            )
        await self._make(
            _QUEUE,
            subjects=["fleet.queue.>"],
            num_replicas=replicas,
            retention="workqueue",
            max_age=QUEUED_S * 10**9,
            duplicate_window=_ONCE_S * 10**9,
        )

    async def _make(self, name: str, **config: Any) -> None:
        try:
            await self._api(f"STREAM.CREATE.{name}", {"name": name, "storage": "file"} | config)
        except Refused as error:
            if error.code not in _EXISTS:
                raise FleetUnavailable(f"NATS refuses the stream {name}: {error}") from error
            found = (await self._api(f"STREAM.INFO.{name}", {}))["config"]
            more = _NOT_OURS & set(found)
            if more or found["subjects"] != config["subjects"]:
                raise FleetUnavailable(
                    f"NATS: the stream {name} is not as this fleet makes it"
                    f" ({', '.join(sorted(more)) or found['subjects']}): somebody else has made it"
                ) from error

    # --- records ----------------------------------------------------------------------------

    async def get(self, table: str, key: str) -> Entry | None:
        found = await self._last(table, key)
        return found if found and found.value is not None else None

    async def _last(self, table: str, key: str) -> Entry | None:
        """Also the mark of a record that was removed."""
        asked = {"last_by_subj": f"fleet.{table}.{key}"}
        try:
            # Of the stream's leader: a direct get may be answered by who lags behind.
            answer = await self._api(f"STREAM.MSG.GET.fleet-{table}", asked)
        except Refused as error:
            if error.code in _NO_MESSAGE:
                return None
            raise FleetUnavailable(f"NATS: {error}") from error
        message = answer["message"]
        return Entry(key, _value(message), message["seq"])

    async def create(self, table: str, key: str, value: bytes, ttl_s: float | None = None) -> int:
        try:
            return await self.update(table, key, value, 0, ttl_s)
        except Conflict:
            last = await self._last(table, key)
            if last is None or last.value is not None:
                raise
            return await self.update(table, key, value, last.revision, ttl_s)

    async def update(
        self, table: str, key: str, value: bytes, revision: int, ttl_s: float | None = None
    ) -> int:
        return await self._set(table, key, value, revision, ttl_s, {})

    async def remove(self, table: str, key: str, revision: int) -> None:
        await self._set(table, key, b"", revision, _MARK_S, {_REMOVED: "1"})

    async def _set(
        self,
        table: str,
        key: str,
        value: bytes,
        revision: int,
        ttl_s: float | None,
        headers: dict[str, str],
    ) -> int:
        headers["Nats-Expected-Last-Subject-Sequence"] = str(revision)
        if ttl_s is not None:
            headers["Nats-TTL"] = f"{ttl_s:.0f}s"
        try:
            answer = await self._request(f"fleet.{table}.{key}", value, headers)
        except Refused as error:
            if error.code in _WRONG_LAST:
                raise Conflict(f"{table} {key}: {error}") from None
            raise FleetUnavailable(f"NATS: {error}") from error
        return int(answer["seq"])

    @asynccontextmanager
    async def watch(
        self, table: str, key: str = ">"
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Entry | None]]:
        send, receive = trio.open_memory_channel[Entry | None](_MOST_WAITING)
        prefix = f"fleet.{table}."

        def put(entry: Entry | None) -> None:
            try:
                send.send_nowait(entry)
            except trio.WouldBlock:
                send.close()  # whoever reads is too slow, and watches again
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

        async def on_message(message: Msg) -> None:
            put(_entry(message, prefix))

        self._watchers.append(send)
        subscription = None
        try:
            with as_ours():
                js = self._connected().jetstream()
                subscription = await aio_as_trio(js.subscribe)(
                    prefix + key,
                    stream=f"fleet-{table}",
                    cb=on_message,
                    ordered_consumer=True,
                    deliver_policy=DeliverPolicy.LAST_PER_SUBJECT,
                )
                await _wait_told(subscription)
            put(None)
            yield receive
        finally:
            if send in self._watchers:
                self._watchers.remove(send)
            send.close()
            receive.close()
            if subscription is not None:
                with suppress(NatsError, OSError), trio.move_on_after(1, shield=True):
                    await aio_as_trio(subscription.unsubscribe)()

    # --- the queue --------------------------------------------------------------------------

    async def enqueue(self, kind: str, body: bytes, once: str) -> None:
        try:
            await self._request(f"fleet.queue.{kind}", body, {"Nats-Msg-Id": once})
        except Refused as error:
            raise FleetUnavailable(f"NATS: {error}") from error

    async def offer(self, kind: str) -> None:
        config = {
            "durable_name": kind,
            "filter_subject": f"fleet.queue.{kind}",
            "ack_policy": "explicit",
            "ack_wait": _ACK_S * 10**9,
            "max_ack_pending": 10_000,
            "priority_groups": [_GROUP],
            "priority_policy": "prioritized",
        }
        body = {"stream_name": _QUEUE, "config": config}
        try:
            await self._api(f"CONSUMER.DURABLE.CREATE.{_QUEUE}.{kind}", body)
        except Refused as error:
            if error.code not in _EXISTS:
                raise FleetUnavailable(f"NATS: {error}") from error

    async def pull(self, kind: str, patience_s: float, rank: int) -> Message | None:
        asked = {"batch": 1, "expires": int(patience_s * 10**9), "group": _GROUP, "priority": rank}
        client = self._connected()
        with as_ours():
            inbox = client.new_inbox()
            subscription = await aio_as_trio(client.subscribe)(inbox, max_msgs=1)
            try:
                await aio_as_trio(client.publish)(
                    f"$JS.API.CONSUMER.MSG.NEXT.{_QUEUE}.{kind}",
                    json.dumps(asked).encode(),
                    reply=inbox,
                )
                message = await aio_as_trio(subscription.next_msg)(timeout=patience_s + 1)
            except nats.errors.TimeoutError:
                return None
            finally:
                with suppress(NatsError, OSError), trio.move_on_after(1, shield=True):
                    await aio_as_trio(subscription.unsubscribe)()
        if "$JS.ACK." in message.reply:
            return Message(message.data, message.reply, message.metadata.sequence.stream)
        status = (message.headers or {}).get("Status")
        if status not in _NOTHING_CAME:  # such as at once, if the queue keeps no such kind apart
            raise FleetUnavailable(f"NATS: the queue answers {status} for {kind}")
        return None

    async def done(self, message: Message) -> None:
        await self._ack(message, b"+ACK")

    async def give_back(self, message: Message) -> None:
        await self._ack(message, b"-NAK")

    async def _ack(self, message: Message, word: bytes) -> None:
        with as_ours():
            await aio_as_trio(self._connected().publish)(message.token, word)

    # --- calls ------------------------------------------------------------------------------

    @asynccontextmanager
    async def answering(
        self, host: str, answer: Callable[[str, bytes], Awaitable[bytes]]
    ) -> AsyncIterator[None]:
        send, receive = trio.open_memory_channel[Any](_MOST_WAITING)

        async def on_call(message: Msg) -> None:
            with suppress(trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
                send.send_nowait(message)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._answer_all, receive, answer)
            subscriptions: list[Any] = []
            try:
                with as_ours():
                    for subject in (f"fleet.call.{host}.*", "fleet.all.*"):
                        subscribe = aio_as_trio(self._connected().subscribe)
                        subscriptions.append(await subscribe(subject, cb=on_call))
                    await aio_as_trio(self._connected().flush)()  # else it may come after a call
                yield
            finally:
                nursery.cancel_scope.cancel()
                with suppress(NatsError, OSError), trio.move_on_after(1, shield=True):
                    for one in subscriptions:
                        await aio_as_trio(one.unsubscribe)()

    async def _answer_all(
        self,
        calls: trio.MemoryReceiveChannel[Any],
        answer: Callable[[str, bytes], Awaitable[bytes]],
    ) -> None:
        async with trio.open_nursery() as nursery:
            async for message in calls:
                nursery.start_soon(self._answer, message, answer)

    async def _answer(self, message: Msg, answer: Callable[[str, bytes], Awaitable[bytes]]) -> None:
        try:
            said = await answer(message.subject.rpartition(".")[2], message.data)
            if message.reply.startswith(_ANSWERS):  # else who asks has us write where it may not
                with as_ours():
                    await aio_as_trio(self._connected().publish)(message.reply, said)
        except FleetUnavailable:
            pass  # who called asks again, or does without
        except Exception as error:
            log.error("bug in a call's answer", subject=message.subject, exc_info=error)

    async def call(self, host: str, subject: str, body: bytes, patience_s: float) -> bytes | None:
        client = self._connected()
        with as_ours():
            async with self._answers() as (inbox, answers):
                await aio_as_trio(client.publish)(f"fleet.call.{host}.{subject}", body, reply=inbox)
                try:
                    message = await aio_as_trio(answers.next_msg)(timeout=patience_s)
                except nats.errors.TimeoutError:
                    return None
        is_said = "Status" not in (message.headers or {})  # else nobody is there
        return bytes(message.data) if is_said else None

    async def ask_all(
        self, subject: str, body: bytes, patience_s: float, hosts: int
    ) -> bytes | None:
        client = self._connected()
        with as_ours():
            async with self._answers() as (inbox, answers):
                await aio_as_trio(client.publish)(f"fleet.all.{subject}", body, reply=inbox)
                try:
                    with trio.move_on_after(patience_s):
                        for _ in range(hosts):
                            message = await aio_as_trio(answers.next_msg)(timeout=patience_s)
                            if message.data:
                                return bytes(message.data)
                        return b""
                except nats.errors.TimeoutError:
                    pass
        return None

    @asynccontextmanager
    async def _answers(self) -> AsyncIterator[tuple[str, Subscription]]:
        """Where others answer one call: who has not heard of it does not find it."""
        inbox = f"{_ANSWERS}{self._host}.{secrets.token_hex(16)}"
        subscription = await aio_as_trio(self._connected().subscribe)(inbox)
        try:
            yield inbox, subscription
        finally:
            with suppress(NatsError, OSError), trio.move_on_after(1, shield=True):
                await aio_as_trio(subscription.unsubscribe)()


async def _wait_told(subscription: Any) -> None:
    """Return when a new subscription has told of all that was there before."""
    while True:
        # The answer comes after all messages that were sent before it.
        info = await aio_as_trio(subscription.consumer_info)()
        if not info.num_pending and not subscription.pending_msgs:
            await trio.lowlevel.checkpoint()
            return
        await trio.sleep(_LOOK_S)


def _value(message: dict[str, Any]) -> bytes | None:
    """Of a message as the server shows it."""
    headers = base64.b64decode(message.get("hdrs", ""))
    if f"{_REMOVED}:".encode() in headers or b"Nats-Marker-Reason:" in headers:
        return None
    return base64.b64decode(message.get("data", ""))


def _entry(message: Msg, prefix: str) -> Entry:
    headers = message.headers or {}
    expired = "Nats-Marker-Reason" in headers
    gone = expired or _REMOVED in headers
    key, revision = message.subject.removeprefix(prefix), message.metadata.sequence.stream
    return Entry(key, None if gone else bytes(message.data), revision, expired)
