"""What an IGVM file comes to under SEV-SNP, done once more from the documents."""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.tee import expected, igvm, measure
from supervisor.tee.facts import Technology

if TYPE_CHECKING:
    from pathlib import Path

PAGE = 4096
SNP_MASK, OTHER_MASK = 1, 2
#: KVM has the registers of every CPU there.
REGISTERS = 0xFFFFFFFFF000

DATA, ZEROS = bytes(range(256)) * 16, bytes(PAGE)
VMSA = b"registers".ljust(PAGE, b"\0")


@attrs.define
class File:
    """A file in the making: variable headers, and what they point to."""

    headers: bytes = b""
    data: bytes = b""
    count: int = 0
    _patches: list[tuple[int, int]] = attrs.field(factory=list)

    def header(self, kind: int, content: bytes) -> File:
        self.headers += struct.pack("<II", kind, len(content)) + content
        self.headers += bytes(-len(content) % 8)
        return self

    def platform(self, mask: int = SNP_MASK, kind: int = 2) -> File:
        return self.header(0x1, struct.pack("<IBBHQ", mask, 2, kind, 1, 0))

    def policy(self, number: int, mask: int = SNP_MASK) -> File:
        return self.header(0x101, struct.pack("<QII", number, mask, 0))

    def area(self, index: int, size: int = PAGE) -> File:
        return self.header(0x301, struct.pack("<QII", size, index, 0))

    def insert(self, gpa: int, index: int, mask: int = SNP_MASK) -> File:
        return self.header(0x303, struct.pack("<QII", gpa, mask, index))

    def page(
        self, gpa: int, content: bytes = b"", *, flags: int = 0, kind: int = 0, mask: int = SNP_MASK
    ) -> File:
        at = self._put(len(self.headers) + 8 + 12, content)
        return self.header(0x302, struct.pack("<QIIIHH", gpa, mask, at, flags, kind, 0))

    def vmsa(self, content: bytes = VMSA, index: int = 0, mask: int = SNP_MASK) -> File:
        at = self._put(len(self.headers) + 8 + 12, content)
        return self.header(0x304, struct.pack("<QIIHH", REGISTERS, mask, at, index, 0))

    def _put(self, where: int, content: bytes) -> int:
        if not content:
            return 0
        self._patches.append((where, len(self.data)))
        self.data += content
        return 1  # mended by `done`

    def done(self, version: int = 1) -> bytes:
        at = 24 + len(self.headers)
        headers = bytearray(self.headers)
        for where, offset in self._patches:
            struct.pack_into("<I", headers, where, at + offset)
        total = at + len(self.data)
        fixed = struct.pack("<IIIIII", 0x4D564749, version, 24, len(headers), total, 0)
        return fixed + headers + self.data


def digest(*pages: tuple[int, int, bytes | None]) -> bytes:
    """AMD's launch digest of pages: type, address, and content if it is measured."""
    found = bytes(48)
    for kind, gpa, content in pages:
        measured = bytes(48) if content is None else hashlib.sha384(content).digest()
        info = struct.pack("<48s48sHBBBBBBQ", found, measured, 0x70, kind, 0, 0, 0, 0, 0, gpa)
        found = hashlib.sha384(info).digest()
    return found


NORMAL, VMSA_PAGE, UNMEASURED, SECRETS, CPUID = 1, 2, 4, 5, 6
LAST = (VMSA_PAGE, REGISTERS, VMSA)


def test_pages_of_all_kinds() -> None:
    file = File().platform().platform(OTHER_MASK, kind=0).policy(0x30000)
    file.area(0).area(1, 2 * PAGE)
    file.insert(0x1000, 0).insert(0x8000, 1)
    file.page(0x10000, DATA).page(0x11000, DATA[:100]).page(0x20000)
    file.page(0x30000, DATA, flags=0x2)
    file.page(0x40000, kind=1).page(0x50000, kind=2).page(0x51000, kind=3)
    file.page(0x60000, DATA, mask=OTHER_MASK).header(0x313, bytes(8)).vmsa()
    found = igvm.measure(file.done(), 1)
    assert found == igvm.Measured(
        digest(
            (UNMEASURED, 0x1000, None),
            (UNMEASURED, 0x8000, None),
            (UNMEASURED, 0x9000, None),
            (NORMAL, 0x10000, DATA),
            # What the file has of a page, and zeros: what follows it is another's.
            (NORMAL, 0x11000, DATA[:100] + DATA[: PAGE - 100]),
            (NORMAL, 0x20000, ZEROS),
            (UNMEASURED, 0x30000, None),
            (SECRETS, 0x40000, None),
            (CPUID, 0x50000, None),
            (CPUID, 0x51000, None),
            LAST,
        ),
        0x30000,
    )


