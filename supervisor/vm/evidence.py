"""What the processor says of a running guest under SEV-SNP or TDX, as the guest's agent got it."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from supervisor.agent import client
from supervisor.errors import AgentTimeout, Busy
from supervisor.state.record import EventKind
from supervisor.tee import binding, verdict
from supervisor.tee.certificate import load
from supervisor.tee.checks import ExitCode, exit_code
from supervisor.tee.facts import Technology
from supervisor.vm import agent_calls, claims

if TYPE_CHECKING:
    from supervisor.tee.checks import Check
    from supervisor.vm.vm import Vm

log = structlog.stdlib.get_logger()

#: Of a message with evidence: fields, and their lengths.
_BESIDE = 1024

#: ``type`` of an agent's Attestation.
_KINDS = {Technology.SEV_SNP: 0, Technology.TDX: 4}


@attrs.frozen
class Evidence:
    """What an agent sent.

    :param content: the report, with what the host gives to go with it; or the quote
    :param report_data: what it must say
    :param certificate: in PEM, of an agent with a TLS key of its own, to which it is bound
    """

    content: bytes
    report_data: bytes
    certificate: bytes | None


async def ask(vm: Vm, nonce: bytes) -> Evidence:
    """:param nonce: 64 bytes
    :raises Busy: if no processor reports on the guest, or its agent cannot be asked now
    :raises AgentError: if the agent has none, or does not answer; AgentTimeout if not in time
    """
    kind = _KINDS.get(claims.of(vm).technology)
    if kind is None:
        raise Busy(
            f"VM {vm.id} is under {vm.record.options.technology}, whose guests have no report",
            advice='send its run with "attest": true, and ask for its launch measurement',
        )
    async with vm.attesting:
        timeout_s = vm.config.agent.timeout_s
        with trio.move_on_after(timeout_s):
            return await _ask(vm, nonce, kind)
    raise AgentTimeout(
        vm.id,
        f"the agent of VM {vm.id} did not answer Attestation within {timeout_s:g} s",
        advice="see MANAGER_AGENT_GRPC_TIMEOUT",
    )


async def _ask(vm: Vm, nonce: bytes, kind: int) -> Evidence:
    async with agent_calls.connected(vm, client.EVIDENCE_BYTES + _BESIDE) as agent:
        content, certificate = await agent.attest(nonce, kind), agent.certificate
    if certificate:
        (shown,) = load(certificate)
        return Evidence(content, binding.report_data(shown.public_key, nonce), certificate)
    return Evidence(content, nonce, None)


async def judge(vm: Vm, evidence: Evidence, leaf: bytes | None, by: str) -> list[Check]:
    """What it comes to, held against the VM's launch. That it is verified goes on record.

    :param leaf: the certificate of the key that signed, if it is not with the evidence
    :param by: the name of who asked; empty if nobody was asked for one
    :raises Busy: if no processor reports on the guest
    """
    claimed, began, now = claims.of(vm), vm.record.restarts, datetime.now(UTC)
    judging = partial(verdict.judge, claimed, evidence.content, evidence.report_data, leaf, at=now)
    checks = await trio.to_thread.run_sync(judging)
    if exit_code(checks) is not ExitCode.VERIFIED:
        log.warning("evidence is not verified", vm=vm.id)
    elif not vm.ended and vm.record.restarts == began:
        without = verdict.not_compared(checks)
        data = {"by": by, "not_compared": list(without)}
        changes = {"attested_by": by, "attested_at": now, "attested_without": without}
        await vm.commit(EventKind.ATTESTED, data, **changes)
    return checks
