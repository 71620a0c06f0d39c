"""Whether an SEV or SEV-ES guest was launched as its owner expects, by its measurement. Pure.

There is no report, and no certificate: what proves it is the owner's own key TIK, which only a
genuine processor can have read out of the launch session.

Source: AMD's Secure Encrypted Virtualization API (55766), "LAUNCH_MEASURE".
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import TYPE_CHECKING

import attrs

from supervisor.tee import policy
from supervisor.tee.checks import Check, Verdict, check
from supervisor.tee.evidence import BadEvidence, decoded
from supervisor.tee.facts import Technology

if TYPE_CHECKING:
    from supervisor.config import PolicyWord

_KEY, _DIGEST, _NONCE = 16, 32, 16
#: Of the command LAUNCH_MEASURE.
_COMMAND = 4


@attrs.frozen
class Platform:
    """The SEV firmware: ``api-major``, ``api-minor`` and ``build-id`` of QMP's ``query-sev``."""

    api_major: int
    api_minor: int
    build_id: int


@attrs.frozen
class LaunchMeasurement:
    """:param hmac: what the processor has computed; :param nonce: its own, MNONCE"""

    hmac: bytes
    nonce: bytes


def read_measurement(content: bytes) -> LaunchMeasurement:
    """The data of QMP's ``query-sev-launch-measure``, in base64, hex or as they are.

    :raises BadEvidence: if they have another length
    """
    found = _of_length(content, _DIGEST + _NONCE, "launch measurement")
    return LaunchMeasurement(found[:_DIGEST], found[_DIGEST:])


def read_key(content: bytes) -> bytes:
    """The transport integrity key, TIK.

    :raises BadEvidence: if it has another length
    """
    return _of_length(content, _KEY, "transport integrity key (TIK)")


def technology_of(number: int) -> Technology:
    """By the policy."""
    return Technology.SEV_ES if number >> policy.SevBit.ES & 1 else Technology.SEV


def verify(
    measurement: LaunchMeasurement,
    key: bytes,
    platform: Platform,
    number: int,
    digest: bytes,
    allowed: frozenset[PolicyWord],
) -> list[Check]:
    """:param number: the policy that the owner expects; the measurement covers it
    :param digest: the launch digest that he expects
    :param allowed: words of the policy that are let through though they open the guest
    :raises BadEvidence: if the policy is none
    """
    if number not in range(1 << 32):
        raise BadEvidence(f"{number:#x} is no policy of SEV, which has 32 bits")
    said = struct.pack(
        "<BBBBI",
        *(_COMMAND, platform.api_major, platform.api_minor, platform.build_id, number),
    )
    made = hmac.new(key, said + digest + measurement.nonce, hashlib.sha256).digest()
    good = hmac.compare_digest(made, measurement.hmac)
    return [
        check(
            "measurement",
            measurement.hmac.hex(),
            good,
            expected=made.hex(),
            why="another key, policy, SEV firmware, or something else was launched",
        ),
        *_policy(number, allowed),
    ]


def _policy(number: int, allowed: frozenset[PolicyWord]) -> list[Check]:
    technology = technology_of(number)
    checks = []
    for word, holds in policy.decode(technology, number).items():
        opens = policy.opening(word) if holds and word not in allowed else None
        found = "yes" if holds else "no"
        checks.append(
            Check(f"policy: {word}", Verdict.INSECURE, found, "no", opens)
            if opens
            else Check(f"policy: {word}", Verdict.OK, found)
        )
    return checks


def _of_length(content: bytes, length: int, what: str) -> bytes:
    found = content if len(content) == length else decoded(content)
    if len(found) != length:
        raise BadEvidence(f"not a {what}: it has {len(found)} bytes, not {length}")
    return found
