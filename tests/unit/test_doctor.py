"""The verdicts, each from facts given to it, and the whole of it on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from supervisor import config, doctor
from supervisor.config import Policy, Tee
from supervisor.config.settings import Port, PortRange, Size, Switch
from supervisor.doctor import Check, Verdict
from supervisor.qemu import guest_namespace
from supervisor.qemu.accel import Probe
from supervisor.runs.admission import Resources
from supervisor.tee import judge
from tests.support import hosts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from supervisor.tee.facts import HostFacts

OK, NOTE, WARN, FAIL = Verdict.OK, Verdict.NOTE, Verdict.WARN, Verdict.FAIL
QEMU = config.QemuConfig()
CANNOT_OPEN = Probe(works=False, detail="/dev/kvm cannot be opened: Permission denied")


@pytest.mark.parametrize(
    ("wanted", "probe", "verdict"),
    [
        (Switch.AUTO, Probe(works=True, detail="ran"), OK),
        (Switch.AUTO, CANNOT_OPEN, WARN),
        (Switch.TRUE, CANNOT_OPEN, FAIL),
        (Switch.FALSE, None, OK),
        (Switch.AUTO, None, FAIL),
    ],
)
def test_kvm(wanted: Switch, probe: Probe | None, verdict: Verdict) -> None:
    check = doctor.check_kvm(wanted, probe)
    assert check.verdict is verdict
    assert bool(check.advice) is (verdict is not OK)


@pytest.mark.parametrize(
    ("detail", "advice"),
    [
        ("/dev/kvm cannot be opened: Permission denied", "group kvm"),
        ("/dev/kvm cannot be opened: No such file or directory", "firmware setup"),
        ("a probe guest ended QEMU with exit code 1", "dmesg"),
    ],
)
def test_kvm_advice_fits_the_cause(detail: str, advice: str) -> None:
    check = doctor.check_kvm(Switch.AUTO, Probe(works=False, detail=detail))
    assert advice in check.advice


@pytest.mark.parametrize(
    ("wanted", "verdict"), [(Switch.AUTO, WARN), (Switch.TRUE, FAIL), (Switch.FALSE, OK)]
)
def test_tee_needs_kvm(wanted: Switch, verdict: Verdict) -> None:
    facts = attrs.evolve(hosts.MILAN, kvm=False)
    assert doctor.check_tee(attrs.evolve(QEMU, enable_sev=wanted), facts).verdict is verdict


@pytest.mark.parametrize(
    ("c_bit", "verdict", "detail"),
    [
        (None, OK, "VMs are SEV-SNP guests"),
        (51, OK, "VMs are SEV-SNP guests"),
        (47, FAIL, "MANAGER_QEMU_SEV_CBITPOS=47, but this host's C-bit is 51"),
    ],
)
def test_tee_where_it_is(c_bit: int | None, verdict: Verdict, detail: str) -> None:
    settings = attrs.evolve(QEMU, sev=config.SevConfig(cbitpos=c_bit))
    check = doctor.check_tee(settings, hosts.MILAN)
    assert (check.verdict, check.detail) == (verdict, detail)


@pytest.mark.parametrize("wanted", [Tee.NONE, Tee.AUTO, Tee.SEV_SNP])
def test_files_of_confidential_guests(tmp_path: Path, wanted: Tee) -> None:
    """They are looked at on every host: a run may ask for such a guest."""
    short = tmp_path / "id"
    short.write_bytes(bytes(95))
    tee = config.TeeConfig(
        use=wanted, kernel=Path("/no/kernel"), id_block=short, id_auth=short,
        policy=Policy.read("no-send,no-smt"), signing_key=short,
    )  # fmt: skip
    found = list(doctor.check_tee_settings(attrs.evolve(QEMU, tee=tee)))
    problem = FAIL if wanted is Tee.SEV_SNP else WARN
    assert [(one.name, one.verdict) for one in found] == [
        *[("TEE files", problem)] * 3,
        ("TEE policy", problem),
        ("CoRIM key", FAIL),
    ]
    assert found[0].detail == "/no/kernel cannot be read: No such file or directory"
    assert found[1].detail.endswith("has not 96 bytes")
    assert "SEV-SNP does not know the word 'send'" in found[3].detail
    assert "is no key to sign with" in found[4].detail


def test_settings_of_confidential_guests_that_are_right(tmp_path: Path) -> None:
    tee = config.TeeConfig(kernel=tmp_path / "kernel", policy=Policy.read("no-send,no-debug"))
    (tmp_path / "kernel").touch()
    assert list(doctor.check_tee_settings(attrs.evolve(QEMU, tee=tee))) == []


def lines(facts: HostFacts) -> list[tuple[Verdict, str, str]]:
    table = judge.judge(facts, QEMU.memory_bytes)
    checks = list(doctor.check_technologies(table))
    cells = {technology: row for check in checks for technology, row in check.cells.items()}
    assert cells == table
    return [(check.verdict, check.detail, check.advice) for check in checks]


def test_a_host_without_any_technology_has_two_lines() -> None:
    cpu = "GenuineIntel family 6 model 167 (Intel(R) Xeon(R) Processor)"
    assert lines(hosts.THIS_MACHINE) == [
        (NOTE, f"SEV, SEV-ES, SEV-SNP: no AMD EPYC: this CPU is {cpu}", ""),
        (
            NOTE,
            "TDX: this host is itself a virtual machine",
            "run the supervisor on the bare machine",
        ),
    ]


def test_a_host_that_lacks_one_thing_is_warned_of_it() -> None:
    warned = [line for line in lines(hosts.IOMMU_PASSTHROUGH) if line[0] is WARN]
    assert [detail.partition(": ")[0] for _, detail, _ in warned] == ["SEV-SNP"]
    assert warned[0][2].startswith("remove iommu=pt")


def test_a_host_that_has_all_of_it() -> None:
    assert lines(hosts.GENOA)[0] == (OK, "SEV: 907 of 908 ASIDs are free", "")
    verdict, detail, advice = lines(hosts.GENOA)[1]
    assert verdict is NOTE
    assert detail.startswith("SEV-ES: nothing is known to be missing, but SEV-SNP is on")
    assert advice.startswith("if a launch ends with fw_error=21, use SEV-SNP")


@pytest.mark.parametrize(
    ("size", "available_mib", "verdict"),
    [("512M", 2048, OK), ("2G", 1024, WARN), ("524288K", 1024, OK), ("4096", 1024, WARN)],
)
def test_memory(size: str, available_mib: int, verdict: Verdict) -> None:
    qemu = attrs.evolve(QEMU, memory_size=Size(size))
    check = doctor.check_memory(qemu, total=2**34, available=available_mib * 2**20)
    assert check.verdict is verdict


def test_memory_says_for_how_many_there_is_room() -> None:
    qemu = attrs.evolve(QEMU, memory_size=Size("512M"))
    check = doctor.check_memory(qemu, total=2**32, available=2**31)
    assert check.detail == "512 MiB a VM, 2048 MiB available of 4096: room for 4"


@pytest.mark.parametrize(("here", "verdict"), [(4, OK), (2, WARN)])
def test_cpus(here: int, verdict: Verdict) -> None:
    assert doctor.check_cpus(QEMU, here).verdict is verdict


@pytest.mark.parametrize(
    ("memory_mib", "vcpus", "detail"),
    [
        (8192, 2, "room for 4 at once: 10 by MANAGER_MAX_VMS, 4 by MANAGER_MEMORY"),
        (2**20, 1, "room for 4 at once: 10 by MANAGER_MAX_VMS, 512 by MANAGER_MEMORY"),
        (2**20, 16, "room for 10 at once: 10 by MANAGER_MAX_VMS, 512 by MANAGER_MEMORY"),
        (3000, 2, "room for 1 at once: "),
    ],
)
def test_limits_say_how_many_vms_fit(memory_mib: int, vcpus: int, detail: str) -> None:
    check = doctor.check_limits(config.load({}), Resources(0, memory_mib * 2**20, vcpus, ports=31))
    assert check.verdict is OK
    assert check.detail.startswith(detail)


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"MANAGER_MAX_VMS": "0"}, ["raise it"]),
        (
            {"MANAGER_MEMORY_OVERCOMMIT": "0.2"},
            ["MANAGER_QEMU_MEMORY_SIZE", "MANAGER_MEMORY_OVERCOMMIT"],
        ),
        ({"MANAGER_VCPU_OVERCOMMIT": "1"}, ["MANAGER_QEMU_SMP_COUNT", "MANAGER_VCPU_OVERCOMMIT"]),
        ({"MANAGER_MAX_VMS": "1"}, ["MANAGER_QEMU_HOST_FWD_RANGE"]),
    ],
)
def test_limits_under_which_no_vm_fits(settings: dict[str, str], advice: list[str]) -> None:
    check = doctor.check_limits(config.load(settings), Resources(0, 2**33, 2, ports=2))
    assert check.verdict is FAIL
    assert all(name in check.advice for name in advice)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that this process listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_port_in_use_is_told_by_its_owner(taken: int) -> None:
    check = doctor.check_server("HTTP", config.HttpConfig(port=Port(taken)))
    assert check.verdict is FAIL
    assert "belongs to" in check.detail
    assert check.advice == "set MANAGER_HTTP_PORT to another"


def test_a_forward_in_use_is_no_harm(taken: int) -> None:
    net = attrs.evolve(QEMU.net, host_fwd_1=Port(taken))
    check = doctor.check_forwards(attrs.evolve(QEMU, net=net))
    assert check.verdict is OK
    assert f"{taken} belongs to" in check.detail


def test_a_range_without_room_is(taken: int) -> None:
    net = attrs.evolve(QEMU.net, host_fwd_range=PortRange(taken, taken))
    check = doctor.check_forwards(attrs.evolve(QEMU, net=net))
    assert check.verdict is FAIL
    assert "MANAGER_QEMU_HOST_FWD_RANGE" in check.advice


def test_guests_that_reach_everything_are_warned_of() -> None:
    settings = config.load({"MANAGER_QEMU_GUEST_NETWORK": "open"}).qemu
    check = doctor.check_guest_network(settings)
    assert check.verdict is WARN
    assert "the supervisor, the host's loopback" in check.detail
    assert check.advice.startswith("set MANAGER_QEMU_GUEST_NETWORK=none")


def test_what_a_run_without_forwards_would_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_namespace, "search_path", lambda: "")
    check = doctor.check_forwards(QEMU)
    assert (check.verdict, check.advice) == (OK, "")
    assert "a run without forwards would fail: " in check.detail
    assert check.detail.endswith("install the package iproute2")


def test_no_port_is_looked_for_if_no_vm_gets_any(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config.load({"MANAGER_FORWARDS": "none"}).qemu
    check = doctor.check_forwards(settings)
    assert (check.verdict, check.advice) == (OK, "")
    assert "no port of the host" in check.detail
    monkeypatch.setattr(guest_namespace, "search_path", lambda: "")
    check = doctor.check_guest_network(settings)
    assert (check.verdict, check.advice) == (FAIL, "install the package iproute2")


def _disk(file: Path, format_: str) -> config.QemuConfig:
    return attrs.evolve(QEMU, disk=attrs.evolve(QEMU.disk, file=file, format=format_))


@pytest.mark.parametrize(
    ("made", "configured", "verdict", "advice"),
    [
        ("qcow2", "qcow2", OK, ""),
        ("raw", "raw", OK, ""),
        ("raw", "qcow2", FAIL, "set MANAGER_QEMU_DISK_IMG_FORMAT=raw"),
        ("qcow2", "raw", WARN, "set MANAGER_QEMU_DISK_IMG_FORMAT=qcow2, unless it is meant so"),
    ],
)
def test_image_format(
    tmp_path: Path, made: str, configured: str, verdict: Verdict, advice: str
) -> None:
    file = tmp_path / "disk.img"
    subprocess.run(["qemu-img", "create", "-q", "-f", made, file, "1M"], check=True)
    check = doctor.check_image(_disk(file, configured))
    assert (check.verdict, check.advice) == (verdict, advice)


def test_missing_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check = doctor.check_image(_disk(tmp_path / "none.img", "qcow2"))
    assert check.verdict is FAIL
    assert "image build" in check.advice
    (tmp_path / "img").mkdir()
    (tmp_path / "img/guest.qcow2").touch()
    check = doctor.check_image(_disk(tmp_path / "none.img", "qcow2"))
    assert check.advice == "set MANAGER_QEMU_DISK_IMG_FILE=img/guest.qcow2"


def test_missing_qemu(tmp_path: Path) -> None:
    check = doctor.check_qemu(attrs.evolve(QEMU, bin_path=str(tmp_path / "qemu")))
    assert check.verdict is FAIL
    assert "qemu-system-x86" in check.advice


def a_qemu(file: Path, does: str) -> Path:
    """A program in QEMU's place that runs one line of Python."""
    here = os.path.abspath(f"{__file__}/../../..")
    lines = ("import sys", f"sys.path.append({here!r})", "from tests.support import fake_qemu")
    file.write_text("\n".join((f"#!{sys.executable}", *lines, does, "")))
    file.chmod(0o755)
    return file


