"""A guest's policy: from words to AMD's bits, and back."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as some

from supervisor.config import Policy, PolicyWord
from supervisor.tee import policy
from supervisor.tee.facts import Technology

SEV, ES, SNP, TDX = Technology


@pytest.mark.parametrize(
    ("technology", "words", "number"),
    [
        (SEV, "", 0b01011),
        (SEV, "no-debug,no-key-sharing,no-send", 0b01011),
        (SEV, "debug", 0b01010),
        (SEV, "key-sharing", 0b01001),
        (SEV, "send", 0b00011),
        (ES, "", 0b01111),
        (ES, "debug,send", 0b00110),
        # The hundred thousands are bits 20 to 23, and so on: AMD's 56860, "Guest Policy".
        (SNP, "", 0x30000),
        (SNP, "no-debug, SMT", 0x30000),
        (SNP, "no-smt", 0x20000),
        (SNP, "debug", 0xB0000),
        (SNP, "migration-agent", 0x70000),
        (SNP, "single-socket", 0x130000),
        (SNP, "cxl", 0x230000),
        (SNP, "aes-256-xts", 0x430000),
        (SNP, "no-rapl", 0x830000),
        (SNP, "ciphertext-hiding", 0x1030000),
        (SNP, "no-page-swap", 0x2030000),
        (SNP, "no-smt,no-rapl,no-page-swap,ciphertext-hiding", 0x3820000),
        (TDX, "", 0),
        (TDX, "no-debug", 0),
    ],
)
def test_words_and_number(technology: Technology, words: str, number: int) -> None:
    assert policy.encode(technology, Policy.read(words)) == number
    spelled = policy.spelled(technology, number)
    assert policy.encode(technology, Policy.read(spelled)) == number


@pytest.mark.parametrize(
    ("technology", "words"),
    [(TDX, "debug"), (TDX, "no-smt"), (SEV, "single-socket"), (ES, "no-smt"), (SNP, "no-send")],
)
def test_word_of_another_technology(technology: Technology, words: str) -> None:
    """It is not passed over: who says it believes that it holds."""
    word = words.removeprefix("no-")
    why = f"{technology.label} does not know the word '{word}'"
    if word == "debug":
        why = f"no {technology.label} guest can be debugged"
    with pytest.raises(ValueError, match=f"^{why}$"):
        policy.encode(technology, Policy.read(words))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("no-debug,debug", "debug and no-debug exclude each other"),
        ("single-sockt", "did you mean 'single-socket'"),
        ("0x30000", "is no word"),
        ("no-", "is no word"),
        ("no-no-debug", "is no word"),
    ],
)
def test_words_that_cannot_be_read(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Policy.read(text)


def test_debug_is_never_there_unless_it_is_asked_for() -> None:
    """Whatever else is said."""
    for technology, count in itertools.product(Technology, range(3)):
        known = [word for word in policy.decode(technology, 0) if word is not PolicyWord.DEBUG]
        for words in itertools.combinations(known, count):
            for holds in itertools.product((True, False), repeat=count):
                said = Policy(tuple(zip(words, holds, strict=True)))
                number = policy.encode(technology, said)
                assert not policy.decode(technology, number).get(PolicyWord.DEBUG)


def test_what_opens_a_guest_is_said() -> None:
    def openings(technology: Technology, words: str) -> int:
        return len(policy.openings(technology, policy.encode(technology, Policy.read(words))))

    assert [openings(one, "") for one in Technology] == [0, 0, 0, 0]
    assert [openings(one, "debug") for one in (SEV, ES, SNP)] == [1, 1, 1]
    assert openings(SNP, "migration-agent") == 1
    assert openings(SEV, "key-sharing,send,debug") == 3


@given(some.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read = Policy.read(text)
    except ValueError:
        return
    assert Policy.read(str(read)) == read
