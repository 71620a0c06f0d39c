"""A host's facts, read of this machine and of files of a test's own."""

from __future__ import annotations

import mmap
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.tee import judge, reading
from supervisor.tee.facts import EncryptionLeaf, HostFacts
from tests.support import hosts

CPUINFO = """\
processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 1
model name\t: AMD EPYC 7763 64-Core Processor
flags\t\t: svm sme sev sev_es sev_snp

processor\t: 1
vendor_id\t: another
"""
KMSG = """\
6,100,1000,-;SEV-SNP: RMP table physical range [0x1 - 0x2]
4,101,1001,-;a line of something else
6,102,1002,-;ccp 0000:23:00.1: SEV-SNP API:1.55 build:24
 SUBSYSTEM=pci
 DEVICE=+pci:0000:23:00.1;SEV-SNP API:9.9
12,103,1003,-;ccp 0000:23:00.1: SEV-SNP API:9.99 build:1
x;ccp 0000:23:00.1: SEV-SNP API:9.98 build:1
"""

MILAN = {
    "proc/cpuinfo": CPUINFO,
    "proc/sys/kernel/osrelease": "6.11.0\n",
    "sys/module/kvm_amd/parameters/sev": "Y\n",
    "sys/module/kvm_amd/parameters/sev_es": "Y\n",
    "sys/module/kvm_amd/parameters/sev_snp": "N\n",
    "sys/fs/cgroup/misc.capacity": "sev 410\nsev_es 99\nother max\n",
    "sys/fs/cgroup/misc.current": "sev 1\nsev_es 2\n",
    "dev/kmsg": KMSG,
    "dev/kvm": "",
    "dev/sev": "",
}


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def read(root: Path, *, locks_freely: bool = True) -> HostFacts:
    return reading.read(
        kvm=True,
        qemu=hosts.NEW_QEMU,
        ovmf=hosts.NEW_OVMF,
        may_open=lambda path: path.name == "kvm",
        locks_freely=locks_freely,
        root=root,
    )


def test_a_root_of_a_test(tmp_path: Path) -> None:
    facts = read(write(tmp_path, MILAN))
    assert (facts.vendor, facts.family, facts.model) == ("AuthenticAMD", 25, 1)
    assert (facts.name, facts.flags) == (hosts.MILAN.name, hosts.MILAN.flags)
    assert facts.kernel == "6.11.0"
    assert facts.parameters == hosts.FIRMWARE_1_49.parameters
    assert facts.capacity == {"sev": 410, "sev_es": 99}
    assert facts.current == {"sev": 1, "sev_es": 2}
    assert facts.devices == {"/dev/kvm": True, "/dev/sev": False}
    assert (facts.kvm, facts.qemu, facts.ovmf) == (True, hosts.NEW_QEMU, hosts.NEW_OVMF)


def test_only_the_kernel_itself_is_believed(tmp_path: Path) -> None:
    """A process that may write to the log could else promise a firmware."""
    assert read(write(tmp_path, MILAN)).log == (
        "SEV-SNP: RMP table physical range [0x1 - 0x2]",
        "ccp 0000:23:00.1: SEV-SNP API:1.55 build:24",
    )


def test_a_root_without_anything(tmp_path: Path) -> None:
    facts = read(tmp_path)
    assert (facts.vendor, facts.family, facts.kernel) == ("", None, "")
    assert (facts.capacity, facts.current, facts.log) == (None, None, None)
    assert not facts.flags | set(facts.parameters) | set(facts.devices)


@pytest.mark.parametrize("place", ["", "misc/", "unified/"])
def test_control_groups_of_both_versions(tmp_path: Path, place: str) -> None:
    write(tmp_path, {f"sys/fs/cgroup/{place}misc.capacity": "tdx 63\n"})
    assert read(tmp_path).capacity == {"tdx": 63}


def test_memory_that_may_be_locked(tmp_path: Path) -> None:
    assert read(tmp_path).memlock is None
    limits = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (4096, limits[1]))
        assert read(tmp_path, locks_freely=False).memlock == 4096
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, limits)


@given(
    files=st.dictionaries(st.sampled_from(list(MILAN)), st.binary(max_size=200)),
    scraps=st.lists(st.text(max_size=40)),
)
def test_any_bytes_give_facts(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], scraps: list[str]
) -> None:
    """Beginnings of real lines are among them, so that not all is passed over at once."""
    log = "".join(f"6,1,1,-;SEV{scrap}\n" for scrap in scraps)
    misc = "".join(f"sev {scrap}\n" for scrap in scraps)
    cpu = "".join(f"model\t: {scrap}\nflags:{scrap}\n" for scrap in scraps)
    mixed = {"dev/kmsg": log, "sys/fs/cgroup/misc.current": misc, "proc/cpuinfo": cpu}
    root = write(tmp_path_factory.mktemp("root"), mixed)
    for name, content in files.items():
        write(root, {name: ""})
        (root / name).write_bytes(content)
    judge.judge(read(root), 2**31)


# --- this machine ---------------------------------------------------------------------------


def test_this_machine() -> None:
    facts = reading.read(kvm=None, qemu=None, ovmf={}, may_open=lambda _: True, locks_freely=True)
    assert facts.kernel == platform.release()
    assert facts.vendor in Path("/proc/cpuinfo").read_text()
    assert facts.flags
    assert set(facts.devices) == {name for name in ("/dev/kvm", "/dev/sev") if Path(name).exists()}


def test_cpuid_of_this_machine() -> None:
    """Intel's CPUs have no such leaf, and answer with registers of another one if asked for it."""
    leaf = reading.encryption_leaf()
    assert leaf is not None
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].splitlines()[0].split()
    if "sev" in flags:
        assert leaf.eax & 2
    if "GenuineIntel" in Path("/proc/cpuinfo").read_text():
        assert leaf == EncryptionLeaf(0, 0, 0, 0)


def test_cpuid_leaves_no_memory_behind() -> None:
    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count(" r-xp 00000000 00:00 0 ")

    reading.encryption_leaf()
    before = mappings()
    for _ in range(3):
        reading.encryption_leaf()
    assert mappings() == before


@pytest.mark.parametrize("error", [PermissionError(13, "x"), OSError(12, "x")])
def test_no_page_for_code(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(mmap, "mmap", refuse)
    assert reading.encryption_leaf() is None


def test_another_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert reading.encryption_leaf() is None


#: PR_SET_MDWE (Linux 6.3) does what systemd's MemoryDenyWriteExecute= does by a filter.
DENIED = """
import ctypes, sys
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0):
    sys.exit(77)
from supervisor.tee import reading
print(reading.encryption_leaf())
"""


def test_a_kernel_that_makes_no_written_page_executable() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DENIED], capture_output=True, text=True, check=False
    )
    if done.returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE")
    assert (done.returncode, done.stdout) == (0, "None\n"), done.stderr
