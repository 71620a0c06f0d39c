"""What the processor says of this guest: a report of SEV-SNP, or a quote of TDX.

This module has never been run on a machine with either.

Sources: Linux's Documentation/virt/coco/sev-guest.rst, include/uapi/linux/sev-guest.h and
Documentation/ABI/testing/configfs-tsm-report.
"""

from __future__ import annotations

import array
import fcntl
import os
import struct
from typing import TYPE_CHECKING

from .refusal import Refusal, StatusCode

if TYPE_CHECKING:
    from typing import BinaryIO

REPORT_DATA_BYTES = 64

SEV_GUEST = "/dev/sev-guest"
_IOCTL = 3 << 30 | 32 << 16 | ord("S") << 8  # _IOWR('S', number, 32 bytes)
SNP_GET_REPORT, SNP_GET_EXT_REPORT = _IOCTL | 0, _IOCTL | 2
RESPONSE_BYTES = 4000
# The longest table that the kernel fetches.
TABLE_BYTES = 0x4000

# /init mounts configfs if the kernel has it.
REPORTS = "/sys/kernel/config/tsm/report"


def evidence(report_data: bytes, root: str = "") -> bytes:
    """What the processor has signed over *report_data* (64 bytes).

    Under SEV-SNP the report, and behind it the table of certificates that the host has for its
    guests, if it has one; under TDX the quote. *root* is a directory in place of the guest's root,
    for tests.
    """
    if os.path.exists(root + SEV_GUEST):
        return _snp(root + SEV_GUEST, report_data)
    if os.path.isdir(root + REPORTS):
        return _quote(root + REPORTS, report_data)
    why = f"neither {SEV_GUEST} nor {REPORTS} is here: this guest is under neither SEV-SNP nor TDX"
    raise Refusal(StatusCode.FAILED_PRECONDITION, f"{why}, and has no report")


def _snp(path: str, report_data: bytes) -> bytes:
    plain = report_data + bytes(32)  # the VMPL, 0, and padding
    table = array.array("B", bytes(TABLE_BYTES))
    extended = plain + struct.pack("=QI4x", table.buffer_info()[0], TABLE_BYTES)
    try:
        with open(path, "r+b", buffering=0) as device:
            try:
                report = _ask(device, SNP_GET_EXT_REPORT, extended)
            except OSError:  # the host may have more certificates than fit; others have them too
                return _ask(device, SNP_GET_REPORT, plain)
    except OSError as error:
        why = f"{path} gave no report: {error.strerror}"
        raise Refusal(StatusCode.FAILED_PRECONDITION, why) from error
    return report + table.tobytes() if any(table) else report


def _ask(device: BinaryIO, what: int, request: bytes) -> bytes:
    """The report. OSError names the firmware's error, if there is one."""
    given = array.array("B", request)
    response = array.array("B", bytes(RESPONSE_BYTES))
    addresses = given.buffer_info()[0], response.buffer_info()[0]
    call = bytearray(struct.pack("=B7xQQQ", 1, *addresses, 0))
    try:
        fcntl.ioctl(device, what, call)
    except OSError as error:
        firmware = struct.unpack_from("=Q", call, 24)[0]
        raise OSError(error.errno, f"{error.strerror}, firmware error {firmware:#x}") from error
    return unpack_report(response.tobytes())


def unpack_report(response: bytes) -> bytes:
    """The report inside the firmware's *response*: status u32, size u32, 24 bytes, report."""
    status, size = struct.unpack_from("=II", response)
    if status or not 0 < size <= len(response) - 32:
        why = f"the firmware's answer holds no report: status {status:#x}, {size} bytes"
        raise Refusal(StatusCode.FAILED_PRECONDITION, why)
    return response[32 : 32 + size]


def _quote(reports: str, report_data: bytes) -> bytes:
    # A directory is one question; nobody else may ask in it.
    question = os.path.join(reports, f"agent-{os.urandom(8).hex()}")
    try:
        os.mkdir(question)
        try:
            with open(os.path.join(question, "inblob"), "wb", buffering=0) as file:
                file.write(report_data)
            with open(os.path.join(question, "outblob"), "rb") as file:
                return file.read()
        finally:
            os.rmdir(question)
    except OSError as error:
        why = (
            f"{reports} gave no quote: {error.strerror}; the host must run Intel's quoting service"
        )
        raise Refusal(StatusCode.FAILED_PRECONDITION, why) from error
