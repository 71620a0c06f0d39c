"""QEMU's command line: the original's, element for element, and what follows after it."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path

import attrs
import pytest

from supervisor.config import (
    DiskConfig,
    FirmwareConfig,
    GuestNetwork,
    NetConfig,
    QemuConfig,
    SevConfig,
    load,
)
from supervisor.config.settings import Size
from supervisor.qemu import cmdline, confidential
from supervisor.qemu.cmdline import Accel, Forward, Machine, Ram
from supervisor.qemu.confidential import Confidential, DirectBoot
from supervisor.qemu.version import Binary, Version
from supervisor.tee.facts import Technology

VM_ID = "3f0f6c1e-7d0b-4a52-9f2e-0d6f5f9a1c11"

#: Lines of `ps` from the original's manual, without the monitor at their end.
PLAIN = (
    "/usr/bin/qemu-system-x86_64 -enable-kvm -machine q35 -cpu EPYC -smp 4,maxcpus=64"
    " -m 4096M,slots=5,maxmem=30G"
    " -drive if=pflash,format=raw,unit=0,file=/usr/share/OVMF/OVMF_CODE.fd,readonly=on"
    " -drive if=pflash,format=raw,unit=1,file=img/OVMF_VARS.fd"
    " -device virtio-scsi-pci,id=scsi,disable-legacy=on,iommu_platform=true"
    " -drive file=img/focal-server-cloudimg-amd64.img,if=none,id=disk0,format=qcow2"
    " -device scsi-hd,drive=disk0"
    " -netdev user,id=vmnic,hostfwd=tcp::2222-:22,hostfwd=tcp::9301-:9031,hostfwd=tcp::7020-:7002"
    " -device virtio-net-pci,disable-legacy=on,iommu_platform=true,netdev=vmnic,romfile="
    " -nographic"
)
#: With a policy, which the original left to QEMU, and with today's name of memory-encryption.
SEV = (
    " -object sev-guest,id=sev0,cbitpos=51,reduced-phys-bits=1,policy=0xb"
    " -machine confidential-guest-support=sev0 -nographic"
)
CONFIDENTIAL = PLAIN.replace("/usr/bin", "/usr/local/bin").replace(" -nographic", SEV)

CONFIG = QemuConfig(memory_size=Size("4096M"), sev=SevConfig(cbitpos=51))


#: QEMU's versions, and how each is asked for its monitor.
MON = ("-mon", "chardev=qmp,mode=control")
MONITORS = {
    **{Version(*version): MON for version in ((7, 2), (8, 2), (9, 1), (10, 0))},
    Version(11, 1): ("-object", "monitor-qmp,id=monitor,chardev=qmp"),
}


DEBIAN_12 = Version(7, 2)


def a_qemu(version: Version = DEBIAN_12, path: str = "/usr/bin/qemu-system-x86_64") -> Binary:
    return Binary(path, version, frozenset(["monitor-qmp"] if version.major > 10 else []))


#: As the words of a policy come to if nobody says any.
AN_SEV_GUEST = Confidential(technology=Technology.SEV, policy=0xB)


def a_machine(
    *, kvm: bool = True, confidential: Confidential | None = None, address: str = ""
) -> Machine:
    ports = ((22, 2222), (9031, 9301), (7002, 7020))
    return Machine(
        vm_id=VM_ID,
        qemu=a_qemu(),
        accel=Accel(kvm=kvm),
        forwards=[Forward(guest, address, host) for guest, host in ports],
        overlay=Path("img/focal-server-cloudimg-amd64.img"),
        firmware_vars=Path("img/OVMF_VARS.fd"),
        serial_log=Path("tmp/vm/serial.log"),
        qmp_socket=Path("tmp/vm/qmp.sock"),
        confidential=confidential,
    )


def option(words: list[str], name: str, *, having: str = "") -> str:
    """The value of the option ``name`` that contains ``having``."""
    pairs = itertools.pairwise(words)
    return next(value for word, value in pairs if word == name and having in value)


def reaching(network: GuestNetwork) -> QemuConfig:
    return attrs.evolve(CONFIG, net=attrs.evolve(CONFIG.net, guest=network))


#: The original's guests reach everything.
OPEN = reaching(GuestNetwork.OPEN)


def originals(words: list[str]) -> list[str]:
    """The words up to the monitor, with the ids as they were before they carried the VM's."""
    return [word.replace(f"-{VM_ID}", "") for word in words[: words.index("-chardev")]]


def test_agent_knows_its_callers_by_a_hash_of_a_fixed_size() -> None:
    machine = attrs.evolve(a_machine(), credential_hash="5" * 64)
    item = option(cmdline.argv(CONFIG, machine), "-fw_cfg")
    assert item == f"name=opt/org.qmp-supervisor/credential-sha256,string={'5' * 64}"
    assert "-fw_cfg" not in cmdline.argv(CONFIG, a_machine())


def test_plain_vm_is_started_as_the_original_was() -> None:
    assert originals(cmdline.argv(OPEN, a_machine())) == PLAIN.split(" ")


