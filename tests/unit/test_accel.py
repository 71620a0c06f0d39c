"""The probe for KVM: its image, its answer, and how long the answer is kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from supervisor import at_start
from supervisor.config import QemuConfig, SevConfig, Tee, TeeConfig, load
from supervisor.config.settings import Switch
from supervisor.errors import HostError
from supervisor.qemu import accel
from supervisor.qemu.cmdline import Accel
from supervisor.tee import reading
from supervisor.tee.facts import Technology
from tests.support import hosts

if TYPE_CHECKING:
    from supervisor.tee.facts import HostFacts

needs_device = pytest.mark.skipif(
    not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="without /dev/kvm nothing is started"
)


class FakeQemu:
    """A shell script in the place of QEMU that notes each start and its arguments."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "qemu"
        self._starts = directory / "starts"
        self.becomes("exit 85")

    def becomes(self, script: str) -> None:
        """The same file from now on does this. Its time of change moves with it."""
        old = self.path.stat().st_mtime_ns if self.path.exists() else 0
        self.path.write_text(f'#!/bin/sh\necho "$@" >> {self._starts}\n{script}\n')
        self.path.chmod(0o755)
        os.utime(self.path, ns=(old + 10**9, old + 10**9))

    @property
    def starts(self) -> list[str]:
        return self._starts.read_text().splitlines() if self._starts.exists() else []


@pytest.fixture
def qemu(short_tmp: Path) -> FakeQemu:
    return FakeQemu(short_tmp)


def config(qemu: FakeQemu, **settings: object) -> QemuConfig:
    made = QemuConfig(bin_path=str(qemu.path), tmp=qemu.path.parent)
    return attrs.evolve(made, **settings)  # type: ignore[arg-type]


def probe(qemu: FakeQemu, **settings: object) -> accel.Probe:
    return accel.probe_kvm(config(qemu, **settings), str(qemu.path))


# --- the bytes ------------------------------------------------------------------------------


def test_rom_holds_the_probe_and_a_jump_to_it() -> None:
    rom = accel.rom_image()
    assert rom[0] == 0xFA  # cli, the probe's first instruction
    assert len(rom) == 64 * 1024
    # A near jump from the reset vector, 16 bytes before the end: over the top to the start.
    assert rom[0xFFF0] == 0xE9
    assert (0xFFF3 + int.from_bytes(rom[0xFFF1:0xFFF3], "little")) & 0xFFFF == 0
    assert not any(rom[0xFFF3:])


# --- running it -----------------------------------------------------------------------------


def test_exit_code_and_output(qemu: FakeQemu) -> None:
    qemu.becomes("echo one >&2; echo two >&2; exit 3")
    assert accel.run_probe(str(qemu.path), "-cpu", "max") == (3, "one\ntwo\n")
    assert qemu.starts[0].startswith("-cpu max -nodefaults ")


def test_qemu_that_keeps_a_dead_guest_is_stopped(qemu: FakeQemu) -> None:
    qemu.becomes("echo 'KVM internal error. Suberror: 1' >&2; exec sleep 1000 2>&-")
    code, output = accel.run_probe(str(qemu.path))
    assert code is None
    assert "internal error" in output


def test_rom_is_removed(qemu: FakeQemu) -> None:
    accel.run_probe(str(qemu.path))
    words = qemu.starts[0].split()
    assert not Path(words[words.index("-bios") + 1]).exists()


# --- its answer -----------------------------------------------------------------------------


@needs_device
def test_probe_that_ran(qemu: FakeQemu) -> None:
    found = probe(qemu)
    assert found.works
    assert qemu.starts[0].startswith("-enable-kvm -machine q35 -cpu EPYC ")


@needs_device
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo warning >&2; echo 'failed to set MSR' >&2; exit 1", "exit code 1: failed to set"),
        ("exit 0", "exit code 0"),
        ("kill -ABRT $$", "exit code -6"),
        (
            "echo 'KVM internal error. Suberror: 3' >&2; exec sleep 1000 2>&-",
            "did not finish: KVM internal error",
        ),
    ],
)
def test_probe_that_failed_says_what_was_seen(qemu: FakeQemu, script: str, said: str) -> None:
    qemu.becomes(script)
    found = probe(qemu)
    assert not found.works
    assert "-machine q35 -cpu EPYC" in found.detail
    assert said in found.detail


# --- what is kept ---------------------------------------------------------------------------


@needs_device
def test_answer_is_kept(qemu: FakeQemu) -> None:
    assert probe(qemu) == probe(qemu)
    assert len(qemu.starts) == 1
    kept = [file for file in qemu.path.parent.iterdir() if file.suffix == ".json"]
    assert [file.name for file in kept] == ["kvm-probe.json"]


