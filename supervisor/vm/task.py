"""One VM's task: from the decision to start or adopt the VM to the last line of its record."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from supervisor.errors import (
    CloneFailed,
    HostError,
    LaunchError,
    PortsTaken,
    SupervisorError,
    VmEnded,
    single,
)
from supervisor.qemu import process
from supervisor.qemu.host import boot_id
from supervisor.state import file_errors
from supervisor.state.record import EndCause, EventKind
from supervisor.state.status import Reason, Status, VmState, status_after_missed_end
from supervisor.vm import attestation, compute, decisions, held_clone, restart, shutdown, ttl
from supervisor.vm.decisions import Next
from supervisor.vm.launch import Launcher, new_session
from supervisor.vm.qmp_events import QmpEvents
from supervisor.vm.relay import Relay

if TYPE_CHECKING:
    from supervisor.agent.dialled_server import Dialled
    from supervisor.qemu.host import Host
    from supervisor.qemu.ports import PortPool
    from supervisor.qemu.process import ProcessId
    from supervisor.qemu.users import User
    from supervisor.templates.registry import Templates
    from supervisor.vm.ownership import Ownership
    from supervisor.vm.session import Session
    from supervisor.vm.vm import Vm

log = structlog.stdlib.get_logger()

#: Starts of QEMU before a VM fails because its ports are taken.
_PORT_ATTEMPTS = 4

#: How long the removal of an ended VM's files may take.
_CLEAR_S = 10.0


@attrs.frozen
class Left:
    """A VM that an earlier supervisor began.

    :param process: with a pidfd, which the task closes; None if the process is gone
    """

    process: tuple[ProcessId, int] | None


class VmTask:
    """The task of one VM, and the owner of all that happens to it. `run` is called once."""

    def __init__(
        self,
        vm: Vm,
        host: Host,
        user: User | None,
        ports: PortPool,
        templates: Templates,
        dialled: Dialled,
        ownership: Ownership,
    ) -> None:
        self._vm = vm
        self._groups = host.groups
        self._scopes = host.scopes
        self._ports = ports
        self._templates = templates
        self._launcher = Launcher(vm, host, user, ports, templates)
        self._relay = Relay(vm, templates, dialled, ownership)
        #: Why the last launch failed, if it did and another one follows.
        self._relaunch_failure: SupervisorError | None = None

    async def run(self, left: Left | None = None) -> None:
        """Start or adopt the VM, and follow it to its end.

        Afterwards only its record and logs are left, and its disk if the run keeps it. A VM that
        is left to the next supervisor keeps everything.
        """
        vm, verdict = self._vm, None
        try:
            with vm.scope:
                verdict = await (self._start() if left is None else self._adopt(left))
                while (step := self._after_boot(verdict)) is not Next.END:
                    if step is Next.COLD_BOOT:
                        await self._launcher.prepare_cold_boot(self._relay.clone_failure, verdict)
                        self._relay.clone_failure = None
                    elif not await restart.wait(vm, self._relay, verdict):
                        break
                    boot = self._boot if step is Next.COLD_BOOT else self._boot_again
                    verdict = None  # of this boot
                    verdict = await boot()
                if step is Next.END and self._relaunch_failure:
                    raise self._relaunch_failure
        except Exception as error:
            cause = single(error)
            if isinstance(cause, OSError) and cause.errno in file_errors.OF_THE_HOST:
                cause = file_errors.launch_error(cause, vm.dir.path, f"VM {vm.id} failed")
            elif not isinstance(cause, SupervisorError):
                log.error("bug in a VM's task", vm=vm.id, exc_info=error)
                cause = SupervisorError(f"VM {vm.id} failed: {cause!r}")
            # One that is thrown away before its guest runs has no other end than this.
            unasked = vm.end_request is None or vm.end_request.cause.is_failure
            told = log.warning if unasked else log.info
            told("VM failed" if unasked else "VM given up", vm=vm.id, problem=str(cause))
            cause.vm_id = vm.id
            vm.failure = vm.failure or cause
        finally:
            try:
                await self._finalise(verdict)
            except Exception as error:
                log.error("bug at a VM's end", vm=vm.id, exc_info=error)
            finally:
                vm.close()

    async def _boot_again(self) -> Status:
        """Boot a VM that crashed. A launch that fails is a crash like others: what the host lacks
        now, it may have later.
        """
        # The QEMU before has nothing to say of this boot, not even its exit code.
        self._vm.session, self._relaunch_failure = None, None
        try:
            await self._vm.dir.check_firmware(self._vm.config.qemu.firmware)
            return await self._boot()
        except (LaunchError, HostError) as error:
            failure: LaunchError | HostError = error
        except OSError as error:
            if error.errno not in file_errors.OF_THE_HOST:
                raise
            consequence = f"VM {self._vm.id} is not started again now"
            failure = file_errors.launch_error(error, self._vm.dir.path, consequence)
        self._relaunch_failure = failure
        log.warning("launch failed", vm=self._vm.id, problem=str(failure))
        code = failure.exit_code if isinstance(failure, LaunchError) else None
        return decisions.launch_failed(code)

    def _after_boot(self, verdict: Status) -> Next:
        return decisions.after_boot(
            self._vm.record,
            verdict,
            clone_failed=self._relay.clone_failure is not None,
            end_requested=self._vm.end_request is not None,
            restart_limit=self._vm.config.life.restart_limit,
            now_s=self._vm.clock.boottime_s(),
        )

    # --- a new VM ---------------------------------------------------------------------------

    async def _start(self) -> Status:
        """Start a new VM, from a template if there is one, and see its first QEMU to its exit.

        If the start from the template fails, ``relay.clone_failure`` says why.
        """
        try:
            await self._launcher.prepare()
            return await self._boot()
        except CloneFailed as error:
            self._relay.clone_failure = error
            return self._vm.status

    async def _boot(self) -> Status:
        """Start one QEMU and see it to its exit.

        :raises LaunchError: if its guest never runs
        """
        taken: set[int] = set()
        for attempts_left in reversed(range(_PORT_ATTEMPTS)):
            try:
                async with self._launcher.start(taken) as session:
                    return await self._follow(session, new=True)
            except PortsTaken as error:
                if not error.ports or not attempts_left:
                    raise
                taken |= error.ports
                log.warning("port taken, trying others", vm=self._vm.id, ports=sorted(taken))
        raise AssertionError

    # --- a VM that another supervisor began -------------------------------------------------

    async def _adopt(self, left: Left) -> Status:
        """What the VM has come to, once its QEMU has exited."""
        vm, record = self._vm, self._vm.record
        if left.process is None:
            if await trio.to_thread.run_sync(self._groups.ran_out_of_memory, vm.id):
                return Status(VmState.CRASHED, Reason.OUT_OF_MEMORY)
            same_boot = not record.process or record.process.boot_id == boot_id()
            asked = record.ending is not None
            return status_after_missed_end(vm.status, same_boot=same_boot, asked=asked)
        identity, pidfd = left.process
        if record.ending:
            cause, why = record.end_cause or EndCause.API, "asked of the supervisor before"
            vm.request_end(record.ending, cause, why)
        with self._ports.hold(record.forwards):
            async with process.adopt(identity, pidfd, leave=lambda: vm.leaving) as qemu:
                if vm.status.state.ended:
                    return vm.status  # of what is on record as crashed, the rest
                vm.resumes += 1  # nobody knows whether it was paused before
                await self._relay.interrupt()
                await compute.was_cut_off(vm)
                if identity != record.process:
                    data = {"pid": identity.pid, "template": record.template}
                    await vm.commit(EventKind.LAUNCHED, data, process=identity)
                verdict = await self._follow(new_session(vm, qemu), new=False)
        if verdict.state is VmState.PRELAUNCH:
            return status_after_missed_end(vm.status, same_boot=True)
        return verdict

    # --- one QEMU ---------------------------------------------------------------------------

    async def _follow(self, session: Session, *, new: bool) -> Status:
        """See one QEMU to its exit, and all that goes on meanwhile.

        :param new: whether it was just started, and its guest has yet to run
        :return: what the VM has come to; a guest that never ran is still in PRELAUNCH
        """
        vm, qemu = self._vm, session.qemu
        vm.session = session
        template = self._launcher.template
        state = template.state if template else None
        handler = QmpEvents(vm, session, self._relay, new=new, template_state=state)
        async with session.open(handler) as nursery:
            nursery.start_soon(shutdown.shut_down_when_asked, vm, session)
            nursery.start_soon(self._relay.run, session)
            nursery.start_soon(held_clone.run_when_taken, vm, session)
            nursery.start_soon(self._scopes.place, vm.id, qemu.pidfd)
            nursery.start_soon(ttl.end_in_time, vm)
            nursery.start_soon(attestation.end_in_time, vm)
            nursery.start_soon(self._run_in_time, session, template is not None)
        if qemu.identity.sudo:
            await self._end_what_sudo_left()
        out_of_memory = await trio.to_thread.run_sync(self._groups.ran_out_of_memory, vm.id)
        if out_of_memory:
            session.refusal = "the kernel killed it: it took more memory than a VM may"
            log.warning("QEMU took more memory than a VM may", vm=vm.id)
        return decisions.session_verdict(
            vm.record,
            qemu.exit_code,
            watchdog_fired=session.watchdog_fired,
            out_of_memory=out_of_memory,
            killed=qemu.killed,
        )

    async def _run_in_time(self, session: Session, from_template: bool) -> None:
        """Kill QEMU if its guest does not run in time."""
        vm, config = self._vm, self._vm.config
        timeout_s, setting = config.life.start_timeout_s, "MANAGER_START_TIMEOUT"
        if from_template:
            timeout_s, setting = config.start.clone_timeout_s, "MANAGER_CLONE_TIMEOUT"
        while True:
            with trio.move_on_after(timeout_s) as patience:
                await vm.until(lambda: vm.status.state is not VmState.PRELAUNCH or vm.is_kept_back)
            if patience.cancelled_caught:
                break
            if not vm.is_kept_back:
                return
            await vm.until(lambda: not vm.is_kept_back)
        problem = session.connection.problem
        session.refusal = f"its guest did not run within {timeout_s:g} s, see {setting}; {problem}"
        await session.qemu.kill()

    async def _end_what_sudo_left(self) -> None:
        """End a QEMU whose sudo was killed: it would run on without a parent."""
        vm, tmp = self._vm, self._vm.config.qemu.tmp
        running = await trio.to_thread.run_sync(process.running_below, tmp)
        found = process.find(vm.dir.path, None, running)
        if found:
            log.warning("sudo has gone without its QEMU", vm=vm.id, pid=found[0].pid)
            async with process.adopt(*found, leave=lambda: vm.leaving):
                pass  # leaving ends it

    # --- the end ----------------------------------------------------------------------------

    async def _finalise(self, verdict: Status | None) -> None:
        """Remove what an ended VM needs no more, and write the last line of its record."""
        vm = self._vm
        if vm.leaving:
            await self._relay.interrupt()
            return
        keep, log_tail = vm.record.options.keep_disk, ""
        with trio.move_on_after(_CLEAR_S, shield=True):
            await trio.to_thread.run_sync(partial(vm.dir.clear, disks=not keep))
            log_tail = await trio.to_thread.run_sync(vm.dir.log_tail)
            await trio.to_thread.run_sync(self._groups.remove, vm.id)
        if not keep:
            self._templates.release(vm.id)
        qemu = vm.session.qemu if vm.session else None
        exit_code = qemu.exit_code if qemu else vm.record.exit_code
        exited = qemu is not None and qemu.gone
        status = decisions.final_status(vm.record, verdict, exit_code, exited=exited)
        if vm.failure is None and vm.record.awaits_answer:
            ended = "the guest has ended" if vm.status.state is VmState.SHUTDOWN else log_tail
            why = vm.end_request.why if vm.end_request else ended
            vm.failure = VmEnded(vm.id, status.state, status.reason, why)
        await vm.set_status(
            status,
            exit_code=exit_code,
            error=decisions.final_error(vm.record, status, vm.failure, log_tail),
            relay=decisions.final_relay(vm.record),
            computed=compute.final(vm.record.computed),
            ended_at=datetime.now(UTC),
            ended_s=vm.clock.boottime_s(),
            ended_boot=boot_id(),
        )
