"""What is said of each recorded host, cell by cell, and each sentence of advice."""

from __future__ import annotations

import re

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.tee import judge
from supervisor.tee.facts import EncryptionLeaf, HostFacts, Qemu, Technology
from supervisor.tee.judge import Cell, Layer, Verdict
from tests.support import hosts

SEV, ES, SNP, TDX = Technology
CPU, FIRMWARE, KERNEL, KVM, QEMU, OVMF, PERMISSIONS, ASIDS = Layer
#: Of a row, in the order of the layers.
_LETTERS = {"o": Verdict.OK, "m": Verdict.MISSING, "?": Verdict.UNKNOWN}
GUEST_BYTES = 2 << 30


def table(facts: HostFacts) -> judge.Table:
    return judge.judge(facts, GUEST_BYTES)


def letters(row: judge.Row) -> str:
    assert list(row) == list(Layer)
    of = {verdict: letter for letter, verdict in _LETTERS.items()}
    return "".join(of[cell.verdict] for cell in row.values())


def first(facts: HostFacts, technology: Technology) -> Cell:
    cell = judge.obstacle(table(facts)[technology])
    assert cell is not None
    return cell


# --- hosts ----------------------------------------------------------------------------------

#: Verdicts of cpu, firmware, kernel, kvm, qemu, ovmf, permissions, asids.
TABLES = {
    "MILAN": ("oooooooo", "o?oooooo", "oooooooo", "m?m?oo??"),
    "GENOA": ("oooooooo", "o?oooooo", "oooooooo", "m?m?oo??"),
    "TURIN": ("oooooomo", "o?oooom?", "ooooooo?", "m?m?oo??"),
    "OLD_KERNEL": ("ooooooo?", "ommmo?o?", "m?m?m???", "m?m?m???"),
    "FIRMWARE_1_49": ("oooooooo", "oooooooo", "omomoooo", "m?m?oo??"),
    "SNP_NOT_INITIALISED": ("o?oooooo", "o?oooooo", "omomoooo", "m?m?oo??"),
    "SNP_FORBIDS_ES": ("oooooooo", "o?omoooo", "oooooooo", "m?m?oo??"),
    "IOMMU_PASSTHROUGH": ("oooooooo", "oooooooo", "oommoooo", "m?m?oo??"),
    "CONTAINER": ("oooooom?", "o?oooom?", "oooooom?", "m?m?oo??"),
    "TDX_XEON": ("m?o?oo??", "m?o?oo??", "m?o?oo??", "oooooooo"),
    "THIS_MACHINE": ("m?o?oo??", "m?o?o???", "m?o?m???", "m?o?m???"),
}


@pytest.mark.parametrize("name", TABLES)
def test_verdicts(name: str) -> None:
    found = table(getattr(hosts, name))
    assert tuple(letters(row) for row in found.values()) == TABLES[name]


def test_what_is_missing_has_a_sentence_that_mends_it_unless_it_is_another_vendors_cpu() -> None:
    for name in TABLES:
        for row in table(getattr(hosts, name)).values():
            for layer, cell in row.items():
                if cell.verdict is Verdict.MISSING and not cell.found.startswith("no "):
                    assert cell.advice, (name, layer, cell)


