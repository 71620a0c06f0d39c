"""What a verifier found, field by field, and what it comes to. Pure."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable


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
