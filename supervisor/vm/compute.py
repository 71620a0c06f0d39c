"""Algorithms and data sets on their way to a VM's agent, and results on their way back.

Nothing of an algorithm or a data set is kept on this host. A result is, as a file of the VM, until
it is no longer kept: whoever may have it may fetch it late, and after the VM's end.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, BinaryIO

import attrs
import trio

from supervisor.agent import computing
from supervisor.agent.computing import Outcome, Part, Stored
from supervisor.errors import AgentError, AgentTimeout, Busy, InvalidRequest, SupervisorError
from supervisor.state import file_errors
from supervisor.state.record import EndCause, EndMode, EventKind, RelayState, moment
from supervisor.vm import agent_calls, printed
from supervisor.vm.held_time import in_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator

    from supervisor.agent.client import Agent
    from supervisor.vm.vm import Vm

#: At the same time, to one VM: each has a connection, and threads.
_MOST_UPLOADS = 4

#: Its request was cancelled.
_WHY_LEFT = "its caller left, or the supervisor stopped"

#: In `Record.computed`, beside the states of an `Outcome`.
RUNNING, INTERRUPTED = "running", "interrupted"


@attrs.frozen
class Wishes:
    """How an algorithm is to run.

    :param time_s, memory_mib: its limits; 0: the agent's own
    :param datasets: over so many of the first; 0: over all
    """

    time_s: int = 0
    memory_mib: int = 0
    datasets: int = 0


async def send(
    vm: Vm, part: Part, chunks: AsyncIterable[bytes], size: int | None, sha256: str
) -> Stored:
    """Pass an algorithm or a data set on to the agent.

    :param size: of it, in bytes; None if nobody knows
    :param sha256: of it, in hexadecimal digits; empty if nobody knows
    :raises Busy: if the agent cannot be asked now
    :raises AgentError: if the agent refuses it; AgentTimeout if it cannot be reached
    """
    parties = vm.record.options.parties
    if parties and parties.algorithm_sha256 and part.number is None:
        agreed = parties.algorithm_sha256
        if sha256 not in ("", agreed):
            raise InvalidRequest(f"the parties have agreed on the algorithm with SHA-256 {agreed}")
        sha256 = agreed  # the agent takes no other
    if vm.uploads >= _MOST_UPLOADS:
        raise Busy(f"{vm.uploads} parts are on their way to VM {vm.id} already")
    vm.uploads += 1
    vm.notify()
    try:
        async with _connected(vm) as agent:
            stall_s = vm.config.agent.timeout_s
            stored = await computing.upload(agent, part, chunks, size, sha256, stall_s)
    finally:
        vm.uploads -= 1
        vm.notify()
    # No hash: who is told of the event may guess at the data of others.
    sent = tuple(sorted({*vm.record.sent, str(part)}))
    data = {"part": str(part), "size": stored.size}
    await vm.commit_unless_ended(EventKind.UPLOAD, data, sent=sent)
    return stored


async def run(vm: Vm, wishes: Wishes, *, then_end: bool) -> dict[str, Any]:
    """Have the agent run the algorithm, and keep its result. Cancelled, it is killed.

    What became of the algorithm before is forgotten: nobody takes its result for this one's.

    :param then_end: end the VM once the result is here, for nothing in it is needed any more
    :return: as `read_outcome`
    :raises Busy: if an algorithm runs already, or the agent cannot be asked now
    :raises AgentError: if the agent refuses, dies, or sends another result than it said
    :raises LaunchError: if the result cannot be written
    """
    parties = vm.record.options.parties
    if missing := [one for one in parties.parts if one not in vm.record.sent] if parties else []:
        lacks = ", ".join(f"{one} of {parties.of(one)[0]}" for one in missing) if parties else ""
        raise Busy(f"VM {vm.id} has not got all yet: {lacks}", advice="wait for its events upload")
    if vm.computing.locked():
        raise Busy(f"VM {vm.id} runs an algorithm already", advice="wait for its event compute")
    if parties:
        wishes = attrs.evolve(wishes, datasets=len(parties.data))
    async with vm.computing:
        try:
            async with _connected(vm) as agent:
                document = await _run_and_keep(vm, agent, wishes)
        except BaseException as error:
            if vm.record.computed == RUNNING:
                why = str(error) if isinstance(error, SupervisorError) else _WHY_LEFT
                await _commit(vm, {"state": INTERRUPTED, "error": why}, INTERRUPTED)
            raise
    if then_end:
        vm.request_end(EndMode.FORCE, EndCause.COMPUTED, "its result is here")
    return document


async def _run_and_keep(vm: Vm, agent: Agent, wishes: Wishes) -> dict[str, Any]:
    await _commit(vm, {"state": RUNNING}, RUNNING)
    try:
        await vm.dir.results.drop()
        outcome = await _run(vm, agent, wishes)
        document = _document(outcome)
        await vm.dir.results.keep(json.dumps(document).encode(), outcome.result_sha256)
    except OSError as error:
        consequence = f"the result of VM {vm.id} could not be saved"
        raise file_errors.launch_error(error, vm.dir.path, consequence) from error
    said = ("state", "error", "duration_s", "result_size")
    await _commit(vm, {name: document[name] for name in said}, outcome.state)
    return document


async def was_cut_off(vm: Vm) -> None:
    """Put on record that an algorithm's result was lost with the supervisor that waited for it."""
    if vm.record.computed == RUNNING:
        why = "the supervisor that waited for the result is gone"
        await _commit(vm, {"state": INTERRUPTED, "error": why}, INTERRUPTED)