@pytest.mark.parametrize(
    ("host", "technology", "found", "advice"),
    [
        ("THIS_MACHINE", SEV, "no AMD EPYC: this CPU is GenuineIntel family 6 model 167", ""),
        ("THIS_MACHINE", TDX, "this host is itself a virtual machine", "run the supervisor on"),
        ("MILAN", TDX, "no Intel Xeon: this CPU is AuthenticAMD family 25 model 1", ""),
        ("OLD_KERNEL", ES, "the firmware setup leaves no ASIDs to SEV-ES", "turn on SMEE and set"),
        ("OLD_KERNEL", SNP, "AuthenticAMD family 23 model 49", "SEV-SNP needs an EPYC 7003"),
        ("FIRMWARE_1_49", SNP, "SEV firmware 1.49, not 1.51", "update the BIOS, or put AMD's"),
        (
            "SNP_NOT_INITIALISED",
            SNP,
            "ccp 0000:22:00.1: SEV-SNP: failed to INIT error 0x3",
            "update the BIOS, or put AMD's",
        ),
        (
            "SNP_FORBIDS_ES",
            ES,
            "kvm_amd: SEV-ES unusable (ASIDs 1 - 253)",
            "SEV-SNP has all the ASIDs, or the SEV firmware refuses SEV-ES beside SEV-SNP"
            " (AMD-SB-3023): use SEV-SNP, or turn that off",
        ),
        ("IOMMU_PASSTHROUGH", SNP, "AMD-Vi: SNP: IOMMU disabled or", "remove iommu=pt and"),
        ("CONTAINER", SNP, "there is no /dev/sev", "load ccp; a container must be given /dev/sev"),
        ("TURIN", SEV, "8192 KiB may be locked, and a guest has 2097152", "set LimitMEMLOCK="),
    ],
)
def test_what_is_to_be_mended_first(
    host: str, technology: Technology, found: str, advice: str
) -> None:
    cell = first(getattr(hosts, host), technology)
    assert cell.found.startswith(found)
    assert cell.advice.startswith(advice)
    assert bool(cell.advice) is bool(advice)


@pytest.mark.parametrize(
    ("host", "technology", "layer", "found"),
    [
        ("MILAN", SNP, CPU, "(AMD EPYC 7763 64-Core Processor), C-bit 51"),
        ("MILAN", SNP, FIRMWARE, "ccp 0000:23:00.1: SEV-SNP API:1.55 build:24"),
        ("MILAN", ES, FIRMWARE, "SEV-SNP is on: SEV firmware with the fix AMD-SB-3023"),
        ("MILAN", SEV, ASIDS, "410 of 410 ASIDs are free"),
        ("GENOA", SEV, ASIDS, "907 of 908 ASIDs are free"),
        ("GENOA", SNP, ASIDS, "96 of 98 ASIDs are free"),
        ("TURIN", SNP, ASIDS, "0 of 499 ASIDs are free"),
        ("CONTAINER", SEV, ASIDS, "410 by CPUID; there is no misc.capacity here"),
        ("CONTAINER", SNP, ASIDS, "99 by CPUID; there is no misc.capacity here"),
        ("OLD_KERNEL", SEV, KVM, "kvm_amd.sev is 1"),
        ("OLD_KERNEL", ES, KERNEL, "kernel 5.10.0-30-amd64 is older than 5.11"),
        ("OLD_KERNEL", SNP, KERNEL, "kernel 5.10.0-30-amd64 knows no kvm_amd.sev_snp"),
        ("OLD_KERNEL", SNP, QEMU, "QEMU 7.2.22 knows no sev-snp-guest"),
        ("SNP_NOT_INITIALISED", SNP, KVM, "kvm_amd.sev_snp is N"),
        ("SNP_NOT_INITIALISED", ES, FIRMWARE, "SEV: failed to INIT error 0x1, rc -5"),
        ("TDX_XEON", TDX, FIRMWARE, "virt/tdx: module initialized"),
        ("TDX_XEON", TDX, ASIDS, "60 of 63 KeyIDs are free"),
        ("TDX_XEON", TDX, OVMF, "/usr/share/ovmf/OVMF.inteltdx.fd has intel-tdx"),
        ("TDX_XEON", TDX, PERMISSIONS, "QEMU's user may open /dev/kvm"),
        ("THIS_MACHINE", ES, OVMF, "no OVMF says that it has amd-sev-es"),
        ("THIS_MACHINE", TDX, QEMU, "QEMU 7.2.22 knows no tdx-guest"),
        ("THIS_MACHINE", SEV, FIRMWARE, "see cpu"),
    ],
)
def test_what_was_found(host: str, technology: Technology, layer: Layer, found: str) -> None:
    assert found in table(getattr(hosts, host))[technology][layer].found


# --- one thing changed ----------------------------------------------------------------------


def milan(**changes: object) -> HostFacts:
    return attrs.evolve(hosts.MILAN, **changes)  # type: ignore[arg-type]


def tdx(**changes: object) -> HostFacts:
    return attrs.evolve(hosts.TDX_XEON, **changes)  # type: ignore[arg-type]


OFF = {"kvm_amd.sev": "N", "kvm_amd.sev_es": "0", "kvm_amd.sev_snp": "?"}


