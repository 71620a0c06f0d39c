"""The guest that every way of starting one boots, and how its agent is waited for."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import uuid
from pathlib import Path
from typing import Any

import attrs
import grpc

from supervisor.config import QemuConfig, Timing
from supervisor.pb import agent_pb2, agent_pb2_grpc
from supervisor.qemu.firmware import choose, read_descriptors

IMAGE = Path(__file__).parents[2] / "img" / "guest.qcow2"
VCPUS = 2
MEMORY_MB = 512

#: Longer than any of these guests needs under emulation on a busy machine.
PATIENCE_S = 300.0

#: As the supervisor's own channel to an agent is made, so that nobody waits better than another.
_TIMING = Timing()
_CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


class Unmeasured(Exception):
    """Something could not be measured; its text says why."""


def firmware() -> tuple[Path, Path]:
    """OVMF's code and variables, as the supervisor chooses them.

    :raises Unmeasured: if there are none
    """
    chosen = choose(QemuConfig(), read_descriptors())
    if not (chosen.code_file.exists() and chosen.vars_file.exists()):
        raise Unmeasured("there is no OVMF; install the package ovmf")
    return chosen.code_file, chosen.vars_file


def settings() -> dict[str, str]:
    """What a supervisor is told of the guest, and limits that nobody reaches.

    On a host that is busy a slow clone is a figure, not a failure.
    """
    code, variables = firmware()
    return {
        "MANAGER_QEMU_DISK_IMG_FILE": str(IMAGE),
        "MANAGER_QEMU_MEMORY_SIZE": f"{MEMORY_MB}M",
        "MANAGER_QEMU_SMP_COUNT": str(VCPUS),
        "MANAGER_QEMU_OVMF_CODE_FILE": str(code),
        "MANAGER_QEMU_OVMF_VARS_FILE": str(variables),
        "MANAGER_QEMU_ENABLE_SEV": "false",
        "MANAGER_MAX_VMS": "40",
        "MANAGER_MEMORY_OVERCOMMIT": "4",
        "MANAGER_VCPU_OVERCOMMIT": "64",
        "MANAGER_CLONE_TIMEOUT": "60s",
    }


def environ(tmp: Path, *, kvm: bool = False, **more: str) -> dict[str, str]:
    """A supervisor's environment: nothing of ours that is meant for another one."""
    others = {name: value for name, value in os.environ.items() if "MANAGER" not in name}
    own = {
        "MANAGER_AUTH": "off",
        "MANAGER_HTTP_PORT": "0",
        "MANAGER_GRPC_PORT": "0",
        "MANAGER_QEMU_TMP_FILE_LOC": str(tmp),
    }
    own["MANAGER_QEMU_ENABLE_KVM"] = "true" if kvm else "false"
    return others | settings() | own | more


def computation() -> tuple[str, bytes]:
    """One that nobody else has: its id, and the computation."""
    mine = str(uuid.uuid4())
    return mine, json.dumps({"id": mine, "name": f"bench {mine[:8]}"}).encode()


def answers_to(reply: str, mine: str) -> bool:
    """Whether an agent's reply is to the computation of that id."""
    try:
        answer: Any = json.loads(reply)
    except ValueError:
        return False
    return isinstance(answer, dict) and answer.get("id") == mine


#: Of guests that no supervisor starts.
_CREDENTIAL = "bench"


@attrs.frozen
class Answered:
    """When an agent was first there, and when it had answered: on ``time.perf_counter``."""

    ready_at: float
    at: float


def accelerator(argv: list[str]) -> str:
    """What runs a VM with this command line, whatever was asked for: ``kvm`` or ``tcg``."""
    return "kvm" if "-enable-kvm" in argv else "tcg"


def known_to_us(argv: list[str]) -> list[str]:
    """A VM's command line whose agent answers `wait_for_answer`, and no supervisor."""
    ours = hashlib.sha256(_CREDENTIAL.encode()).hexdigest()
    return [re.sub("(credential-sha256,string=)[0-9a-f]{64}", rf"\g<1>{ours}", one) for one in argv]


def wait_for_answer(address: str) -> Answered:
    """Hand a computation to the agent at ``host:port`` as soon as it is there.

    :raises Unmeasured: if it does not come, or answers something else
    """
    mine, wanted = computation()
    with _ready_channel(address) as channel:
        ready_at = time.perf_counter()
        answer = agent_pb2_grpc.AgentServiceStub(channel).Run(
            agent_pb2.RunRequest(computation=wanted),
            timeout=PATIENCE_S,
            metadata=[("authorization", f"Bearer {_CREDENTIAL}")],
        )
        at = time.perf_counter()
    if not answers_to(answer.Computation, mine):
        raise Unmeasured("the agent answered something else")
    return Answered(ready_at, at)


def _ready_channel(address: str) -> grpc.Channel:
    """As `supervisor.agent.client.Agent.wait_ready` waits."""
    began = time.perf_counter()
    while (waited_s := time.perf_counter() - began) < PATIENCE_S:
        attempt_s = max(_TIMING.agent_attempt_s, waited_s * _TIMING.agent_attempt_share)
        longest = ("grpc.min_reconnect_backoff_ms", int(attempt_s * 1000))
        channel = grpc.insecure_channel(address, options=[*_CHANNEL_OPTIONS, longest])
        try:
            grpc.channel_ready_future(channel).result(timeout=attempt_s)
            return channel
        except grpc.FutureTimeoutError:
            channel.close()
    raise Unmeasured(f"no agent answered within {PATIENCE_S:g} s")
