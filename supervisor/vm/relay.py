"""A VM's computation on its way to the agent and back.

It goes there once; again only for a guest that is booted again, as its run asked for.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from supervisor.agent import client
from supervisor.config import RestartPolicy
from supervisor.errors import AgentError, AgentTimeout, CloneFailed, SupervisorError
from supervisor.qemu.process import EXIT_LAG_S
from supervisor.state.record import EndMode, Purpose, RelayState
from supervisor.state.status import VmState
from supervisor.waiting import CutShort, unless

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisor.agent.client import Agent
    from supervisor.qemu.cmdline import Forward
    from supervisor.vm.vm import Vm

log = structlog.stdlib.get_logger()

#: What each copy of a guest gets of the host's entropy: twice what its kernel's key holds.
_ENTROPY_BYTES = 64

#: The longest that an agent may take for its first answer before a VM counts as ready.
_WARM_UP_S = 3.0


class Relay:
    """One VM's. ``settled`` is set once the computation has had all the fate it will have."""

    def __init__(self, vm: Vm) -> None:
        self.settled = trio.Event()
        self.agent_ready = False
        #: Whether the guest is ready to be frozen, and nobody is connected to it any more.
        self.prepared = False
        self.failure: SupervisorError | None = None
        self._vm = vm
        self._reset = trio.Event()
        self._breaking_off = trio.Lock()
        #: Whether the answer is here, and at most on its way to the disk.
        self._answered = False
        if vm.record.ended_at or not (self.pending or self.state is RelayState.IDLE):
            self.settled.set()

    @property
    def state(self) -> RelayState:
        return self._vm.record.relay

    @property
    def pending(self) -> bool:
        """Whether an answer may yet come."""
        return self.state in (RelayState.WAITING, RelayState.SENT)

    def address(self, forwards: Sequence[Forward]) -> str:
        """``host:port`` of the agent in a VM with these forwards."""
        return client.address(self._vm.config.agent, forwards)

    def final(self) -> RelayState:
        """What the VM's end makes of it."""
        return RelayState.FAILED if self.pending else self.state

    async def run(self) -> None:
        """Meet the agent, and again after each reset. To be cancelled at QEMU's end."""
        vm = self._vm
        await vm.until(lambda: vm.status.state is not VmState.PRELAUNCH)
        try:
            while True:
                self._reset = trio.Event()
                # A held guest's agent cannot answer, and QEMU's user network forgets none of the
                # connections that are tried meanwhile.
                await vm.until(lambda: vm.status.state is VmState.RUNNING)
                try:
                    await unless(self._cut_off, self._meet)
                except CutShort:
                    if self._reset.is_set():
                        await self.interrupt()  # it may have been sent just then
                        await vm.write_deferred()  # that it is no copy any more
                    continue
                except CloneFailed as error:
                    log.warning("clone failed", vm=vm.id, problem=str(error))
                    vm.clone_failure = error
                    if vm.qemu:
                        await vm.qemu.kill()  # what follows is decided by the VM's task
                except SupervisorError as error:
                    await self._fail(error)
                await self._reset.wait()
        finally:
            self.agent_ready = False

    async def _cut_off(self) -> None:
        """Return when the agent is to be met anew: after a reset, or a hold before it is ready."""
        vm = self._vm
        await vm.until(
            lambda: (
                self._reset.is_set() or (vm.status.state is VmState.PAUSED and not self.agent_ready)
            )
        )

    async def interrupt(self) -> None:
        """Another supervisor, or a guest before a reset, had it: nobody knows what became of it."""
        async with self._breaking_off:  # whoever comes second finds it done
            if self.state is RelayState.SENT and not self._answered:
                log.warning("relay interrupted", vm=self._vm.id)
                error = "the computation was with the agent when the way back was cut off"
                await self._commit(RelayState.INTERRUPTED, error=error)
                self.settled.set()

    async def guest_was_reset(self) -> None:
        """Look for the agent anew; it is no copy's any more."""
        self._vm.forget("agent")
        self.prepared = False
        if self._vm.record.template and not self._vm.record.renewed:
            self._vm.defer("renewed", {}, renewed=True)
        self.agent_ready = False
        # At once: the call that the reset broke off is not to be judged while the disk is slow.
        self._reset.set()
        self._vm.wake()
        await self.interrupt()

    async def again(self) -> None:
        """The guest is booted again, as its run asked for: its agent gets the computation again."""
        self._vm.forget("agent")
        self._answered = False
        if self.state is not RelayState.FAILED:
            if self.state is RelayState.INTERRUPTED:
                self.settled = trio.Event()
            await self._commit(RelayState.WAITING, error=None)

    async def _meet(self) -> None:
        vm = self._vm
        target = vm.record.agent_address or self.address(vm.record.forwards)
        async with client.connect(vm.id, target, vm.config.agent) as guest_agent:
            if vm.record.template and not vm.record.renewed:
                await self._renew(guest_agent)
            else:
                await self._wait_ready(guest_agent)
            if vm.end_request.any.is_set():
                await trio.sleep_forever()  # too late for a computation; the end cancels us
            # To ask anew after an adoption brings no news.
            if vm.reached("agent"):
                vm.defer("agent", {"address": target})
                log.info("agent ready", vm=vm.id, agent=target)
            if vm.record.purpose is Purpose.POOL:
                await vm.write_deferred()
                with trio.move_on_after(_WARM_UP_S), suppress(CutShort):
                    await unless(self._given, guest_agent.warm_up)
            self.agent_ready = True
            vm.wake()
            if vm.record.purpose is Purpose.TEMPLATE:
                await guest_agent.prepare()
            else:
                await self._serve(guest_agent)
        self.prepared = vm.record.purpose is Purpose.TEMPLATE
        vm.wake()

    async def _serve(self, guest_agent: Agent) -> None:
        """Send the computation, once there is one."""
        vm = self._vm
        if self.state is not RelayState.WAITING:
            await vm.write_deferred()
        if self.state is RelayState.IDLE:
            await self._given()
        if self.state is RelayState.WAITING:
            await self._send(guest_agent)

    async def _given(self) -> None:
        await self._vm.until(lambda: self.state is not RelayState.IDLE)

    async def _renew(self, guest_agent: Agent) -> None:
        """Make a twin a guest of its own, before anything else is asked of it."""
        vm, timeout_s = self._vm, self._vm.config.start.clone_timeout_s

        async def renew() -> None:
            # It listens from the first: where many start at once, it is only slow to answer.
            await guest_agent.wait_ready(timeout_s / 3)
            await guest_agent.renew(os.urandom(_ENTROPY_BYTES))

        try:
            await unless(partial(self._time_is_up, timeout_s), renew)
        except CutShort:
            raise CloneFailed(
                vm.id, f"its agent did not answer within {timeout_s:g} s, see MANAGER_CLONE_TIMEOUT"
            ) from None
        except AgentError as error:
            if vm.end_request.any.is_set() or await self._gone():
                await trio.sleep_forever()  # the VM's end has the word, and cancels us
            why = f"its agent does not renew itself: {error.code}, {error.text}"
            raise CloneFailed(vm.id, why) from error
        vm.reached("renew")
        vm.defer("renewed", {}, renewed=True)
        vm.templates.came_up(vm.record.template or "")

    async def _wait_ready(self, guest_agent: Agent) -> None:
        if self.state not in (RelayState.WAITING, RelayState.IDLE):
            return await guest_agent.wait_ready()
        vm, timeout_s = self._vm, self._vm.config.agent.boot_timeout_s
        try:
            return await unless(partial(self._time_is_up, timeout_s), guest_agent.wait_ready)
        except CutShort:
            raise AgentTimeout(
                vm.id,
                f"the agent of VM {vm.id} was not ready {timeout_s:g} s after the guest's start,"
                f" see MANAGER_BOOT_TIMEOUT; {vm.dir.what_was_printed()}",
            ) from None

    async def _time_is_up(self, allowed_s: float) -> None:
        """Return when the guest has run for so long from now on: a held one cannot hurry."""
        vm, left_s = self._vm, allowed_s
        while True:
            await vm.until(lambda: vm.status.state is not VmState.PAUSED)
            began = trio.current_time()
            with trio.move_on_after(left_s):
                await vm.until(lambda: vm.status.state is VmState.PAUSED)
                left_s -= trio.current_time() - began
                continue
            return

    async def _send(self, guest_agent: Agent) -> None:
        vm = self._vm
        try:
            computation = await vm.dir.read_computation()
        except OSError as error:
            raise SupervisorError(f"the computation of VM {vm.id} is lost: {error}") from error
        await self._commit(RelayState.SENT)
        if vm.record.options.restart is RestartPolicy.NEVER:
            vm.dir.computation.unlink(missing_ok=True)
        reply = await self._call(guest_agent, computation)
        vm.reached("relay")
        self._answered = True
        # A reset that comes now is too late.
        with trio.CancelScope(shield=True):
            await vm.dir.keep_reply(reply)
            vm.reply = reply
            await self._commit(RelayState.ANSWERED)
            self.settled.set()

    async def _call(self, guest_agent: Agent, computation: bytes) -> str:
        vm, timeout_s = self._vm, self._vm.config.agent.timeout_s
        time_is_up = partial(self._time_is_up, timeout_s)
        try:
            return await unless(time_is_up, guest_agent.run, computation)
        except CutShort:
            raise AgentTimeout(
                vm.id,
                f"the agent of VM {vm.id} at {guest_agent.address} did not answer Run within"
                f" {timeout_s:g} s; see MANAGER_AGENT_GRPC_TIMEOUT",
            ) from None
        except AgentError as error:
            if error.code != "UNAVAILABLE":
                raise
            if vm.end_request.any.is_set() or await self._gone():
                await trio.sleep_forever()  # the VM's end has the word, and cancels us
            hint = f"; {vm.dir.what_was_printed()}"
            raise AgentError(vm.id, error.code, error.text, hint) from error

    async def _gone(self) -> bool:
        # Ports close a moment before the process that held them is seen to be gone.
        with trio.move_on_after(EXIT_LAG_S):
            if self._vm.qemu:
                await self._vm.qemu.wait()
            return True
        return False

    async def _fail(self, error: SupervisorError) -> None:
        """A VM whose computation came to nothing is of no use to anybody."""
        log.warning("run failed", vm=self._vm.id, problem=str(error))
        self.failure = error
        async with self._breaking_off:
            await self._commit(RelayState.FAILED, error=str(error))
        self.settled.set()
        self._vm.ask_to_end(EndMode.FORCE, "its run failed")

    async def _commit(self, state: RelayState, **changes: object) -> None:
        await self._vm.commit("relay", {"state": state}, relay=state, **changes)
