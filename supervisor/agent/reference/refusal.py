"""The error that a caller of the agent gets in place of an answer."""

from __future__ import annotations

import enum


class StatusCode(enum.Enum):
    """Those of gRPC's status codes that the agent gives."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAUTHENTICATED = 16


class Refusal(Exception):
    """The caller gets this status code and this sentence instead of an answer."""

    def __init__(self, code: StatusCode, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
