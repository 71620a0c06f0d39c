"""What becomes of QEMU's words when a guest that has taken it over chooses them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.qemu import qapi
from supervisor.qemu.qapi import QmpEvent, SevStatus, parse_sev, read_event
from supervisor.qemu.version import Version

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ("guest-shutdown", "guest-shutdown"),
        ("\x1b]0;owned\x07\nlevel=error forged", "level=error forged"),
        ("\x1b[2J", "unknown"),
        ("", "unknown"),
        ("\ud800", "unknown"),
        ("x" * 4_000_000, "x" * 97 + "…"),
    ],
)
def test_words(said: str, word: str) -> None:
    assert qapi.word(said) == word


@given(ANYTHING)
def test_anything_is_a_short_line_or_an_error(said: object) -> None:
    try:
        found = qapi.word(said)
    except TypeError:
        assert not isinstance(said, str)
    else:
        assert found.isprintable()
        assert 0 < len(found.encode()) <= 100


def test_sentences_are_cut_later() -> None:
    assert qapi.sentence("no\nroom\x1b[2J " * 1000).startswith("no room no room")
    assert len(qapi.sentence("é" * 1000).encode()) <= 500


@pytest.mark.parametrize("said", [-1, 256, 10**4000, True, 1.0, float("inf"), "1", None, [1]])
def test_numbers_have_bounds(said: object) -> None:
    assert (qapi.number(0, 8), qapi.number(255, 8)) == (0, 255)
    with pytest.raises((TypeError, ValueError)):
        qapi.number(said, 8)


@pytest.mark.parametrize("said", [0, 1, "true", None, {}])
def test_flags(said: object) -> None:
    assert (qapi.flag(True), qapi.flag(False)) == (True, False)
    with pytest.raises(TypeError):
        qapi.flag(said)


def test_an_event_has_what_somebody_reads() -> None:
    data = {"reason": "\x1b[1mNo space", "nospace": True, "device": "virtio0", "action": "stop"}
    message = {"event": "BLOCK_IO_ERROR", "timestamp": {}, "data": data}
    read = {"reason": "No space", "nospace": True, "action": "stop"}
    assert read_event(message) == QmpEvent("BLOCK_IO_ERROR", read)
    assert read_event({"event": "STOP"}) == QmpEvent("STOP", {})
    port = {"event": "VSERPORT_CHANGE", "data": {"id": "port-1", "open": False}}
    assert read_event(port) == QmpEvent("VSERPORT_CHANGE", {"open": False})
    assert read_event({"event": "RTC_CHANGE", "data": {"offset": 1}}) is None


@pytest.mark.parametrize(
    "data", [3, "reason", ["reason"], {"reason": {"a": ["b"]}}, {"nospace": "yes"}, {"action": 1}]
)
def test_what_is_no_word_is_not_in_an_event(data: object) -> None:
    assert read_event({"event": "SHUTDOWN", "data": data}) == QmpEvent("SHUTDOWN", {})


@pytest.mark.parametrize("name", [{}, [], 3, None, True])
def test_an_event_without_a_name_is_none(name: object) -> None:
    assert read_event({"event": name, "data": {}}) is None


@pytest.mark.parametrize(
    "wrong",
    [
        *({"enabled": "yes"}, {"state": {}}, {"sev-type": 1}, {"api-major": "1"}, {"handle": -1}),
        *({"build-id": 1 << 8}, {"policy": 1 << 32}, {"snp-policy": 1 << 64}, {"handle": None}),
    ],
)
def test_sev_status_that_does_not_follow_qapi(wrong: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        parse_sev({"enabled": True, **wrong})


def test_sev_status_is_cleaned() -> None:
    found = parse_sev({"enabled": True, "state": "\x1b[2Jrunning", "policy": 5})
    assert found == SevStatus(enabled=True, state="running", sev_type="sev", policy=5)


@pytest.mark.parametrize("part", [float("inf"), "7", -1, 10**4000, None])
def test_version_that_is_none(part: object) -> None:
    with pytest.raises((TypeError, ValueError)) as raised:
        Version.of({"qemu": {"major": part, "minor": 2, "micro": 0}})
    assert len(str(raised.value)) < 100
