"""What a caller may ask for, whichever wire the request comes over.

Its members are values that `words` makes of what a caller says. Pure.
"""

from __future__ import annotations

import base64
import enum
from typing import TYPE_CHECKING, Any

import attrs

from supervisor.agent import manifest
from supervisor.api.words import (
    AGREED,
    Attest,
    Base64,
    Count,
    HostRequest,
    Labels,
    Limit,
    Memory,
    Nonce,
    Pem,
)
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
from supervisor.errors import InvalidRequest, TooLarge
from supervisor.fleet.facts import Needs
from supervisor.parties import Parties  # noqa: TC001 - cattrs resolves it
from supervisor.state.record import EndMode, RunOptions, request_hash

if TYPE_CHECKING:
    from supervisor.config import Config, NetConfig

_LONGEST_KEY = 255


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
            template=self.template is TemplateUse.REQUIRE,
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
            del members["parties"][AGREED]
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