@pytest.mark.parametrize(
    ("facts", "technology", "layer", "verdict", "found", "advice"),
    [
        (milan(vendor=""), SEV, CPU, "?", "names no vendor", ""),
        (milan(leaf=None), SNP, CPU, "o", "EPYC 7763", ""),
        (milan(leaf=None, flags=frozenset()), SNP, CPU, "?", "the flag sev_snp", "EPYC 7003"),
        (tdx(flags=frozenset()), TDX, CPU, "?", "tdx_host_platform", "Xeon of the 5th"),
        (tdx(flags=frozenset(), parameters={}), TDX, FIRMWARE, "m", "tdx_host_platform", "SEAM"),
        (milan(flags=frozenset(), parameters=OFF), SEV, FIRMWARE, "m", "the flag sev", "SMEE"),
        (milan(flags=frozenset()), SEV, FIRMWARE, "o", "", ""),  # KVM says that it is on
        (
            milan(leaf=EncryptionLeaf(0x0101FD3F, 0x4173, 509, 510)),
            *(SEV, FIRMWARE, "m", "leaves no ASIDs to SEV", "leave ASIDs to SEV"),
        ),
        (milan(kernel="6.8", parameters={}), SNP, KERNEL, "m", "older than 6.11", "Linux 6.11"),
        (milan(kernel="6.11-rc", parameters={}), SNP, KERNEL, "o", "kernel 6.11-rc", ""),
        (milan(kernel="6.8.0-ubuntu"), SNP, KERNEL, "o", "knows kvm_amd.sev_snp", ""),
        (milan(kernel="", parameters={}), SEV, KERNEL, "?", "not a version", ""),
        (milan(kvm=False), SEV, KVM, "m", "SEV needs KVM", "MANAGER_QEMU_ENABLE_KVM"),
        (milan(kvm=None), SEV, KVM, "?", "KVM was not tried", ""),
        (milan(parameters={}), SEV, KVM, "m", "no kvm_amd.sev: kvm_amd", "'options kvm_amd sev=1'"),
        (milan(parameters=OFF), SEV, KVM, "m", "kvm_amd.sev is N", "'options kvm_amd sev=1'"),
        (milan(parameters=OFF), ES, KVM, "m", "kvm_amd.sev_es is 0", "sev_es=1"),
        (milan(parameters=OFF), SNP, KVM, "m", "kvm_amd.sev_snp is ?", "sev_snp=1"),
        (tdx(parameters={"kvm_intel.tdx": "N"}), TDX, KVM, "m", "tdx is N", "kvm_intel tdx=1"),
        (milan(qemu=None), SEV, QEMU, "?", "does not answer", "see QEMU"),
        (milan(qemu=hosts.OLD_QEMU), SNP, QEMU, "m", "no sev-snp-guest", "needs QEMU 9.1"),
        (tdx(qemu=Qemu("9.1.0", frozenset())), TDX, QEMU, "m", "no tdx-guest", "needs QEMU 10.1"),
        (milan(ovmf={}), SEV, OVMF, "m", "no OVMF was found", "package ovmf"),
        (milan(ovmf=hosts.DEBIAN_OVMF), SNP, OVMF, "?", "amd-sev-snp", "built with amd-sev-snp"),
        (milan(devices={}), SEV, PERMISSIONS, "m", "no /dev/kvm", "load kvm"),
        (
            milan(devices={"/dev/kvm": True, "/dev/sev": False}),
            *(SNP, PERMISSIONS, "m", "may not read and write /dev/sev", "chgrp kvm /dev/sev"),
        ),
        (milan(memlock=GUEST_BYTES - 1), ES, PERMISSIONS, "m", "may be locked", "LimitMEMLOCK"),
        (milan(memlock=GUEST_BYTES), ES, PERMISSIONS, "o", "/dev/kvm and /dev/sev", ""),
        (milan(memlock=0), SNP, PERMISSIONS, "o", "/dev/kvm and /dev/sev", ""),
        (milan(capacity={"sev": 410}), SNP, ASIDS, "m", "has no sev_es", "above 1"),
        (milan(current=None), SEV, ASIDS, "?", "410 ASIDs; how many are in use", ""),
        (milan(current={"sev": 410}), SEV, ASIDS, "?", "0 of 410", "end a guest with SEV"),
        (tdx(capacity=None), TDX, ASIDS, "?", "how many KeyIDs is not known", ""),
    ],
)
def test_one_change(
    facts: HostFacts, technology: Technology, layer: Layer, verdict: str, found: str, advice: str
) -> None:
    cell = table(facts)[technology][layer]
    assert cell.verdict is _LETTERS[verdict]
    assert found in cell.found
    assert advice in cell.advice


