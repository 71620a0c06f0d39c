"""A wall clock that is wrong, as seen by the supervisor alone."""

from __future__ import annotations

import datetime
import sys
import time
from typing import Self


def shift(seconds: float) -> None:
    """Have every module of the supervisor see the time of day so much later, or earlier."""
    real_time, offset = time.time, datetime.timedelta(seconds=seconds)

    class Shifted(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Self:
            return super().now(tz) + offset

    time.time = lambda: real_time() + seconds
    for name, module in list(sys.modules.items()):
        if name.startswith("supervisor") and getattr(module, "datetime", None) is datetime.datetime:
            vars(module)["datetime"] = Shifted
