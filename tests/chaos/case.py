"""One injection: a tmp/ of its own, the supervisors that run on it, and what clients were told."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import psutil

from tests.chaos.place import Place, processes_below
from tests.chaos.reader import Reader
from tests.chaos.zygote import Launch, Zygote, wait_gone

if TYPE_CHECKING:
    from collections.abc import Callable

#: How long anything may take here on a machine that is busy.
PATIENCE_S = 40.0
#: And a guest that boots under emulation.
_GUEST_PATIENCE_S = 240.0
_POLL_S = 0.01

#: What a request meets whose supervisor dies.
GONE = (OSError, http.client.HTTPException, ValueError)


class Broken(Exception):
    """What must hold does not."""


class Skipped(Exception):
    """This host cannot have that fault."""


class Dead(Exception):
    """The supervisor ended while something was waited for."""


@attrs.define
class Supervisor:
    """A running ``qmp-supervisor serve``."""

    pid: int
    pidfd: int
    port: int = 0
    ended: bool = False

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and body, parsed if it is JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        if body is not None:
            headers["Content-Type"] = "application/json"
        content = None if body is None else json.dumps(body)
        try:
            connection.request(method, path, content, headers)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if not text:
            return answer.status, None
        is_json = "json" in answer.headers["Content-Type"]
        return answer.status, json.loads(text) if is_json else text.decode()


class Case:
    """What a kind of fault is given. A kind does harm and expects; `claim` then checks the rest."""

    def __init__(self, place: Place, zygote: Zygote, settings: dict[str, str]) -> None:
        self.place = place
        self.tmp = place.new_tmp()
        place.agents.holding = True
        self.log = Path(f"{self.tmp}.log")
        self.log.touch()
        self.settings = settings
        #: A real machine with the real guest.
        self.guests = False
        self.reader = Reader()
        self.supervisor: Supervisor | None = None
        #: Ids that a client was told; of those, what must be answered as it was.
        self.told: set[str] = set()
        self.replies: dict[str, str] = {}
        self.asked_to_delete: set[str] = set()
        #: Records that are damaged on purpose, so their content may be lost.
        self.damaged: set[str] = set()
        #: Whether events may be missing on disk: the fault took the disk away.
        self.events_lost = False
        #: Files of ours in tmp/ that nobody is to touch.
        self.planted: set[Path] = set()
        #: VMs of which every trace was removed on purpose.
        self.forgotten: set[str] = set()
        #: How many file systems are mounted on tmp/.
        self.unmounts = 0
        #: How often a computation may have been sent again: by a restart that was asked for.
        self.restarts = 0
        #: Whether QEMU is started through sudo, so that a VM's pid is not QEMU's.
        self.sudo = False
        #: Whether VMs are started from a template, and how many are kept ready.
        self.templates = False
        self.pool = 0
        self.held = 0
        #: VMs that no client was given: what a template was made of, and those of the pool.
        self.housekeeping: set[str] = set()
        #: The names of computations, by VM.
        self.computations: dict[str, str] = {}
        #: Whether another VM is to be run at the end.
        self.fresh = True
        #: Of the last supervisor that has ended.
        self.exit_code = 0
        #: Closed once the harm is done: what takes back what was done to the host.
        self.undo = contextlib.ExitStack()
        self._zygote = zygote
        self._runs = 0

    # --- supervisors ------------------------------------------------------------------------

    def serve(self, *, wait: bool = True, **launch: Any) -> Supervisor:
        """Start one. With ``wait`` it answers already.

        :raises Dead: if it ends before it answers
        """
        environ = (self.place.guest_environ if self.guests else self.place.environ)(self.tmp)
        if self.templates:
            environ |= self.place.clones(self.pool, self.held, guests=self.guests)
        settings = launch.pop("settings", {})
        if self.sudo:
            launch["user"] = self.place.user
            settings = {"MANAGER_QEMU_USE_SUDO": "true", **settings}
        offset = self.log.stat().st_size
        launched = Launch(
            environ=environ | self.settings | settings,
            log=str(self.log),
            tmp=str(self.tmp),
            haste=self.templates and not self.guests,
            **launch,
        )
        pid = self._zygote.start(launched)
        self.supervisor = Supervisor(pid, os.pidfd_open(pid))
        if wait:
            self.wait_ready(offset)
        return self.supervisor

    def wait_ready(self, offset: int = 0) -> None:
        running = self.supervisor
        assert running
        deadline = time.monotonic() + PATIENCE_S
        while not running.port:
            if wait_gone(running.pidfd, _POLL_S):
                raise Dead("the supervisor ended before it was ready")
            if time.monotonic() > deadline:
                raise Broken("the supervisor is not ready in time")
            for line in self.log.read_bytes()[offset:].splitlines():
                if b'"ready"' in line:
                    running.port = json.loads(line)["http_port"]
        self.reader.follow(running.port)

    def log_lines(self) -> list[dict[str, Any]]:
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                found.append({"level": "error", "message": f"not JSON: {line}"})
        return found

    def crash(self) -> None:
        """SIGKILL, and the supervisor is gone."""
        self.signal(signal.SIGKILL)
        self.wait_dead()

    def signal(self, number: int) -> None:
        assert self.supervisor
        signal.pidfd_send_signal(self.supervisor.pidfd, number)

    def wait_dead(self) -> int:
        """Its exit code, once it has ended."""
        running = self.supervisor
        assert running
        timeout_s = _GUEST_PATIENCE_S if self.guests else PATIENCE_S
        if not wait_gone(running.pidfd, timeout_s):
            raise Broken(f"the supervisor has not ended in {timeout_s:g} s")
        self.exit_code = code = self._zygote.exit_code(running.pid)
        os.close(running.pidfd)
        self.supervisor = None
        for vm_id, content in self.records().items():
            purpose = content["vm"].get("purpose", "run")
            known = self.told if purpose == "run" else self.housekeeping
            known.add(vm_id)
        self.housekeeping -= self.told
        return code

    def dies(self) -> bool:
        """Whether it has ended, or is about to."""
        return self.supervisor is not None and wait_gone(self.supervisor.pidfd, 1.0)

    # --- VMs --------------------------------------------------------------------------------

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        assert self.supervisor
        return self.supervisor.ask(method, path, body, **headers)

    def run(self, *, wait: bool = True, hold: bool = False, **members: Any) -> str:
        """A VM's id, by default once its agent has answered.

        :param hold: the agent does not answer
        """
        self._runs += 1
        name = f"{self.tmp.name}-{self._runs}"
        computation = {"id": name, "name": name, "hold": hold}
        body = {"computation": list(json.dumps(computation).encode()), **members}
        status, answer = self.ask("POST", "/run", body, Prefer="respond-async")
        if status != 202:
            raise Broken(f"POST /run answers {status}: {answer}")
        vm_id = str(answer["id"])
        self.told.add(vm_id)
        self.computations[vm_id] = name
        if wait and hold:
            self.until(vm_id, lambda vm: vm["relay"]["state"] == "sent")
            self.wait(lambda: self.place.agents.calls[name] > 0, "the agent's call")
        elif wait:
            self.until(vm_id, lambda vm: vm["relay"]["state"] == "answered")
            self.replies[vm_id] = self.ask("GET", f"/vms/{vm_id}/reply")[1]
        return vm_id

    def show(self, vm_id: str) -> dict[str, Any]:
        status, answer = self.ask("GET", f"/vms/{vm_id}")
        if status != 200:
            raise Broken(f"GET /vms/{vm_id} answers {status}")
        return dict(answer)

    def until(self, vm_id: str, so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The VM, once this is so."""
        vm: dict[str, Any] = {}

        def look() -> bool:
            nonlocal vm
            vm = self.show(vm_id)
            if vm["ended"] and not so(vm):
                raise Broken(f"VM {vm_id} ended: {vm['state']} ({vm['reason']}), {vm['error']}")
            return so(vm)

        self.wait(look, lambda: f"VM {vm_id} stays {_short(vm)}")
        return vm

    def until_ended(self, vm_id: str, state: str = "", reason: str = "") -> dict[str, Any]:
        """The VM, once it has ended, as it should."""
        vm = self.until(vm_id, lambda vm: vm["ended"])
        self.expect(state in ("", vm["state"]), f"VM is {_short(vm)}, not {state}")
        self.expect(reason in ("", vm["reason"]), f"VM is {_short(vm)}, not {reason}")
        return vm

    def wait(self, so: Callable[[], bool], what: str | Callable[[], str]) -> None:
        deadline = time.monotonic() + (_GUEST_PATIENCE_S if self.guests else PATIENCE_S)
        while not so():
            if time.monotonic() > deadline:
                raise Broken(f"in vain: {what if isinstance(what, str) else what()}")
            time.sleep(_POLL_S)

    def expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise Broken(otherwise)

    def skip(self, why: str) -> None:
        raise Skipped(why)

    def shut_down(self, vm_id: str, mode: str = "graceful") -> dict[str, Any]:
        status, vm = self.ask("POST", f"/vms/{vm_id}/shutdown", {"mode": mode})
        self.expect(status == 200, f"shutdown answers {status}: {vm}")
        return dict(vm)

    def control(self, vm_id: str, what: str, status: int = 200) -> None:
        got, vm = self.ask("POST", f"/vms/{vm_id}/{what}")
        self.expect(got == status, f"{what} answers {got}: {vm}")

    def delete(self, vm_id: str) -> None:
        self.asked_to_delete.add(vm_id)
        status, answer = self.ask("DELETE", f"/vms/{vm_id}")
        self.expect(status == 204, f"DELETE answers {status}: {answer}")

    def qemus(self, vm_id: str) -> list[int]:
        """Pids of the VM's QEMU, or of what stands in its place."""
        return [
            pid
            for pid, words in processes_below(self.tmp / vm_id)
            if os.path.basename(words[0]) not in ("sudo", "qemu-img")
        ]

    def qemu_pid(self, vm_id: str) -> int:
        found = self.qemus(vm_id)
        self.expect(len(found) == 1, f"VM {vm_id} has the processes {found}")
        return found[0]

    def is_stopped(self, vm_id: str) -> bool:
        """Whether its QEMU is there, and has been stopped."""
        return any(
            psutil.Process(pid).status() == psutil.STATUS_STOPPED for pid in self.qemus(vm_id)
        )

    def signal_qemu(self, vm_id: str, number: int) -> None:
        os.kill(self.qemu_pid(vm_id), number)

    def wait_no_qemu(self, vm_id: str) -> None:
        self.wait(lambda: not list(processes_below(self.tmp / vm_id)), "QEMU's end")

    def until_monitor(self, vm_id: str, state: str) -> None:
        self.until(vm_id, lambda vm: vm["monitor"] == state)

    # --- templates and the pool -------------------------------------------------------------

    def until_template(self) -> str:
        """The digest of the one that is ready, once nothing is being made or removed any more."""
        rows: list[dict[str, Any]] = []
        ready: list[str] = []

        def settled() -> bool:
            nonlocal rows, ready
            rows = self.ask("GET", "/templates")[1]["templates"]
            ready = [row["digest"] for row in rows if row["state"] == "ready"]
            others = [row for row in rows if row["state"] != "ready"]
            in_use = all(row["state"] == "stale" and row["clones"] for row in others)
            return len(ready) == 1 and in_use and not self.of_purpose("template")

        self.wait(settled, lambda: f"the templates are {rows}")
        return ready[0]

    def until_pool(self) -> list[str]:
        """The ids of the pool's VMs, once it is full and all of them are ready.

        One of which nobody knows what it is made of is about to be replaced.
        """
        rows: list[dict[str, Any]] = []

        def full() -> bool:
            nonlocal rows
            rows = self.of_purpose("pool")
            known = {vm_id for vm_id, one in self.records().items() if one["vm"].get("fingerprint")}
            ready = all(row["agent_ready"] and row["id"] in known for row in rows)
            return len(rows) == self.pool and ready

        self.wait(full, lambda: f"the pool is {rows}")
        return [row["id"] for row in rows]

    def until_held(self) -> list[str]:
        """The ids of the held clones, the oldest first, once there are as many as there should."""
        self.until_template()
        rows: list[dict[str, Any]] = []

        def full() -> bool:
            nonlocal rows
            rows = self.of_purpose("held")
            return len(rows) == self.held and all(row["monitor"] == "ok" for row in rows)

        self.wait(full, lambda: f"the held clones are {rows}")
        return [row["id"] for row in rows]

    def of_purpose(self, purpose: str) -> list[dict[str, Any]]:
        """The rows of VMs that are there for this, and have not ended."""
        rows = self.ask("GET", f"/vms?purpose={purpose}")[1]["vms"]
        return [row for row in rows if row["purpose"] == purpose and not row["ended"]]

    def until_stopped(self) -> None:
        """Return once the supervisor is stopped at the crash point that it was to be stopped at."""
        assert self.supervisor
        process = psutil.Process(self.supervisor.pid)
        self.wait(lambda: process.status() == psutil.STATUS_STOPPED, "the point to stop at")

    # --- files ------------------------------------------------------------------------------

    def records(self) -> dict[str, dict[str, Any]]:
        """What can be read of every vm.json, by id."""
        found = {}
        for file in self.tmp.glob("*/vm.json"):
            if file.parent.suffix:
                continue
            with contextlib.suppress(OSError, ValueError):
                found[file.parent.name] = json.loads(file.read_bytes())
        return found

    def edit_record(self, vm_id: str, change: Callable[[dict[str, Any]], None]) -> None:
        file = self.tmp / vm_id / "vm.json"
        content = json.loads(file.read_bytes())
        change(content)
        file.write_text(json.dumps(content) + "\n")

    def close(self) -> None:
        """End whatever still runs, without asking."""
        self.reader.close()
        if self.supervisor:
            with contextlib.suppress(OSError, Broken):
                self.crash()


def _short(vm: dict[str, Any]) -> str:
    return f"{vm.get('state')} ({vm.get('reason')}), monitor {vm.get('monitor')}"
