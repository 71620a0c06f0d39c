"""The processor's attestation report on this guest, from /dev/sev-guest.

This module has never been run on a machine with SEV-SNP.
"""

from __future__ import annotations

import array
import fcntl
import struct

from .refusal import Refusal, StatusCode

SEV_GUEST = "/dev/sev-guest"
SNP_GET_REPORT = 3 << 30 | 32 << 16 | ord("S") << 8 | 0  # _IOWR('S', 0, 32 bytes)
REPORT_DATA_BYTES = 64
RESPONSE_BYTES = 4000


def snp_report(report_data: bytes) -> bytes:
    """The processor's signed report over *report_data* (64 bytes), as the firmware wrote it."""
    request = array.array("B", report_data + bytes(32))  # then the VMPL, 0, and padding
    response = array.array("B", bytes(RESPONSE_BYTES))
    addresses = request.buffer_info()[0], response.buffer_info()[0]
    call = bytearray(struct.pack("=B7xQQQ", 1, *addresses, 0))
    try:
        with open(SEV_GUEST, "r+b", buffering=0) as device:
            fcntl.ioctl(device, SNP_GET_REPORT, call)
    except FileNotFoundError:
        why = f"no {SEV_GUEST} here: this guest does not run under SEV-SNP and has no report"
        raise Refusal(StatusCode.FAILED_PRECONDITION, why) from None
    except OSError as error:
        firmware = struct.unpack_from("=Q", call, 24)[0]
        why = f"{SEV_GUEST} gave no report: {error.strerror}, firmware error {firmware:#x}"
        raise Refusal(StatusCode.FAILED_PRECONDITION, why) from error
    return unpack_report(response.tobytes())


def unpack_report(response: bytes) -> bytes:
    """The report inside the firmware's *response*: status u32, size u32, 24 bytes, report."""
    status, size = struct.unpack_from("=II", response)
    if status or not 0 < size <= len(response) - 32:
        why = f"the firmware's answer holds no report: status {status:#x}, {size} bytes"
        raise Refusal(StatusCode.FAILED_PRECONDITION, why)
    return response[32 : 32 + size]