def test_confidential_vm_under_sudo_is_started_as_the_original_was() -> None:
    config = attrs.evolve(OPEN, use_sudo=True)
    made = attrs.evolve(
        a_machine(confidential=AN_SEV_GUEST), qemu=a_qemu(path="/usr/local/bin/qemu-system-x86_64")
    )
    assert originals(cmdline.argv(config, made)) == ["sudo", *CONFIDENTIAL.split(" ")]


@pytest.mark.parametrize("version", MONITORS, ids=str)
def test_guest_reaches_nothing_unless_the_settings_say_so(version: Version) -> None:
    """The two words by which the default differs from the original, after the three forwards."""
    made = attrs.evolve(a_machine(), qemu=a_qemu(version))
    closed = originals(cmdline.argv(CONFIG, made))
    netdev = closed.index("-netdev") + 1
    words = PLAIN.split(" ")
    assert words[netdev].endswith(",hostfwd=tcp::7020-:7002")
    words[netdev] += ",restrict=on,ipv6=off"
    assert closed == words


@pytest.mark.parametrize("prefix", ["scsi", "disk0", "vmnic", "sev0"])
def test_every_device_id_carries_the_vm_id(prefix: str) -> None:
    line = " ".join(cmdline.argv(CONFIG, a_machine(confidential=AN_SEV_GUEST)))
    assert line.count(f"={prefix}") == line.count(f"={prefix}-{VM_ID}") > 0


@pytest.mark.parametrize("version", MONITORS, ids=str)
def test_monitor_and_our_additions_follow_after_the_originals(version: Version) -> None:
    words = cmdline.argv(CONFIG, attrs.evolve(a_machine(), qemu=a_qemu(version)))
    rest = words[words.index("-nographic") + 1 :]
    assert rest == [
        *("-chardev", "socket,id=qmp,fd=0,server=on,wait=off"),
        *MONITORS[version],
        *("-name", f"qmp-supervisor-{VM_ID}"),
        *("-uuid", VM_ID),
        *("-chardev", "file,id=serial,path=tmp/vm/serial.log,append=on"),
        *("-serial", "chardev:serial"),
        *("-device", "pvpanic,events=1"),
        *("-vga", "none"),
        *("-device", "virtio-balloon-pci,free-page-reporting=on"),
        *("-global", "scsi-hd.bootindex=0"),
        *("-action", "reboot=shutdown"),
        *("-machine", "dump-guest-core=off,mem-merge=off"),
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-S",
    ]


def test_form_for_people_has_a_path_for_the_descriptor_and_does_not_hold_the_guest() -> None:
    ran = cmdline.argv(CONFIG, a_machine())
    shown = cmdline.command(CONFIG, a_machine())
    assert shown == [word.replace("fd=0", "path=tmp/vm/qmp.sock") for word in ran[:-1]]


def test_the_line_can_be_pasted_into_a_shell() -> None:
    disk = attrs.evolve(a_machine(), overlay=Path("/images/it's a disk;$HOME"))
    words = cmdline.command(CONFIG, disk)
    assert shlex.split(cmdline.shell_line(words)) == words


def test_emulation_has_no_kvm_and_a_cpu_it_can_do() -> None:
    words = cmdline.argv(CONFIG, a_machine(kvm=False))
    assert "-enable-kvm" not in words
    assert option(words, "-cpu") == "max"


@pytest.mark.parametrize("kvm", [True, False])
def test_a_chosen_cpu_is_kept(kvm: bool) -> None:
    config = attrs.evolve(CONFIG, cpu="Skylake-Client")
    assert option(cmdline.argv(config, a_machine(kvm=kvm)), "-cpu") == "Skylake-Client"


def test_display_can_be_kept() -> None:
    config = attrs.evolve(CONFIG, no_graphic=False)
    words = cmdline.argv(config, a_machine())
    assert not {"-nographic", "-vga"} & set(words)


def test_forwards_bind_to_their_address() -> None:
    netdev = option(cmdline.argv(CONFIG, a_machine(address="127.0.0.1")), "-netdev")
    assert "hostfwd=tcp:127.0.0.1:7020-:7002" in netdev


def test_commas_in_paths_are_doubled() -> None:
    config = attrs.evolve(
        CONFIG,
        firmware=FirmwareConfig(code_file=Path("/a,b/CODE.fd")),
        net=NetConfig(romfile="/c,d.rom"),
    )
    made = attrs.evolve(
        a_machine(),
        overlay=Path("/e,f.qcow2"),
        firmware_vars=Path("/g,h.fd"),
        serial_log=Path("/i,j.log"),
        qmp_socket=Path("/k,l.sock"),
    )
    words = cmdline.command(config, made)
    assert ",file=/a,,b/CODE.fd," in option(words, "-drive", having="unit=0")
    assert option(words, "-drive", having="unit=1").endswith(",file=/g,,h.fd")
    assert option(words, "-drive", having="if=none").startswith("file=/e,,f.qcow2,")
    assert option(words, "-device", having="virtio-net").endswith(",romfile=/c,,d.rom")
    assert "file,id=serial,path=/i,,j.log,append=on" in words
    assert ",path=/k,,l.sock," in option(words, "-chardev")


