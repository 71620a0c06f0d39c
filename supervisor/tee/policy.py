"""A guest's policy, from words to the number that its firmware is given, and back. Pure.

Sources: AMD's Secure Encrypted Virtualization API (55766), "Guest Policy"; AMD's SEV Secure Nested
Paging Firmware ABI Specification (56860), "Guest Policy". A TD has no policy but its attributes,
and QEMU knows of none that an owner could choose: it refuses to make a TD that can be debugged.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import attrs

from supervisor.config import Policy, PolicyWord
from supervisor.tee.facts import Technology
from supervisor.tee.snp.report import PolicyBit

if TYPE_CHECKING:
    from collections.abc import Mapping


class SevBit(enum.IntEnum):
    """The bits of an SEV guest's policy, by AMD's names."""

    NODBG = 0
    NOKS = 1
    ES = 2
    NOSEND = 3
    DOMAIN = 4
    SEV = 5


@attrs.frozen
class _Bit:
    """The bit behind a word.

    :param holds: whether the word holds if nobody says
    :param forbids: whether the bit is set where the word does not hold
    """

    number: int
    holds: bool = False
    forbids: bool = False


_OF_SEV = {
    PolicyWord.DEBUG: _Bit(SevBit.NODBG, forbids=True),
    PolicyWord.KEY_SHARING: _Bit(SevBit.NOKS, forbids=True),
    PolicyWord.SEND: _Bit(SevBit.NOSEND, forbids=True),
}
_WORDS: Mapping[Technology, Mapping[PolicyWord, _Bit]] = {
    Technology.SEV: _OF_SEV,
    Technology.SEV_ES: _OF_SEV,
    Technology.SEV_SNP: {
        PolicyWord.DEBUG: _Bit(PolicyBit.DEBUG),
        # The first kernels with SEV-SNP start no guest without it, and most hosts have SMT on.
        PolicyWord.SMT: _Bit(PolicyBit.SMT, holds=True),
        PolicyWord.SINGLE_SOCKET: _Bit(PolicyBit.SINGLE_SOCKET),
        PolicyWord.MIGRATION_AGENT: _Bit(PolicyBit.MIGRATE_MA),
        PolicyWord.CXL: _Bit(PolicyBit.CXL_ALLOW),
        PolicyWord.AES_256_XTS: _Bit(PolicyBit.MEM_AES_256_XTS),
        PolicyWord.RAPL: _Bit(PolicyBit.RAPL_DIS, holds=True, forbids=True),
        PolicyWord.CIPHERTEXT_HIDING: _Bit(PolicyBit.CIPHERTEXT_HIDING_DRAM),
        PolicyWord.PAGE_SWAP: _Bit(PolicyBit.PAGE_SWAP_DISABLE, holds=True, forbids=True),
    },
    Technology.TDX: {},
}
#: What is set whatever anybody says.
_FIXED = {
    Technology.SEV: 0,
    Technology.SEV_ES: 1 << SevBit.ES,
    Technology.SEV_SNP: 1 << PolicyBit.RESERVED_ONE,
    Technology.TDX: 0,
}
#: Words that let somebody else into the guest, with what they let him do.
_OPEN = {
    PolicyWord.DEBUG: "the host may read and change the guest's memory",
    PolicyWord.MIGRATION_AGENT: "a migration agent, another VM here, may take the guest over",
    PolicyWord.KEY_SHARING: "other guests of the host may have the guest's key",
    PolicyWord.SEND: "the host may send the guest to another machine",
}


def encode(technology: Technology, policy: Policy) -> int:
    """The policy's number; what the words leave open is as closed as such guests can start.

    :raises ValueError: if this technology does not know a word, or does not do what it says
    """
    known, number = _WORDS[technology], _FIXED[technology]
    said = dict(policy.words)
    for word, holds in said.items():
        # Nothing else can be had, so that a policy of all technologies may say it.
        if word not in known and word is PolicyWord.DEBUG and holds:
            raise ValueError(f"no {technology.label} guest can be debugged")
        if word not in known and word is not PolicyWord.DEBUG:
            raise ValueError(f"{technology.label} does not know the word '{word}'")
    for word, bit in known.items():
        number |= (said.get(word, bit.holds) is not bit.forbids) << bit.number
    return number


def conflict(policy: Policy, technology: Technology | None) -> str:
    """Why no guest can have this policy; empty if one can.

    :param technology: that guests have; None: any
    """
    problems = []
    for one in [technology] if technology else Technology:
        try:
            encode(one, policy)
        except ValueError as error:
            problems.append(str(error))
        else:
            return ""
    return "; ".join(problems)


def decode(technology: Technology, number: int) -> dict[PolicyWord, bool]:
    """All words that this technology knows, and whether each holds."""
    return {
        word: bool(number >> bit.number & 1) is not bit.forbids
        for word, bit in _WORDS[technology].items()
    }


def openings(technology: Technology, number: int) -> list[str]:
    """What keeps such a guest from being confidential; nothing if nothing is known to."""
    words = decode(technology, number)
    return [why for word, why in _OPEN.items() if words.get(word)]


def opening(word: PolicyWord) -> str | None:
    """What it lets somebody else do; None if it lets nobody in."""
    return _OPEN.get(word)


def spelled(technology: Technology, number: int) -> str:
    """The policy in words, as settings and requests have them."""
    return str(Policy(tuple(decode(technology, number).items())))
