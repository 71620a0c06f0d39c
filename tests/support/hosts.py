"""Hosts, as data. None but `THIS_MACHINE` was ever at hand.

"Recorded" are lines and registers that people printed in public on such a host; "written" is what
the kernel's sources and AMD's and Intel's documents say that such a host shows.
"""

from __future__ import annotations

import attrs

from supervisor.tee.facts import EncryptionLeaf, HostFacts, Qemu

OLD_QEMU = Qemu("7.2.22", frozenset({"sev-guest"}))
NEW_QEMU = Qemu("10.1.0", frozenset({"sev-guest", "sev-snp-guest", "tdx-guest"}))

#: Debian 12's package ovmf; recorded.
DEBIAN_OVMF = {"/usr/share/OVMF/OVMF_CODE_4M.fd": frozenset({"acpi-s3", "amd-sev"})}
#: Written.
NEW_OVMF = {
    **DEBIAN_OVMF,
    "/usr/share/OVMF/OVMF.amdsev.fd": frozenset({"amd-sev", "amd-sev-es", "amd-sev-snp"}),
    "/usr/share/ovmf/OVMF.inteltdx.fd": frozenset({"intel-tdx"}),
}

_AMD_DEVICES = {"/dev/kvm": True, "/dev/sev": True}

#: Leaf recorded (github.com/rcastellotti/gr), but for EDX; log and kernel recorded on the mailing
#: list linux-kernel, 2025; the rest written: family, model and the control group fit these.
MILAN = HostFacts(
    vendor="AuthenticAMD",
    family=25,
    model=1,
    name="AMD EPYC 7763 64-Core Processor",
    flags=frozenset({"svm", "sme", "sev", "sev_es", "sev_snp"}),
    leaf=EncryptionLeaf(0x0101FD3F, 0x4173, 509, 100),
    kernel="6.11.0",
    parameters={"kvm_amd.sev": "Y", "kvm_amd.sev_es": "Y", "kvm_amd.sev_snp": "Y"},
    capacity={"sev": 410, "sev_es": 99},
    current={"sev": 0, "sev_es": 0},
    log=(
        "SEV-SNP: RMP table physical range [0x0000000035600000 - 0x0000000075bfffff]",
        "ccp 0000:23:00.1: sev enabled",
        "ccp 0000:23:00.1: SEV API:1.55 build:24",
        "ccp 0000:23:00.1: SEV-SNP API:1.55 build:24",
        "kvm_amd: SEV enabled (ASIDs 100 - 509)",
        "kvm_amd: SEV-ES enabled (ASIDs 1 - 99)",
        "kvm_amd: SEV-SNP enabled (ASIDs 1 - 99)",
    ),
    devices=_AMD_DEVICES,
    kvm=True,
    qemu=NEW_QEMU,
    ovmf=NEW_OVMF,
)

#: Log, ECX, EDX, C-bit and reduction recorded (a guide to SEV-SNP on Genoa; snphost's output); EAX
#: is Milan's. The rest written. One SEV guest and two others run.
GENOA = attrs.evolve(
    MILAN,
    model=17,
    name="AMD EPYC 9354 32-Core Processor",
    leaf=EncryptionLeaf(0x0101FD3F, 0x41B3, 1006, 99),
    capacity={"sev": 908, "sev_es": 98},
    current={"sev": 1, "sev_es": 2},
    log=(
        "SEV-SNP: RMP table physical range [0x0000000094200000 - 0x00000000a47fffff]",
        "ccp 0000:02:00.5: sev enabled",
        "ccp 0000:02:00.5: SEV API:1.55 build:24",
        "ccp 0000:02:00.5: SEV-SNP API:1.55 build:24",
        "kvm_amd: SEV enabled (ASIDs 99 - 1006)",
        "kvm_amd: SEV-ES enabled (ASIDs 1 - 98)",
        "kvm_amd: SEV-SNP enabled (ASIDs 1 - 98)",
    ),
)

#: ECX, EDX, C-bit and reduction recorded (snphost's output); EAX is Milan's. The rest written: a
#: user that is not root, in a unit with systemd's limit of 8 MiB.
TURIN = attrs.evolve(
    GENOA,
    family=26,
    model=2,
    name="AMD EPYC 9755 128-Core Processor",
    leaf=EncryptionLeaf(0x0101FD3F, 0x41B3, 1006, 500),
    kernel="6.14.0",
    capacity={"sev": 507, "sev_es": 499},
    current={"sev": 0, "sev_es": 499},
    log=None,
    memlock=8 << 20,
)

