"""The certificate of a platform's provisioning key (PCK), and the way from it to Intel's root.

Source: Intel SGX PCK Certificate and Certificate Revocation List Profile Specification.
"""

from __future__ import annotations

import functools
from importlib import resources
from typing import TYPE_CHECKING

import attrs
from asn1crypto import core

from supervisor.tee import certificate
from supervisor.tee.evidence import BadEvidence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from supervisor.tee.certificate import Certificate

_EXTENSION = "1.2.840.113741.1.13.1"
_TCB, _PCE_ID, _FMSPC = (f"{_EXTENSION}.{number}" for number in (2, 3, 4))
_COMPONENTS = 16
#: Of a component's security version, and of the PCE's behind them.
_LIMITS = (*[1 << 8] * _COMPONENTS, 1 << 16)
_PCE_ID_BYTES, _FMSPC_BYTES = 2, 6


@attrs.frozen
class Platform:
    """What a PCK's certificate says of its platform.

    :param svns: security versions of the 16 components of SGX's TCB
    :param fmspc: family, model, stepping, platform and SKU: 6 bytes
    """

    svns: tuple[int, ...]
    pcesvn: int
    pce_id: bytes
    fmspc: bytes

    @classmethod
    def of(cls, found: Certificate) -> Platform:
        """:raises BadEvidence: if it is no PCK's certificate"""
        try:
            parts = dict(_members(core.load(found.extensions[_EXTENSION], strict=True)))
            tcb = dict(_members(parts[_TCB]))
            numbers = [
                _below(limit, tcb[f"{_TCB}.{index}"].native)
                for index, limit in enumerate(_LIMITS, 1)
            ]
            pce_id = _of_length(_PCE_ID_BYTES, parts[_PCE_ID].native)
            fmspc = _of_length(_FMSPC_BYTES, parts[_FMSPC].native)
        except certificate.MALFORMED as error:
            raise BadEvidence(f"the certificate of {found.subject} is not a PCK's") from error
        return cls(tuple(numbers[:_COMPONENTS]), numbers[_COMPONENTS], pce_id, fmspc)


def _below(limit: int, value: object) -> int:
    if not isinstance(value, int) or value not in range(limit):
        raise ValueError(f"not a number below {limit}")
    return value


def _of_length(length: int, value: object) -> bytes:
    if not isinstance(value, bytes) or len(value) != length:
        raise ValueError(f"not {length} bytes")
    return value


def _members(sequence: core.Sequence) -> Iterator[tuple[str, core.Asn1Value]]:
    """Pairs of an object identifier, in dots, and a value."""
    for index in range(len(sequence)):
        pair = sequence[index]
        yield pair[0].dotted, pair[1]


@functools.cache
def root() -> Certificate:
    """Intel's SGX Root CA, unchanged."""
    file = resources.files("supervisor.tee") / "roots" / "intel-sgx.pem"
    (found,) = certificate.load(file.read_bytes())
    return found
