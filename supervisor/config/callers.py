"""Settings for what callers may take of the supervisor, on both wires."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - settings are read by their resolved types

import attrs

from supervisor.config.qemu import size_in_bytes
from supervisor.config.settings import Seconds, Size, setting


@attrs.frozen(kw_only=True)
class CallersConfig:
    """Limits on requests. A caller is who asks, or the address if nobody is asked."""

    body_budget: Size = setting(
        "MANAGER_BODY_BUDGET",
        "128M",
        "memory for computations that are being received; one caller gets at most half",
    )
    body_wait_s: Seconds = setting(
        "MANAGER_BODY_WAIT", 30.0, "longest time that a body waits for room in that memory"
    )
    body_timeout_s: Seconds = setting(
        "MANAGER_BODY_TIMEOUT",
        10.0,
        "longest time for a body, besides what it needs at MANAGER_BODY_RATE",
    )
    body_rate: Size = setting(
        "MANAGER_BODY_RATE", "64K", "bytes a second that a body must have on average"
    )

    rate: int = setting(
        "MANAGER_CALLER_RATE",
        500,
        "requests a second of one caller, on average; 0: no limit. A caller without a name is an"
        " address",
    )
    requests: int = setting("MANAGER_CALLER_REQUESTS", 256, "requests of one caller at once")
    readers: int = setting(
        "MANAGER_CALLER_READERS", 64, "readers of events that one caller may have"
    )
    connections: int = setting(
        "MANAGER_HTTP_CONNECTIONS",
        512,
        "connections from one address, to each of HTTP and gRPC, or of one user over the unix"
        " socket of HTTP",
    )
    header_timeout_s: Seconds = setting(
        "MANAGER_HTTP_HEADER_TIMEOUT", 10.0, "longest time for TLS, or for a request's headers"
    )
    audit_log: Path | None = setting(
        "MANAGER_AUDIT_LOG",
        None,
        "file of the audit log",
        shown="audit.jsonl in MANAGER_QEMU_TMP_FILE_LOC",
    )
    audit_size: Size = setting(
        "MANAGER_AUDIT_SIZE",
        "64M",
        "an audit log over this size is set aside; the one set aside before is removed",
    )

    @property
    def audit_bytes(self) -> int:
        return size_in_bytes(self.audit_size)

    @property
    def body_bytes(self) -> int:
        return size_in_bytes(self.body_budget)

    @property
    def body_bytes_per_s(self) -> int:
        return size_in_bytes(self.body_rate)
