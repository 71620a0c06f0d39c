"""MRTD: what the TDX module measures of a TD's firmware before its first instruction. Pure.

The firmware says which parts of it are loaded where, and which of them are measured. QEMU adds
them in that order, and KVM measures a page as soon as it is added. No TD was measured here.

Sources: Intel TDX Virtual Firmware Design Guide, "TDVF Metadata"; Intel TDX Module Base
Architecture Specification, "MRTD"; QEMU's hw/i386/tdvf and target/i386/kvm/tdx.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

from supervisor.tee.evidence import BadEvidence

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Of the item in the firmware's table that says how far from its end the description is.
METADATA = "e47a6535-984a-4798-865e-4685a7bf8ec2"

#: Signature, length, version, number of sections.
_DESCRIPTION = struct.Struct("<4sIII")
#: Offset and size in the file; address and size in the guest; type; attributes.
_SECTION = struct.Struct("<IIQQII")
_EXTEND, _ADDED_LATER = 0x1, 0x2
#: Code, variables, the list of memory, scratch memory: what QEMU knows.
_TYPES = range(4)
_PAGE, _CHUNK = 4096, 256
#: More than any firmware has, and each takes its time.
_MOST_PAGES = 64 * 1024 * 1024 // _PAGE


def measure(firmware: bytes, from_end: int) -> bytes:
    """:param from_end: what the item `METADATA` says
    :raises BadEvidence: if the firmware describes nothing that QEMU would load
    """
    found = hashlib.sha384()
    for address, content, size, is_measured in _sections(firmware, len(firmware) - from_end):
        for at in range(0, size, _PAGE):
            found.update(_operation(b"MEM.PAGE.ADD", address + at))
            for place in range(at, at + _PAGE, _CHUNK) if is_measured else ():
                found.update(_operation(b"MR.EXTEND", address + place))
                found.update(content[place : place + _CHUNK].ljust(_CHUNK, b"\0"))
    return found.digest()


def _operation(name: bytes, address: int) -> bytes:
    return name.ljust(16, b"\0") + address.to_bytes(8, "little").ljust(112, b"\0")


def _sections(firmware: bytes, start: int) -> Iterator[tuple[int, bytes, int, bool]]:
    """Address, content, size in the guest, and whether it is measured; of each section."""
    try:
        signature, length, version, count = _DESCRIPTION.unpack_from(firmware, start)
    except struct.error:
        raise BadEvidence("its description of TDX is cut off") from None
    if start < 0 or (signature, version) != (b"TDVF", 1):
        raise BadEvidence("its description of TDX is none")
    if length != _DESCRIPTION.size + count * _SECTION.size or start + length > len(firmware):
        raise BadEvidence("its description of TDX is cut off")
    pages = 0
    for number in range(count):
        at = start + _DESCRIPTION.size + number * _SECTION.size
        offset, raw, address, size, kind, attributes = _SECTION.unpack_from(firmware, at)
        if kind not in _TYPES or attributes & _ADDED_LATER or address % _PAGE or size % _PAGE:
            raise BadEvidence(f"it has a section for TDX, number {number}, that QEMU does not know")
        if raw > size or offset + raw > len(firmware):
            raise BadEvidence("a section of it for TDX is cut off")
        pages += size // _PAGE
        if pages > _MOST_PAGES:
            raise BadEvidence(f"it has more than {_MOST_PAGES} pages for TDX")
        yield address, firmware[offset : offset + raw], size, bool(attributes & _EXTEND)
