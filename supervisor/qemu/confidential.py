"""The arguments that make a guest confidential, by technology. Pure.

**None of them was ever run where they have an effect**: no host with SEV or TDX was at hand. QEMU's
own parser takes them, of each version that has them.

Sources: QEMU's docs/system/i386/amd-memory-encryption.rst, tdx.rst and docs/system/igvm.rst; QAPI's
``SevGuestProperties``, ``SevSnpGuestProperties``, ``TdxGuestProperties``.
"""

from __future__ import annotations

import base64
import json
from itertools import pairwise
from typing import TYPE_CHECKING

import attrs

from supervisor.qemu.option import escape
from supervisor.tee.facts import Technology
from supervisor.tee.policy import SevBit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from supervisor.config import QuoteSocket, SevConfig
    from supervisor.qemu.version import Binary

#: In an id authentication, the algorithm of the author's key: 0 if there is no such key. Source:
#: AMD's 56860, "ID Authentication Information Structure".
_AUTHOR_KEY_ALGORITHM = slice(4, 8)


@attrs.frozen
class DirectBoot:
    """What QEMU boots without a boot loader. Of a confidential guest the firmware has the hashes of
    all three.
    """

    kernel: Path
    initrd: Path | None = None
    cmdline: str = ""


@attrs.frozen(kw_only=True)
class Confidential:
    """What makes one VM confidential.

    :param policy: the number of `supervisor.tee.policy`
    :param bound_to: what `supervisor.tee.binding` gives; empty for SEV and SEV-ES
    :param firmware: in one file; None: the pair of all VMs, or ``igvm``
    :param session: files with the owner's certificate and session, in base64; of SEV and SEV-ES
    :param quote_socket: None but for TDX
    """

    technology: Technology
    policy: int
    bound_to: bytes = b""
    firmware: Path | None = None
    boot: DirectBoot | None = None
    igvm: Path | None = None
    id_block: bytes = b""
    id_auth: bytes = b""
    session: tuple[Path, Path] | None = None
    quote_socket: QuoteSocket | None = None

    @property
    def has_own_firmware(self) -> bool:
        return bool(self.firmware or self.igvm)


def object_args(sev: SevConfig, vm_id: str, guest: Confidential, qemu: Binary) -> list[str]:
    """The object of the technology, and how the machine is told of it."""
    technology = guest.technology
    name = f"tdx0-{vm_id}" if technology is Technology.TDX else f"{sev.id}-{vm_id}"
    machine = [f"confidential-guest-support={name}"]
    if technology is not Technology.SEV:
        machine.append("smm=off")  # there is no mode whose state the host would not see
    if technology is Technology.TDX:
        machine += ["kernel-irqchip=split", "hpet=off"]
        made = _tdx(name, guest)
    else:
        made = _amd(name, sev, guest, legacy=qemu.asks_for_new_sev_guests)
    words = ["-object", made]
    if guest.igvm:
        machine.append(f"igvm-cfg=igvm0-{vm_id}")
        words += ["-object", f"igvm-cfg,id=igvm0-{vm_id},file={escape(guest.igvm)}"]
    return [*words, "-machine", ",".join(machine)]


@attrs.frozen
class Found:
    """What a command line says of its guest.

    :param bound_to: in hexadecimal digits; empty if it is bound to nothing
    """

    technology: Technology
    policy: int
    bound_to: str = ""


def found_in(words: Sequence[str]) -> Found | None:
    """What makes the guest of a command line confidential; None if it is a plain one."""
    for option, word in pairwise(words):
        if option != "-object":
            continue
        if word.startswith("{") and '"tdx-guest"' in word:
            bound_to = json.loads(word).get("mrconfigid", "")
            return Found(Technology.TDX, 0, base64.b64decode(bound_to).hex())
        kind, _, rest = word.partition(",")
        if kind in ("sev-guest", "sev-snp-guest"):
            members = dict(one.partition("=")[::2] for one in rest.split(","))
            if kind == "sev-snp-guest":
                number = int(members.get("policy", "0x30000"), 0)
                bound_to = base64.b64decode(members.get("host-data", "")).hex()
                return Found(Technology.SEV_SNP, number, bound_to)
            number = int(members.get("policy", "1"), 0)  # by QEMU's default
            es = number >> SevBit.ES & 1
            return Found(Technology.SEV_ES if es else Technology.SEV, number)
    return None


def firmware_args(guest: Confidential) -> list[str]:
    """In place of the pair in flash memory: KVM has no read-only memory for SEV-SNP and TDX."""
    return ["-bios", str(guest.firmware)] if guest.firmware else []


def boot_args(boot: DirectBoot | None) -> list[str]:
    if boot is None:
        return []
    return [
        *("-kernel", str(boot.kernel)),
        *(["-initrd", str(boot.initrd)] if boot.initrd else []),
        *(["-append", boot.cmdline] if boot.cmdline else []),
    ]


def _amd(name: str, sev: SevConfig, guest: Confidential, *, legacy: bool) -> str:
    """:param legacy: whether QEMU must be told that an older kernel's kind of guest will do"""
    snp = guest.technology is Technology.SEV_SNP
    words = [
        "sev-snp-guest" if snp else "sev-guest",
        f"id={name}",
        f"cbitpos={sev.cbitpos}",
        f"reduced-phys-bits={sev.reduced_phys_bits}",
        f"policy={guest.policy:#x}",
    ]
    if legacy and not snp:
        words.append("legacy-vm-type=auto")
    if guest.boot:
        words.append("kernel-hashes=on")
    if guest.session:
        certificate, session = map(escape, guest.session)
        words += [f"dh-cert-file={certificate}", f"session-file={session}"]
    if guest.bound_to:
        words.append(f"host-data={_base64(guest.bound_to)}")
    if guest.id_block:
        words += [f"id-block={_base64(guest.id_block)}", f"id-auth={_base64(guest.id_auth)}"]
        if any(guest.id_auth[_AUTHOR_KEY_ALGORITHM]):
            words.append("author-key-enabled=on")
    return ",".join(words)


def _tdx(name: str, guest: Confidential) -> str:
    """As JSON, for the socket's address is an object within it."""
    words: dict[str, object] = {
        "qom-type": "tdx-guest",
        "id": name,
        # Linux does not boot without it: the host could interrupt the guest at any instruction.
        "sept-ve-disable": True,
    }
    if guest.bound_to:
        words["mrconfigid"] = _base64(guest.bound_to)
    if (socket := guest.quote_socket) is not None:
        words["quote-generation-socket"] = (
            {"type": "unix", "path": str(socket.path)}
            if socket.path
            else {"type": "vsock", "cid": str(socket.cid), "port": str(socket.port)}
        )
    return json.dumps(words, separators=(",", ":"))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
