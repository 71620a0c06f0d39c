"""The world of a test: a host to start supervisors on."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

from tests.fake.world import World, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _one_loop_at_a_time() -> Iterator[None]:
    """grpc.aio's poller serves every loop of the process until no object of its is left.

    It would call upon the loop of a test before this one, which is closed.
    """
    gc.collect()
    yield
    gc.collect()


@pytest.fixture
async def world(short_tmp: Path) -> AsyncIterator[World]:
    async with open_world(short_tmp) as made:
        yield made
