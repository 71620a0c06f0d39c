"""What a caller may ask for, whichever wire the request comes over.

A wire makes these values from its own words. A wrong value gets its sentence here, so that it gets
the same one over both wires. Pure.
"""

from __future__ import annotations

import base64
import enum
import json
import re
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NewType, TypeVar

import attrs

from supervisor.agent import manifest
from supervisor.agent.computing import MOST_DATASETS
from supervisor.config import (
    MAX_COMPUTATION,
    AgentDials,
    Auth,
    Forwards,
    Policy,
    RestartPolicy,
    Tee,
    TemplateUse,
    against_namespaces,
)
from supervisor.config.settings import parse_seconds
from supervisor.errors import InvalidRequest, TooLarge
from supervisor.fleet.facts import Needs
from supervisor.parties import Parties
from supervisor.state.record import EndMode, RunOptions, request_hash
from supervisor.tee import binding, certificate
from supervisor.tee.evidence import BadEvidence, from_hex

if TYPE_CHECKING:
    from supervisor.config import Config, NetConfig

E = TypeVar("E", bound=enum.StrEnum)

#: Members that need types of their own, so that a mistake can be named.
Attest = NewType("Attest", bool)
Labels = NewType("Labels", dict[str, str])
Limit = NewType("Limit", int)
Memory = NewType("Memory", int)
Count = NewType("Count", int)
Base64 = NewType("Base64", str)
Nonce = NewType("Nonce", bytes)
Pem = NewType("Pem", str)

_LONGEST_KEY = 255
#: Of a certificate, a session or a secret's packet; a page of the processor's, in base64.
_LONGEST_BASE64 = 32768
#: The most events of a page.
MAX_PAGE = 1000
#: As an event's is. Python turns no more than some thousand digits into a number.
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
_LABEL_VALUE = re.compile(r"[^=\x00-\x1f\x7f-\x9f]{0,63}")
_MOST_LABELS = 16
_PARTIES = ("algorithm", "data", "result")
_AGREED = "algorithm_sha256"
_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")
_LONGEST_CALLER = 255
_MEMORY = re.compile(r"([1-9][0-9]{0,6})([MGmg])")
_NUMBER = re.compile(r"[0-9]{1,18}")


def _fits(_: object, __: object, computation: bytes) -> None:
    if not computation:
        raise InvalidRequest("computation is empty", member="computation")
    if len(computation) > MAX_COMPUTATION:
        raise TooLarge(
            f"computation is {len(computation)} bytes, the limit is {MAX_COMPUTATION}",
            member="computation",
        )