def final(computed: str) -> str:
    """What is on record of an algorithm whose guest has ended."""
    return INTERRUPTED if computed == RUNNING else computed


async def read_outcome(vm: Vm) -> dict[str, Any]:
    """What became of the VM's last algorithm that ended: an `Outcome`, and when.

    :raises Busy: if none has ended, or it is not kept any longer
    """
    try:
        content = await trio.to_thread.run_sync(vm.dir.results.outcome.read_bytes)
    except FileNotFoundError:
        raise _nothing(vm, "outcome") from None
    found: dict[str, Any] = json.loads(content)
    return found


async def open_result(vm: Vm) -> tuple[BinaryIO, dict[str, Any]]:
    """The result, opened, and its outcome. It stays readable whatever becomes of its file.

    :raises Busy: if there is none
    """
    outcome = await read_outcome(vm)
    if outcome["state"] != "succeeded":
        raise Busy(
            f"VM {vm.id} has no result ({outcome['state']}): {outcome['error']}",
            advice=f"GET /vms/{vm.id}/outcome has what it printed",
        )
    file = vm.dir.results.file(outcome["result_sha256"])
    try:
        return await trio.to_thread.run_sync(file.open, "rb"), outcome
    except FileNotFoundError:
        raise _nothing(vm, "result") from None


def _nothing(vm: Vm, what: str) -> Busy:
    if vm.record.computed and vm.ended:
        advice = "MANAGER_KEEP_REPLIES and MANAGER_KEEP_RESULTS say what is kept"
        return Busy(f"VM {vm.id} has ended, and its {what} is not kept any longer", advice=advice)
    if vm.record.computed == RUNNING:
        return Busy(f"VM {vm.id} has no {what} yet: its algorithm runs")
    state = "was interrupted" if vm.record.computed else "was not asked to run"
    return Busy(
        f"VM {vm.id} has no {what}: an algorithm {state}",
        advice=f"POST /vms/{vm.id}/compute has its agent run it",
    )


@asynccontextmanager
async def _connected(vm: Vm) -> AsyncIterator[Agent]:
    if vm.record.options.dials:
        raise Busy(
            f"the agent of VM {vm.id} takes algorithms and data from its parties alone",
            advice="see docs/how-to/use-the-successors-guests.md",
        )
    if vm.record.relay is not RelayState.ANSWERED:
        raise Busy(f"VM {vm.id} has no computation yet: it is {vm.record.relay}")
    try:
        async with agent_calls.connected(vm, computing.REPLY_BYTES) as agent:
            yield agent
    except AgentError as error:
        if error.code == "INVALID_ARGUMENT":
            raise InvalidRequest(error.text) from error
        if error.code == "FAILED_PRECONDITION":
            raise Busy(f"the agent of VM {vm.id}: {error.text}") from error
        if error.code != "UNIMPLEMENTED":
            raise
        raise Busy(
            f"the agent of VM {vm.id} does not know compute.ComputeService",
            advice="send algorithm and data by its own calls, to its own port",
        ) from error


async def _run(vm: Vm, agent: Agent, wishes: Wishes) -> Outcome:
    limit_s = wishes.time_s or round(vm.config.life.algorithm_s)
    parts = computing.compute(agent, limit_s, wishes.memory_mib, wishes.datasets)
    async with aclosing(parts):
        # The agent has its own clock, and the last word only if it is in time.
        async with (
            printed.kept(vm, agent),
            in_time(vm, limit_s + vm.config.agent.timeout_s) as patience,
        ):
            outcome = await anext(parts)
        if patience.cancelled_caught:
            raise _late(vm, f"did not end its algorithm, whose limit is {limit_s} s,")
        assert isinstance(outcome, Outcome)
        if outcome.state == "succeeded":
            await _keep(vm, outcome, parts)
        return outcome


async def _keep(vm: Vm, outcome: Outcome, parts: AsyncIterator[Outcome | bytes]) -> None:
    """Write the result. There is none until this one is whole."""
    most = vm.config.retention.result_bytes
    if outcome.result_size > most:
        raise AgentError(
            vm.id,
            "RESOURCE_EXHAUSTED",
            f"its result has {outcome.result_size} bytes, the limit is {most}",
            advice="see MANAGER_MAX_RESULT, or fetch it from the agent's own port",
        )
    received, digest = 0, hashlib.sha256()
    async with vm.dir.results.writing(outcome.result_sha256) as file:
        while True:
            async with in_time(vm, vm.config.agent.timeout_s) as patience:
                chunk = await anext(parts, None)
            if patience.cancelled_caught:
                raise _late(vm, "sends nothing of its result")
            if not isinstance(chunk, bytes):
                break
            received += len(chunk)
            if not chunk or received > outcome.result_size:
                break
            digest.update(chunk)
            await file.write(chunk)
        if (received, digest.hexdigest()) != (outcome.result_size, outcome.result_sha256):
            text = "its result is not as long as it said, or has another SHA-256"
            raise AgentError(vm.id, "DATA_LOSS", text)


def _late(vm: Vm, what: str) -> AgentTimeout:
    advice = "see MANAGER_AGENT_GRPC_TIMEOUT"
    return AgentTimeout(vm.id, f"the agent of VM {vm.id} {what} in time", advice=advice)


def _document(outcome: Outcome) -> dict[str, Any]:
    return attrs.asdict(outcome) | {"ended_at": moment(datetime.now(UTC))}


async def _commit(vm: Vm, data: dict[str, Any], state: str) -> None:
    await vm.commit_unless_ended(EventKind.COMPUTE, data, computed=state)