@needs_device
def test_internal_error_of_kvm_is_kept(qemu: FakeQemu) -> None:
    qemu.becomes("echo 'KVM internal error. Suberror: 1' >&2; exec sleep 1000 2>&-")
    assert probe(qemu) == probe(qemu)
    assert len(qemu.starts) == 1


@needs_device
@pytest.mark.parametrize(
    "script",
    ["exec sleep 1000 2>&-", "exit 124", "echo 'Cannot allocate memory' >&2; exit 1", "kill -9 $$"],
    ids=["timeout", "timeout-below-sudo", "no-memory", "killed"],
)
def test_failure_that_may_pass_is_not_kept(
    qemu: FakeQemu, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    # The same file later does something else, as a busy host would let it.
    busy = qemu.path.parent / "busy"
    busy.touch()
    qemu.becomes(f"[ ! -e {busy} ] || {{ {script}; }}; exit 85")
    with monkeypatch.context() as short:
        short.setattr(accel, "_TIMEOUT_S", 0.2)
        assert not probe(qemu).works
    busy.unlink()
    assert probe(qemu).works


@needs_device
@pytest.mark.parametrize("settings", [{"machine": "pc"}, {"cpu": "host"}])
def test_other_machines_are_probed_anew(qemu: FakeQemu, settings: dict[str, str]) -> None:
    probe(qemu)
    probe(qemu, **settings)
    assert len(qemu.starts) == 2


@needs_device
def test_another_qemu_is_probed_anew(qemu: FakeQemu) -> None:
    assert probe(qemu).works
    qemu.becomes("exit 1")
    assert not probe(qemu).works


@needs_device
@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"boot_id": 3}', "\x00"])
def test_damaged_answer_is_asked_anew(qemu: FakeQemu, damage: str) -> None:
    probe(qemu)
    (qemu.path.parent / "kvm-probe.json").write_text(damage)
    assert probe(qemu).works
    assert len(qemu.starts) == 2
    probe(qemu)
    assert len(qemu.starts) == 2


@needs_device
def test_answer_from_before_the_last_boot_does_not_count(qemu: FakeQemu) -> None:
    probe(qemu)
    cache = qemu.path.parent / "kvm-probe.json"
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    cache.write_text(cache.read_text().replace(boot_id, "another"))
    probe(qemu)
    assert len(qemu.starts) == 2


# --- what is made of it ---------------------------------------------------------------------


def decide(qemu: FakeQemu, kvm: Switch, sev: Switch = Switch.FALSE) -> tuple[Accel, list[str]]:
    return accel.decide(config(qemu, enable_kvm=kvm, enable_sev=sev), str(qemu.path))


def test_without_kvm_nothing_is_asked(qemu: FakeQemu) -> None:
    assert decide(qemu, Switch.FALSE) == (Accel(kvm=False), [])
    assert not qemu.starts


@needs_device
@pytest.mark.parametrize("switch", [Switch.AUTO, Switch.TRUE])
def test_kvm_that_works(qemu: FakeQemu, switch: Switch) -> None:
    assert decide(qemu, switch) == (Accel(kvm=True), [])


def test_kvm_that_does_not_work_is_done_without(qemu: FakeQemu) -> None:
    qemu.becomes("exit 1")
    decided, warnings = decide(qemu, Switch.AUTO)
    assert not decided.kvm
    assert len(warnings) == 1
    assert "emulated" in warnings[0]


def test_kvm_that_does_not_work_and_is_insisted_on(qemu: FakeQemu) -> None:
    qemu.becomes("exit 1")
    with pytest.raises(HostError, match="MANAGER_QEMU_ENABLE_KVM=true, but "):
        decide(qemu, Switch.TRUE)


@pytest.fixture
def milan(monkeypatch: pytest.MonkeyPatch) -> HostFacts:
    """A host that has SEV, whatever this one has."""
    monkeypatch.setattr(accel, "host_facts", lambda *_, **known: attrs.evolve(hosts.MILAN, **known))
    return hosts.MILAN


def test_sev_needs_kvm(qemu: FakeQemu, milan: HostFacts) -> None:
    decided, warnings = decide(qemu, Switch.FALSE, Switch.AUTO)
    assert decided == Accel(kvm=False)
    assert warnings[0].startswith("VMs are not confidential: SEV needs KVM")
    with pytest.raises(HostError, match="ENABLE_SEV=true, but SEV needs KVM") as raised:
        decide(qemu, Switch.FALSE, Switch.TRUE)
    assert "MANAGER_QEMU_ENABLE_KVM; or set MANAGER_QEMU_ENABLE_SEV to false" in raised.value.advice


