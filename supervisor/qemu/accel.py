"""Whether this host's KVM runs real guest code. Only a guest can tell; /dev/kvm cannot.

On some hosts /dev/kvm opens, but no guest gets through its firmware: QEMU aborts, or stays alive
with the RunState ``internal-error``. Therefore a probe guest is started: a tiny firmware image
(scripts/kvm-probe.S) that does what every guest does at boot, and then ends QEMU with an exit code
that nothing else gives. A certain result is cached in tmp/ until the host reboots or QEMU changes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import cattrs

from supervisor.config import Tee
from supervisor.config.settings import Switch
from supervisor.errors import HostError, LaunchError
from supervisor.qemu import confine, firmware, measured, trial, users
from supervisor.qemu.cmdline import Accel, cpu_model
from supervisor.qemu.host import boot_id
from supervisor.tee import judge, reading
from supervisor.tee.facts import Qemu, Technology

if TYPE_CHECKING:
    from supervisor.config import QemuConfig
    from supervisor.qemu.host import Host
    from supervisor.qemu.users import User
    from supervisor.tee.facts import HostFacts

#: The original's switch, and its successor's.
_SWITCHES = {
    Tee.SEV: "MANAGER_QEMU_ENABLE_SEV",
    Tee.SEV_SNP: "MANAGER_QEMU_ENABLE_SEV_SNP",
    Tee.TDX: "MANAGER_QEMU_ENABLE_TDX",
}

_PROBE = bytes.fromhex(
    "fa2e660f0116d0000f20c00c010f22c066ea18000f00080066b810008ed88ec08ed0bf001000000f22df31c0"
    "b9000c0000f3abc7050010000003200000c7050020000003300000c7050030000083000000b8200600000f22"
    "e0b9800000c00f320d000100000f30b8230000800f22c0ea76000f001800dbe3c70425004000002800000"
    "0db042500400000d9e8d8c0dec1db1c2500400000660f6e0425004000000f5bc0f30f2cc0e6f4f4ebfd8d74"
    "26000000000000000000ffff0000009bcf00ffff00000093cf00ffff0000009baf001f00b0000f00"
)
_ROM_BYTES = 64 * 1024
#: Where a CPU starts after a reset, as an offset into the ROM's last 64 KiB.
_RESET_VECTOR = 0xFFF0
#: isa-debug-exit turns the 42 that the probe writes into (42 << 1) | 1.
_SUCCESS = 85
_TIMEOUT_S = 10.0

#: What keeps the most from the host comes first.
_BEST_FIRST = (Technology.SEV_SNP, Technology.TDX, Technology.SEV_ES, Technology.SEV)


@attrs.frozen
class Probe:
    """Whether KVM works.

    :param detail: what was tried and what happened
    """

    works: bool
    detail: str


@attrs.frozen
class _Cached:
    boot_id: str
    binary: str
    binary_mtime_ns: int
    machine: str
    cpu: str
    uid: int
    probe: Probe


def find_qemu(config: QemuConfig) -> str:
    """The absolute path of QEMU's binary.

    :raises HostError: if there is none
    """
    path = shutil.which(config.bin_path)
    if path is None:
        raise HostError(
            f"{config.bin_path} is not an executable on the PATH",
            advice="install the package qemu-system-x86, or set MANAGER_QEMU_BIN_PATH",
        )
    return os.path.abspath(path)


def decide(config: QemuConfig, qemu: str, user: User | None = None) -> tuple[Accel, list[str]]:
    """What VMs use of the processor, and a warning for each that they do without. Blocking.

    :param user: that QEMU runs as; None for the supervisor's own
    :raises HostError: if the host does not offer what the settings require
    """
    warnings = []
    kvm = False
    if config.enable_kvm is not Switch.FALSE:
        probe = probe_kvm(config, qemu, user)
        kvm = probe.works
        if not kvm and config.enable_kvm is Switch.TRUE:
            raise HostError(
                f"MANAGER_QEMU_ENABLE_KVM=true, but {probe.detail}",
                advice="set it to auto or false to emulate",
            )
        if not kvm:
            warnings.append(f"VMs are emulated, which is slow: {probe.detail}")
    tee, problems = _decide_tee(config, qemu, user, kvm=kvm)
    return Accel(kvm=kvm, tee=tee), [*warnings, *problems]


def _decide_tee(
    config: QemuConfig, qemu: str, user: User | None, *, kvm: bool
) -> tuple[Technology | None, list[str]]:
    wanted = config.default_tee
    if wanted is Tee.NONE:
        return None, []
    facts = host_facts(config, qemu, user, kvm=kvm)
    if wanted is Tee.AUTO:
        best, missing = best_technology(config, facts)
        return best, [f"VMs are not confidential: {missing.found}"] if missing else []
    technology = Technology(wanted)
    if missing := what_lacks(config, facts, technology):
        asked, advice = f"MANAGER_TEE={wanted}", "set it to auto or none to start plain VMs"
        if not config.tee.use:
            asked = f"{_SWITCHES[wanted]}=true"
            advice = f"set {_SWITCHES[wanted]} to false to start plain VMs"
        raise HostError(
            f"{asked}, but {missing.found}",
            advice=f"{missing.advice}; or {advice}" if missing.advice else advice,
        )
    return technology, []


def best_technology(
    config: QemuConfig, facts: HostFacts
) -> tuple[Technology | None, judge.Cell | None]:
    """The best that nothing is known to be missing for; if there is none, what is.

    :raises HostError: as `what_lacks`
    """
    for technology in _BEST_FIRST:
        if what_lacks(config, facts, technology) is None:
            return technology, None
    # What this CPU comes closest to.
    closest = Technology.TDX if facts.vendor == "GenuineIntel" else Technology.SEV
    return None, what_lacks(config, facts, closest)


def host_facts(
    config: QemuConfig, qemu: str | None, user: User | None, *, kvm: bool | None
) -> HostFacts:
    """What this host has for confidential guests. Blocking.

    :param qemu: path of the binary; None if there is none
    :param user: that QEMU runs as; None for the supervisor's own
    :param kvm: whether KVM works; None if that was not tried
    """
    known = None
    if qemu is not None:
        try:
            binary = trial.look_at(qemu, sudo=config.use_sudo, user=user)
            known = Qemu(str(binary.version), binary.objects)
        except LaunchError:
            pass  # the start, or doctor, says so
    code = config.firmware.code_file
    chosen: dict[str, frozenset[str]] = {str(code): frozenset()} if code.exists() else {}
    return reading.read(
        kvm=kvm,
        qemu=known,
        ovmf=chosen | firmware.features(),
        may_open=partial(users.may_open, user, sudo=config.use_sudo),
        locks_freely=config.use_sudo or (user is None and os.geteuid() == 0),
    )


def what_lacks(config: QemuConfig, facts: HostFacts, technology: Technology) -> judge.Cell | None:
    """Why no such guest starts with these settings; None if nothing is known to be missing.

    :raises HostError: if it would start, but the settings have another C-bit than the host
    """
    missing = judge.obstacle(judge.judge(facts, config.memory_bytes)[technology])
    if missing is None:
        missing = measured.lacks(config, facts.qemu.objects if facts.qemu else None, technology)
    if missing is None and technology is not Technology.TDX:
        wrong = judge.wrong_c_bit(facts.leaf, config.sev.cbitpos)
        if wrong:
            raise HostError(wrong.found, advice=wrong.advice)
    return missing


def what_host_lacks(config: QemuConfig, host: Host, technology: Technology) -> judge.Cell | None:
    """`what_lacks`, of this host as it is now. Blocking.

    :raises HostError: as `what_lacks`
    """
    facts = host_facts(config, host.qemu, host.users.shared, kvm=host.accel.kvm)
    return what_lacks(config, facts, technology)


def probe_kvm(config: QemuConfig, qemu: str, user: User | None = None) -> Probe:
    """Whether a guest runs under KVM with this QEMU, machine and CPU. Blocking.

    The result comes from the cache in tmp/ if that is still valid, else from a probe guest.
    """
    cpu = cpu_model(config, Accel(kvm=True))
    cache = config.tmp / "kvm-probe.json"
    key = _Cached(
        boot_id=boot_id(),
        binary=qemu,
        binary_mtime_ns=Path(qemu).stat().st_mtime_ns,
        machine=config.machine,
        cpu=cpu,
        uid=user.uid if user else os.geteuid(),
        probe=Probe(works=False, detail=""),
    )
    try:
        cached = cattrs.structure(json.loads(cache.read_text()), _Cached)
        if attrs.evolve(cached, probe=key.probe) == key:
            return cached.probe
    except (OSError, ValueError, cattrs.BaseValidationError):
        pass  # no cached result, or a damaged file
    try:
        if not config.use_sudo:
            os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        # Not cached: the user may join a group, or a module may be loaded.
        return Probe(works=False, detail=f"/dev/kvm cannot be opened: {error.strerror}")
    probe, certain = _probe_now(qemu, config.machine, cpu, sudo=config.use_sudo, user=user)
    if not certain:
        return probe
    with tempfile.NamedTemporaryFile("w", dir=cache.parent, delete=False) as new:
        json.dump(cattrs.unstructure(attrs.evolve(key, probe=probe)), new)
    os.replace(new.name, cache)
    return probe


def _probe_now(
    qemu: str, machine: str, cpu: str, *, sudo: bool, user: User | None
) -> tuple[Probe, bool]:
    """The result, and whether it is certain: whether a later probe would have the same result.

    A probe guest that ran, or that failed with a KVM error, is certain. Any other failure may come
    from the host's load: a timeout, too little memory, a kill.
    """
    words = ("-enable-kvm", "-machine", machine, "-cpu", cpu)
    code, output = run_probe(qemu, *words, sudo=sudo, user=user)
    tried = f"a probe guest under KVM (-machine {machine} -cpu {cpu})"
    if code == _SUCCESS:
        return Probe(works=True, detail=f"{tried} ran"), True
    # QEMU first warns of missing CPU features. The failure is a KVM error, or the last line.
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "internal error" in line.lower()] or lines[-1:]
    reason = f": {errors[0]}" if errors else ""
    result = "did not finish" if code is None else f"ended QEMU with exit code {code}"
    certain = "internal error" in reason.lower()
    return Probe(works=False, detail=f"{tried} {result}{reason}"), certain


def run_probe(
    qemu: str, *args: str, sudo: bool = False, user: User | None = None
) -> tuple[int | None, str]:
    """Run QEMU with the probe as its firmware. Blocking.

    QEMU is stopped after 10 s, and when KVM reports an internal error, because QEMU then keeps the
    dead guest for inspection.

    :returns: QEMU's exit code, or None if it was stopped; and what it printed to standard error
    """
    with tempfile.NamedTemporaryFile(prefix="kvm-probe-") as rom:
        rom.write(rom_image())
        rom.flush()
        os.fchmod(rom.fileno(), 0o644)  # QEMU may run as another user
        process = subprocess.Popen(
            [
                # We must not signal root's process, so timeout(1) runs as root, too.
                *(["sudo", "-n", "timeout", f"{_TIMEOUT_S:g}"] if sudo else []),
                *users.run_as(user),
                *(qemu, *args, "-nodefaults", "-no-user-config", "-display", "none", "-m", "16M"),
                *("-bios", rom.name, "-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=confine.environment(),
        )
        stopped = threading.Event()

        def stop() -> None:
            stopped.set()
            if not sudo:
                process.kill()

        timer = threading.Timer(_TIMEOUT_S, stop)
        timer.start()
        output = ""
        assert process.stderr is not None
        with process:
            for line in process.stderr:
                output += line
                if "internal error" in line.lower():
                    stop()
        timer.cancel()
    return (None if stopped.is_set() else process.returncode), output


def rom_image() -> bytes:
    """64 KiB of firmware: the probe, and a jump to the probe at the reset vector."""
    rom = bytearray(_ROM_BYTES)
    rom[: len(_PROBE)] = _PROBE
    jump = (-(_RESET_VECTOR + 3)) & 0xFFFF
    rom[_RESET_VECTOR : _RESET_VECTOR + 3] = b"\xe9" + jump.to_bytes(2, "little")
    return bytes(rom)
