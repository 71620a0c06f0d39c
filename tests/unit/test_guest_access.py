"""Whose calls the agent in a guest answers."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from supervisor.agent.reference import access
from supervisor.agent.reference.access import Access

if TYPE_CHECKING:
    from pathlib import Path

CREDENTIAL = b"the-run's"
OURS = {b"authorization": b"Bearer " + CREDENTIAL}
OPEN = {b"agent-access": b"open"}


def give(root: Path, credential: bytes) -> None:
    """What QEMU does at its start; a clone's QEMU does it to a guest that has been running."""
    file = root / access.HASH[1:]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(hashlib.sha256(credential).hexdigest())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    give(tmp_path, CREDENTIAL)
    (tmp_path / "run").mkdir()
    return tmp_path


def of_guest(root: Path) -> Access:
    return Access.of_guest(str(root))


@pytest.mark.parametrize(
    ("headers", "admitted"),
    [
        (OURS, True),
        ({b"authorization": b"bearer " + CREDENTIAL}, True),
        ({}, False),
        ({b"authorization": CREDENTIAL}, False),
        ({b"authorization": b"Basic " + CREDENTIAL}, False),
        ({b"authorization": b"Bearer "}, False),
        ({b"authorization": b"Bearer " + CREDENTIAL[:-1]}, False),
        ({b"authorization": b"Bearer " + CREDENTIAL + b" "}, False),
        ({b"authorization": b"Bearer " + hashlib.sha256(CREDENTIAL).hexdigest().encode()}, False),
        ({b"authorization": b"Bearer \xff\x00"}, False),
        (OPEN, False),
    ],
)
def test_only_who_has_the_credential_is_admitted(
    root: Path, headers: dict[bytes, bytes], admitted: bool
) -> None:
    mine = of_guest(root)
    assert mine.admits(headers) is admitted
    assert not mine.admits({})


def test_copy_goes_by_the_hash_of_its_own_qemu(root: Path) -> None:
    mine = of_guest(root)
    assert mine.admits(OURS)
    give(root, b"the-copy's")
    assert not mine.admits(OURS)
    assert mine.admits({b"authorization": b"Bearer the-copy's"})


def test_who_has_the_credential_may_open_it_to_all(root: Path) -> None:
    mine = of_guest(root)
    assert mine.admits(OURS | OPEN)
    assert mine.admits({})
    assert of_guest(root).admits({}), "an agent that was started again has forgotten it"


def test_without_a_hash_everybody_is_admitted(root: Path) -> None:
    os.unlink(root / access.HASH[1:])
    assert of_guest(root).admits({})
    assert Access().admits({})


def test_what_cannot_know_its_callers_does_not_serve(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        of_guest(tmp_path)
