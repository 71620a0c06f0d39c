"""Checks whether VMs can start on this host, and how well they would run.

Each ``check_*`` looks at one thing. It returns what it found and what to do about it; it does not
raise. All checks block. They call the code that decides at a VM's start: the same probe, the same
look at the firmware, the same sockets.
"""

from __future__ import annotations

import enum
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from supervisor import spans
from supervisor.api import sockets
from supervisor.config import Forwards, GuestNetwork, Tee
from supervisor.config.settings import Switch
from supervisor.errors import FirmwareError, HostError, LaunchError, PortsTaken
from supervisor.image.image import DISK
from supervisor.qemu import accel, cgroup, cmdline, firmware, measured, network, ports, trial, users
from supervisor.qemu.cmdline import Accel
from supervisor.qemu.version import Version
from supervisor.runs import admission
from supervisor.state.tmp_dir import check_tmp
from supervisor.tee import corim, judge, policy
from supervisor.tee.facts import Technology
from supervisor.tee.judge import Layer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from supervisor.config import Config, DiskConfig, GrpcConfig, HttpConfig, QemuConfig
    from supervisor.errors import SupervisorError
    from supervisor.qemu.users import User
    from supervisor.tee.facts import HostFacts

#: The oldest QEMU this project has been run with.
_TRIED_QEMU = Version(7, 2)
#: A VM's overlay starts at 200 kB and grows with what its guest writes.
_LITTLE_DISK = 2**30
_QUESTION_TIMEOUT_S = 20.0


class Verdict(enum.StrEnum):
    OK = "ok"
    NOTE = "note"  # something that this host does not have, and need not
    WARN = "warn"  # VMs start, but something is amiss
    FAIL = "fail"  # no VM starts


@attrs.frozen
class Check:
    """One finding. ``advice`` says what to do about it; empty if there is nothing to do.

    :param cells: of the technologies that the finding is about, if it is about these
    """

    name: str
    verdict: Verdict
    detail: str
    advice: str = ""
    cells: judge.Table = attrs.field(factory=dict)


def examine(config: Config, *, serves: bool = False) -> Iterator[Check]:
    """All checks, each yielded as soon as it is made: the probe for KVM can take seconds.

    :param serves: whether it is the supervisor itself that asks: then it has the ports
    """
    qemu = config.qemu
    yield check_qemu(qemu)
    yield check_qemu_img()
    if qemu.use_sudo:
        yield check_sudo(qemu)
    chosen, user = check_user(qemu)
    yield user
    tmp = check_tmp_dir(qemu.tmp)
    yield tmp
    kvm = _probe(qemu, chosen, keep=tmp.verdict is not Verdict.FAIL)
    machine = check_machine(qemu, chosen, kvm=kvm is not None and kvm.works)
    yield machine
    if machine.verdict is Verdict.FAIL and qemu.enable_kvm is not Switch.FALSE:
        # A machine that QEMU refuses is refused to the probe as well.
        yield Check(
            "KVM", Verdict.WARN, "not known: QEMU starts no machine to try it", "see machine"
        )
    else:
        yield check_kvm(qemu.enable_kvm, kvm)
    facts = accel.host_facts(
        qemu, shutil.which(qemu.bin_path), chosen, kvm=kvm is not None and kvm.works
    )
    yield check_tee(qemu, facts)
    yield from check_tee_settings(qemu)
    yield from check_technologies(judge.judge(facts, qemu.memory_bytes))
    yield check_ovmf(qemu)
    yield check_image(qemu)
    room = admission.host_resources(qemu.net)
    available = cgroup.available_bytes()
    yield check_memory(qemu, total=room.memory_bytes, available=available)
    yield check_cpus(qemu, room.vcpus)
    yield check_limits(config, room)
    if not serves:
        yield check_server("HTTP", config.http)
        yield check_server("GRPC", config.grpc)
        yield check_forwards(qemu)
    yield check_guest_network(qemu)
    if spans.wanted(config.jaeger_url):
        yield check_traces()


def keeps_vms_from_starting(checks: Sequence[Check]) -> bool:
    return any(check.verdict is Verdict.FAIL for check in checks)


# --- programs -------------------------------------------------------------------------------