# --- the kernel's log -----------------------------------------------------------------------

#: Lines of the kernel's sources, but for the numbers in them.
LINES = [
    (SNP, FIRMWARE, "SEV-SNP: Memory for the RMP table has not been reserved by BIOS", "Coverage'"),
    (
        *(SNP, FIRMWARE),
        "SEV-SNP: Memory reserved for the RMP table does not cover full system RAM"
        " (expected 0x3 got 0x2)",
        "cover all memory",
    ),
    (
        SNP,
        FIRMWARE,
        "AMD-Vi: SNP: IOMMU SNP feature not enabled, SNP cannot be supported.",
        "IOMMU",
    ),
    (SNP, FIRMWARE, "ccp 0000:46:00.1: SEV-SNP support requires firmware version >= 1:51", "BIOS"),
    (SNP, FIRMWARE, "ccp 0000:46:00.1: SEV-SNP: failed to INIT rc -5, error 0x3", "SMT"),
    (SNP, FIRMWARE, "ccp 0000:46:00.1: SEV-SNP: SNP_INIT_EX failed rc -5, error 0x3", "SMT"),
    (SEV, FIRMWARE, "ccp 0000:46:00.1: sev command 0x85 timed out, disabling PSP", "IOMMU to Auto"),
    (
        *(SNP, KERNEL),
        "AMD-Vi: SNP: IOMMU is disabled or configured in passthrough mode, SNP cannot be supported",
        "remove iommu=pt",
    ),
    (
        *(SNP, KERNEL),
        "AMD-Vi: SNP: IOMMU is configured with V2 page table mode, SNP cannot be supported.",
        "remove amd_iommu=pgtbl_v2",
    ),
    (SEV, KVM, "kvm_amd: SEV unusable (ASIDs 1007 - 1006)", "lower 'SEV-ES ASID Space Limit'"),
    (ES, KVM, "kvm_amd: SEV-ES unusable (ASIDs 100 - 99)", "use SEV-SNP"),
    (SNP, KVM, "kvm_amd: SEV-SNP unusable (ASIDs 1 - 253)", "the SEV firmware refuses it"),
    (TDX, FIRMWARE, "x86/tme: not enabled by BIOS", "turn on TME"),
    (TDX, FIRMWARE, "virt/tdx: module not loaded", "SEAM loader"),
    (TDX, FIRMWARE, "kvm_intel: tdx: no TDX private KeyIDs available", "KeyIDs to TDX"),
    (
        *(TDX, FIRMWARE),
        "virt/tdx: initialization failed: too few private KeyIDs available.",
        "KeyIDs to TDX",
    ),
    (TDX, FIRMWARE, "virt/tdx: module initialization failed (-28)", "update the BIOS"),
    (
        *(TDX, FIRMWARE),
        "virt/tdx: frame pointer (RBP) clobber bug present, upgrade TDX module",
        "update the BIOS",
    ),
    (
        *(TDX, KERNEL),
        "virt/tdx: initialization failed: Hibernation support is enabled",
        "add nohibernate",
    ),
    (TDX, KVM, "kvm_intel: tdx: tdx requires kvm.enable_virt_at_load=1", "enable_virt_at_load=1"),
]


@pytest.mark.parametrize(("technology", "layer", "line", "advice"), LINES)
def test_a_line_of_the_log(technology: Technology, layer: Layer, line: str, advice: str) -> None:
    host = hosts.TDX_XEON if technology is TDX else hosts.MILAN
    facts = attrs.evolve(host, log=(*(host.log or ()), line))
    cell = table(facts)[technology][layer]
    assert (cell.verdict, cell.found) == (Verdict.MISSING, line)
    assert advice in cell.advice


