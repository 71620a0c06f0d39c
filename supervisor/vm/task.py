"""One VM's task: from the decision to start or adopt the VM to the last line of its record."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from supervisor.agent import client
from supervisor.config import TemplateUse
from supervisor.errors import (
    CloneFailed,
    HostError,
    LaunchError,
    PortsTaken,
    SupervisorError,
    TemplateError,
    VmEnded,
    single,
)
from supervisor.qemu import cmdline, process
from supervisor.qemu.connection import Connection
from supervisor.qemu.host import boot_id
from supervisor.state import file_errors
from supervisor.state.record import EndCause, EventKind, Phase, Purpose
from supervisor.state.status import (
    Reason,
    RunState,
    Status,
    Trigger,
    VmState,
    next_status,
    status_after_missed_end,
)
from supervisor.state.vm_dir import preparers
from supervisor.vm import decisions, restart, shutdown, ttl
from supervisor.vm.decisions import Next
from supervisor.vm.qmp_events import QmpEvents
from supervisor.vm.relay import Relay
from supervisor.vm.session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from supervisor.qemu.cmdline import Forward
    from supervisor.qemu.host import Host
    from supervisor.qemu.ports import PortPool
    from supervisor.qemu.process import ProcessId, Qemu
    from supervisor.templates.registry import Templates
    from supervisor.templates.template import Template
    from supervisor.vm.vm import Vm

log = structlog.stdlib.get_logger()

#: QEMU's words on a port that somebody else has.
_PORT_TAKEN = re.compile(r"Could not set up host forwarding rule '[^']*:(\d+)-[^']*'")

#: Starts of QEMU before a VM fails because its ports are taken.
_PORT_ATTEMPTS = 4

#: The phases that a cold boot repeats after a clone has failed.
_STEPS_OF_A_BOOT = (
    *(Phase.OVERLAY, Phase.SPAWN, Phase.GREETING, Phase.RESTORE),
    *(Phase.RUNNING, Phase.RENEW, Phase.AGENT),
)

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

    def __init__(self, vm: Vm, host: Host, ports: PortPool, templates: Templates) -> None:
        self._vm = vm
        self._host = host
        self._ports = ports
        self._templates = templates
        self._relay = Relay(vm, templates)
        #: What the record says of what the VM is made of, once QEMU runs.
        self._fingerprint = vm.record.fingerprint
        self._template: str | None = vm.record.template
        self._base = vm.record.base
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
                verdict = await (self._launch() if left is None else self._adopt(left))
                while (step := self._after_boot(verdict)) is not Next.END:
                    if step is Next.COLD_BOOT:
                        await self._prepare_cold_boot(verdict)
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
            log.warning("VM failed", vm=vm.id, problem=str(cause))
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
            self._relaunch_failure = error
            log.warning("launch failed", vm=self._vm.id, problem=str(error))
            code = error.exit_code if isinstance(error, LaunchError) else None
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

    async def _launch(self) -> Status:
        """Start a new VM, from a template if there is one, and see its first QEMU to its exit."""
        vm, config = self._vm, self._vm.config.qemu
        becomes_template = vm.record.purpose is Purpose.TEMPLATE
        use = TemplateUse.OFF if becomes_template else vm.record.options.template
        self._fingerprint, template = await self._templates.choose(vm.id, use)
        if template:
            self._template = template.name
            return await self._clone(template)
        ram_bytes = config.memory_bytes if becomes_template else None
        self._base = await vm.dir.prepare(config.disk, config.firmware, ram_bytes)
        vm.reached(Phase.OVERLAY)
        return await self._boot()

    async def _clone(self, template: Template) -> Status:
        """Start a VM from a template. If that fails, ``relay.clone_failure`` says why."""
        vm = self._vm
        try:
            clone_into = template.clone_into
            self._base = await trio.to_thread.run_sync(clone_into, vm.dir, limiter=preparers)
            vm.reached(Phase.OVERLAY)
            return await self._boot(template)
        except PortsTaken:
            raise
        except TemplateError as error:
            self._relay.clone_failure = CloneFailed(vm.id, str(error))
        except (LaunchError, OSError) as error:
            # If QEMU was never started, the template is not to blame.
            ran = isinstance(error, LaunchError) and error.exit_code is not None
            what = file_errors.describe(error, vm.dir.path)[0] if isinstance(error, OSError) else ""
            self._relay.clone_failure = CloneFailed(vm.id, what or str(error), blames_template=ran)
        return vm.status

    async def _prepare_cold_boot(self, verdict: Status) -> None:
        """Undo the start from the template, and prepare a boot without it.

        :raises CloneFailed: if its run requires a template
        """
        vm = self._vm
        failure = self._relay.clone_failure or CloneFailed(
            vm.id,
            f"its guest ended: {verdict.reason}",
            blames_template=verdict.reason != Reason.LAUNCH_INTERRUPTED,
        )
        name = vm.record.template or self._template or ""
        if failure.blames_template:
            self._templates.failed(name)
        if vm.record.options.template is TemplateUse.REQUIRE:
            raise failure
        log.warning("booting from cold instead", vm=vm.id, template=name, problem=failure.why)
        if verdict.state.ended:
            await vm.set_status(Status(VmState.CRASHED, verdict.reason))
            restarted = next_status(vm.status, Trigger.RESTART, RunState.PRELAUNCH)
            await vm.set_status(restarted, running_since_s=None, first_ran_s=None)
        data = {"template": name, "why": failure.why}
        await vm.commit(EventKind.FALLBACK, data, template=None, renewed=False)
        self._relay.clone_failure = None
        self._fingerprint, self._template = await self._templates.present(), None
        vm.forget_phases(*_STEPS_OF_A_BOOT)
        config = vm.config.qemu
        self._base = await vm.dir.prepare(config.disk, config.firmware)
        self._templates.release(vm.id)
        vm.reached(Phase.OVERLAY)

    async def _boot(self, template: Template | None = None) -> Status:
        """Start one QEMU and see it to its exit.

        :raises LaunchError: if its guest never runs
        """
        taken: set[int] = set()
        for attempts_left in reversed(range(_PORT_ATTEMPTS)):
            with self._ports.reserve(taken) as forwards:
                try:
                    return await self._start_qemu(forwards, template)
                except PortsTaken as error:
                    taken |= error.ports
                    if not attempts_left:
                        raise
                    log.warning("port taken, trying others", vm=self._vm.id, ports=sorted(taken))
        raise AssertionError

    async def _start_qemu(self, forwards: Sequence[Forward], template: Template | None) -> Status:
        vm, config = self._vm, self._vm.config.qemu
        machine = await self._machine(forwards, template)
        command = cmdline.command(config, machine)
        log.info(cmdline.shell_line(command), vm=vm.id)
        await vm.dir.check_base(self._base)
        async with AsyncExitStack() as stack:
            with await trio.to_thread.run_sync(vm.dir.listen_qmp) as listener:
                argv = cmdline.argv(config, machine)
                starting = process.start(argv, listener, vm.dir.qemu_log, leave=self._is_left)
                qemu = await stack.enter_async_context(starting)
            vm.reached(Phase.SPAWN)
            # Written with the next change: after a crash, recovery finds the process by its uuid.
            vm.defer(
                EventKind.LAUNCHED,
                {"pid": qemu.pid, "template": self._template},
                fingerprint=self._fingerprint,
                template=self._template,
                base=self._base,
                process=qemu.identity,
                forwards=tuple(forwards),
                command=tuple(command),
                agent_address=client.address(vm.config.agent, forwards),
                exit_code=None,
            )
            session = self._session(qemu)
            state = template.state if template else None
            verdict = await self._follow(session, new=True, template_state=state)
            if verdict.state is VmState.PRELAUNCH:
                raise await self._never_ran(session, command)
            return verdict

    async def _machine(
        self, forwards: Sequence[Forward], template: Template | None
    ) -> cmdline.Machine:
        vm_dir, ram = self._vm.dir, None
        if template:
            ram = cmdline.Ram(template.ram, shared=False)
        elif self._vm.record.purpose is Purpose.TEMPLATE:
            ram = cmdline.Ram(vm_dir.ram, shared=True)
        return cmdline.Machine(
            vm_id=self._vm.id,
            qemu=await trio.to_thread.run_sync(self._host.look_at_qemu),
            accel=self._host.accel,
            forwards=forwards,
            overlay=vm_dir.overlay,
            firmware_vars=vm_dir.firmware_vars,
            serial_log=vm_dir.serial_log,
            qmp_socket=vm_dir.qmp_socket,
            ram=ram,
        )

    async def _never_ran(self, session: Session, command: Sequence[str]) -> SupervisorError:
        vm = self._vm
        if vm.end_request:
            return VmEnded(vm.id, VmState.PRELAUNCH, vm.end_request.why)
        log_tail = await trio.to_thread.run_sync(vm.dir.log_tail)
        return _launch_error(vm, session, command, log_tail)

    # --- a VM that another supervisor began -------------------------------------------------

    async def _adopt(self, left: Left) -> Status:
        """What the VM has come to, once its QEMU has exited."""
        vm, record = self._vm, self._vm.record
        if left.process is None:
            same_boot = not record.process or record.process.boot_id == boot_id()
            asked = record.ending is not None
            return status_after_missed_end(vm.status, same_boot=same_boot, asked=asked)
        identity, pidfd = left.process
        if record.ending:
            cause, why = record.end_cause or EndCause.API, "asked of the supervisor before"
            vm.request_end(record.ending, cause, why)
        with self._ports.hold(record.forwards):
            async with process.adopt(identity, pidfd, leave=self._is_left) as qemu:
                if vm.status.state.ended:
                    return vm.status  # of what is on record as crashed, the rest
                vm.resumes += 1  # nobody knows whether it was paused before
                await self._relay.interrupt()
                if identity != record.process:
                    data = {"pid": identity.pid, "template": record.template}
                    await vm.commit(EventKind.LAUNCHED, data, process=identity)
                verdict = await self._follow(self._session(qemu), new=False)
        if verdict.state is VmState.PRELAUNCH:
            return status_after_missed_end(vm.status, same_boot=True)
        return verdict

    # --- one QEMU ---------------------------------------------------------------------------

    def _session(self, qemu: Qemu) -> Session:
        config = self._vm.config
        connection = Connection(self._vm.id, self._vm.dir.qmp_socket, config.life, config.timing)
        return Session(qemu, connection)

    async def _follow(
        self, session: Session, *, new: bool, template_state: Path | None = None
    ) -> Status:
        """See one QEMU to its exit, and all that goes on meanwhile.

        :param new: whether it was just started, and its guest has yet to run
        :return: what the VM has come to; a guest that never ran is still in PRELAUNCH
        """
        vm, qemu = self._vm, session.qemu
        vm.session = session
        handler = QmpEvents(vm, session, self._relay, new=new, template_state=template_state)
        async with session.open(handler) as nursery:
            nursery.start_soon(shutdown.shut_down_when_asked, vm, session)
            nursery.start_soon(self._relay.run, session)
            nursery.start_soon(ttl.end_in_time, vm)
            nursery.start_soon(self._run_in_time, session, template_state is not None)
        if qemu.identity.sudo:
            await self._end_what_sudo_left()
        return decisions.session_verdict(
            vm.record, qemu.exit_code, watchdog_fired=session.watchdog_fired, killed=qemu.killed
        )

    async def _run_in_time(self, session: Session, from_template: bool) -> None:
        """Kill QEMU if its guest does not run in time."""
        vm, config = self._vm, self._vm.config
        timeout_s, setting = config.life.start_timeout_s, "MANAGER_START_TIMEOUT"
        if from_template:
            timeout_s, setting = config.start.clone_timeout_s, "MANAGER_CLONE_TIMEOUT"
        with trio.move_on_after(timeout_s):
            await vm.until(lambda: vm.status.state is not VmState.PRELAUNCH)
            return
        problem = session.connection.problem
        session.refusal = f"its guest did not run within {timeout_s:g} s, see {setting}; {problem}"
        await session.qemu.kill()

    async def _end_what_sudo_left(self) -> None:
        """End a QEMU whose sudo was killed: it would run on without a parent."""
        vm, tmp = self._vm, self._vm.config.qemu.tmp
        running = await trio.to_thread.run_sync(process.running_below, tmp)
        found = process.find(vm.id, None, running)
        if found:
            log.warning("sudo has gone without its QEMU", vm=vm.id, pid=found[0].pid)
            async with process.adopt(*found, leave=self._is_left):
                pass  # leaving ends it

    def _is_left(self) -> bool:
        return self._vm.leaving

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
            ended_at=datetime.now(UTC),
            ended_s=vm.clock.boottime_s(),
            ended_boot=boot_id(),
        )


def _launch_error(vm: Vm, session: Session, command: Sequence[str], log_tail: str) -> LaunchError:
    """Why a guest never ran: PortsTaken if another attempt may help."""
    exit_code = session.qemu.exit_code
    how = f"failed ({session.refusal})" if session.refusal else f"ended with exit code {exit_code}"
    detail = f"QEMU of VM {vm.id} {how} before its guest ran; its log is {vm.dir.qemu_log}"
    ports = {int(port) for port in _PORT_TAKEN.findall(log_tail)}
    if ports:
        return PortsTaken(detail, ports=ports, argv=command, exit_code=exit_code, log_tail=log_tail)
    return LaunchError(detail, argv=command, exit_code=exit_code, log_tail=log_tail)