@attrs.frozen
class RunRequest:
    """A computation and what its VM should be like. None: the supervisor's default.

    :param ttl: seconds from the guest's first instruction to the VM's shutdown
    :raises InvalidRequest: if the computation is empty; TooLarge if it is over the limit
    """

    computation: bytes = attrs.field(validator=_fits)
    ttl: float | None = None
    restart: RestartPolicy | None = None
    keep_disk: bool | None = None
    template: TemplateUse | None = None
    forwards: Forwards | None = None
    tee: Tee | None = None
    tee_policy: Policy | None = None
    attest: Attest | None = None
    dh_cert: Base64 | None = None
    session: Base64 | None = None
    parties: Parties | None = None
    labels: Labels | None = None
    host: HostRequest | None = None

    def needs(self) -> Needs:
        """What the host must have that takes it."""
        host = self.host or HostRequest()
        anything = self.tee in (None, Tee.AUTO, Tee.NONE)
        return Needs(
            tee="" if anything else str(self.tee),
            image=host.image,
            memory_bytes=host.memory_mib * 2**20,
            labels=dict(host.labels),
        )

    def to_json(self) -> dict[str, Any]:
        """The members of the request, as another supervisor reads them."""
        members: dict[str, Any] = attrs.asdict(self)
        members["computation"] = base64.b64encode(self.computation).decode()
        if self.ttl is not None:
            members["ttl"] = f"{self.ttl:f}s"
        if self.tee_policy is not None:
            members["tee_policy"] = str(self.tee_policy)
        if self.parties and not self.parties.algorithm_sha256:
            del members["parties"][_AGREED]
        del members["host"]  # which has been found
        return {name: value for name, value in members.items() if value is not None}

    def options(
        self, config: Config, idempotency_key: str | None, request_id: str = ""
    ) -> RunOptions:
        """What is asked for, with the supervisor's defaults for the rest.

        :raises InvalidRequest: if the key is empty or too long, or a setting excludes a member
        """
        keep, key = self.keep_disk, idempotency_key
        if key is not None and not 0 < len(key) <= _LONGEST_KEY:
            raise InvalidRequest(f"Idempotency-Key must have 1 to {_LONGEST_KEY} characters")
        forwards = self.forwards or config.qemu.net.forwards
        if forwards is Forwards.NONE and (excluded := against_namespaces(config)):
            raise InvalidRequest(f"forwards=none excludes {excluded[0]}", member="forwards")
        self._check_attest(config)
        if self.parties and config.auth is Auth.OFF:
            raise InvalidRequest(
                "parties exclude MANAGER_AUTH=off: nobody is asked who he is", member="parties"
            )
        dials = config.agent.dials is not AgentDials.NO
        if dials:
            self._check_manifest(config.qemu.net, forwards)
        return RunOptions(
            ttl_s=config.life.ttl_s if self.ttl is None else self.ttl,
            restart=self.restart or config.life.restart,
            keep_disk=config.retention.disks if keep is None else keep,
            template=TemplateUse.OFF if dials else self.template or config.start.templates,
            forwards=forwards,
            dials=dials,
            tee=self.tee or config.qemu.default_tee,
            tee_policy=str(config.qemu.tee.policy if self.tee_policy is None else self.tee_policy),
            attest=bool(self.attest),
            dh_cert=self.dh_cert or "",
            session=self.session or "",
            parties=self.parties,
            labels=self.labels or {},
            idempotency_key=key,
            request_id=request_id,
            # Megabytes to hash, for nobody but a repetition.
            request_hash=""
            if key is None
            else request_hash(
                self.computation,
                self.ttl,
                self.restart,
                keep,
                template=self.template,
                forwards=self.forwards,
                tee=self.tee,
                tee_policy=self.tee_policy,
                attest=self.attest,
                dh_cert=self.dh_cert,
                session=self.session,
                parties=self.parties,
                labels=self.labels,
                host=self.host,
            ),
        )

    def _check_manifest(self, net: NetConfig, forwards: Forwards) -> None:
        """:raises InvalidRequest: if an agent that dials could do nothing with this run"""
        if self.template is TemplateUse.REQUIRE:
            raise InvalidRequest(
                "template=require excludes MANAGER_AGENT_DIALS: each guest reads an environment of"
                " its own",
                member="template",
            )
        found = manifest.parse(self.computation)
        if forwards is Forwards.HOST:
            manifest.check_port(found, (net.guest_fwd_1, net.guest_fwd_2, net.guest_fwd_3))

    def _check_attest(self, config: Config) -> None:
        """:raises InvalidRequest: if a measured launch excludes another member"""
        if (self.dh_cert is None) != (self.session is None):
            raise InvalidRequest("dh_cert and session go together", member="session")
        if not self.attest:
            if self.session is not None:
                raise InvalidRequest("a session needs attest: true", member="session")
            return
        tee = self.tee or config.qemu.default_tee
        if tee not in (Tee.SEV, Tee.SEV_ES):
            raise InvalidRequest(
                f"attest needs tee=sev or sev-es, and it is {tee}",
                member="attest",
                advice="guests under SEV-SNP and TDX are attested from inside",
            )
        if (self.restart or config.life.restart) is not RestartPolicy.NEVER:
            raise InvalidRequest(
                "attest excludes restart=on-failure: nobody would attest the next launch",
                member="restart",
            )


@attrs.frozen
class ShutdownRequest:
    """How to end a VM."""

    mode: EndMode = EndMode.GRACEFUL


class Then(enum.StrEnum):
    """What follows once a result is here."""

    KEEP = "keep"
    END = "end"


@attrs.frozen
class ComputeRequest:
    """How an agent is to run the algorithm that it was sent.

    :param time_limit: seconds; None: the agent's default, as of ``memory_limit``
    :param memory_limit: such as ``256M``
    :param datasets: over so many of the first; None: over all
    """

    time_limit: Limit | None = None
    memory_limit: Memory | None = None
    datasets: Count | None = None
    then: Then = Then.KEEP


@attrs.frozen
class HostRequest:
    """What a run asks of the host that takes it, in a fleet.

    :param image: the SHA-256 of the guest image, in hexadecimal digits
    :param memory_mib: what the VM is to have at least
    :param moves: whether another host may have the run if its host is lost
    """

    image: str = ""
    memory_mib: int = 0
    labels: dict[str, str] = attrs.field(factory=dict)
    moves: bool = True


@attrs.frozen
class NoMembers:
    """A request about which there is nothing to say."""


@attrs.frozen
class EventsRequest:
    """Which events to tell a reader of.

    :param vm_id: of this VM alone; None: of all, and of the supervisor
    :param after: the number of the last event that the reader knows; None: only new events
    """

    vm_id: str | None = None
    after: int | None = None