def check_qemu(config: QemuConfig) -> Check:
    try:
        path = accel.find_qemu(config)
    except HostError as error:
        return _of_error("QEMU", error)
    try:
        binary = trial.look_at(path, sudo=config.use_sudo)
    except LaunchError as error:
        return _of_error("QEMU", error)
    detail = f"{path}, version {binary.version}"
    if binary.version < _TRIED_QEMU:
        return Check(
            "QEMU", Verdict.WARN, detail, f"{_TRIED_QEMU} is the oldest that has been tried"
        )
    return Check("QEMU", Verdict.OK, detail)


def check_user(config: QemuConfig) -> tuple[User | None, Check]:
    """The user that trials of QEMU run as, None for this one; and whether VMs can run as theirs."""
    name = "user"
    try:
        chosen = users.choose(config)
        here = attrs.evolve(config, tmp=config.tmp.absolute())
        users.check_access(here, chosen, Accel(kvm=False))
    except HostError as error:
        return None, _of_error(name, error)
    if danger := users.danger(config):
        return None, Check(name, Verdict.WARN, danger.detail, danger.advice)
    if chosen.shared is None:
        return None, Check(name, Verdict.OK, "QEMU runs as the supervisor's user, who is not root")
    return chosen.shared, Check(name, Verdict.OK, f"QEMU runs as {config.run_as}")


def check_machine(config: QemuConfig, user: User | None = None, *, kvm: bool) -> Check:
    """Whether QEMU takes the machine, CPU, memory and numbers of CPUs in the settings."""
    decided = Accel(kvm=kvm)
    try:
        trial.check(config, accel.find_qemu(config), decided, user)
    except HostError as error:
        return _of_error("machine", error)
    return Check("machine", Verdict.OK, f"{config.machine}, {cmdline.cpu_model(config, decided)}")


def check_qemu_img() -> Check:
    path = shutil.which("qemu-img")
    if path is None:
        detail, advice = "qemu-img is not on the PATH", "install the package qemu-utils"
        return Check("qemu-img", Verdict.FAIL, detail, advice)
    code, output = _ask(path, "--version")
    said = output.splitlines() or [f"exit code {code}"]
    if code != 0:
        detail = f"{path} does not run: {said[-1]}"
        return Check("qemu-img", Verdict.FAIL, detail, "install it again")
    return Check("qemu-img", Verdict.OK, f"{path}, {said[0]}")


def check_sudo(config: QemuConfig) -> Check:
    """With ``USE_SUDO``, QEMU must start without a password: nobody is there to type it."""
    for command in (config.bin_path, "kill"):
        code, output = _ask("sudo", "-n", "-l", shutil.which(command) or command)
        if code:
            break
    else:
        return Check("sudo", Verdict.OK, "runs QEMU and kill without a password")
    said = (output.splitlines() or [f"exit code {code}"])[-1]
    advice = "allow QEMU and kill in sudoers with NOPASSWD, or set MANAGER_QEMU_USE_SUDO=false"
    return Check("sudo", Verdict.FAIL, said, advice)


# --- the processor --------------------------------------------------------------------------


def _probe(config: QemuConfig, user: User | None, *, keep: bool) -> accel.Probe | None:
    """The result of a probe guest; None if KVM is switched off or there is no QEMU.

    :param keep: whether the result may be kept in tmp/
    """
    if config.enable_kvm is Switch.FALSE:
        return None
    try:
        qemu = accel.find_qemu(config)
    except HostError:
        return None
    if keep:
        return accel.probe_kvm(config, qemu, user)
    with tempfile.TemporaryDirectory() as scratch:
        return accel.probe_kvm(attrs.evolve(config, tmp=Path(scratch)), qemu, user)


