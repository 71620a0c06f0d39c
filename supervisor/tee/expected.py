"""What an owner should see in a report of one VM, rule by rule. Pure.

The host says so, and the host is whom the owner does not trust. So each rule says what it stands
for: who can compute the value himself does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from supervisor.tee import policy
from supervisor.tee.facts import Technology

if TYPE_CHECKING:
    from collections.abc import Iterator


@attrs.frozen
class Measurement:
    """What the processor measures of a guest.

    :param digest: in hexadecimal digits; empty if it is not known, and ``problem`` says why
    :param legacy_digest: the other one that it may be, of SEV-ES alone: see `measure.measure`
    :param policy: that an IGVM file gives the guest, in place of what its run asked for
    """

    digest: str = ""
    problem: str = ""
    legacy_digest: str = ""
    policy: int | None = None


@attrs.frozen(kw_only=True)
class Claims:
    """What the host says of one VM's launch.

    :param number: the guest's policy; None if an IGVM file may say it, and could not be read
    :param bound_to: in hexadecimal digits; see `supervisor.tee.binding`
    :param bound_by: what that is the hash of, in words
    """

    vm_id: str
    technology: Technology
    number: int | None
    bound_to: str
    bound_by: str = "the computation"
    measurement: Measurement


@attrs.frozen
class Rule:
    """One field of a report.

    :param field: AMD's or Intel's name of it
    :param expected: None if nothing is expected; ``why`` says the reason
    :param why: what the field is made of, in words
    :param option: how the command ``verify`` is told; empty if it checks this by itself
    """

    field: str
    expected: str | None
    why: str
    option: str = ""


def rules(claims: Claims) -> tuple[Rule, ...]:
    found = {
        Technology.SEV: _sev,
        Technology.SEV_ES: _sev,
        Technology.SEV_SNP: _snp,
        Technology.TDX: _tdx,
    }[claims.technology]
    return tuple(found(claims))


def command(technology: Technology, rules: tuple[Rule, ...]) -> str:
    """The owner's command, with what the rules say. What is in capitals he puts in."""
    kinds = {
        Technology.SEV_SNP: "snp REPORT --leaf CERTIFICATE --nonce NONCE",
        Technology.TDX: "tdx QUOTE --nonce NONCE",
    }
    words = kinds.get(technology, "sev MEASUREMENT --tik TIK --api API --build-id BUILD")
    options = [rule.option for rule in rules if rule.option]
    return " ".join(["qmp-supervisor verify", words, *options])


def document(claims: Claims) -> dict[str, Any]:
    found = rules(claims)
    return {
        "tee": claims.technology,
        "rules": [attrs.asdict(rule) for rule in found],
        "command": command(claims.technology, found),
    }


def _digest(measurement: Measurement, why: str, option: str = "") -> tuple[str | None, str, str]:
    if measurement.digest:
        return measurement.digest, why, option and f"{option} {measurement.digest}"
    return None, measurement.problem or "it was not computed when the VM was launched", ""


def _policy(claims: Claims) -> Rule:
    if claims.number is None:
        return Rule("POLICY", None, "an IGVM file may say it, and could not be read")
    words = policy.spelled(claims.technology, claims.number)
    number = f"{claims.number:#x}"
    return Rule("POLICY", number, f"the guest's policy: {words}", f"--policy {number}")


def _sev(claims: Claims) -> Iterator[Rule]:
    technology, measurement = claims.technology, claims.measurement
    registers = ", and the first registers of its CPUs" if technology is Technology.SEV_ES else ""
    yield Rule(
        "LAUNCH_DIGEST",
        *_digest(
            measurement,
            "SHA-256 of the firmware, of the hashes of a kernel that is booted directly"
            f"{registers}; the measurement is its HMAC with the owner's key TIK",
            "--digest",
        ),
    )
    if measurement.legacy_digest:
        yield Rule(
            "LAUNCH_DIGEST, legacy VM type",
            measurement.legacy_digest,
            "the same if QEMU is older than 9.1 or the host's Linux than 6.10: then fewer registers"
            " are measured",
        )
    yield _policy(claims)
    yield Rule("computation", None, f"{technology.label} has no field that could tell")


def _snp(claims: Claims) -> Iterator[Rule]:
    yield Rule(
        "MEASUREMENT",
        *_digest(
            claims.measurement,
            "launch digest of the firmware, of the hashes of a kernel that is booted directly, and"
            " of the first registers of each CPU",
            "--measurement",
        ),
    )
    yield Rule(
        "HOST_DATA",
        claims.bound_to or None,
        f"SHA-256 of {claims.bound_by}",
        "--computation COMPUTATION",
    )
    yield _policy(claims)
    yield Rule("VMPL", "0", "the guest's kernel runs at the most trusted level")
    yield Rule("REPORT_DATA", None, "the owner's nonce, of which the host knows nothing")
    yield Rule(
        "REPORTED_TCB",
        None,
        "the least firmware that the owner accepts (--minimum-tcb); a host does not choose it",
    )


def _tdx(claims: Claims) -> Iterator[Rule]:
    made_of = "the pages of the firmware that it has measured, and their addresses"
    yield Rule("MRTD", *_digest(claims.measurement, made_of, "--mrtd"))
    yield Rule("RTMR0 to RTMR3", None, "they depend on what the guest measures while it boots")
    yield Rule(
        "MRCONFIGID", claims.bound_to, f"SHA-256 of {claims.bound_by}, filled with zeros",
        "--computation COMPUTATION",
    )  # fmt: skip
    yield Rule("TDATTRIBUTES: DEBUG", "0", "QEMU starts no TD that can be debugged")
    yield Rule("REPORTDATA", None, "the owner's nonce, of which the host knows nothing")