# --- from a wire's word to a value ----------------------------------------------------------


def one_of(words: type[E], member: str, given: object) -> E:
    """:raises InvalidRequest: with the words that there are"""
    known = [word.value for word in words]
    if given not in known:
        raise InvalidRequest(f"{member} must be one of {', '.join(known)}", member=member)
    return words(given)


def ttl(given: object) -> float:
    """Seconds, from a duration as Go or ISO 8601 writes it.

    :raises InvalidRequest:
    """
    try:
        return parse_seconds(given if isinstance(given, str) else "")
    except ValueError as error:
        raise InvalidRequest(f"ttl {error}", member="ttl") from None


def time_limit(given: object) -> Limit:
    """Whole seconds, at least one, from a duration as `ttl` has it.

    :raises InvalidRequest:
    """
    try:
        return Limit(max(1, round(parse_seconds(given if isinstance(given, str) else ""))))
    except ValueError as error:
        raise InvalidRequest(f"time_limit {error}", member="time_limit") from None


def memory_limit(given: object) -> Memory:
    """MiB, from a size as QEMU writes it.

    :raises InvalidRequest:
    """
    found = _MEMORY.fullmatch(given if isinstance(given, str) else "")
    if not found:
        raise InvalidRequest("memory_limit must be a size such as 256M", member="memory_limit")
    return Memory(int(found[1]) * {"M": 1, "G": 1024}[found[2].upper()])


def count(given: object) -> Count:
    """Of data sets.

    :raises InvalidRequest:
    """
    if isinstance(given, float) and given.is_integer():
        given = int(given)  # JSON has one kind of numbers: 3.0 is the integer 3
    if type(given) is not int or not 1 <= given <= MOST_DATASETS:
        raise InvalidRequest(f"datasets is a number from 1 to {MOST_DATASETS}", member="datasets")
    return Count(given)


def part_number(given: str) -> int:
    """Of a data set, in a path.

    :raises InvalidRequest:
    """
    if not _NUMBER.fullmatch(given) or int(given) >= MOST_DATASETS:
        raise InvalidRequest(f"a data set has a number from 0 to {MOST_DATASETS - 1}")
    return int(given)


def tee_policy(given: object) -> Policy:
    """:raises InvalidRequest:"""
    try:
        return Policy.read(given if isinstance(given, str) else "?")
    except ValueError as error:
        raise InvalidRequest(f"tee_policy: {error}", member="tee_policy") from None


def labels(given: object) -> Labels:
    """:raises InvalidRequest:"""
    found = given if isinstance(given, dict) else {"": ""}
    good = all(
        _LABEL.fullmatch(name) and isinstance(value, str) and _LABEL_VALUE.fullmatch(value)
        for name, value in found.items()
    )
    if not good or len(found) > _MOST_LABELS:
        raise InvalidRequest(
            f"labels is an object of at most {_MOST_LABELS} strings; names have letters, digits,"
            " '.', '_', '/' and '-', values no '=' and no control characters, each 63 at most",
            member="labels",
        )
    return Labels(found)


def label(given: str) -> tuple[str, str]:
    """One that is looked for: ``name=value``, or ``name`` for any value, which is empty then.

    :raises InvalidRequest:
    """
    name, _, value = given.partition("=")
    if not _LABEL.fullmatch(name):
        raise InvalidRequest("label must be NAME=VALUE or NAME", member="label")
    return name, value


def parties(given: object) -> Parties:
    """:raises InvalidRequest:"""
    members = given if isinstance(given, dict) else {}
    algorithm, data, result = (members.get(name) for name in _PARTIES)
    agreed = members.get(_AGREED, "0" * 64)
    lists = [one if isinstance(one, list) else [] for one in (data, result)]
    names = [algorithm, *lists[0], *lists[1]]
    good = all(isinstance(one, str) and 0 < len(one) <= _LONGEST_CALLER for one in names)
    good = good and isinstance(agreed, str) and bool(_SHA256.fullmatch(agreed))
    known = set(members) - {_AGREED} == set(_PARTIES)
    if not known or not all(lists) or not good or len(lists[0]) > MOST_DATASETS:
        raise InvalidRequest(
            "parties has the members algorithm, a caller's name, and data and result, arrays of"
            " such names; and may have algorithm_sha256, 64 hexadecimal digits",
            member="parties",
        )
    return Parties(
        algorithm=str(algorithm),
        data=tuple(lists[0]),
        result=tuple(lists[1]),
        algorithm_sha256=members.get(_AGREED, "").lower(),
    )


def host_of_json(given: str) -> HostRequest:
    """:raises InvalidRequest:"""
    try:
        return host(json.loads(given))
    except (ValueError, RecursionError):
        raise InvalidRequest("host is no JSON", member="host") from None


