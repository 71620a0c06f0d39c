"""Who sees the record of a fleet, without being a host of it."""

from __future__ import annotations

from contextlib import suppress

import trio

from supervisor.errors import FleetUnavailable
from supervisor.fleet.ledger import Run
from supervisor.fleet.nats import TABLES, NatsEngine
from supervisor.waiting import Signal

#: How long anything may take that must come, on a machine that is busy.
PATIENCE_S = 90.0


class Broken(Exception):
    """What must hold does not."""


class Observer:
    """Sees the record, as a member that is no host.

    :ivar runs: all versions of each run that came by
    :ivar hosts: those whose leases have not ended
    """

    def __init__(self) -> None:
        self.runs: dict[str, list[Run]] = {}
        self.hosts: set[str] = set()
        self.changed = Signal()
        self.engine = NatsEngine("observer")

    async def watch_runs(self) -> None:
        latest = 0
        while True:
            with suppress(FleetUnavailable):
                async with self.engine.watch("runs") as entries:
                    async for entry in entries:
                        # Who watches anew hears what was there again, some of it of who lags.
                        if entry and entry.value is not None and entry.revision > latest:
                            latest, run = entry.revision, Run.decode(entry.value)
                            self.runs.setdefault(run.id, []).append(run)
                            self.changed.notify()
            await trio.sleep(0.1)

    async def watch_hosts(self) -> None:
        while True:
            with suppress(FleetUnavailable):
                async with self.engine.watch("hosts") as entries:
                    seen: set[str] | None = set()
                    async for entry in entries:
                        if entry is None:
                            self.hosts, seen = seen or set(), None
                        elif entry.value is None:
                            self.hosts.discard(entry.key)
                        else:
                            (self.hosts if seen is None else seen).add(entry.key)
                        self.changed.notify()
            await trio.sleep(0.1)

    async def wait_lost(self, name: str, patience_s: float) -> bool:
        """Whether a host's lease ended in this time."""
        with trio.move_on_after(patience_s):
            await self.changed.until(lambda: name not in self.hosts)
            return True
        return False

    async def leader(self) -> str:
        """The host whose NATS server leads the stream of runs."""
        found = await self.engine._api("STREAM.INFO.fleet-runs", {})
        return str(found["cluster"]["leader"])

    async def wait_whole(self) -> None:
        """Return once each server has all of each stream."""
        with trio.move_on_after(PATIENCE_S):
            while True:
                if await self._is_whole():
                    return
                await trio.sleep(0.1)
        raise Broken("NATS does not become whole again")

    async def _is_whole(self) -> bool:
        for name in (*(f"fleet-{table}" for table in TABLES), "fleet-queue"):
            try:
                found = await self.engine._api(f"STREAM.INFO.{name}", {})
            except Exception:  # whatever a cluster says that chooses a leader
                return False
            cluster = found.get("cluster", {})
            replicas = cluster.get("replicas", [])
            whole = [one for one in replicas if one.get("current") and not one.get("offline")]
            if not cluster.get("leader") or len(whole) != 2:
                return False
        return True
