"""What goes wrong between a client and a supervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import httpx

    from supervisor.client.models import Problem


class ClientError(Exception):
    """A call was not answered as it should be. Its text says by which supervisor, and why."""


class Unreachable(ClientError):
    """No supervisor answers there, or the connection broke. ``__cause__`` is httpx' error.

    Whether the supervisor has had the request is not known: see ``idempotency_key`` of ``run``.
    """


class Refused(ClientError):
    """The supervisor answered with a problem: RFC 9457, and docs/reference/errors.md.

    :ivar status: of HTTP
    :ivar problem: the document; None if something else than a supervisor answered
    :ivar retry_after_s: when it may be worth another attempt; None if it did not say
    """

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.problem = _document(response)
        after = response.headers.get("Retry-After", "")
        self.retry_after_s = float(after) if after.isdecimal() else None
        super().__init__(
            self.problem["detail"]
            if self.problem
            else f"{response.url} answered {response.status_code} {response.reason_phrase}"
        )

    @property
    def kind(self) -> str:
        """The last part of the problem's ``type``, such as ``vm-not-found``; else empty."""
        return self.problem.get("type", "").rpartition(":")[2] if self.problem else ""


def _document(response: httpx.Response) -> Problem | None:
    try:
        found = response.json()
    except ValueError:
        return None
    known = isinstance(found, dict) and isinstance(found.get("detail"), str)
    return cast("Problem", found) if known else None