@pytest.mark.parametrize(
    ("does", "verdict", "says"),
    [
        ("fake_qemu.answer_trial('7.2')", OK, "version 7.2.0"),
        ("fake_qemu.answer_trial('11.1')", OK, "version 11.1.0"),
        ("fake_qemu.answer_trial('6.2')", WARN, "version 6.2.0"),
        ("print('something else')", FAIL, "does not answer"),
        ("print('[]')", FAIL, "exit code 0"),
        ("sys.exit('no such library')", FAIL, "no such library"),
    ],
)
def test_qemu_version(tmp_path: Path, does: str, verdict: Verdict, says: str) -> None:
    binary = a_qemu(tmp_path / "qemu", does)
    check = doctor.check_qemu(attrs.evolve(QEMU, bin_path=str(binary)))
    assert check.verdict is verdict
    assert says in check.detail


def test_firmware_that_is_missing(tmp_path: Path) -> None:
    firmware = attrs.evolve(QEMU.firmware, code_file=tmp_path / "none.fd")
    check = doctor.check_ovmf(attrs.evolve(QEMU, firmware=firmware))
    assert check.verdict is FAIL
    assert check.detail.endswith("none.fd: No such file or directory")
    assert check.advice.startswith("install the package ovmf")


def test_tmp_that_is_too_deep(tmp_path: Path) -> None:
    check = doctor.check_tmp_dir(tmp_path / ("d" * 100))
    assert check.verdict is FAIL
    assert check.advice.startswith("set MANAGER_QEMU_TMP_FILE_LOC")