def check_kvm(wanted: Switch, probe: accel.Probe | None) -> Check:
    if wanted is Switch.FALSE:
        return Check("KVM", Verdict.OK, "MANAGER_QEMU_ENABLE_KVM=false: VMs are emulated")
    if probe is None:
        return Check("KVM", Verdict.FAIL, "cannot be probed without QEMU", "see QEMU")
    if probe.works:
        return Check("KVM", Verdict.OK, probe.detail)
    if "Permission denied" in probe.detail:
        advice = "add this user to the group kvm: sudo usermod -aG kvm $USER, then log in again"
    elif "cannot be opened" in probe.detail:
        advice = (
            "turn virtualization on in the firmware setup and load kvm_amd or kvm_intel; in a"
            " VM, its host must offer nested virtualization"
        )
    else:
        advice = "no guest runs under this host's KVM; see the kernel's log (dmesg)"
    if wanted is Switch.TRUE:
        advice += "; or set MANAGER_QEMU_ENABLE_KVM=auto to emulate"
        return Check("KVM", Verdict.FAIL, probe.detail, advice)
    return Check("KVM", Verdict.WARN, f"VMs are emulated: {probe.detail}", advice)


def check_tee(config: QemuConfig, facts: HostFacts) -> Check:
    """What VMs will be confidential by, unless their run says otherwise."""
    name, wanted = "TEE", config.default_tee
    setting = "MANAGER_TEE" if config.tee.use else "MANAGER_QEMU_ENABLE_SEV"
    none = "none" if config.tee.use else "false"
    if wanted is Tee.NONE:
        return Check(name, Verdict.OK, f"{setting}={none}: VMs are not confidential")
    try:
        if wanted is Tee.AUTO:
            technology, missing = accel.best_technology(config, facts)
        else:
            technology = Technology(wanted)
            missing = accel.what_lacks(config, facts, technology)
    except HostError as error:
        return _of_error(name, error)
    if missing is None and technology:
        return Check(name, Verdict.OK, f"VMs are {technology.label} guests")
    assert missing
    if wanted is Tee.AUTO:
        advice = f"set {setting}={none} if plain VMs are what you want"
        return Check(name, Verdict.WARN, f"VMs are not confidential: {missing.found}", advice)
    advice = f"set {setting}=auto to start plain VMs"
    advice = f"{missing.advice}; or {advice}" if missing.advice else advice
    return Check(name, Verdict.FAIL, missing.found, advice)


def check_tee_settings(config: QemuConfig) -> Iterator[Check]:
    """Whether the files and the policy of confidential guests are as they should be.

    VMs that are not confidential by default start without them, unless their agents dial.
    """
    name, tee = "TEE files", config.tee
    needed = config.default_tee not in (Tee.NONE, Tee.AUTO)
    verdict = Verdict.FAIL if needed or config.net.dials else Verdict.WARN
    for error in measured.problems(tee):
        yield Check(name, verdict, error.detail, error.advice)
    technology = Technology(config.default_tee) if needed else None
    if problem := policy.conflict(tee.policy, technology):
        verdict = Verdict.FAIL if needed else Verdict.WARN
        yield Check("TEE policy", verdict, problem, "change MANAGER_TEE_POLICY")
    if tee.signing_key:
        try:
            corim.load_key(tee.signing_key)
        except HostError as error:
            yield _of_error("CoRIM key", error)


def check_technologies(table: judge.Table) -> Iterator[Check]:
    """What this host could start. Technologies of which the same is to be said share a line."""
    lines: dict[tuple[Verdict, str, str], list[Technology]] = {}
    for technology, row in table.items():
        lines.setdefault(_line(row), []).append(technology)
    for (verdict, detail, advice), technologies in lines.items():
        names = ", ".join(technology.label for technology in technologies)
        cells = {technology: table[technology] for technology in technologies}
        yield Check("host", verdict, f"{names}: {detail}", advice, cells)


def _line(row: judge.Row) -> tuple[Verdict, str, str]:
    """A host whose CPU could do it, and that lacks something, is not in order."""
    if missing := judge.obstacle(row):
        able = row[Layer.CPU].verdict is judge.Verdict.OK
        return Verdict.WARN if able else Verdict.NOTE, missing.found, missing.advice
    unknown = [cell for cell in row.values() if cell.verdict is judge.Verdict.UNKNOWN]
    if unknown:
        found = "; ".join(cell.found for cell in unknown)
        advice = "; ".join(cell.advice for cell in unknown if cell.advice)
        return Verdict.NOTE, f"nothing is known to be missing, but {found}", advice
    return Verdict.OK, row[Layer.ASIDS].found, ""


# --- files ----------------------------------------------------------------------------------


