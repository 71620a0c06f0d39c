"""Starts a VM's QEMU: files from cold or from a template, host ports, command line, process.

`supervisor.vm.task` decides when, and follows what was started.
"""

from __future__ import annotations

import re
from contextlib import (
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from supervisor.agent import channel
from supervisor.config import Forwards, Policy, TemplateUse
from supervisor.errors import (
    CloneFailed,
    HostError,
    LaunchError,
    PortsTaken,
    TemplateError,
    VmEnded,
)
from supervisor.qemu import cmdline, measured, network, ports, process
from supervisor.qemu.connection import Connection
from supervisor.state import file_errors
from supervisor.state.record import EventKind, Phase, Purpose
from supervisor.state.secret import NO_RENEWAL
from supervisor.state.status import Reason, RunState, Status, Trigger, VmState, next_status
from supervisor.state.vm_dir import preparers
from supervisor.tee import causes, policy
from supervisor.vm.session import Session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from supervisor.config import QemuConfig
    from supervisor.errors import SupervisorError
    from supervisor.qemu.cmdline import Forward
    from supervisor.qemu.confidential import Confidential
    from supervisor.qemu.host import Host
    from supervisor.qemu.ports import PortPool
    from supervisor.qemu.process import Qemu
    from supervisor.qemu.users import User
    from supervisor.state.record import BaseImage
    from supervisor.templates.registry import Templates
    from supervisor.templates.template import Template
    from supervisor.vm.vm import Vm

log = structlog.stdlib.get_logger()

#: QEMU's words on a port that somebody else has.
_PORT_TAKEN = re.compile(r"Could not set up host forwarding rule '[^']*:(\d+)-[^']*'")

#: The phases that a cold boot repeats after a clone has failed.
_STEPS_OF_A_BOOT = (
    *(Phase.HELD, Phase.OVERLAY, Phase.SPAWN, Phase.GREETING, Phase.RESTORE),
    *(Phase.RUNNING, Phase.RENEW, Phase.AGENT),
)


class Launcher:
    """Starts one VM's QEMU, as often as the VM is booted.

    :param user: that QEMU runs as; None for the supervisor's own
    :ivar template: what the guest of the next QEMU is restored from; None to boot from cold
    """

    def __init__(
        self, vm: Vm, host: Host, user: User | None, ports: PortPool, templates: Templates
    ) -> None:
        self.template: Template | None = None
        self._vm = vm
        self._host = host
        self._user = user
        self._ports = ports
        self._templates = templates
        #: With the VM's own words for its kernel.
        self._config = _with_words(vm.config.qemu, vm.record.options.kernel_words)
        #: As the successor's guests are: the kernel of the settings, and no disk.
        self._is_in_initramfs = vm.record.reads_shares and self._config.tee.kernel is not None
        options = vm.record.options
        self._net = attrs.evolve(vm.config.qemu.net, forwards=options.forwards, dials=options.dials)
        #: What the record says of what the VM is made of, once QEMU runs.
        self._fingerprint = vm.record.fingerprint
        self._template_name = vm.record.template
        self._base = vm.record.base
        self._measurement = vm.record.measurement

    async def prepare(self) -> None:
        """Make the files of a new VM, from a template if there is one.

        :raises LaunchError: if this host cannot give the VM the network that its run asks for
        :raises CloneFailed: if they cannot be made from the template
        """
        vm, config = self._vm, self._vm.config.qemu
        if self._net != config.net:  # that of the settings was checked at the start
            try:
                await trio.to_thread.run_sync(network.check, self._net, self._user)
            except HostError as error:
                raise LaunchError(error.detail, advice=error.advice) from error
        becomes_template = vm.record.purpose is Purpose.TEMPLATE
        # The memory of a confidential guest cannot be copied.
        cold = becomes_template or vm.record.options.technology is not None
        use = TemplateUse.OFF if cold else vm.record.options.template
        self._fingerprint, self.template = await self._templates.choose(vm.id, use)
        if self.template:
            self._template_name = self.template.name
            with self._clone_failures():
                self._base = await trio.to_thread.run_sync(
                    self._clone, self.template, limiter=preparers
                )
        else:
            ram_bytes = config.memory_bytes if becomes_template else None
            disk = None if self._is_in_initramfs else config.disk
            self._base = await vm.dir.prepare(disk, config.firmware, ram_bytes)
        vm.reached(Phase.OVERLAY)

    def _clone(self, template: Template) -> BaseImage:
        """Blocking."""
        base = template.clone_into(self._vm.dir, self._host.users.gid)
        self._vm.renews_itself = template.renews_itself()
        return base

    async def prepare_cold_boot(self, failure: CloneFailed | None, verdict: Status) -> None:
        """Undo the start from the template, and prepare a boot without it.

        :param failure: None if the guest ended by itself
        :raises CloneFailed: if the VM's run requires a template
        """
        vm = self._vm
        if vm.claimed and vm.record.purpose is Purpose.HELD:
            # A run takes it just now: what that asks for decides.
            await vm.until(lambda: vm.record.purpose is not Purpose.HELD or vm.ending)
        failure = failure or CloneFailed(
            vm.id,
            f"its guest ended: {verdict.reason}",
            blames_template=verdict.reason != Reason.LAUNCH_INTERRUPTED,
        )
        name = vm.record.template or self._template_name or ""
        # What ends a clone that is held comes from without: nothing of the template runs there.
        if failure.blames_template and not (vm.restored and vm.record.purpose is Purpose.HELD):
            self._templates.failed(name)
        if vm.record.options.template is TemplateUse.REQUIRE:
            raise failure
        self._templates.fallen_back += 1
        log.warning("booting from cold instead", vm=vm.id, template=name, problem=failure.why)
        if verdict.state.ended:
            crashed = Status(VmState.CRASHED, verdict.reason)
            restarted = next_status(crashed, Trigger.RESTART, RunState.PRELAUNCH)
            for status in (crashed, restarted):
                vm.defer(EventKind.STATE, {"state": status.state, "reason": status.reason})
            # With what comes next, as one change: to nobody who looks it has crashed for good.
            vm.defer_untold(status=restarted, running_since_s=None, first_ran_s=None)
        data = {"template": name, "why": failure.why}
        await vm.commit(EventKind.FALLBACK, data, template=None, renewed=False)
        self._fingerprint = await self._templates.present()
        self.template = self._template_name = None
        vm.renews_itself = vm.restored = False
        vm.forget_phases(*_STEPS_OF_A_BOOT)
        config = vm.config.qemu
        self._base = await vm.dir.prepare(config.disk, config.firmware)
        await vm.dir.drop_renewal()  # in case QEMU has not come to read it
        self._templates.release(vm.id)
        vm.reached(Phase.OVERLAY)

    @asynccontextmanager
    async def start(self, taken: set[int]) -> AsyncIterator[Session]:
        """Start QEMU, with the guest paused. Leaving ends QEMU, unless the VM is being left.

        :param taken: host ports to avoid
        :raises PortsTaken: on leaving, if QEMU found ports taken that seemed to be free
        :raises LaunchError: on leaving, if the guest has not run
        :raises CloneFailed: in the place of a LaunchError of a QEMU that restores a template
        """
        vm, config = self._vm, self._vm.config.qemu
        on_host = self._net.forwards is Forwards.HOST
        reserved = (
            self._ports.reserve(taken) if on_host else nullcontext(ports.in_namespace(self._net))
        )
        with self._clone_failures(), reserved as forwards:
            machine = await self._machine(forwards)
            command = cmdline.command(config, machine)
            log.info(cmdline.shell_line(command), vm=vm.id)
            await vm.dir.check_base(self._base)
            async with self._process(cmdline.argv(config, machine), forwards) as qemu:
                vm.reached(Phase.SPAWN)
                # Written with the next change: after a crash, recovery finds the process by its
                # uuid.
                vm.defer(
                    EventKind.LAUNCHED,
                    {"pid": qemu.pid, "template": self._template_name},
                    fingerprint=self._fingerprint,
                    template=self._template_name,
                    base=self._base,
                    measurement=self._measurement,
                    process=qemu.identity,
                    forwards=forwards if on_host else (),
                    command=tuple(command),
                    agent_address=channel.address(vm.config.agent, forwards)
                    if on_host
                    else vm.dir.agent_address,
                    exit_code=None,
                )
                session = new_session(vm, qemu)
                yield session
                if vm.status.state is VmState.PRELAUNCH:
                    raise await self._never_ran(session, command)
                self.template = None  # if it is booted again, then from its own disk

    @asynccontextmanager
    async def _process(
        self, argv: Sequence[str], forwards: Sequence[Forward]
    ) -> AsyncIterator[Qemu]:
        vm = self._vm
        await trio.to_thread.run_sync(vm.dir.give_to, self._user)
        group = await trio.to_thread.run_sync(self._host.groups.make, vm.id)
        async with AsyncExitStack() as stack:
            # QEMU has copies of the listening sockets; ours would keep them open after QEMU's end.
            with ExitStack() as ours:
                listener = ours.enter_context(await trio.to_thread.run_sync(vm.dir.listen_qmp))
                agent = None
                if self._net.forwards is Forwards.NONE:
                    door = ours.enter_context(await trio.to_thread.run_sync(vm.dir.listen_agent))
                    agent = door.fileno(), channel.forward_to_agent(vm.config.agent, forwards)
                out = vm.dir.dialled_socket if self._net.dials else None
                starting = process.start(
                    network.wrapped(self._net, forwards, argv, agent, out),
                    listener,
                    vm.dir.qemu_log,
                    leave=lambda: vm.leaving,
                    passed=[agent[0]] if agent else [],
                    user=self._user,
                    group=group,
                )
                qemu = await stack.enter_async_context(starting)
            yield qemu

    async def _machine(self, forwards: Sequence[Forward]) -> cmdline.Machine:
        vm_dir, ram = self._vm.dir, None
        if self.template:
            ram = cmdline.Ram(self.template.ram, shared=False)
        elif self._vm.record.purpose is Purpose.TEMPLATE:
            ram = cmdline.Ram(vm_dir.ram, shared=True)
        if ram:
            await trio.to_thread.run_sync(vm_dir.write_renewal, self._renewal())
        confidential = await trio.to_thread.run_sync(self._confidential)
        kernel = None
        if self._is_in_initramfs and confidential is None:
            kernel = await trio.to_thread.run_sync(measured.direct_boot, self._config.tee)
        return cmdline.Machine(
            vm_id=self._vm.id,
            qemu=await trio.to_thread.run_sync(self._host.look_at_qemu),
            accel=self._host.accel,
            forwards=forwards,
            overlay=None if self._is_in_initramfs else vm_dir.overlay,
            firmware_vars=vm_dir.firmware_vars,
            serial_log=vm_dir.serial_log,
            qmp_socket=vm_dir.qmp_socket,
            ram=ram,
            renewal=vm_dir.renewal if ram else None,
            shares=vm_dir.shares if self._vm.record.reads_shares else None,
            kernel=kernel,
            dials=self._net.dials,
            credential_hash=self._vm.secret.credential_hash if self._vm.secret else None,
            confidential=confidential,
        )

    def _renewal(self) -> bytes:
        """What a copy is to be. The guest that is copied must learn of no identity."""
        secret = self._vm.secret if self.template else None
        return secret.renewal(self._vm.id) if secret else NO_RENEWAL

    def _confidential(self) -> Confidential | None:
        """Blocking.

        :raises LaunchError: if a file that is to be measured is missing
        """
        record = self._vm.record
        technology = record.options.technology
        if technology is None:
            return None
        number = policy.encode(technology, Policy.read(record.options.tee_policy))
        config, bound_to = self._config, bytes.fromhex(record.bound_to)
        guest = measured.choose(config, self._host.look_at_qemu(), technology, number, bound_to)
        if record.options.session:
            guest = attrs.evolve(guest, session=self._vm.dir.write_session(record.options))
        self._measurement = measured.measure(config, self._host.accel, guest)
        return guest

    @contextmanager
    def _clone_failures(self) -> Iterator[None]:
        """Turn what goes wrong in the start of a clone into CloneFailed."""
        if self.template is None:
            yield
            return
        vm_id = self._vm.id
        try:
            yield
        except PortsTaken:
            raise
        except TemplateError as error:
            raise CloneFailed(vm_id, str(error)) from error
        except OSError as error:
            what, _advice = file_errors.describe(error, self._vm.dir.path)
            raise CloneFailed(vm_id, what or str(error), blames_template=False) from error
        except LaunchError as error:
            # If QEMU was never started, the template is not to blame.
            ran = error.exit_code is not None
            raise CloneFailed(vm_id, str(error), blames_template=ran) from error

    async def _never_ran(self, session: Session, command: Sequence[str]) -> SupervisorError:
        """Why a guest never ran: PortsTaken if another start may help."""
        vm, exit_code = self._vm, session.qemu.exit_code
        if vm.end_request:
            return VmEnded(vm.id, VmState.PRELAUNCH, vm.end_request.why)
        log_tail = await trio.to_thread.run_sync(vm.dir.log_tail)
        how = f"ended with exit code {exit_code}"
        if session.refusal:
            how = f"failed ({session.refusal})"
        detail = f"QEMU of VM {vm.id} {how} before its guest ran; its log is {vm.dir.qemu_log}"
        ports = {int(port) for port in _PORT_TAKEN.findall(log_tail)}
        if ports:
            return PortsTaken(
                detail, ports=ports, argv=command, exit_code=exit_code, log_tail=log_tail
            )
        advice = ""
        technology = vm.record.options.technology
        if technology and (cause := causes.explain(log_tail)):
            detail = f"{detail}; {cause.what}"
            advice = cause.advice
        return LaunchError(
            detail, advice=advice, argv=command, exit_code=exit_code, log_tail=log_tail
        )


def _with_words(config: QemuConfig, words: str) -> QemuConfig:
    cmdline = f"{config.tee.cmdline} {words}".strip()
    return attrs.evolve(config, tee=attrs.evolve(config.tee, cmdline=cmdline)) if words else config


def new_session(vm: Vm, qemu: Qemu) -> Session:
    """The session of a QEMU that was started or adopted."""
    config = vm.config
    connection = Connection(vm.id, vm.dir.qmp_socket, config.life, config.timing)
    return Session(qemu, connection)