def test_only_failures_keep_vms_from_starting() -> None:
    warned = [Check("a", OK, ""), Check("b", WARN, "")]
    assert not doctor.keeps_vms_from_starting(warned)
    assert doctor.keeps_vms_from_starting([*warned, Check("c", FAIL, "")])


@pytest.mark.parametrize("setting", ["MANAGER_QEMU_MACHINE", "MANAGER_QEMU_CPU"])
def test_kvm_is_not_blamed_for_a_machine_that_qemu_refuses(short_tmp: Path, setting: str) -> None:
    settings = {"MANAGER_QEMU_TMP_FILE_LOC": str(short_tmp), setting: "nonsense"}
    checks = {check.name: check for check in doctor.examine(config.load(settings))}
    assert checks["machine"].verdict is FAIL
    assert (checks["KVM"].verdict, checks["KVM"].advice) == (WARN, "see machine")


def test_the_whole_of_it_on_this_machine(short_tmp: Path) -> None:
    """No check raises, and with everything free what is in the way is only what is missing."""
    settings = {
        "MANAGER_HTTP_PORT": "0",
        "MANAGER_GRPC_PORT": "0",
        "MANAGER_QEMU_TMP_FILE_LOC": str(short_tmp),
        "MANAGER_QEMU_DISK_IMG_FILE": str(short_tmp / "none.qcow2"),
    }
    checks = {check.name: check for check in doctor.examine(config.load(settings))}
    assert list(checks) == [
        *("QEMU", "qemu-img", "user", "tmp", "machine", "KVM", "TEE", "host", "OVMF"),
        *(
            "base image",
            "memory",
            "CPUs",
            "limits",
            "HTTP port",
            "GRPC port",
            "forwards",
            "guest network",
        ),
    ]
    assert checks["base image"].verdict is FAIL
    for name in ("QEMU", "qemu-img", "tmp", "machine", "HTTP port", "GRPC port", "forwards"):
        assert checks[name].verdict is OK, checks[name]
    assert checks["guest network"].verdict is OK
    assert all(check.advice for check in checks.values() if check.verdict in (WARN, FAIL))


def test_guests_that_boot_no_disk(tmp_path: Path) -> None:
    """Nobody is told to build an image that nothing boots."""
    environ = {
        "MANAGER_AGENT_DIALS": "chunked",
        "MANAGER_TEE_KERNEL": str(tmp_path / "kernel"),
        "MANAGER_QEMU_DISK_IMG_FILE": str(tmp_path / "missing"),
    }
    found = doctor.check_image(config.load(environ).qemu)
    assert (found.verdict, "without a disk" in found.detail) == (doctor.Verdict.OK, True)
    without = config.load({**environ, "MANAGER_AGENT_DIALS": "no"}).qemu
    assert doctor.check_image(without).verdict is doctor.Verdict.FAIL
