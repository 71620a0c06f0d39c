"""What a guest wrote is shown, and does nothing to whom it is shown to."""

from __future__ import annotations

import pytest

from supervisor.guest_text import clean, last_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("an answer", "an answer"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;root@host\x07title", "title"),
        ("\x1b]52;c;Y3VybA==\x1b\\clipboard", "clipboard"),
        ("\x1bP+q544e\x1b\\terminfo", "terminfo"),
        ("\x1b(0drawing\x1bc", "drawing"),
        ("\x9b31mred in eight bits\x9d0;title\x9c", "red in eight bits"),
        ("\x1b]0;no end", "0;no end"),
        ("\x1b\x1b[2Jtwice", "twice"),
        ("\x1b[\x1b[31m1mnested", "1mnested"),
        ("a\x00b\x07c\x08d\x7fe", "abcde"),
        ("good\u202egpj.exe", "goodgpj.exe"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("half a pair \ud800", "half a pair"),
        ("first\r\nsecond\tthird\rfourth\u2028fifth", "first second third fourth fifth"),
        ("é 漢字 🙂", "é 漢字 🙂"),
        ("", ""),
    ],
)
def test_nothing_but_what_can_be_read(text: str, shown: str) -> None:
    assert clean(text, 1000) == shown


def test_lines_and_tabs_stay_where_they_are_asked_for() -> None:
    assert clean("{\r\n\t1\x1b[2J\n}\rover\n", 1000, lines=True) == "{\n\t1\n}\nover\n"


@pytest.mark.parametrize("letter", ["a", "é", "漢", "🙂"])
def test_the_limit_is_of_bytes(letter: str) -> None:
    for limit in range(3, 40):
        cut = clean(letter * 100, limit)
        assert len(cut.encode()) <= limit
        assert cut.endswith("…")
    assert clean(letter * 10, 10 * len(letter.encode())) == letter * 10


def test_the_last_lines_are_those_with_something_to_read() -> None:
    console = "one\r\n\x1b[2J\x1b[01;01H\r\ntwo\r\n  \r\nthree\x1b[0m\r\n\r\n"
    assert last_lines(console, 2, 100) == ["two", "three"]
    assert last_lines(console, 9, 100) == ["one", "two", "three"]
    assert last_lines("x" * 50, 1, 10) == ["x" * 7 + "…"]
    assert last_lines("", 3, 100) == []


@pytest.mark.parametrize(
    "evil", ["\x1b]", "\x1b]a", "\x1b[", "\x1b[0", "\x1b[ ", "\x1bP", "\x9d", "\x9b", "\x1b "]
)
def test_no_text_takes_more_time_than_its_length_asks_for(evil: str) -> None:
    # With the square of the length, a megabyte of introducers would take hours.
    assert "\x1b" not in clean(evil * (1_000_000 // len(evil)), 1000)
