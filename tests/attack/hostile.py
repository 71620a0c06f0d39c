"""From a guest whose agent is the attacker's; and from processes that look like a guest's QEMU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc

from supervisor.pb import agent_pb2
from tests.attack.kinds import Came, From, Need, attack
from tests.attack.place import bobs_body
from tests.attack.service import serving
from tests.attack.users import MALLORY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.attack.place import Place
    from tests.attack.service import Answer

_ANSWERED = "the run fails, and its answer says so"
_RUN = "/agent.AgentService/Run"
#: More than an agent's reply may have.
_HUGE = 40 * 2**20


class _Agent(grpc.GenericRpcHandler):
    """Answers computations, and knows no other call."""

    def __init__(self, behave: Callable[[Any, Any], Any]) -> None:
        self._behave = behave

    def service(self, details: Any) -> Any:
        if details.method != _RUN:
            return None
        return grpc.unary_unary_rpc_method_handler(
            self._behave,
            agent_pb2.RunRequest.FromString,
            agent_pb2.RunResponse.SerializeToString,
        )


@contextmanager
def agent(behave: Callable[[Any, Any], Any]) -> Iterator[int]:
    """The port of an agent that behaves so. It is on the host: its guest need not boot."""
    server = grpc.server(
        ThreadPoolExecutor(4), options=[("grpc.max_send_message_length", 2 * _HUGE)]
    )
    server.add_generic_rpc_handlers((_Agent(behave),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def _run(place: Place, name: str, behave: Callable[[Any, Any], Any]) -> Answer:
    with agent(behave) as port:
        # An address that is not called a loopback is the agent's own.
        settings = {"MANAGER_AGENT_GRPC_URL": f"0.0.0.0:{port}"}
        service = place.serve(name, settings)
        return service.ask("POST", "/run", bobs_body(), by="bob")


@attack(
    From.GUEST,
    "a guest's agent fills the supervisor's memory by its reply",
    held_by="the size of a reply",
    refusal="502",
    below=_ANSWERED,
    short=False,
)
def huge_reply(place: Place) -> Came:
    def behave(_: Any, __: Any) -> Any:
        return agent_pb2.RunResponse(Computation="x" * _HUGE)

    return _run(place, "huge", behave).came


@attack(
    From.GUEST,
    "a guest's agent writes control sequences into an error that an operator will see",
    held_by="cleaning what a guest wrote",
    refusal="502, clean",
    below=_ANSWERED,
    through="502, with control sequences",
    short=False,
)
def control_sequences(place: Place) -> Came:
    def behave(_: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.INTERNAL, "\x1b]0;mine\x07 \x1b[2J gone")

    answer = _run(place, "sequences", behave)
    is_clean = b"gone" in answer.body and b"u001b" not in answer.body
    return Came(f"{answer.status}, {'clean' if is_clean else 'with control sequences'}")


@attack(
    From.LOCAL_USER,
    "a user's process, of a name that is no text, looks like a VM's QEMU to the next supervisor",
    held_by="whose process a QEMU is",
    refusal="left alone",
    below="the supervisor looks at processes at its start",
    through="taken up",
    short=False,
    needs=frozenset({Need.ROOT}),
)
def looks_like_qemu(place: Place) -> Came:
    tmp, settings = place.directory / "named", place.settings()
    with serving(place.source, tmp, settings) as service:
        run = service.ask(
            "POST", "/run", bobs_body(), by="olivia", headers=[("Prefer", "respond-async")]
        )
        vm_id = run.json()["id"]
        service.until(vm_id, "running", by="olivia")
        pid = service.ask("GET", f"/vms/{vm_id}", by="olivia").json()["pid"]
        service.process.kill()
        service.process.wait()
    os.kill(pid, signal.SIGKILL)
    disguise = b"\xff\xfe", b"-uuid", vm_id.encode(), f"file={tmp}/{vm_id}/overlay.qcow2".encode()
    intruder = subprocess.Popen(
        ["/bin/sh", "-c", "read line", *disguise],
        stdin=subprocess.PIPE,
        user=MALLORY,
        group=MALLORY,
        extra_groups=[],
    )
    try:
        with serving(place.source, tmp, settings):
            pass  # it takes up what runs before it is ready, and ends that when it stops
        words = [json.loads(line) for line in tmp.with_suffix(".log").read_text().splitlines()]
        (found,) = [line for line in words if line["message"] == "adopting VMs"]
        alone = vm_id in found["ended_meanwhile"] and intruder.poll() is None
        return Came("left alone" if alone else "taken up", detail=str(found["running"]))
    finally:
        intruder.kill()
        intruder.communicate()


_DEVICES = b"""
import json, pathlib, socket, sys
kinds = [one.read_text() for one in pathlib.Path("/sys/bus/virtio/devices").glob("*/device")]
with socket.socket(socket.AF_UNIX) as result:
    result.connect(sys.argv[2])
    result.sendall(json.dumps([int(kind, 16) for kind in kinds]).encode())
"""
_BALLOON = 5  # virtio 1.2, section 5


@attack(
    From.GUEST,
    "a copy of a template tells a balloon that pages are free which other copies read",
    held_by="no balloon in copies",
    refusal="no balloon",
    below="a device that is not there",
    through="through",
    short=False,
)
def balloon(place: Place) -> Came:
    body = bobs_body() | {"template": "require"}
    run = place.pooled.ask("POST", "/run", body, by="bob")
    assert run.status == 200, run.body
    devices = place.in_guest(_DEVICES, None, run.json())
    assert devices
    return Came("through" if _BALLOON in devices else "no balloon")