def test_large_page() -> None:
    content = DATA * 512
    file = File().platform().page(0x200000, content, flags=0x1).page(0x400000, flags=0x1).vmsa()
    pages = [(NORMAL, 0x200000 + at, DATA) for at in range(0, len(content), PAGE)]
    pages += [(NORMAL, 0x400000 + at, ZEROS) for at in range(0, len(content), PAGE)]
    assert igvm.measure(file.done(), 1).digest == digest(*pages, LAST)


def test_registers_come_last_wherever_they_are_in_the_file() -> None:
    file = File().platform().vmsa().page(0x1000, DATA)
    assert igvm.measure(file.done(), 1).digest == digest((NORMAL, 0x1000, DATA), LAST)


def test_pages_that_may_go_on_wait_as_qemu_has_them_wait() -> None:
    file = File().platform().area(0).page(0x1000, DATA).insert(0x9000, 0).page(0x2000, DATA)
    assert igvm.measure(file.vmsa().done(), 1).digest == digest(
        (UNMEASURED, 0x9000, None), (NORMAL, 0x1000, DATA), (NORMAL, 0x2000, DATA), LAST
    )


def test_registers_of_each_cpu() -> None:
    other = b"other".ljust(PAGE, b"\0")
    file = File().platform().vmsa(other, 1).vmsa(VMSA, 0).done()
    assert igvm.measure(file, 2).digest == digest(LAST, (VMSA_PAGE, REGISTERS, other))
    with pytest.raises(igvm.BadIgvm, match="registers of 2 CPUs, and the guest has 4"):
        igvm.measure(file, 4)


def test_policy_that_is_of_another_platform() -> None:
    file = File().platform().policy(0x1, OTHER_MASK).page(0x1000, DATA).vmsa()
    assert igvm.measure(file.done(), 1).policy is None


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is no IGVM file"),
        (b"x" * 4096, "it is no IGVM file"),
        (File().platform().vmsa().done(version=3), "unknown version 3"),
        (File().platform(kind=3).vmsa().done(), "it is not for SEV-SNP"),
        (File().platform().page(0, DATA, kind=9).vmsa().done(), "unknown type 9"),
        (File().platform().header(0x302, b"short").done(), "header that is too short"),
        (File().platform().vmsa().done()[:-PAGE], "it is cut off"),
        (File().platform().vmsa().done()[:40], "it is cut off"),
        (File().platform().area(0, 2**40).insert(0, 0).done(), "more than 16384 pages"),
    ],
)
def test_file_that_is_none(content: bytes, why: str) -> None:
    with pytest.raises(igvm.BadIgvm, match=why):
        igvm.measure(content, 1)


@given(st.binary(max_size=512))
def test_any_bytes(content: bytes) -> None:
    whole = File().platform().policy(1).area(0).insert(0, 0).page(0x1000, DATA).vmsa().done()
    for file in (content, whole[:24] + content, whole[:40] + content + whole[40 + len(content) :]):
        try:
            found = igvm.measure(file, 1)
        except igvm.BadIgvm:
            continue
        assert len(found.digest) == 48


# --- what a VM's owner is told ----------------------------------------------------------------


def rules(measurement: expected.Measurement, number: int | None) -> dict[str, Any]:
    claims = expected.Claims(
        vm_id="", technology=Technology.SEV_SNP, number=number, bound_to="", measurement=measurement
    )
    return {one.field: one for one in expected.rules(claims)}


def test_owner_is_told_what_the_file_comes_to(tmp_path: Path) -> None:
    file = tmp_path / "guest.igvm"
    file.write_bytes(File().platform().policy(0x30000).page(0x1000, DATA).vmsa().done())
    found = measure.measure_igvm(Technology.SEV_SNP, file, 1)
    told = rules(found, found.policy)
    assert told["MEASUREMENT"].expected == digest((NORMAL, 0x1000, DATA), LAST).hex()
    assert told["POLICY"].expected == "0x30000"


def test_owner_is_told_why_there_is_no_digest(tmp_path: Path) -> None:
    file = tmp_path / "guest.igvm"
    assert "No such file" in measure.measure_igvm(Technology.SEV_SNP, file, 1).problem
    file.write_bytes(b"x")
    found = measure.measure_igvm(Technology.SEV_SNP, file, 1)
    assert f"{file}: it is no IGVM file" == found.problem
    assert rules(found, None)["POLICY"].expected is None
    assert "under SEV-ES is not" in measure.measure_igvm(Technology.SEV_ES, file, 1).problem