def check_ovmf(config: QemuConfig) -> Check:
    descriptors = firmware.read_descriptors()
    chosen = firmware.choose(config, descriptors)
    try:
        firmware.check_pair(chosen, descriptors)
    except FirmwareError as error:
        return _of_error("OVMF", error)
    sizes = [file.stat().st_size // 1024 for file in (chosen.code_file, chosen.vars_file)]
    detail = f"{chosen.code_file} ({sizes[0]} KiB), {chosen.vars_file} ({sizes[1]} KiB)"
    return Check("OVMF", Verdict.OK, detail)


def check_image(config: QemuConfig) -> Check:
    name = "base image"
    if config.boots_disk:
        return _check_disk(name, config.disk)
    return Check(name, Verdict.OK, "none is booted: MANAGER_TEE_KERNEL is, without a disk")


def _check_disk(name: str, disk: DiskConfig) -> Check:
    if not disk.file.exists():
        built = Path("img") / DISK
        make = "" if built.exists() else "build one with 'qmp-supervisor image build' and "
        advice = f"{make}set MANAGER_QEMU_DISK_IMG_FILE={built}"
        return Check(name, Verdict.FAIL, f"{disk.file.absolute()} is missing", advice)
    if not disk.file.stat().st_size:
        advice = "build one with 'qmp-supervisor image build'"
        return Check(name, Verdict.FAIL, f"{disk.file.absolute()} is empty", advice)
    # A VM may have the file open; -U reads it all the same.
    code, output = _ask("qemu-img", "info", "-U", "--output=json", str(disk.file))
    if code is None:
        return Check(name, Verdict.FAIL, f"{disk.file} cannot be inspected", "see qemu-img")
    if code:
        said = (output.splitlines() or [""])[-1]
        return Check(name, Verdict.FAIL, said, f"check it with 'qemu-img check {disk.file}'")
    info = json.loads(output[output.index("{") :])  # warnings come before it
    # Any file can be read as raw, and qemu-img says raw of a file that has no other format.
    if disk.format not in ("raw", info["format"]):
        detail = f"{disk.file} is {info['format']}, not {disk.format}"
        return Check(
            name, Verdict.FAIL, detail, f"set MANAGER_QEMU_DISK_IMG_FORMAT={info['format']}"
        )
    size = f"{info['virtual-size'] / 2**20:.0f} MiB"
    if disk.format != info["format"]:
        detail = f"{disk.file} looks like {info['format']} and is used as raw"
        advice = f"set MANAGER_QEMU_DISK_IMG_FORMAT={info['format']}, unless it is meant so"
        return Check(name, Verdict.WARN, detail, advice)
    return Check(name, Verdict.OK, f"{disk.file}, {info['format']}, {size}")


def check_tmp_dir(tmp: Path) -> Check:
    try:
        check_tmp(tmp.absolute())
    except HostError as error:
        return _of_error("tmp", error)
    free = shutil.disk_usage(tmp).free
    detail = f"{tmp.absolute()}, {free / 2**30:.1f} GiB free"
    if free < _LITTLE_DISK:
        advice = "make room, or set MANAGER_QEMU_TMP_FILE_LOC: each VM's disk grows there"
        return Check("tmp", Verdict.WARN, detail, advice)
    return Check("tmp", Verdict.OK, detail)


# --- memory, processors ---------------------------------------------------------------------


def check_memory(config: QemuConfig, *, total: int, available: int) -> Check:
    """:param total, available: the host's, in bytes"""
    mib = {unit: 2**exponent for unit, exponent in zip("KMGT", (-10, 0, 10, 20), strict=True)}
    size = config.memory_size.upper()
    # QEMU takes a number without a unit for MiB.
    wanted = int(size.rstrip("KMGT")) * mib[size[-1] if size[-1] in mib else "M"]
    room = available / 2**20
    detail = f"{wanted:.0f} MiB a VM, {room:.0f} MiB available of {total / 2**20:.0f}"
    if wanted > room:
        advice = (
            "the kernel may kill a VM that uses all of its memory: set MANAGER_QEMU_MEMORY_SIZE"
            " to less"
        )
        return Check("memory", Verdict.WARN, detail, advice)
    return Check("memory", Verdict.OK, f"{detail}: room for {room // wanted:.0f}")


def check_cpus(config: QemuConfig, here: int) -> Check:
    detail = f"{config.smp_count} a VM, {here} on this host"
    if config.smp_count > here:
        advice = f"a VM with more CPUs runs slower: set MANAGER_QEMU_SMP_COUNT={here}"
        return Check("CPUs", Verdict.WARN, detail, advice)
    return Check("CPUs", Verdict.OK, detail)


def check_limits(config: Config, host: admission.Resources) -> Check:
    """How many VMs may run at once. `check_memory` looks at the memory that is free now."""
    need = admission.Resources.of_new_vm(config.qemu)
    budget = admission.budget(config.limits, host)
    if error := admission.never(budget, need):
        return _of_error("limits", error)
    by = admission.how_many(budget, need)
    allowed = ", ".join(f"{count} by {limit.value}" for limit, count in by.items())
    return Check("limits", Verdict.OK, f"room for {min(by.values())} at once: {allowed}")


# --- ports ----------------------------------------------------------------------------------


def check_server(kind: str, server: HttpConfig | GrpcConfig) -> Check:
    """:param kind: ``HTTP`` or ``GRPC``"""
    name = f"{kind} port"
    try:
        with sockets.bind_tcp(kind, server.host, server.port, f"MANAGER_{kind}") as bound:
            port = bound.getsockname()[1]
    except HostError as error:
        check = _of_error(name, error)
        if sockets.owner(server.port).startswith("qmp-supervisor"):
            detail = f"{server.host}:{server.port} belongs to a supervisor that runs already"
            return attrs.evolve(check, verdict=Verdict.WARN, detail=detail)
        return check
    return Check(name, Verdict.OK, f"{server.host}:{server.port or port} is free")


def check_forwards(config: QemuConfig) -> Check:
    """Three host ports a VM. A base that is taken does no harm: the next free port is used."""
    name = "forwards"
    net = config.net
    if net.forwards is Forwards.NONE:
        return Check(name, Verdict.OK, "MANAGER_FORWARDS=none: no port of the host leads into a VM")
    try:
        with ports.PortPool(net).reserve() as forwards:
            found = [forward.host_port for forward in forwards]
    except PortsTaken as error:
        return _of_error(name, error)
    told = [f"the next VM gets {', '.join(map(str, found))} on {net.host_fwd_addr}"]
    if not net.host_fwd_range:
        bases = (net.host_fwd_1, net.host_fwd_2, net.host_fwd_3)
        both = zip(bases, found, strict=True)
        held = [f"{base} {_by(base)}" for base, port in both if base != port]
        told += [", ".join(held)] if held else []
    try:
        network.check(attrs.evolve(net, forwards=Forwards.NONE), users.choose(config).shared)
    except HostError as error:
        told.append(f"a run without forwards would fail: {error}")
    return Check(name, Verdict.OK, "; ".join(told))


def check_guest_network(config: QemuConfig) -> Check:
    name = "guest network"
    if danger := network.danger(config.net):
        return Check(name, Verdict.WARN, danger.detail, danger.advice)
    try:
        network.check(config.net, users.choose(config).shared)
    except HostError as error:
        return _of_error(name, error)
    reached = "nothing" if config.net.guest is GuestNetwork.NONE else "public addresses"
    detail = f"MANAGER_QEMU_GUEST_NETWORK={config.net.guest}: guests reach {reached}"
    if config.net.dials:
        detail += ", and their agents this supervisor"
    return Check(name, Verdict.OK, detail)


def check_traces() -> Check:
    if problem := spans.missing():
        return Check("traces", Verdict.WARN, f"none are sent: {problem}", spans.ADVICE)
    return Check("traces", Verdict.OK, "they are sent")


def _by(port: int) -> str:
    holder = sockets.owner(port)
    return f"belongs to {holder}" if holder else "is in use"


def _of_error(name: str, error: SupervisorError) -> Check:
    return Check(name, Verdict.FAIL, error.detail, error.advice)


def _ask(*command: str) -> tuple[int | None, str]:
    """Exit code and output, stderr last; None for the code if it cannot be run or hangs."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_QUESTION_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)
    return done.returncode, (done.stdout + done.stderr).strip()