def host(given: object) -> HostRequest:
    """:raises InvalidRequest:"""
    members = given if isinstance(given, dict) else {"": ""}
    if unknown := set(members) - {"image", "memory", "labels", "replace"}:
        raise InvalidRequest(
            f"host has no member {min(unknown)[:64]!r}; it may have image, memory, labels and"
            " replace",
            member="host",
        )
    image = members.get("image", "")
    digits = image.removeprefix("sha256:") if isinstance(image, str) else "?"
    if image and not _SHA256.fullmatch(digits):
        raise InvalidRequest(
            "host.image is the SHA-256 of a guest image, 64 hexadecimal digits", member="host.image"
        )
    memory = members.get("memory")
    found = _MEMORY.fullmatch(memory if isinstance(memory, str) else "")
    if memory is not None and not found:
        raise InvalidRequest("host.memory must be a size such as 4G", member="host.memory")
    replace = members.get("replace", "auto")
    if replace not in ("auto", "never"):
        raise InvalidRequest("host.replace must be auto or never", member="host.replace")
    return HostRequest(
        image=digits.lower(),
        memory_mib=int(found[1]) * {"M": 1, "G": 1024}[found[2].upper()] if found else 0,
        labels=dict(labels(members.get("labels", {}))),
        moves=replace == "auto",
    )


def attest(given: object) -> Attest:
    """:raises InvalidRequest:"""
    if not isinstance(given, bool):
        raise InvalidRequest("attest must be true or false", member="attest")
    return Attest(given)


def base64_text(given: object) -> Base64:
    """:raises InvalidRequest:"""
    text = given if isinstance(given, str) else ""
    try:
        if not 0 < len(text) <= _LONGEST_BASE64 or not base64.b64decode(text, validate=True):
            raise ValueError
    except ValueError:
        raise InvalidRequest(
            f"dh_cert, session, header and secret are base64, of {_LONGEST_BASE64} characters at"
            " most"
        ) from None
    return Base64(text)


@attrs.frozen
class EvidenceRequest:
    """What a guest's processor is to sign.

    :param nonce: at most 64 bytes
    :param leaf: the certificate of the key that signs, in PEM, if the host gives its guests none
    """

    nonce: Nonce
    leaf: Pem | None = None


@attrs.frozen
class SecretRequest:
    """A secret for a guest that was measured: its packet, in base64."""

    header: Base64
    secret: Base64


def nonce(given: object) -> Nonce:
    """:raises InvalidRequest:"""
    try:
        if not isinstance(given, str):
            raise BadEvidence("it is no string")
        return Nonce(from_hex(given, binding.NONCE_BYTES, fill=True))
    except BadEvidence as error:
        why = f"nonce is 2 to {2 * binding.NONCE_BYTES} hexadecimal digits: {error.detail}"
        raise InvalidRequest(why, member="nonce") from None


def pem(given: object) -> Pem:
    """:raises InvalidRequest:"""
    try:
        if not isinstance(given, str) or len(given) > _LONGEST_BASE64:
            raise BadEvidence("it is no string, or too long")
        certificate.load(given.encode())
    except BadEvidence as error:
        raise InvalidRequest(f"leaf: {error.detail}", member="leaf") from None
    return Pem(given)


def page_size(given: str) -> int:
    """:raises InvalidRequest:"""
    if not _NUMBER.fullmatch(given) or not 1 <= int(given) <= MAX_PAGE:
        raise InvalidRequest(f"limit must be a number from 1 to {MAX_PAGE}", member="limit")
    return int(given)


def line_count(given: str) -> int:
    """:raises InvalidRequest:"""
    if not _NUMBER.fullmatch(given):
        raise InvalidRequest("tail must be a number of lines", member="tail")
    return int(given)


def point_in_time(member: str, given: str, now: datetime) -> datetime:
    """So long ago, or a time as RFC 3339 has it.

    :raises InvalidRequest: also if the time has no offset
    """
    try:
        return now - timedelta(seconds=parse_seconds(given))
    except ValueError:
        with suppress(ValueError):
            # A plus sign that was not escaped in a query is a space there.
            found = datetime.fromisoformat(given.replace(" ", "+"))
            if found.tzinfo:
                return found
        text = f"{member} must be a duration such as 10m, or a time such as 2026-01-31T13:05:00Z"
        raise InvalidRequest(text, member=member) from None


def event_number(given: str | int) -> int:
    """:raises InvalidRequest:"""
    if not _NUMBER.fullmatch(str(given)):
        raise InvalidRequest("Last-Event-ID, or after, must be an event's number")
    return int(given)
