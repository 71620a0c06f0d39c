"""``guest.GuestService``: how the agent is, and the guest's clock. See protos/guest.proto."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .call import Method
from .guest import TOLERANCE_NS
from .refusal import Refusal, StatusCode
from .wire import encode_fields, fields_of

if TYPE_CHECKING:
    from .algorithm import OnEnd
    from .guest import Guest
    from .service import Agent

IDLE, RUNNING, HELD = 1, 2, 3


def methods(agent: Agent, guest: Guest | None) -> dict[str, Method]:
    """What *agent* serves over gRPC: methods by their paths. Only a *guest* has its clock set."""

    def status(_: bytes, __: OnEnd) -> bytes:
        return encode_status(agent, guest.last_end() if guest else "")

    served = {"/guest.GuestService/Status": Method(status)}
    if guest:
        served["/guest.GuestService/SetClock"] = Method(
            lambda message, _: _set_clock(agent, guest, message)
        )
    return served


def encode_status(agent: Agent, last_end: str) -> bytes:
    """The message StatusResponse."""
    runner = agent.runner
    now, state = runner.now, HELD if agent.is_held else IDLE
    running: list[tuple[int, bytes | int]] = []
    if now:
        state = RUNNING
        since = time.time_ns() - int((time.monotonic() - now.since) * 1e9)
        running = [(3, since), (4, now.algorithm_id.encode()), (5, now.dataset_id.encode())]
    uploads = [
        (7, encode_fields((1, one.kind.encode()), (2, one.received), (3, one.size)))
        for one in runner.store.arriving
    ]
    return encode_fields(
        (1, agent.instance_id.encode()),
        (2, state),
        *running,
        (6, runner.waiting),
        *uploads,
        (8, last_end.encode()),
    )


def _set_clock(agent: Agent, guest: Guest, message: bytes) -> bytes:
    wanted = fields_of(message).numbers.get(1, 0)
    if agent.is_held:
        why = "this guest waits for CloneService.Renew, which sets the clock"
        raise Refusal(StatusCode.FAILED_PRECONDITION, why)
    try:
        hardware = guest.hardware_clock_s() * 1_000_000_000
        if abs(wanted - hardware) > TOLERANCE_NS:
            why = f"{wanted} ns is not the time of the guest's hardware clock, {hardware} ns"
            raise Refusal(StatusCode.INVALID_ARGUMENT, why)
        moved = wanted - time.time_ns()
        guest.set_clock(wanted)
    except OSError as error:
        why = f"the clock cannot be set: {error}"
        raise Refusal(StatusCode.FAILED_PRECONDITION, why) from error
    return encode_fields((1, moved))
