"""One VM's task: from the decision to start it, or to take it up, to its last words on record."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from supervisor.config import TemplateUse
from supervisor.errors import (
    CloneFailed,
    LaunchError,
    PortsTaken,
    SupervisorError,
    TemplateError,
    VmEnded,
    single,
)
from supervisor.qemu import cmdline, process
from supervisor.state.record import Purpose
from supervisor.state.status import (
    Status,
    Trigger,
    VmState,
    next_status,
    status_after_exit,
    status_after_missed_end,
)
from supervisor.state.vm_dir import preparers
from supervisor.vm.session import Session
from supervisor.vm.shutdown import EndRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from supervisor.qemu.cmdline import Forward
    from supervisor.qemu.host import Host
    from supervisor.qemu.ports import PortPool
    from supervisor.qemu.process import ProcessId, Qemu
    from supervisor.state.vm_dir import VmDir
    from supervisor.templates.template import Template
    from supervisor.vm.vm import Vm

log = structlog.stdlib.get_logger()

#: QEMU's words on a port that somebody else has.
_PORT_TAKEN = re.compile(r"Could not set up host forwarding rule '[^']*:(\d+)-[^']*'")

#: How often a VM is started anew because somebody took one of its ports meanwhile.
_PORT_ATTEMPTS = 4
#: How long the removal of an ended VM's disk may have to wait.
_BURIAL_S = 10.0


class VmTask:
    """The task of one VM. Either of `run` and `take_up` is called, once."""

    def __init__(self, vm: Vm, host: Host, ports: PortPool) -> None:
        self._vm = vm
        self._host = host
        self._ports = ports
        #: What the record is to say of what the VM is made of.
        self._made: dict[str, str | None] = {}

    async def run(self) -> None:
        """A new VM's whole life. When it returns, nothing of the VM is left but what is to be.

        That is its record and logs, a disk that is to be kept, and all of a VM that is left to
        the next supervisor.
        """
        await self._live(self._launch)

    async def take_up(self, found: tuple[ProcessId, int] | None) -> None:
        """The rest of the life of a VM that another supervisor began.

        :param found: its process and a pidfd of that, which is closed here; None if it is gone
        """
        await self._live(partial(self._adopt, found))

    async def _live(self, begin: Callable[[], Awaitable[Status]]) -> None:
        verdict = None
        try:
            with self._vm.scope:
                verdict = await begin()
                if failure := self._clone_failure(verdict):
                    await self._fall_back(verdict, failure)
                    verdict = None  # of this boot
                    verdict = await self._boot()
                while self._vm.restarts.wanted(self._vm.record, verdict):
                    if not await self._vm.restarts.wait(self._vm, verdict):
                        break
                    verdict = None  # of this boot
                    verdict = await self._boot()
        except Exception as error:
            cause = single(error)
            if not isinstance(cause, SupervisorError):
                log.error("bug in a VM's task", vm=self._vm.id, exc_info=error)
                cause = SupervisorError(f"VM {self._vm.id} failed: {cause!r}")
            log.warning("VM failed", vm=self._vm.id, problem=str(cause))
            cause.vm_id = self._vm.id
            self._vm.failure = cause
        finally:
            try:
                await self._finish(verdict)
            except Exception as error:
                log.error("bug at a VM's end", vm=self._vm.id, exc_info=error)
            finally:
                self._vm.close()

    async def _launch(self) -> Status:
        vm, config = self._vm, self._vm.config.qemu
        is_template = vm.record.purpose is Purpose.TEMPLATE
        use = TemplateUse.OFF if is_template else vm.record.options.template
        fingerprint, template = await vm.templates.choose(vm.id, use)
        self._made = {"fingerprint": fingerprint, "template": template.name if template else None}
        if template:
            return await self._clone(template)
        await vm.dir.prepare(
            config.disk, config.firmware, config.memory_bytes if is_template else None
        )
        vm.reached("overlay")
        return await self._boot()

    async def _clone(self, template: Template) -> Status:
        """A VM from a template. Where it does not come up, the VM's ``clone_failure`` says why."""
        vm = self._vm
        try:
            await trio.to_thread.run_sync(template.pour, vm.dir, limiter=preparers)
            vm.reached("overlay")
            return await self._boot(template)
        except PortsTaken:
            raise
        except TemplateError as error:
            vm.clone_failure = CloneFailed(vm.id, str(error))
        except (LaunchError, OSError) as error:
            # What was never started says nothing about the template.
            ran = isinstance(error, LaunchError) and error.exit_code is not None
            vm.clone_failure = CloneFailed(vm.id, str(error), blames_template=ran)
        return vm.status

    def _clone_failure(self, verdict: Status) -> CloneFailed | None:
        """Why the VM is to be tried again without its template, if it is."""
        vm, record = self._vm, self._vm.record
        if vm.end_request.for_good.is_set() or record.ending or verdict.reason == "host-reboot":
            return None
        if vm.clone_failure or not (verdict.state.ended and record.template):
            return vm.clone_failure
        if record.renewed:
            return None
        blamed = verdict.reason != "launch-interrupted"
        return CloneFailed(vm.id, f"its guest ended: {verdict.reason}", blamed)

    async def _fall_back(self, verdict: Status, failure: CloneFailed) -> None:
        """Make all as it was before the VM was tried from its template.

        :raises CloneFailed: if it is not to be had otherwise
        """
        vm = self._vm
        name = vm.record.template or self._made.get("template") or ""
        if failure.blames_template:
            vm.templates.failed(name)
        if vm.record.options.template is TemplateUse.REQUIRE:
            raise failure
        log.warning("booting from cold instead", vm=vm.id, template=name, problem=failure.why)
        vm.end_request = EndRequest()  # of the guest that was seen off
        if verdict.state.ended:
            await vm.set_status(Status(VmState.CRASHED, verdict.reason))
            restarted = next_status(vm.status, Trigger.RESTART, "prelaunch")
            await vm.set_status(restarted, running_since_s=None, first_ran_s=None)
        told = {"template": name, "why": failure.why}
        await vm.commit("fallback", told, template=None, renewed=False)
        vm.clone_failure = None
        self._made = {"fingerprint": await vm.templates.present(), "template": None}
        vm.forget("overlay", "spawn", "greeting", "restore", "running", "renew", "agent")
        config = vm.config.qemu
        await vm.dir.prepare(config.disk, config.firmware)
        vm.templates.release(vm.id)
        vm.reached("overlay")

    async def _boot(self, template: Template | None = None) -> Status:
        """One QEMU, from its start to its end.

        :raises LaunchError: if its guest never runs
        """
        taken: set[int] = set()
        for attempts_left in reversed(range(_PORT_ATTEMPTS)):
            with self._ports.reserve(taken) as forwards:
                try:
                    return await self._start(forwards, template)
                except PortsTaken as error:
                    taken |= _ports_taken(error.log_tail)
                    if not attempts_left:
                        raise
                    log.warning("port taken, trying others", vm=self._vm.id, ports=sorted(taken))
        raise AssertionError

    async def _start(self, forwards: Sequence[Forward], template: Template | None) -> Status:
        config = self._vm.config.qemu
        ram = None
        if template:
            ram = cmdline.Ram(template.ram, shared=False)
        elif self._vm.record.purpose is Purpose.TEMPLATE:
            ram = cmdline.Ram(self._vm.dir.ram, shared=True)
        made = cmdline.Machine(
            vm_id=self._vm.id,
            qemu=self._host.qemu,
            accel=self._host.accel,
            forwards=forwards,
            overlay=self._vm.dir.overlay,
            firmware_vars=self._vm.dir.firmware_vars,
            serial_log=self._vm.dir.serial_log,
            qmp_socket=self._vm.dir.qmp_socket,
            ram=ram,
        )
        command = cmdline.command(config, made)
        log.info(cmdline.shell_line(command), vm=self._vm.id)
        async with AsyncExitStack() as stack:
            with self._vm.dir.listen_qmp() as listener:
                argv = cmdline.argv(config, made)
                started = process.start(argv, listener, self._vm.dir.qemu_log, leave=self._left)
                qemu = await stack.enter_async_context(started)
            self._vm.reached("spawn")
            # Not worth a write of its own: who comes after us finds the process by its uuid.
            record = self._vm.record
            self._vm.defer(
                "launched",
                {"pid": qemu.pid, "template": self._made.get("template", record.template)},
                **self._made,
                process=qemu.identity,
                forwards=tuple(forwards),
                command=tuple(command),
                agent_address=self._vm.relay.address(forwards),
                exit_code=None,
            )
            state = template.state if template else None
            following = Session(self._vm, qemu, new=True, state=state)
            verdict = await following.to_the_end()
            if verdict.state is VmState.PRELAUNCH:
                raise self._never_ran(qemu, command, following.hung)
            return verdict

    async def _adopt(self, found: tuple[ProcessId, int] | None) -> Status:
        """What a VM has come to that another supervisor began, once that has ended."""
        if found is None:
            asked = self._vm.record.ending is not None
            same_boot = self._same_boot()
            return status_after_missed_end(self._vm.status, same_boot=same_boot, asked=asked)
        identity, pidfd = found
        if self._vm.record.ending:
            self._vm.ask_to_end(self._vm.record.ending, "asked of the supervisor before")
        if self._vm.status.state is VmState.SHUTDOWN:
            # It waits to be told to quit, and no event tells of it again.
            self._vm.quit_after_guest_shutdown()
        with self._ports.hold(self._vm.record.forwards):
            async with process.adopt(identity, pidfd, leave=self._left) as qemu:
                if self._vm.status.state.ended:
                    return self._vm.status  # of what is on record as crashed, the rest
                await self._vm.relay.interrupt()
                if identity != self._vm.record.process:
                    told = {"pid": identity.pid, "template": self._vm.record.template}
                    await self._vm.commit("launched", told, process=identity)
                verdict = await Session(self._vm, qemu, new=False).to_the_end()
        if verdict.state is VmState.PRELAUNCH:
            return status_after_missed_end(self._vm.status, same_boot=True)
        return verdict

    def _same_boot(self) -> bool:
        return not self._vm.record.process or self._vm.record.process.boot_id == process.boot_id()

    def _left(self) -> bool:
        return self._vm.leaving

    def _never_ran(self, qemu: Qemu, command: Sequence[str], hung: str) -> SupervisorError:
        if self._vm.end_request.mode:
            return VmEnded(self._vm.id, "prelaunch", self._vm.end_request.why)
        return _launch_error(self._vm.id, qemu, self._vm.dir, command, hung)

    # --- the end ----------------------------------------------------------------------------

    async def _finish(self, verdict: Status | None) -> None:
        if self._vm.leaving:
            await self._vm.relay.interrupt()
            return
        keep = self._vm.record.options.keep_disk
        clear = partial(self._vm.dir.clear, disks=not keep)
        with trio.move_on_after(_BURIAL_S, shield=True):
            await trio.to_thread.run_sync(clear)
        if not keep:
            self._vm.templates.release(self._vm.id)
        await self._finalise(verdict)

    async def _finalise(self, verdict: Status | None) -> None:
        """The last words on record."""
        qemu, record = self._vm.qemu, self._vm.record
        exit_code = qemu.exit_code if qemu else record.exit_code
        if verdict is None and qemu and qemu.gone and record.status.state is VmState.SHUTDOWN:
            verdict = status_after_exit(record.status, exit_code)
        if verdict is None or not verdict.state.ended:
            code = "none" if exit_code is None else exit_code
            verdict = Status(VmState.CRASHED, f"exit:{code}")
        tail = self._vm.dir.log_tail()
        if self._vm.failure is None and self._vm.relay.pending:
            why = self._vm.end_request.why or tail
            self._vm.failure = VmEnded(self._vm.id, verdict.state, verdict.reason, why)
        error = self._vm.record.error or (str(self._vm.failure) if self._vm.failure else None)
        if error is None and verdict.state is VmState.CRASHED:
            error = tail or f"QEMU ended: {verdict.reason}"
        await self._vm.set_status(
            verdict,
            exit_code=exit_code,
            error=error,
            relay=self._vm.relay.final(),
            ended_at=datetime.now(UTC),
        )


def _launch_error(
    vm_id: str, qemu: Qemu, vm_dir: VmDir, command: Sequence[str], problem: str
) -> LaunchError:
    """Why a guest never ran: PortsTaken where another attempt may help.

    :param problem: what the monitor said if the process had to be killed, or nothing
    """
    tail = vm_dir.log_tail()
    how = f"failed ({problem})" if problem else f"ended with exit code {qemu.exit_code}"
    kind = PortsTaken if _ports_taken(tail) else LaunchError
    return kind(
        f"QEMU of VM {vm_id} {how} before its guest ran; its log is {vm_dir.qemu_log}",
        argv=command,
        exit_code=qemu.exit_code,
        log_tail=tail,
    )


def _ports_taken(log_tail: str) -> set[int]:
    """The host ports that QEMU says it could not have."""
    return {int(port) for port in _PORT_TAKEN.findall(log_tail)}