@needs_device
def test_sev_where_it_is(qemu: FakeQemu, milan: HostFacts) -> None:
    assert decide(qemu, Switch.TRUE, Switch.TRUE) == (Accel(kvm=True, tee=Technology.SEV), [])


@needs_device
@pytest.mark.parametrize(
    ("lacking", "best"),
    [
        ((), Technology.SEV_SNP),
        (("kvm_amd.sev_snp",), Technology.SEV_ES),
        (("kvm_amd.sev_snp", "kvm_amd.sev_es"), Technology.SEV),
        (("kvm_amd.sev_snp", "kvm_amd.sev_es", "kvm_amd.sev"), None),
    ],
)
def test_auto_is_the_best_that_the_host_can_start(
    qemu: FakeQemu,
    monkeypatch: pytest.MonkeyPatch,
    lacking: tuple[str, ...],
    best: Technology | None,
) -> None:
    here = {name: value for name, value in hosts.MILAN.parameters.items() if name not in lacking}
    facts = attrs.evolve(hosts.MILAN, parameters=here)
    monkeypatch.setattr(accel, "host_facts", lambda *_, **known: attrs.evolve(facts, **known))
    decided, warnings = decide(qemu, Switch.TRUE, Switch.AUTO)
    assert decided.tee is best
    assert bool(warnings) is (best is None)


@needs_device
@pytest.mark.parametrize("tee", [Tee.SEV_SNP, Tee.TDX])
def test_technology_that_is_insisted_on(qemu: FakeQemu, milan: HostFacts, tee: Tee) -> None:
    made = config(qemu, enable_kvm=Switch.TRUE, tee=TeeConfig(use=tee))
    if tee is Tee.SEV_SNP:
        assert accel.decide(made, str(qemu.path)) == (Accel(True, Technology.SEV_SNP), [])
        return
    with pytest.raises(HostError, match=r"^MANAGER_TEE=tdx, but no Intel Xeon") as raised:
        accel.decide(made, str(qemu.path))
    assert "set it to auto or none" in raised.value.advice


@needs_device
@pytest.mark.parametrize("sev", [Switch.AUTO, Switch.TRUE])
def test_another_c_bit_than_the_hosts_is_refused(
    qemu: FakeQemu, milan: HostFacts, sev: Switch
) -> None:
    """Plain VMs in place of SEV guests would be no answer to a wrong number."""
    settings = config(qemu, enable_sev=sev, sev=SevConfig(cbitpos=47))
    with pytest.raises(HostError) as raised:
        accel.decide(settings, str(qemu.path))
    assert "MANAGER_QEMU_SEV_CBITPOS=47, but this host's C-bit is 51" in str(raised.value)


@pytest.mark.parametrize(("given", "used"), [(None, 47), (51, 51)])
def test_the_c_bit_is_the_hosts_unless_it_is_set(
    monkeypatch: pytest.MonkeyPatch, given: int | None, used: int
) -> None:
    monkeypatch.setattr(reading, "encryption_leaf", lambda: hosts.OLD_KERNEL.leaf)
    made = load({})
    made = attrs.evolve(made, qemu=attrs.evolve(made.qemu, sev=SevConfig(cbitpos=given)))
    assert at_start.on_this_host(made).qemu.sev.cbitpos == used


def test_this_host_without_a_qemu_that_answers(qemu: FakeQemu) -> None:
    facts = accel.host_facts(config(qemu), str(qemu.path), None, kvm=None)
    assert (facts.qemu, facts.kvm) == (None, None)
    assert accel.host_facts(config(qemu), None, None, kvm=None) == facts


# --- the binary -----------------------------------------------------------------------------


def test_qemu_by_name_and_by_path(qemu: FakeQemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(qemu.path.parent))
    for given in ("qemu", str(qemu.path)):
        assert accel.find_qemu(QemuConfig(bin_path=given)) == str(qemu.path)


def test_relative_path_of_qemu_becomes_absolute(
    qemu: FakeQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(qemu.path.parent)
    assert accel.find_qemu(QemuConfig(bin_path="./qemu")) == str(qemu.path)


def test_no_qemu(short_tmp: Path) -> None:
    with pytest.raises(HostError, match="MANAGER_QEMU_BIN_PATH"):
        accel.find_qemu(QemuConfig(bin_path=str(short_tmp / "none")))
