"""Idempotency keys: a request that bears one is made once, however often it is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from supervisor.errors import Busy, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from supervisor.state.record import RunOptions
    from supervisor.vm.vm import Vm

_LONGEST_KEY = 255


class IdempotencyKeys:
    """Those of all VMs on record."""

    def __init__(self) -> None:
        self._by_key: dict[str, Vm] = {}
        #: IdempotencyKeys of runs that are being admitted.
        self._arriving: dict[str, trio.Event] = {}

    async def once(self, options: RunOptions, admit: Callable[[], Awaitable[Vm]]) -> Vm:
        """What ``admit`` returns, or the VM that an earlier run with the same key got.

        :raises InvalidRequest: if it is no key
        :raises Busy: if that run was another one
        """
        key = options.idempotency_key
        if key is None:
            return await admit()
        if not 0 < len(key) <= _LONGEST_KEY:
            raise InvalidRequest(f"Idempotency-Key must have 1 to {_LONGEST_KEY} characters")
        while key in self._arriving:
            await self._arriving[key].wait()
        if vm := self._by_key.get(key):
            if vm.record.options.request_hash != options.request_hash:
                raise Busy(f"the idempotency key {key!r} belongs to another run, of VM {vm.id}")
            return vm
        self._arriving[key] = trio.Event()
        try:
            return await admit()
        finally:
            self._arriving.pop(key).set()

    def add(self, vm: Vm) -> None:
        if vm.record.options.idempotency_key:
            self._by_key[vm.record.options.idempotency_key] = vm

    def remove(self, vm: Vm) -> None:
        if vm.record.options.idempotency_key:
            self._by_key.pop(vm.record.options.idempotency_key, None)
