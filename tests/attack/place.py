"""Where attacks take place: a directory, supervisors that start when first attacked, VMs."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from supervisor.pb import agent_pb2, agent_pb2_grpc
from tests.attack.certificates import Certificates
from tests.attack.members import open_fleet
from tests.attack.service import PATIENCE_S, Service, serving
from tests.support.guest_images import trusting_image
from tests.support.side_by_side import own_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.attack.members import Fleet

T = TypeVar("T")

#: Users of QEMUs, if this is run as root; the tests have others.
UIDS = "7710000-7710099"
#: What the parties' runs have in common.
COMPUTATION = {"id": "1", "name": "of Bob"}
KEY = "the-first-run-of-the-day"


class Place:
    """Closed by `close`.

    :param directory: an empty one that others may pass through
    :param source: the directory in which the ``supervisor/`` is that is attacked
    :param has_network: whether the addresses of `tests.attack.guests` are here
    """

    def __init__(self, directory: Path, source: Path, *, has_network: bool) -> None:
        self.directory = directory
        self.source = source
        self.has_network = has_network
        self._known: dict[str, Any] = {}
        self._stack = ExitStack()
        self._victim: dict[str, Any] = {}
        self._paused = ""

    def close(self) -> None:
        self._stack.close()

    def once(self, name: str, find: Callable[[Place], T]) -> T:
        """What is found out here, for all attacks that need to know."""
        if name not in self._known:
            self._known[name] = find(self)
        found: T = self._known[name]
        return found

    # --- supervisors ------------------------------------------------------------------------

    @cached_property
    def main(self) -> Service:
        """Asks who calls. Has room for one VM: Bob's."""
        return self.serve(
            "main",
            {
                "MANAGER_MAX_VMS": "1",
                "MANAGER_QUEUE": "0",
                "MANAGER_POWERDOWN_GRACE": "60s",
                "MANAGER_SOCKET": str(self.main_socket("api")),
                "MANAGER_GRPC_SOCKET": str(self.main_socket("grpc")),
                **({"MANAGER_SOCKET_GROUP": "users"} if os.geteuid() == 0 else {}),
            },
        )

    def main_socket(self, wire: str) -> Path:
        """In a directory that everybody may enter.

        :param wire: api or grpc
        """
        return self.directory / f"{wire}.sock"

    @cached_property
    def parted(self) -> Service:
        """Has room for a VM in which several parties have a part."""
        return self.serve("parts", {})

    @cached_property
    def pooled(self) -> Service:
        """Makes a template, then VMs from it for its pool."""
        return self._serve_clones("pool", MANAGER_POOL_SIZE="1")

    @cached_property
    def holding(self) -> Service:
        """Makes a template, then holds a clone of it."""
        return self._serve_clones("held", MANAGER_HELD_CLONES="1")

    def _serve_clones(self, name: str, **settings: str) -> Service:
        # As users of their own, an older QEMU would get no templates.
        clones = {"MANAGER_TEMPLATES": "auto", "MANAGER_QEMU_RUN_AS": ""}
        return self.serve(name, clones | settings)

    @cached_property
    def unasked(self) -> Service:
        """Asks nobody, as ``scripts/quickstart`` has it: what is left are its web pages' checks."""
        return self.serve(
            "open", {"MANAGER_AUTH": "off", "MANAGER_MAX_VMS": "1", "MANAGER_QUEUE": "0"}
        )

    @cached_property
    def tight(self) -> Service:
        """Has the least limits and the least patience."""
        return self.serve(
            "tight",
            {
                "MANAGER_HTTP_HEADER_TIMEOUT": "1s",
                "MANAGER_BODY_TIMEOUT": "2s",
                "MANAGER_BODY_WAIT": "1s",
                "MANAGER_BODY_BUDGET": "64M",
                "MANAGER_CALLER_READERS": "1",
                "MANAGER_CALLER_REQUESTS": "2",
            },
        )

    @cached_property
    def rated(self) -> Service:
        """Answers one request a second of each caller; an address has eight connections."""
        return self.serve("rated", {"MANAGER_CALLER_RATE": "1", "MANAGER_HTTP_CONNECTIONS": "8"})

    @cached_property
    def secured(self) -> Service:
        """With TLS, on both wires: clients show certificates."""
        made = self.certificates
        return self.serve(
            "tls",
            {
                **made.settings("HTTP"),
                **made.settings("GRPC"),
                "MANAGER_TLS_CALLERS": str(made.callers),
                "MANAGER_HTTP_HEADER_TIMEOUT": "5s",
            },
        )

    @cached_property
    def fleet(self) -> Fleet:
        """A member of a fleet, and another one that was taken over."""
        return open_fleet(self)

    @cached_property
    def certificates(self) -> Certificates:
        directory = self.directory / "certificates"
        directory.mkdir(mode=0o700)
        return Certificates(directory)

    def enter(self, context: AbstractContextManager[object]) -> None:
        """Have something end with this place."""
        self._stack.enter_context(context)

    def serve(self, name: str, settings: Mapping[str, str]) -> Service:
        """:raises NotServed: if it does not start"""
        return self._stack.enter_context(
            serving(self.source, self.directory / name, self.settings() | dict(settings))
        )

    def settings(self) -> dict[str, str]:
        first, last = own_ports(2000, 12000)
        return {
            "MANAGER_AUTH": "on",
            "MANAGER_CALLER_RATE": "0",
            "MANAGER_HTTP_PORT": "0",
            "MANAGER_GRPC_PORT": "0",
            "MANAGER_QEMU_DISK_IMG_FILE": str(trusting_image()),
            "MANAGER_QEMU_HOST_FWD_RANGE": f"{first}-{last}",
            "MANAGER_QEMU_MEMORY_SIZE": "512M",
            "MANAGER_QEMU_SMP_COUNT": "1",
            "MANAGER_TEMPLATES": "off",
            "MANAGER_HEARTBEAT": "1s",
            "MANAGER_LOG_SIZE": "64K",
            "MANAGER_START_TIMEOUT": "2m",
            "MANAGER_CLONE_TIMEOUT": "2m",
            "MANAGER_BOOT_TIMEOUT": f"{PATIENCE_S - 20:g}s",
            "MANAGER_POWERDOWN_GRACE": "1s",
            **({"MANAGER_QEMU_RUN_AS": UIDS} if os.geteuid() == 0 else {}),
        }

    # --- Bob's VM ---------------------------------------------------------------------------

    def victim(self) -> str:
        """The id of Bob's VM, which has answered."""
        return str(self.victims_run()["id"])

    def victims_run(self) -> dict[str, Any]:
        """The answer of Bob's run. If an attack has ended its VM, Bob runs another one."""
        if self._victim:
            shown = self.main.ask("GET", f"/vms/{self._victim['id']}", by="bob")
            if shown.status == 200 and not shown.json()["ended"]:
                if shown.json()["state"] == "paused":
                    self.main.ask("POST", f"/vms/{self._victim['id']}/resume", by="bob")
                return self._victim
        how = [("Idempotency-Key", KEY)]
        if self._victim:
            self.main.ask("DELETE", f"/vms/{self._victim['id']}", by="bob")
        run = self.main.ask("POST", "/run", bobs_body(), by="bob", headers=how)
        assert run.status == 200, run.body
        self._victim = run.json()
        return self._victim

    def agent(self, guest_port: int = 7002, run: dict[str, Any] | None = None) -> tuple[str, int]:
        """Where a port of a run's guest is on the host; by default of Bob's."""
        ports = {one["guest_port"]: one for one in (run or self.victims_run())["forwards"]}
        return ports[guest_port]["host_address"], int(ports[guest_port]["host_port"])

    def in_guest(self, algorithm: bytes, dataset: Any, run: dict[str, Any] | None = None) -> Any:
        """What an algorithm of Bob's, which is root in his guest, finds out there.

        :param dataset: and the result are JSON
        :param run: the answer of a run that has another guest
        """
        run = run or self.victims_run()
        address, port = self.agent(7002, run)
        shown = [("authorization", f"Bearer {run['credential']}")]
        with grpc.insecure_channel(
            f"{address}:{port}", [("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            agent = agent_pb2_grpc.AgentServiceStub(channel)
            how: dict[str, Any] = {"timeout": PATIENCE_S, "metadata": shown}
            agent.Algo(agent_pb2.AlgoRequest(algorithm=algorithm), **how)
            agent.Data(agent_pb2.DataRequest(dataset=json.dumps(dataset).encode()), **how)
            return json.loads(agent.Result(agent_pb2.ResultRequest(), **how).file)

    # --- a VM of the supervisor that asks nobody -----------------------------------------------

    def paused(self) -> str:
        """The id of a VM that is paused, of the supervisor that asks nobody."""
        if not self._paused:
            how = [("Prefer", "respond-async")]
            run = self.unasked.ask("POST", "/run", bobs_body(), headers=how)
            assert run.status == 202, run.body
            self._paused = str(run.json()["id"])
            self.unasked.until(self._paused, "running")
        self.unasked.ask("POST", f"/vms/{self._paused}/pause")
        return self._paused


def bobs_body() -> dict[str, Any]:
    return {"computation": list(json.dumps(COMPUTATION).encode())}
