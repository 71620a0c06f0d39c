"""The fake QEMU of the tests: it does what a scenario and the test say, and tells what it sees.

It reads ``scenario.json`` in its directory, tells the test what happens over ``control`` there
and takes orders over it, so that no test has to wait for a time to pass.
"""

from __future__ import annotations

import _socket
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support import migration, scenario
from tests.support.fake_qemu import Connection, FakeQemu, Listener, Qmp, answer_trial, dumps

if TYPE_CHECKING:
    from collections.abc import Callable

_DESCRIPTORS = 8
#: Commands of a measured launch.
_LAUNCH = ("query-sev-launch-measure", "sev-inject-launch-secret")


class _Monitor(Qmp):
    """A client that may pass descriptors."""

    program: ScriptedQemu

    def receive(self) -> bytes:
        data, descriptors, _, _ = socket.recv_fds(
            self.connection,  # type: ignore[arg-type]
            65536,
            _DESCRIPTORS,
        )
        self.program.passed += descriptors
        return data


class _Tty(Connection):
    """The client of the serial console, whose guest prints what is typed."""

    program: ScriptedQemu

    def hear(self, data: bytes) -> None:
        with open(self.program.serial_log, "ab") as log:
            log.write(data)
        self.send(data)


class _Control(Connection):
    """The test."""

    program: ScriptedQemu
    _rest = b""

    def hear(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self.program.obey(**json.loads(line))

    def closed(self) -> None:
        os._exit(3)


class _FromThreads(Connection):
    """What the agent's threads tell the test of, a line each."""

    program: ScriptedQemu

    def hear(self, data: bytes) -> None:
        self.program.control.send(data)


class ScriptedQemu(FakeQemu):
    """One run of the program."""

    control: _Control

    def __init__(self, directory: Path, argv: list[str]) -> None:
        super().__init__(argv)
        self.directory = directory
        self.plan = scenario.read(directory / "scenario.json")
        self.version = self.plan.version
        self.presses = 0
        self.swallows = set(self.plan.swallows)
        self.agent: Any = None
        #: The guest's end of its line.
        self.line: socket.socket | None = None
        #: What QMP's client passed and has not named yet, and what it has.
        self.passed: list[int] = []
        self.named: dict[str, int] = {}
        self.serial_log = ""
        self.capabilities: set[str] = set()
        self.ram = migration.ram(argv)
        #: Of the guest that runs: it is to be copied, or was and does not know that yet.
        self.prepared = False
        self.renewed_as = ""
        #: What of the firmware's configuration tells a copy who it is.
        self.renewal = _renewal(argv)
        #: Which agent it has.
        self.kind = self.plan.agent
        #: How its agent before this one ended.
        self.last_end = ""
        self.instance = ""

    def run(self) -> None:
        control = socket.socket(socket.AF_UNIX)
        control.connect(str(self.directory / "control"))
        self.control = _Control(self, control)
        theirs, self._for_threads = socket.socketpair()
        _FromThreads(self, theirs)
        self.tell("started", vm=self.vm_id, pid=os.getpid())
        super().run()

    # --- the test's side ---

    def tell(self, what: str, **more: object) -> None:
        self.control.send(dumps({"saw": what, **more}) + b"\n")

    def tell_from_thread(self, what: str, **more: object) -> None:
        self._for_threads.sendall(dumps({"saw": what, **more}) + b"\n")

    def obey(self, do: str, **more: Any) -> None:
        orders: dict[str, Callable[..., object]] = {
            "emit": self.emit,
            "run": self.run_guest,
            "set-status": self.set_status,
            "swallow": self.swallow,
            "power-off": lambda: self.shut_down("guest-shutdown"),
            "reboot": lambda: self.shut_down("guest-reset"),
            "panic": self.panic,
            "hold": self.hold,
            "suspend": self.suspend,
            "wake": self.wake,
            "start-agent": self.start_agent_of,
            "end-agent": self.end_agent,
            "abandon-agent": self.abandon_agent,
            "release-agent": self.release_agent,
            "print": self.print_to_console,
            "raw": self.send_raw,
            "exit": self.exit,
            "hang-up": self.hang_up,
        }
        orders[do](**more)

    def set_status(self, status: str) -> None:
        self.status = status

    def swallow(self, commands: list[str]) -> None:
        self.swallows = set(commands)

    def start_agent_of(self, kind: str) -> None:
        self.kind = kind
        self.start_agent()

    def send_raw(self, text: str) -> None:
        for client in self.clients():
            client.send(text.encode())

    def hang_up(self) -> None:
        for client in self.clients():
            client.close()

    # --- QMP ---

    def monitor(self, program: FakeQemu, connection: _socket.socket) -> Qmp:
        return _Monitor(program, connection)

    def greet(self, client: Qmp) -> None:
        match self.plan.greeting:
            case "exit":
                self.exit(7)
            case "nothing":
                self.tell("connected")
            case _:
                super().greet(client)

    def execute(self, client: Qmp, message: dict[str, Any]) -> None:
        command = message["execute"]
        self.tell(command)
        if command in self.swallows:
            self.tell("swallowed", command=command)
        elif command in self.plan.refuses:
            kind, text = self.plan.refuses[command]
            client.refuse(message, text, kind)
        elif command in ("getfd", "add-fd") and not self.passed:
            client.refuse(message, "No file descriptor supplied via SCM_RIGHTS")
        elif command in _LAUNCH and self._sev_refuses(command):
            client.refuse(message, self._sev_refuses(command))
        elif command == "quit" and self.plan.ignores_quit:
            client.answer(message, {})
        else:
            super().execute(client, message)

    def answer(self, command: str) -> object:
        match command:
            case "query-sev":
                return self.plan.sev
            case "query-sev-launch-measure":
                return {"data": self.plan.measurement}
            case "query-chardev":
                port = {"label": "org.qmp-supervisor.agent", "filename": "disconnected:fd"}
                return [{**port, "frontend-open": self.plan.opens_line}]
        return super().answer(command)

    def _sev_refuses(self, command: str) -> str:
        """As QEMU's target/i386/sev.c; empty if it does not."""
        if not self.plan.measurement:
            return "SEV is not enabled"
        if command == "sev-inject-launch-secret" and self.status != "prelaunch":
            return "Not in correct state. (LSECRET) 4"
        if command == "sev-inject-launch-secret" and self.plan.refuses_secret:
            return "SEV: failed to inject secret ret=-5 fw_error=11 'Bad measurement'"
        return ""

    def act(self, command: str, arguments: dict[str, Any]) -> None:
        match command:
            case "migrate-set-capabilities":
                wanted = arguments["capabilities"]
                self.capabilities |= {one["capability"] for one in wanted if one["state"]}
            case "getfd":
                self.named[arguments["fdname"]] = self.passed.pop(0)
            case "add-fd":
                self.named[f"/dev/fdset/{arguments['fdset-id']}"] = self.passed.pop(0)
            case "remove-fd":
                os.close(self.named.pop(f"/dev/fdset/{arguments['fdset-id']}"))
            case "chardev-add":
                number = self.named.pop(arguments["backend"]["data"]["addr"]["data"]["str"])
                self.line = socket.socket(fileno=number)
            case "chardev-change":
                data = arguments["backend"]["data"]
                self.serial_log = data["logfile"]
                number = self.named.pop(data["addr"]["data"]["str"])
                Listener(self, _socket.socket(fileno=number), _Tty)
            case "migrate":
                self.migrate(self._file(arguments["uri"]))
            case "migrate-incoming":
                self.restore(self._file(arguments["uri"]))
            case _:
                super().act(command, arguments)

    # --- to a file and back ---

    def _file(self, uri: str) -> int:
        """The descriptor that the URI of a migration names."""
        return self.named[uri.partition(":")[2]]

    def emit_migration(self, *turns: str) -> None:
        if "events" in self.capabilities:
            for status in turns:
                self.emit("MIGRATION", {"status": status})

    def migrate(self, descriptor: int) -> None:
        if self.plan.migration == "fails":
            self.emit_migration("setup", "active", "failed")
            return
        self.emit_migration("setup", "active")
        if self.plan.migration == "hangs":
            return
        migration.save(descriptor, self.argv, self.ram, self.capabilities, self.prepared)
        self.status = "postmigrate"
        self.emit_migration("completed")

    def restore(self, descriptor: int) -> None:
        self.emit_migration("setup", "active")
        match self.plan.restore:
            case "hangs":
                return
            case "dies":
                self.exit(-signal.SIGKILL)
        try:
            if self.plan.restore == "fails":
                raise migration.Refused("load of migration failed: Input/output error")
            self.prepared = migration.load(descriptor, self.argv, self.ram, self.capabilities)
        except migration.Refused as error:
            self.emit_migration("failed")
            print(f"qemu-system-x86_64: {error}", file=sys.stderr, flush=True)
            self.exit(1)
        self.kind = self.plan.clones_agent or self.plan.agent
        self.status = "paused"
        self.emit_migration("completed")

    # --- the guest ---

    def run_guest(self) -> None:
        if self.status == "prelaunch" and self.ram:
            self.ram.boot()
        if self.plan.console:
            self.print_to_console(self.plan.console)
        super().run_guest()

    def start_agent(self) -> None:
        if self.kind == "none" or self.agent:
            return
        # Takes a third of a second to import, which a program that is to fail need not spend.
        from tests.support import fake_agent

        self.agent = fake_agent.start(
            self.kind, self.plan, self.host_port(7002), self.directory, self.tell_from_thread, self
        )
        self.instance = f"{os.getpid()}-{time.monotonic_ns()}"
        if self.line and any(self.renewal) and self.plan.line and self.kind != "deaf":
            from tests.support import line

            says = self.plan.line.encode()
            line.serve(self.line, self.host_port(7002), says, self.tell_from_thread)
            self.line = None

    def stop_agent(self) -> None:
        self.end_agent("")
        self.prepared, self.renewed_as, self.kind = False, "", self.plan.agent

    def end_agent(self, how: str, again: bool = False) -> None:
        """Have the agent end, and perhaps be started again at once."""
        if self.agent:
            self.agent.stop(None).wait()
            self.agent = None
        self.last_end = how
        if again:
            self.start_agent()

    def release_agent(self) -> None:
        """Have an agent that is held answer."""
        from tests.support import fake_agent

        fake_agent.RELEASED.set()

    def abandon_agent(self) -> None:
        """Have another agent in the place of the one that has calls, which it leaves unanswered."""
        self.instance += " again"

    def print_to_console(self, text: str) -> None:
        serial = next(word for word in self.argv if word.startswith("file,id=serial,"))
        with open(serial.partition("path=")[2].partition(",")[0], "a") as console:
            console.write(text)

    def press_power_button(self) -> None:
        self.presses += 1
        if self.presses > self.plan.deaf_to_powerdown:
            super().press_power_button()

    # --- the end ---

    def sigterm(self) -> None:
        self.tell("SIGTERM")
        if not self.plan.ignores_sigterm:
            super().sigterm()


def _renewal(argv: list[str]) -> bytes:
    """As QEMU, before it answers anything: the file may be gone then."""
    words = (word for word in argv if word.startswith("name=opt/org.qmp-supervisor/renewal,file="))
    return b"".join(Path(word.partition("file=")[2]).read_bytes() for word in words)


def main(directory: Path) -> None:
    plan = scenario.read(directory / "scenario.json")
    if "stdio" in sys.argv:
        answer_trial(plan.version, plan.sev_platform)
        return
    if "-uuid" not in sys.argv:
        sys.exit(1)  # the probe for KVM
    sys.stderr.write(plan.says)
    if plan.exits is not None:
        sys.exit(plan.exits)
    try:
        program = ScriptedQemu(directory, sys.argv)
    except migration.Refused as error:
        sys.exit(f"qemu-system-x86_64: {error}")
    starts = directory / f"starts-{program.vm_id}"
    with starts.open("a") as file:
        file.write(".")
    if starts.stat().st_size <= plan.port_races:
        forward = f"tcp:127.0.0.1:{program.host_port(7002)}-:7002"
        print(f"Could not set up host forwarding rule '{forward}'", file=sys.stderr, flush=True)
        if plan.exits_late:
            os.close(0)
            signal.pause()
        sys.exit(1)
    program.run()
