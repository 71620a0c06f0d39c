"""A request to another member of the fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from supervisor.caller import Caller


@attrs.frozen
class Asked:
    """One request to another member.

    :param caller: in whose name
    :param target: path and query
    :param content: the body, or what it is read from
    :param claim: of the run that it is about: its id, and the epoch
    """

    caller: Caller
    method: str
    target: str
    headers: dict[str, str] = attrs.field(factory=dict)
    content: Any = b""
    request_id: str = ""
    claim: tuple[str, int] = ("", 0)
