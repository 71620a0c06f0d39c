"""What a verifier found, field by field, and what it comes to. Pure."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence


@enum.unique
class Verdict(enum.StrEnum):
    """What is said of one field."""

    OK = "ok"
    #: Nobody said what it should be, so it was not compared with anything.
    NOT_COMPARED = "not compared"
    #: It is genuine, and allows somebody to look into the guest.
    INSECURE = "insecure"
    FAILED = "failed"


@attrs.frozen
class Check:
    """One field.

    :param field: AMD's or Intel's name of it
    :param found: what the evidence says
    :param expected: what it should say; empty if that is not known
    :param why: what it means, or what to do; empty if the values speak for themselves
    """

    field: str
    verdict: Verdict
    found: str = ""
    expected: str = ""
    why: str = ""


class ExitCode(enum.IntEnum):
    """What programs are told: the numbers of libvirt's virt-qemu-sev-validate(1)."""

    VERIFIED = 0
    NOT_VALID = 1
    UNSUPPORTED = 2
    INSECURE = 3
    BAD_ARGUMENT = 4
    WRONG_STATE = 5


def exit_code(checks: Iterable[Check]) -> ExitCode:
    verdicts = {check.verdict for check in checks}
    if Verdict.FAILED in verdicts or not verdicts:
        return ExitCode.NOT_VALID
    return ExitCode.INSECURE if Verdict.INSECURE in verdicts else ExitCode.VERIFIED


def document(checks: Sequence[Check]) -> dict[str, Any]:
    """What was found and what it comes to, for programs."""
    code = exit_code(checks)
    rows = [
        {
            "field": one.field,
            "verdict": one.verdict,
            "found": one.found,
            "expected": one.expected or None,
            "why": one.why or None,
        }
        for one in checks
    ]
    return {"verified": code is ExitCode.VERIFIED, "exit_code": int(code), "checks": rows}


def check(field: str, found: str, good: bool, *, expected: str = "", why: str = "") -> Check:
    """A field that is either right or wrong. ``why`` is told if it is wrong."""
    return (
        Check(field, Verdict.OK, found)
        if good
        else Check(field, Verdict.FAILED, found, expected, why)
    )


def compare(field: str, found: str, expected: str | None, *, why: str = "") -> Check:
    """A field that must be equal to what was expected; None if nobody expects anything."""
    if expected is None:
        return Check(field, Verdict.NOT_COMPARED, found, why=why)
    return check(field, found, found == expected, expected=expected)


@attrs.frozen(kw_only=True)
class Bits:
    """How the bits of a word are judged.

    :param field: what the checks' fields begin with
    :param known: all others are reserved, and zero
    :param opens: bits that let somebody else into the guest, with what they do
    :param allowed: those of them that are let through
    :param expected: the word, bit for bit; None if nobody expects one
    """

    field: str
    known: Iterable[enum.IntEnum]
    opens: Mapping[int, str]
    allowed: Collection[int]
    expected: int | None

    def judge(self, word: int) -> list[Check]:
        """A check for each known bit, and one for all others."""
        known = {bit: f"{self.field}: {bit.name.lower()}" for bit in self.known}
        checks = [self._bit(field, word >> bit & 1, bit) for bit, field in known.items()]
        rest = word & ~sum(1 << bit for bit in known)
        return [
            *checks,
            check(f"{self.field}: reserved bits", f"{rest:#x}", not rest, expected="0x0"),
        ]

    def _bit(self, field: str, found: int, bit: int) -> Check:
        if found and bit in self.opens and bit not in self.allowed:
            return Check(field, Verdict.INSECURE, "1", "0", self.opens[bit])
        if self.expected is None and bit in self.opens:
            return Check(field, Verdict.OK, str(found))
        wanted = None if self.expected is None else str(self.expected >> bit & 1)
        return compare(field, str(found), wanted)