def test_every_sign_has_its_line() -> None:
    bad = {
        (*place, sign.pattern)
        for place, signs in judge._SIGNS.items()
        for sign in signs
        if sign.verdict is Verdict.MISSING and sign is not judge._TIMED_OUT
    }
    said = {
        (technology, layer, sign.pattern)
        for technology, layer, line, _ in LINES
        for sign in judge._SIGNS[technology, layer]
        if re.search(sign.pattern, line)
    }
    assert bad <= said


@pytest.mark.parametrize("said", ["failed to INIT error 0x1, rc -5", "INIT failed 0x13, rc -5"])
def test_sev_that_failed_once_may_start_later(said: str) -> None:
    """No line of the log tells of the success. So this keeps no supervisor from starting."""
    facts = milan(log=(f"ccp 0000:44:00.1: SEV: {said}",))
    assert judge.obstacle(table(facts)[SEV]) is None
    cell = table(facts)[SEV][FIRMWARE]
    assert cell.verdict is Verdict.UNKNOWN
    assert cell.advice.startswith("update the BIOS; if SEV-SNP fails as well")


def test_a_later_success_counts() -> None:
    failed = "ccp 0000:22:00.1: SEV-SNP: failed to INIT error 0x3"
    assert hosts.MILAN.log
    facts = milan(log=(failed, *hosts.MILAN.log))
    assert table(facts)[SNP] == table(hosts.MILAN)[SNP]


def test_the_version_that_counts_is_the_last() -> None:
    old = "ccp 0000:22:00.1: SEV API:1.49 build:3"
    assert hosts.MILAN.log
    assert table(milan(log=(old, *hosts.MILAN.log)))[SNP][FIRMWARE].verdict is Verdict.OK
    assert "1.49" in first(milan(log=(*hosts.MILAN.log, old)), SNP).found


# --- the C-bit ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("leaf", "given", "found"),
    [
        (hosts.MILAN.leaf, None, None),
        (hosts.MILAN.leaf, 51, None),
        (None, 51, None),
        (hosts.MILAN.leaf, 47, "MANAGER_QEMU_SEV_CBITPOS=47, but this host's C-bit is 51"),
        (hosts.OLD_KERNEL.leaf, 51, "MANAGER_QEMU_SEV_CBITPOS=51, but this host's C-bit is 47"),
        (None, None, "CPUID cannot be executed here, and MANAGER_QEMU_SEV_CBITPOS is not set"),
    ],
)
def test_c_bit(leaf: EncryptionLeaf | None, given: int | None, found: str | None) -> None:
    cell = judge.wrong_c_bit(leaf, given)
    assert (cell.found if cell else None) == found


# --- anything -------------------------------------------------------------------------------

texts = st.text(max_size=60)
numbers = st.integers(0, 2**32 - 1)
groups = st.none() | st.dictionaries(st.sampled_from(["sev", "sev_es", "tdx"]), numbers)
log_lines = st.builds(
    "{}{}{}".format, texts, st.sampled_from([line for *_, line, _ in LINES] + ["SEV API:"]), texts
)


@given(
    st.builds(
        HostFacts,
        vendor=st.sampled_from(["", "AuthenticAMD", "GenuineIntel", "x"]),
        family=st.none() | numbers,
        name=texts,
        flags=st.frozensets(st.sampled_from(["sev", "sev_es", "sev_snp", "hypervisor"])),
        leaf=st.none() | st.builds(EncryptionLeaf, numbers, numbers, numbers, numbers),
        kernel=texts,
        parameters=st.dictionaries(st.sampled_from(["kvm_amd.sev", "kvm_intel.tdx"]), texts),
        capacity=groups,
        current=groups,
        log=st.none() | st.lists(log_lines, max_size=5).map(tuple),
        devices=st.dictionaries(st.sampled_from(["/dev/kvm", "/dev/sev"]), st.booleans()),
        memlock=st.none() | numbers,
        kvm=st.none() | st.booleans(),
        ovmf=st.dictionaries(texts, st.frozensets(texts)),
    )
)
def test_any_facts_give_a_table(facts: HostFacts) -> None:
    found = table(facts)
    assert list(found) == list(Technology)
    assert all(list(row) == list(Layer) for row in found.values())
