"""The world of a test: a host to start supervisors on."""

from __future__ import annotations

import gc
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.state.journal import Journal
from tests.support import contract
from tests.support.world import World, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from supervisor.state.record import Event


# What was imported stays; the collections below need not look at it each time.
gc.freeze()


@pytest.fixture(autouse=True)
def _one_loop_at_a_time() -> Iterator[None]:
    """grpc.aio's poller serves every loop of the process until no object of its is left.

    It would call upon the loop of a test before this one, which is closed.
    """
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def _events_are_in_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each event of each supervisor, as its readers get it."""
    number = Journal._number

    def checked(journal: Journal, *args: Any) -> Event:
        event = number(journal, *args)
        contract.check_event(json.loads(json.dumps(event.to_dict())))
        return event

    monkeypatch.setattr(Journal, "_number", checked)


@pytest.fixture
async def world(short_tmp: Path, base_image: Path) -> AsyncIterator[World]:
    async with open_world(short_tmp) as made:
        shutil.copyfile(base_image, made.image)
        yield made
