"""The HTTP application without a service: for tables of its routes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from supervisor.api.gate import Gate
from supervisor.api.http.app import create_app
from supervisor.api.http.web_pages import Hosts
from supervisor.config import CallersConfig

if TYPE_CHECKING:
    from quart_trio import QuartTrio


def application() -> QuartTrio:
    nothing = cast("Any", None)
    return create_app(nothing, "", nothing, Gate(CallersConfig(), Path()), Hosts(()), lambda: ())
