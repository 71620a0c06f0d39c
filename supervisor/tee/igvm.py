"""What the processor measures of an IGVM file under SEV-SNP, directive by directive. Pure.

The order is QEMU's: neighbouring pages of data wait until another page, or the file's end, shows
that they are complete, and what a CPU starts with comes last, as KVM does it. The arithmetic is
sev-snp-measure's.

Sources: the IGVM file format (igvm_defs of the igvm crate); QEMU's docs/system/igvm and
backends/igvm; AMD's 56860, "Launch Digest". No file of another maker was measured here.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import attrs
from sevsnpmeasure.gctx import GCTX

from supervisor.errors import SupervisorError

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAGIC = 0x4D564749
#: Magic, version, offset and size of the variable headers, size of the file, checksum.
_FIXED = struct.Struct("<IIIIII")
_VARIABLE = struct.Struct("<II")
_PAGE, _LARGE_PAGE = 4096, 512 * 4096
#: More than any firmware has, and each takes its time.
_MOST_PAGES = 64 * 1024 * 1024 // _PAGE

_SUPPORTED_PLATFORM = 0x1
_GUEST_POLICY = 0x101
_DIRECTIVES = range(0x301, 0x400)

_PLATFORM = struct.Struct("<IBBHQ")
_POLICY = struct.Struct("<QII")
_AREA = struct.Struct("<QII")
_DATA = struct.Struct("<QIIIHH")
_INSERT = struct.Struct("<QII")
_CONTEXT = struct.Struct("<QIIHH")

_SEV_SNP = 2
_IS_LARGE, _UNMEASURED = 0x1, 0x2
_NORMAL, _SECRETS, _CPUID = 0, (1,), (2, 3)


class BadIgvm(SupervisorError):
    """A file that is no IGVM file, or not one for SEV-SNP guests; the text says why."""


@attrs.frozen
class Measured:
    """:ivar digest: MEASUREMENT of the guest's reports
    :ivar policy: of the guest; None if the file leaves it to QEMU's command line
    """

    digest: bytes
    policy: int | None


@attrs.frozen
class _Pages:
    gpa: int
    flags: int
    kind: int
    content: bytes

    @property
    def size(self) -> int:
        return _LARGE_PAGE if self.flags & _IS_LARGE else _PAGE

    def follows(self, before: _Pages) -> bool:
        """Whether QEMU takes it for a part of the same region."""
        same = (self.flags, self.kind, bool(self.content)) == (
            before.flags,
            before.kind,
            bool(before.content),
        )
        return same and before.gpa + before.size == self.gpa


def measure(file: bytes, vcpus: int) -> Measured:
    """:param vcpus: of the guest. KVM measures the registers of each, and only those that the file
        has are known
    :raises BadIgvm:
    """
    headers = list(_headers(file))
    mask = _mask(headers)
    found = [_unpack(_POLICY, header) for kind, header in headers if kind == _GUEST_POLICY]
    policies = [number for number, of, _ in found if of & mask]
    digest, registers = _Launch(file, mask).run(headers)
    if len(registers) != vcpus:
        raise BadIgvm(
            f"it has the first registers of {len(registers)} CPUs, and the guest has {vcpus}"
        )
    for page in registers:
        digest.update_vmsa_page(page)
    return Measured(digest.ld(), policies[-1] if policies else None)


class _Launch:
    """The pages of a launch, in the order in which the processor gets them."""

    def __init__(self, file: bytes, mask: int) -> None:
        self._file = file
        self._mask = mask
        self._digest = GCTX()
        self._areas: dict[int, int] = {}
        #: A region of pages that may go on.
        self._region: list[_Pages] = []
        #: The number of the last directive of that region.
        self._last = -1
        self._registers: dict[int, bytes] = {}
        self._pages = 0

    def run(self, headers: list[tuple[int, bytes]]) -> tuple[GCTX, list[bytes]]:
        """The digest so far, and the registers of the CPUs."""
        directives = [one for one in headers if one[0] in _DIRECTIVES]
        for number, (kind, header) in enumerate(directives):
            match kind:
                case 0x301:  # IGVM_VHT_PARAMETER_AREA
                    size, index, _ = _unpack(_AREA, header)
                    self._areas[index] = size
                case 0x302:  # IGVM_VHT_PAGE_DATA
                    self._data(number, header)
                case 0x303:  # IGVM_VHT_PARAMETER_INSERT
                    self._insert(header)
                case 0x304:  # IGVM_VHT_VP_CONTEXT
                    self._context(header)
        self._flush()
        return self._digest, [self._registers[number] for number in sorted(self._registers)]

    def _data(self, number: int, header: bytes) -> None:
        gpa, of, offset, flags, kind, _ = _unpack(_DATA, header)
        if not of & self._mask:
            return
        page = _Pages(gpa, flags, kind, b"")
        if offset:
            page = attrs.evolve(page, content=self._content(offset, page.size))
        if self._region and not (page.follows(self._region[-1]) and self._last == number - 1):
            self._flush()
        self._region.append(page)
        self._last = number

    def _insert(self, header: bytes) -> None:
        gpa, of, index = _unpack(_INSERT, header)
        if of & self._mask and index in self._areas:
            size = self._areas[index]
            self._count(size)
            self._digest.update_unmeasured_pages(gpa, size - size % -_PAGE)

    def _context(self, header: bytes) -> None:
        _, of, offset, index, _ = _unpack(_CONTEXT, header)
        if of & self._mask:
            self._registers[index] = self._content(offset, _PAGE)

    def _flush(self) -> None:
        for page in self._region:
            self._count(page.size)
            if page.kind in _SECRETS:
                self._digest.update_secrets_page(page.gpa)
            elif page.kind in _CPUID:
                self._digest.update_cpuid_page(page.gpa)
            elif page.kind != _NORMAL:
                raise BadIgvm(f"it has a page of the unknown type {page.kind}")
            elif page.flags & _UNMEASURED:
                self._digest.update_unmeasured_pages(page.gpa, page.size)
            else:
                content = page.content or bytes(page.size)
                self._digest.update_normal_pages(page.gpa, content)
        self._region.clear()

    def _count(self, size: int) -> None:
        self._pages += max(1, size // _PAGE)
        if self._pages > _MOST_PAGES:
            raise BadIgvm(f"it has more than {_MOST_PAGES} pages")

    def _content(self, offset: int, size: int) -> bytes:
        """A page from the file: what is in the file of it, and zeros."""
        if offset >= len(self._file):
            raise BadIgvm("it is cut off")
        return self._file[offset : offset + size].ljust(size, b"\0")


def _headers(file: bytes) -> Iterator[tuple[int, bytes]]:
    """Types and contents of the variable headers."""
    if len(file) < _FIXED.size:
        raise BadIgvm("it is no IGVM file")
    magic, version, at, size, total, _ = _FIXED.unpack_from(file)
    if magic != _MAGIC:
        raise BadIgvm("it is no IGVM file")
    if version not in (1, 2):
        raise BadIgvm(f"it is of the unknown version {version} of the format")
    end = at + size
    if end > len(file) or total > len(file):
        raise BadIgvm("it is cut off")
    while at + _VARIABLE.size <= end:
        kind, length = _VARIABLE.unpack_from(file, at)
        at += _VARIABLE.size
        if at + length > end:
            raise BadIgvm("it is cut off")
        yield kind, file[at : at + length]
        at += length - length % -8


def _mask(headers: list[tuple[int, bytes]]) -> int:
    for kind, header in headers:
        if kind == _SUPPORTED_PLATFORM:
            mask, _, platform, _, _ = _unpack(_PLATFORM, header)
            if platform == _SEV_SNP:
                return int(mask)
    raise BadIgvm("it is not for SEV-SNP")


def _unpack(form: struct.Struct, header: bytes) -> tuple[int, ...]:
    if len(header) < form.size:
        raise BadIgvm("it has a header that is too short")
    return form.unpack_from(header)
