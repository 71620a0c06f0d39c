"""A file with a computation, or with a request that has one."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import TYPE_CHECKING, cast

from supervisor.api.http import streamed_json
from supervisor.errors import InvalidRequest

if TYPE_CHECKING:
    from supervisor.client import models


def request_body(content: bytes, *, raw: bool) -> models.RunRequest:
    """The body of ``POST /run`` for a file's content."""
    if not raw:
        # The supervisor names the mistakes in a request.
        with contextlib.suppress(ValueError, RecursionError):
            parsed = json.loads(content)
            if isinstance(parsed, dict) and "computation" in parsed:
                return cast("models.RunRequest", parsed)
    return {"computation": base64.b64encode(content).decode()}


def computation(content: bytes) -> bytes:
    """What the guest gets if ``run`` is given a file with this content.

    :raises InvalidRequest: if it is a request whose computation cannot be read
    """
    given: object = request_body(content, raw=False)["computation"]
    if not isinstance(given, str | list):
        raise InvalidRequest("computation must be an array of numbers or a base64 string")
    return streamed_json.decoded(given)
