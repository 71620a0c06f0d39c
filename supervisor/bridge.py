"""asyncio on trio: trio-asyncio, with what version 0.16 lacks for Python 3.14.

Import its functions from here, not from `trio_asyncio`.

Source: "What's new in Python 3.14", asyncio; trio-asyncio's issue 160. A later trio-asyncio that
can be imported by Python 3.14 makes all of this unnecessary but the import.
"""

from __future__ import annotations

import asyncio
import sys
import warnings
from typing import Any

# Python 3.14 renamed a class that the loop's policy derives from, and removed another one. The
# second is for a loop that starts processes; trio starts ours.
if sys.version_info >= (3, 14):
    vars(asyncio.events)["BaseDefaultEventLoopPolicy"] = asyncio.events._BaseDefaultEventLoopPolicy
    vars(asyncio)["AbstractChildWatcher"] = object

with warnings.catch_warnings():
    # Policies are deprecated in 3.14, the class that was removed there is in 3.12.
    warnings.simplefilter("ignore", DeprecationWarning)
    from trio_asyncio import aio_as_trio, open_loop, trio_as_aio

if sys.version_info >= (3, 14):
    import _asyncio

    _handle: Any = asyncio.Handle
    _plain_run = _handle._run

    def _run(self: Any) -> None:
        """Run a callback as a loop does: with the loop noted as the one that this thread runs.

        From 3.14 on a task takes no step under another loop. It looks in C, where trio-asyncio's
        own function for the present loop does not reach.
        """
        outer = _asyncio._get_running_loop()
        _asyncio._set_running_loop(self._loop)
        try:
            _plain_run(self)
        finally:
            _asyncio._set_running_loop(outer)

    _handle._run = _run

__all__ = ["aio_as_trio", "open_loop", "trio_as_aio"]
