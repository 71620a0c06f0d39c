"""Which requests have a line in the audit log."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

import pytest

from supervisor.api.audit import Audit, Outcome
from supervisor.api.callers import serving
from supervisor.api.rates import Rates
from supervisor.api.trace import Trace, tracing
from supervisor.caller import ANYBODY, Caller, KnownBy, Role
from supervisor.errors import SupervisorError, Unauthenticated
from tests.support.tenants import answer

if TYPE_CHECKING:
    from pathlib import Path

ALICE = Caller("alice", Role.RUN, KnownBy.TOKEN)
STRANGER = Unauthenticated("nobody is known to call")
CHANGED = Outcome("POST /run", changes=True, status=200)
BROKEN = Outcome("POST /run", changes=True, status=500)
LEFT = Outcome("POST /run", changes=True)
REFUSED = Outcome("POST /run", changes=True, status=404, refused=True)
SEEN = Outcome("GET /vms", changes=False, status=200)


@pytest.mark.parametrize(
    ("caller", "outcome", "lines"),
    [
        (ALICE, CHANGED, 10),
        (ALICE, LEFT, 10),
        (ALICE, REFUSED, 2),
        (ALICE, SEEN, 0),
        (ANYBODY, CHANGED, 10),
        (ANYBODY, LEFT, 10),
        (ANYBODY, REFUSED, 2),
        (STRANGER, LEFT, 2),
        (STRANGER, BROKEN, 2),
        (STRANGER, REFUSED, 2),
        (STRANGER, SEEN, 0),
    ],
)
def test_lines_of_ten_requests(
    tmp_path: Path, caller: Caller | SupervisorError, outcome: Outcome, lines: int
) -> None:
    """Two of a kind that is limited are written."""
    audit = Audit(tmp_path / "audit", 2**20, Rates(0.1, 2, lambda: 0.0))
    trace = Trace("1", "http", "127.0.0.1")
    audit.open()
    for _ in range(10):
        with serving(partial(answer, caller)), tracing(trace), audit.watching(trace, outcome):
            pass
    with serving(lambda: ALICE), tracing(trace), audit.watching(trace, CHANGED):
        pass
    audit.close()
    written = [json.loads(line) for line in audit.file.read_text().splitlines()]
    assert len(written) == lines + 1
    limited = 8 if lines == 2 else None
    assert written[-1].get("refusals_missing") == limited
