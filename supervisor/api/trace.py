"""Which request is being served: its id, where it comes from, and what becomes of it.

The id is in the answer, in each line of the log that the request causes, in the audit log and, for
a run, on the VM's record.

Source: W3C "Trace Context", section 3.2, for ``traceparent``.
"""

from __future__ import annotations

import re
import uuid
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import attrs
from structlog.contextvars import bound_contextvars

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_GIVEN = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


@attrs.define
class Trace:
    """One request.

    :param wire: ``http`` or ``grpc``
    :param peer: the address that it comes from, without its port; ``unix`` for a local socket
    :param path: of its URL; empty over gRPC
    :param scheme: of its URL; empty over gRPC
    :param parent: the caller's ``traceparent``; empty if there is none
    :param vm_id: the VM that it is about; None if there is none, or none yet
    :param error: the name of the error that it is answered with
    :param changed: whether it has changed something, though its method would not say so
    """

    id: str
    wire: str
    peer: str
    parent: str = ""
    path: str = ""
    scheme: str = ""
    vm_id: str | None = None
    error: str | None = None
    changed: bool = False


_trace: ContextVar[Trace] = ContextVar("trace")
_NONE = Trace("", "", "")


def present() -> Trace:
    """The present request's; outside of a request one that nobody looks at."""
    return _trace.get(_NONE)


@contextmanager
def tracing(trace: Trace) -> Iterator[Trace]:
    token = _trace.set(trace)
    try:
        with bound_contextvars(request_id=trace.id):
            yield trace
    finally:
        _trace.reset(token)


def request_id(given: Sequence[str], parents: Sequence[str]) -> str:
    """The request's id: the caller's own, or its trace's, or a new one.

    What is not fit for a log is as good as none.

    :param given: values of ``X-Request-Id``
    :param parents: values of ``traceparent``
    """
    if len(given) == 1 and _GIVEN.fullmatch(given[0]):
        return given[0]
    if found := _PARENT.fullmatch(parent(parents)):
        return found[1]
    return uuid.uuid4().hex


def parent(given: Sequence[str]) -> str:
    """The ``traceparent`` that counts; empty if none does."""
    return given[0] if len(given) == 1 and _PARENT.fullmatch(given[0]) else ""
