"""Idempotency keys: a run that has one is started once, however often its request is sent.

A key belongs to its owner: the same key of two owners is two runs.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from supervisor.errors import KeyReused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from supervisor.runs.vms import Vms
    from supervisor.state.record import RunOptions
    from supervisor.vm.vm import Vm


class IdempotencyKeys:
    """The keys of all VMs on record, and of runs that are being admitted."""

    def __init__(self, vms: Vms) -> None:
        self._vms = vms
        #: By owner and key.
        self._arriving: dict[tuple[str, str], trio.Event] = {}

    @asynccontextmanager
    async def claim(self, options: RunOptions, owner: str) -> AsyncIterator[Vm | None]:
        """Yield the VM of the run that had the key before; None if the body has to start one.

        Other requests with the key wait for the end of the body.

        :raises KeyReused: if the run with this key is another one
        """
        key = options.once
        if key is None:
            yield None
            return
        owned = owner, key
        while owned in self._arriving:
            await self._arriving[owned].wait()
        if vm := self._of(owner, key):
            if vm.record.options.request_hash != options.request_hash:
                raise KeyReused(
                    f"the idempotency key {key!r} belongs to another run, of VM {vm.id}"
                )
            yield vm
            return
        self._arriving[owned] = trio.Event()
        try:
            yield None
        finally:
            self._arriving.pop(owned).set()

    def _of(self, owner: str, key: str) -> Vm | None:
        # The latest: a removal that the disk refused leaves an older one with the same key.
        having = [
            vm for vm in self._vms if vm.record.options.once == key and vm.record.owner == owner
        ]
        return having[-1] if having else None
