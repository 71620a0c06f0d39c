"""What a guest reads of its files before it is frozen, and what it writes there."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from supervisor.agent.reference.guest import Guest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("dev", "etc", "proc/sys/vm", "run"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def test_a_guest_has_settled_when_init_says_so(root: Path) -> None:
    guest = Guest(str(root))
    assert not guest.wait_until_settled(time.monotonic())
    (root / "run/address").touch()
    assert not guest.wait_until_settled(time.monotonic())
    (root / "run/loaded").touch()
    assert guest.wait_until_settled(time.monotonic())


def test_who_waits_is_on_record(root: Path) -> None:
    (root / "sys/class/rtc/rtc0").mkdir(parents=True)
    (root / "sys/class/rtc/rtc0/since_epoch").write_text("1700000000\n")
    guest = Guest(str(root))
    assert not guest.waits()
    guest.have_it_wait()
    assert guest.hardware_clock_s() == 1_700_000_000
    assert Guest(str(root)).waits()
    guest.wait_no_more()
    assert not Guest(str(root)).waits()


def test_caches_are_dropped_and_memory_compacted(root: Path) -> None:
    Guest(str(root)).drop_caches()
    assert (root / "proc/sys/vm/drop_caches").read_text() == "3"
    assert (root / "proc/sys/vm/compact_memory").read_text() == "1"
