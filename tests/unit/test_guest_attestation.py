"""What the agent asks the guest's kernel for a report or a quote with.

The kernel is a stand-in: it reads and writes at the addresses that it is given, as the headers of
Linux say. No guest under SEV-SNP or TDX was at hand.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from supervisor.agent.reference.attestation import REPORTS, SEV_GUEST, evidence, unpack_report
from supervisor.agent.reference.refusal import Refusal, StatusCode

if TYPE_CHECKING:
    from collections.abc import Callable

ASKED = bytes(range(64))
REPORT = b"report" * 100
TABLE = b"table of certificates".ljust(0x4000, b"\0")
PLAIN, EXTENDED = 0xC0205300, 0xC0205302


class Kernel:
    """``/dev/sev-guest``; *table* None: it knows no such request, or has too many certificates."""

    def __init__(self, table: bytes | None = bytes(0x4000), firmware: int = 0) -> None:
        self.table = table
        self.firmware = firmware
        self.asked: list[int] = []

    def ioctl(self, _device: object, what: int, call: bytearray) -> int:
        version, request, response, _ = struct.unpack("=B7xQQQ", call)
        assert (version, len(call)) == (1, 32)
        self.asked.append(what)
        data, vmpl, reserved = struct.unpack("=64sI28s", ctypes.string_at(request, 96))
        assert (data, vmpl, reserved) == (ASKED, 0, bytes(28))
        if self.firmware or (what == EXTENDED and self.table is None):
            struct.pack_into("=Q", call, 24, self.firmware)
            raise OSError(errno.EIO, "Input/output error")
        if what == EXTENDED:
            assert self.table is not None
            address, length = struct.unpack("=QI4x", ctypes.string_at(request + 96, 16))
            assert length == 0x4000
            ctypes.memmove(address, self.table, length)
        answer = struct.pack("=II24x", 0, len(REPORT)) + REPORT
        ctypes.memmove(response, answer.ljust(4000, b"\0"), 4000)
        return 0


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Kernel]:
    def booted(**has: object) -> Kernel:
        device = tmp_path / SEV_GUEST[1:]
        device.parent.mkdir()
        device.touch()
        kernel = Kernel(**has)  # type: ignore[arg-type]
        monkeypatch.setattr(fcntl, "ioctl", kernel.ioctl)
        return kernel

    return booted


def test_report_with_the_hosts_certificates(guest: Callable[..., Kernel], tmp_path: Path) -> None:
    kernel = guest(table=TABLE)
    assert evidence(ASKED, str(tmp_path)) == REPORT + TABLE
    assert kernel.asked == [EXTENDED]


def test_report_of_a_host_without_certificates(
    guest: Callable[..., Kernel], tmp_path: Path
) -> None:
    guest()
    assert evidence(ASKED, str(tmp_path)) == REPORT


def test_report_if_the_certificates_cannot_be_had(
    guest: Callable[..., Kernel], tmp_path: Path
) -> None:
    kernel = guest(table=None)
    assert evidence(ASKED, str(tmp_path)) == REPORT
    assert kernel.asked == [EXTENDED, PLAIN]


def test_firmwares_error_is_named(guest: Callable[..., Kernel], tmp_path: Path) -> None:
    guest(firmware=0x16)
    with pytest.raises(Refusal) as refused:
        evidence(ASKED, str(tmp_path))
    assert refused.value.code is StatusCode.FAILED_PRECONDITION
    assert "firmware error 0x16" in refused.value.detail


def test_report_is_cut_from_the_firmwares_answer() -> None:
    answer = struct.pack("=II24x", 0, 3) + b"abc" + bytes(99)
    assert unpack_report(answer) == b"abc"
    for head in (b"\x16\0\0\0\3\0\0\0", bytes(8), b"\0\0\0\0\xff\xff\0\0"):
        with pytest.raises(Refusal):
            unpack_report(head + bytes(4000))


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    made = tmp_path / REPORTS[1:]
    made.mkdir(parents=True)
    return made


def removed(directory: str) -> None:
    for file in Path(directory).iterdir():
        file.unlink()
    Path(directory).rename(f"{directory}-gone")


def test_quote(reports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """configfs makes the files of a new directory, and takes them along when it goes."""
    mkdir, asked, kernel = os.mkdir, [], []

    def quoting(files: tuple[Path, Path]) -> None:
        asked.append(files[0].read_bytes())
        files[1].write_bytes(b"quote of " + asked[0])

    def made(path: str) -> None:
        mkdir(path)
        files = reports / path / "inblob", reports / path / "outblob"
        for file in files:
            os.mkfifo(file)
        kernel.append(threading.Thread(target=quoting, args=[files]))
        kernel[0].start()

    monkeypatch.setattr(os, "mkdir", made)
    monkeypatch.setattr(os, "rmdir", removed)
    assert evidence(ASKED, str(tmp_path)) == b"quote of " + ASKED
    kernel[0].join()
    assert asked == [ASKED]
    assert [one.name[-5:] for one in reports.iterdir()] == ["-gone"]


def test_no_quoting_service(reports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(_: str) -> None:
        raise OSError(errno.ENXIO, "No such device or address")

    monkeypatch.setattr(os, "mkdir", made)
    with pytest.raises(Refusal) as refused:
        evidence(ASKED, str(tmp_path))
    assert refused.value.code is StatusCode.FAILED_PRECONDITION
    assert "gave no quote: No such device or address" in refused.value.detail


def test_failed_question_is_taken_back(
    reports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = os.mkdir

    def made(path: str) -> None:
        mkdir(path)
        os.symlink("nowhere/inblob", os.path.join(path, "inblob"))

    monkeypatch.setattr(os, "mkdir", made)
    monkeypatch.setattr(os, "rmdir", removed)
    with pytest.raises(Refusal):
        evidence(ASKED, str(tmp_path))
    assert [one.name[-5:] for one in reports.iterdir()] == ["-gone"]


def test_plain_guest_has_none(tmp_path: Path) -> None:
    with pytest.raises(Refusal) as refused:
        evidence(ASKED, str(tmp_path))
    assert "under neither SEV-SNP nor TDX" in refused.value.detail
