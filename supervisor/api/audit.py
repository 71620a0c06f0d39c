"""The audit log: a JSON line for each request that changes something, and for each refusal.

A line has names that the supervisor chose, and values that were checked or are escaped by JSON: no
body, no query, no header but the request's id. Refusals are limited in rate for each caller, and
so is all that callers do whom nobody knows: no flood of them pushes other lines out. The next line
says how many are missing.

A line that cannot be written goes to the supervisor's own log instead. The request is served: on
a full disk it may be the one that removes a VM.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs
import structlog

from supervisor.api import callers
from supervisor.errors import SupervisorError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from supervisor.api.rates import Rates
    from supervisor.api.trace import Trace
    from supervisor.caller import Caller

log = structlog.stdlib.get_logger()

#: Else a caller who puts a token into the place of an id has it in the log.
_VM_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@attrs.define
class Outcome:
    """What became of a request; filled in while it is served.

    :param what: the method and its path's pattern, or the full name of the gRPC method
    :param changes: whether it is of a kind that changes something
    :param status: HTTP's status or gRPC's code; None if the caller left
    :param refused: whether the status says that the caller did something wrong or came too often
    """

    what: str
    changes: bool
    status: int | str | None = None
    refused: bool = False

    @property
    def failed(self) -> bool:
        """Whether it was the supervisor's fault, or its host's."""
        if isinstance(self.status, int):
            return self.status >= 500
        return self.status in ("INTERNAL", "UNAVAILABLE", "UNKNOWN", "DATA_LOSS")

    @property
    def word(self) -> str:
        if self.status is None:
            return "caller-left"
        return "refused" if self.refused else "answered"


class Audit:
    """The log. `open` comes first, `close` last.

    :param size_bytes: a longer file is set aside as ``<name>.1``, in the place of the one before
    :param refusals: how many refusals of one caller get a line, and how much else of a stranger
    """

    def __init__(self, file: Path, size_bytes: int, refusals: Rates) -> None:
        self.file = file
        self._most = size_bytes
        self._refusals = refusals
        self._missing = 0
        self._descriptor = -1

    def open(self) -> None:
        """:raises OSError:"""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(self.file, flags, 0o600)

    def close(self) -> None:
        os.close(self._descriptor)

    @contextmanager
    def watching(self, trace: Trace, outcome: Outcome) -> Iterator[None]:
        """Write a line when the request is over, if its outcome calls for a line."""
        try:
            yield
        finally:
            caller = _caller()
            if outcome.refused or outcome.changes:
                limited = outcome.refused or caller is None
                if limited and not self._refusals.take(callers.who()):
                    self._missing += 1
                else:
                    self._write(trace, outcome, caller)

    def _write(self, trace: Trace, outcome: Outcome, caller: Caller | None) -> None:
        line: dict[str, Any] = {
            "ts": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "request_id": trace.id,
            "wire": trace.wire,
            "peer": trace.peer,
            "caller": caller and caller.name,
            "known_by": caller and caller.known_by,
            "role": caller and caller.role,
            "token": callers.token_id() or None,
            "what": outcome.what,
            "vm": trace.vm_id if _VM_ID.fullmatch(trace.vm_id or "") else None,
            "outcome": outcome.word,
            "status": outcome.status,
            "error": trace.error,
        }
        if self._missing:
            line["refusals_missing"] = self._missing
        try:
            self._append(json.dumps(line).encode() + b"\n")
        except OSError as error:
            log.error("the audit log cannot be written", problem=str(error), line=line)
        else:
            self._missing = 0

    def _append(self, line: bytes) -> None:
        """In the loop: a line goes to the page cache, and the file is local."""
        if os.fstat(self._descriptor).st_size + len(line) > self._most:
            self.file.replace(self.file.with_name(f"{self.file.name}.1"))
            before = self._descriptor
            self.open()
            os.close(before)
        written = os.write(self._descriptor, line)
        if written < len(line):  # the disk is full now: the next line must begin on a new one
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
            raise OSError(f"only {written} bytes of {len(line)} could be written")


def _caller() -> Caller | None:
    try:
        return callers.current()
    except SupervisorError:
        return None
