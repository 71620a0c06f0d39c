"""MRTD of a firmware, done once more from Intel's documents."""

from __future__ import annotations

import hashlib
import struct
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.tee import expected, measure
from supervisor.tee.evidence import BadEvidence
from supervisor.tee.facts import Technology
from supervisor.tee.measure import Measured
from supervisor.tee.tdx import mrtd

if TYPE_CHECKING:
    from pathlib import Path

CODE, VARIABLES = b"code" * 2048, b"vars" * 1000

#: As edk2's: code measured, variables not, the list of memory and scratch memory without content.
SECTIONS = [
    (0, CODE, 0xFFC84000, 8192, 0, 1),
    (len(CODE), VARIABLES, 0xFFC00000, 4096, 1, 0),
    (0, b"", 0x809000, 8192, 2, 0),
    (0, b"", 0x810000, 4096, 3, 0),
]


def firmware(sections: list[tuple[Any, ...]], *, version: int = 1, cut: int = 0) -> bytes:
    """The file, whose description of TDX ends ``0x100`` bytes before its end."""
    entries = b"".join(
        struct.pack("<IIQQII", offset, len(content), address, size, kind, attributes)
        for offset, content, address, size, kind, attributes in sections
    )
    length = 16 + len(entries) + cut
    described = struct.pack("<4sIII", b"TDVF", length, version, len(sections)) + entries
    from_end = 0x100 + len(described)
    entry = struct.pack("<IH", from_end, 22) + uuid.UUID(mrtd.METADATA).bytes_le
    footer_guid = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
    footer = entry + struct.pack("<H", len(entry) + 18) + footer_guid + bytes(32)
    body = CODE + VARIABLES + described
    return body + bytes(0x100 - len(footer)) + footer


def by_hand(sections: list[tuple[Any, ...]]) -> str:
    """One operation after the other, with a page's 16 extensions after it was added."""
    operations = []
    for _, content, address, size, _, attributes in sections:
        whole = content + bytes(size - len(content))
        for page in range(0, size, 4096):
            add = bytearray(128)
            add[0:12] = b"MEM.PAGE.ADD"
            add[16:24] = struct.pack("<Q", address + page)
            operations.append(bytes(add))
            if attributes & 1:
                for chunk in range(page, page + 4096, 256):
                    extend = bytearray(128)
                    extend[0:9] = b"MR.EXTEND"
                    extend[16:24] = struct.pack("<Q", address + chunk)
                    operations += [bytes(extend), whole[chunk : chunk + 256]]
    return hashlib.sha384(b"".join(operations)).hexdigest()


def measured(tmp_path: Path, content: bytes) -> expected.Measurement:
    file = tmp_path / "OVMF.fd"
    file.write_bytes(content)
    return measure.measure(Technology.TDX, Measured(firmware=file, vcpus=2, cpu="host"))


def test_sections_in_their_order(tmp_path: Path) -> None:
    assert measured(tmp_path, firmware(SECTIONS)).digest == by_hand(SECTIONS)
    backwards = SECTIONS[::-1]
    assert measured(tmp_path, firmware(backwards)).digest == by_hand(backwards)
    assert by_hand(backwards) != by_hand(SECTIONS)


def test_section_that_is_larger_in_the_guest(tmp_path: Path) -> None:
    sections = [(0, CODE[:5000], 0x1000, 8192, 0, 1)]
    assert measured(tmp_path, firmware(sections)).digest == by_hand(sections)


def test_owner_is_told(tmp_path: Path) -> None:
    found = measured(tmp_path, firmware(SECTIONS))
    claims = expected.Claims(
        vm_id="", technology=Technology.TDX, number=0, bound_to="ab", measurement=found
    )
    document = expected.document(claims)
    (rule,) = [one for one in document["rules"] if one["field"] == "MRTD"]
    assert rule["expected"] == by_hand(SECTIONS)
    assert f"--mrtd {rule['expected']}" in document["command"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (firmware(SECTIONS, version=2), "is none"),
        (firmware(SECTIONS, cut=32), "is cut off"),
        (firmware([(0, CODE, 0x1000, 4096, 0, 1)]), "is cut off"),
        (firmware([(0xFFFFFF, CODE, 0x1000, 8192, 0, 1)]), "is cut off"),
        (firmware([(0, b"", 0x1000, 8192, 4, 0)]), "number 0, that QEMU does not know"),
        (firmware([(0, b"", 0x1000, 8192, 0, 2)]), "number 0, that QEMU does not know"),
        (firmware([(0, b"", 0x1001, 8192, 0, 0)]), "number 0, that QEMU does not know"),
        (firmware([(0, b"", 0x1000, 2**40, 3, 0)]), "more than 16384 pages"),
    ],
)
def test_firmware_that_describes_nothing(tmp_path: Path, content: bytes, why: str) -> None:
    found = measured(tmp_path, content)
    assert not found.digest
    assert why in found.problem


@pytest.mark.parametrize("from_end", [0, 1, 15, 2**31])
def test_description_outside_the_file(from_end: int) -> None:
    with pytest.raises(BadEvidence):
        mrtd.measure(firmware(SECTIONS), from_end)


@given(st.binary(max_size=200), st.integers(0, 300))
def test_any_bytes(content: bytes, from_end: int) -> None:
    whole = b"TDVF".ljust(16, b"\1") + content
    for file in (content, whole):
        try:
            assert len(mrtd.measure(file, from_end)) == 48
        except BadEvidence:
            continue