def test_the_overlay_is_qcow2_whatever_the_base_image_is() -> None:
    config = attrs.evolve(CONFIG, disk=DiskConfig(format="raw"))
    assert option(cmdline.argv(config, a_machine()), "-drive", having="if=none").endswith(
        ",format=qcow2"
    )


def test_settings_reach_the_devices() -> None:
    settings = {
        "MACHINE": "pc",
        "SMP_COUNT": "2",
        "SMP_MAXCPUS": "8",
        "MEMORY_SIZE": "1G",
        "MEMORY_SLOTS": "2",
        "MAX_MEMORY": "2G",
        "OVMF_CODE_IF": "a",
        "OVMF_CODE_FORMAT": "b",
        "OVMF_CODE_UNIT": "7",
        "OVMF_CODE_READONLY": "off",
        "DISK_IMG_IF": "c",
        "DISK_IMG_ID": "d",
        "VIRTIO_SCSI_PCI_ID": "e",
        "VIRTIO_SCSI_PCI_DISABLE_LEGACY": "off",
        "VIRTIO_SCSI_PCI_IOMMU_PLATFORM": "no",
        "NETDEV_ID": "f",
        "VIRTIO_NET_PCI_DISABLE_LEGACY": "auto",
        "VIRTIO_NET_PCI_IOMMU_PLATFORM": "false",
    }
    config = load({f"MANAGER_QEMU_{name}": value for name, value in settings.items()}).qemu
    words = cmdline.argv(config, a_machine())
    assert option(words, "-machine") == "pc"
    assert option(words, "-smp") == "2,maxcpus=8"
    assert option(words, "-m") == "1G,slots=2,maxmem=2G"
    code = option(words, "-drive", having="unit=7")
    assert code.startswith("if=a,format=b,unit=7,")
    assert code.endswith(",readonly=off")
    assert f"if=c,id=d-{VM_ID}," in option(words, "-drive", having=f"id=d-{VM_ID}")
    assert option(words, "-device", having="virtio-scsi").endswith(
        f"id=e-{VM_ID},disable-legacy=off,iommu_platform=no"
    )
    assert option(words, "-device", having="virtio-net").startswith(
        f"virtio-net-pci,disable-legacy=auto,iommu_platform=false,netdev=f-{VM_ID},"
    )


def test_memory_of_a_template_and_of_what_is_started_from_it() -> None:
    file = Path("tmp/templates/0123456789abcdef/ram")
    for shared, share in ((True, "on"), (False, "off")):
        made = attrs.evolve(a_machine(), ram=Ram(file, shared=shared))
        words = cmdline.argv(CONFIG, made)
        assert option(words, "-machine") == "q35,memory-backend=ram"
        assert option(words, "-object") == (
            f"memory-backend-file,id=ram,size={4096 << 20},mem-path={file},share={share}"
        )
        assert option(words, "-device", having="vmgenid") == "vmgenid,guid=auto"
        assert option(words, "-device", having="virtio-net").endswith(",guest_announce=off")
        assert ("-incoming" in words) is not shared
        # Its balloon would punch holes into what others map as well.
        assert not any("balloon" in word for word in words)
        assert cmdline.template_in(words) == (None if shared else "0123456789abcdef")


def test_what_an_owner_has_put_on_the_kernels_line_is_read_as_nothing_else() -> None:
    said = "a=hostfwd=tcp::1-:22,fd=0,igvm-cfg,/0123456789abcdef/ram,share=off"
    for line in (said, f"sev-snp-guest,{said}"):
        kernel = DirectBoot(Path("/k"), None, line)
        words = cmdline.argv(CONFIG, attrs.evolve(a_machine(), kernel=kernel))
        assert [one.host_port for one in cmdline.forwards_in(words)] == [2222, 9301, 7020]
        assert cmdline.template_in(words) is None
        assert confidential.found_in(words) is None
        assert line in cmdline.by_hand(words, Path("/qmp"))


def test_shares_and_a_kernel_without_a_disk() -> None:
    made = attrs.evolve(
        a_machine(),
        shares=(Path("/e,1"), Path("/c")),
        kernel=DirectBoot(Path("/k"), Path("/i"), "quiet"),
        overlay=None,
    )
    words = cmdline.argv(CONFIG, made)
    assert option(words, "-fsdev", having="env_share") == (
        f"local,id=env_share-{VM_ID},path=/e,,1,security_model=none,readonly=on"
    )
    assert option(words, "-device", having="certs_share") == (
        f"virtio-9p-pci,fsdev=certs_share-{VM_ID},mount_tag=certs_share,disable-legacy=on,"
        "iommu_platform=true"
    )
    assert (option(words, "-kernel"), option(words, "-initrd")) == ("/k", "/i")
    assert option(words, "-append") == "quiet"
    assert not any("scsi" in word for word in words)


def test_memory_of_encrypted_guests_stays_where_it_is() -> None:
    words = cmdline.argv(CONFIG, a_machine(confidential=AN_SEV_GUEST))
    assert not any("balloon" in word for word in words)
    assert cmdline.template_in(words) is None