#: Leaf recorded (an article on SME on an EPYC 7002): the firmware setup leaves no ASID to SEV-ES.
#: The rest written, with Debian 11's kernel and its spelling of switches.
OLD_KERNEL = attrs.evolve(
    MILAN,
    family=23,
    model=49,
    name="AMD EPYC 7302P 16-Core Processor",
    flags=frozenset({"svm", "sme", "sev", "sev_es"}),
    leaf=EncryptionLeaf(0x0001000F, 0x016F, 509, 1),
    kernel="5.10.0-30-amd64",
    parameters={"kvm_amd.sev": "1"},
    capacity=None,
    current=None,
    log=("ccp 0000:22:00.1: SEV API:0.24 build:15", "SVM: SEV supported: 509 ASIDs"),
    qemu=OLD_QEMU,
    ovmf=DEBIAN_OVMF,
)

#: Recorded (github.com/AMDESE/linux-svsm/issues/9), but for the version, which is 1.15 there.
FIRMWARE_1_49 = attrs.evolve(
    MILAN,
    parameters={"kvm_amd.sev": "Y", "kvm_amd.sev_es": "Y", "kvm_amd.sev_snp": "N"},
    log=(
        "SEV-SNP: RMP table physical address 0x0000000035600000 - 0x0000000075bfffff",
        "ccp 0000:46:00.1: sev enabled",
        "ccp 0000:46:00.1: SEV API:1.49 build:15",
    ),
)

#: Lines recorded (github.com/AMDESE/AMDSEV/issues/271), and parameters (the same, /215).
SNP_NOT_INITIALISED = attrs.evolve(
    MILAN,
    parameters={"kvm_amd.sev": "Y", "kvm_amd.sev_es": "Y", "kvm_amd.sev_snp": "N"},
    log=(
        "ccp 0000:22:00.1: SEV-SNP: failed to INIT error 0x3",
        "ccp 0000:22:00.1: SEV: failed to INIT error 0x1, rc -5",
        "ccp 0000:22:00.1: SEV API:1.53 build:5",
    ),
)

#: Recorded on the mailing list linux-kernel in 2026, of a Milan with new firmware.
SNP_FORBIDS_ES = attrs.evolve(
    MILAN,
    leaf=EncryptionLeaf(0x0101FD3F, 0x4173, 509, 254),
    capacity={"sev": 256, "sev_es": 253},
    log=(
        "ccp 0000:24:00.1: SEV-SNP API:1.58 build:1",
        "kvm_amd: SEV enabled (ASIDs 254 - 509)",
        "kvm_amd: SEV-ES unusable (ASIDs 1 - 253)",
        "kvm_amd: SEV-SNP enabled (ASIDs 1 - 253)",
    ),
)

#: The line recorded (github.com/AMDESE/AMDSEV/issues/113).
IOMMU_PASSTHROUGH = attrs.evolve(
    MILAN,
    parameters=FIRMWARE_1_49.parameters,
    log=(
        "AMD-Vi: SNP: IOMMU disabled or configured in passthrough mode, SNP cannot be supported.",
        "ccp 0000:23:00.1: SEV API:1.55 build:24",
    ),
)

#: Written: a container without the root control group, the kernel's log and /dev/sev.
CONTAINER = attrs.evolve(MILAN, capacity=None, current=None, log=None, devices={"/dev/kvm": True})

#: The lines recorded (Canonical's and Intel's guides); the rest written.
TDX_XEON = HostFacts(
    vendor="GenuineIntel",
    family=6,
    model=207,
    name="INTEL(R) XEON(R) PLATINUM 8592+",
    flags=frozenset({"vmx", "tme", "tdx_host_platform"}),
    leaf=EncryptionLeaf(0, 0, 0, 0),
    kernel="6.16.0",
    parameters={"kvm_intel.tdx": "Y"},
    capacity={"tdx": 63},
    current={"tdx": 3},
    log=(
        "virt/tdx: BIOS enabled: private KeyID range [64, 128)",
        "virt/tdx: 1050644 KB allocated for PAMT",
        "virt/tdx: module initialized",
    ),
    devices={"/dev/kvm": True},
    kvm=True,
    qemu=NEW_QEMU,
    ovmf=NEW_OVMF,
)

#: Read, by a supervisor that is root: a virtual machine whose KVM runs no guest.
THIS_MACHINE = HostFacts(
    vendor="GenuineIntel",
    family=6,
    model=167,
    name="Intel(R) Xeon(R) Processor",
    flags=frozenset({"hypervisor", "sse2"}),
    leaf=EncryptionLeaf(0, 0, 0, 0),
    kernel="6.18.44",
    log=(),
    devices={"/dev/kvm": True},
    kvm=False,
    qemu=OLD_QEMU,
    ovmf=DEBIAN_OVMF,
)
