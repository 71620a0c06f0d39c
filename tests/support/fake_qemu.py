"""A small program in the place of QEMU: QMP on the passed socket, and an agent behind a forward.

It reads ``scenario.json`` beside itself, tells the test what happens over ``control`` there
and takes orders over it, so that no test has to wait for a time to pass. It dies like QEMU:
at once, its ports with it. What it says and when is that of QEMU 7.2, measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from typing import TYPE_CHECKING, Any

from tests.support import migration, scenario

if TYPE_CHECKING:
    from pathlib import Path

_GREETING = {
    "QMP": {
        "version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": "stand-in"},
        "capabilities": [],
    }
}


class FakeQemu:
    """One run of the program."""

    def __init__(self, directory: Path, argv: list[str]) -> None:
        self.directory = directory
        self.argv = argv
        self.plan = scenario.read(directory / "scenario.json")
        self.vm_id = argv[argv.index("-uuid") + 1]
        self.incoming = "-incoming" in argv
        self.status = "inmigrate" if self.incoming else "prelaunch"
        self.presses = 0
        #: As on the command line, and QEMU's own.
        self.actions = {"shutdown": "poweroff", "reboot": "shutdown", "panic": "shutdown"}
        self.swallows = set(self.plan.swallows)
        self.clients: set[asyncio.StreamWriter] = set()
        self.control: asyncio.StreamWriter | None = None
        self.agent: Any = None
        #: What QMP's client passed and has not named yet, and what it has.
        self.passed: list[int] = []
        self.named: dict[str, int] = {}
        self.capabilities: set[str] = set()
        self.ram = migration.ram(argv)
        #: Of the guest that runs: it is to be copied, or was and does not know that yet.
        self.prepared = False
        self.renewed_as = ""
        #: Which agent it has.
        self.kind = self.plan.agent

    def host_port(self, guest_port: int) -> int:
        """The host port that leads to ``guest_port``."""
        netdev = self.argv[self.argv.index("-netdev") + 1]
        match = re.search(rf"hostfwd=tcp:[^:]*:(\d+)-:{guest_port}\b", netdev)
        assert match, netdev
        return int(match[1])

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        reader, self.control = await asyncio.open_unix_connection(self.directory / "control")
        self.tell("started", vm=self.vm_id, pid=os.getpid())
        loop.add_signal_handler(signal.SIGTERM, self.sigterm)
        listener = migration.Listener(fileno=0)
        listener.setblocking(False)
        self.passed = listener.passed
        server = await asyncio.start_unix_server(self.serve_qmp, sock=listener)
        async with server:
            while line := await reader.readline():
                self.obey(**json.loads(line))
        # The test is gone.
        os._exit(3)

    # --- the test's side ---

    def tell(self, what: str, **more: object) -> None:
        assert self.control is not None
        self.control.write(json.dumps({"saw": what, **more}).encode() + b"\n")

    def obey(self, do: str, **more: Any) -> None:
        match do:
            case "emit":
                self.emit(more["event"], more.get("data"))
            case "run":
                self.run_guest()
            case "set-status":
                self.status = more["status"]
            case "swallow":
                self.swallows = set(more["commands"])
            case "power-off":
                self.shut_down("guest-shutdown")
            case "reboot":
                self.shut_down("guest-reset")
            case "panic":
                self.panic()
            case "hold":
                self.hold(more["status"])
            case "start-agent":
                self.start_agent(more["kind"])
            case "raw":
                for client in self.clients:
                    client.write(more["text"].encode())
            case "exit":
                self.exit(more["code"])
            case "hang-up":
                for client in self.clients:
                    client.close()

    # --- QMP ---

    async def serve_qmp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.plan.greeting == "exit":
            self.exit(7)
        if self.plan.greeting == "nothing":
            self.tell("connected")
            return
        self.send(writer, _GREETING)
        self.clients.add(writer)
        try:
            await self.converse(reader, writer)
        except ConnectionError:
            pass  # given up at the other end, before its greeting perhaps
        finally:
            self.clients.discard(writer)
            writer.close()

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder, text = json.JSONDecoder(), ""
        while data := await reader.read(65536):
            # A stream of objects, not of lines: the supervisor's library sends no line ends.
            text += data.decode()
            while text := text.lstrip():
                try:
                    message, end = decoder.raw_decode(text)
                except ValueError:
                    break
                text = text[end:]
                self.execute(writer, message)

    def send(self, writer: asyncio.StreamWriter, message: object) -> None:
        writer.write(json.dumps(message).encode() + b"\r\n")

    def emit(self, event: str, data: object = None) -> None:
        message = {"event": event, "timestamp": {"seconds": 0, "microseconds": 0}}
        for client in self.clients:
            self.send(client, message | ({"data": data} if data else {}))

    def execute(self, writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
        command, known = message["execute"], {"id": message["id"]} if "id" in message else {}
        self.tell(command)
        if command in self.swallows:
            self.tell("swallowed", command=command)
            return
        if command in self.plan.refuses:
            kind, text = self.plan.refuses[command]
            self.send(writer, {"error": {"class": kind, "desc": text}, **known})
            return
        if command == "cont" and self.status == "shutdown":
            desc = "Resetting the Virtual Machine is required"
            self.send(writer, {"error": {"class": "GenericError", "desc": desc}, **known})
            return
        if command == "getfd" and not self.passed:
            desc = "No file descriptor supplied via SCM_RIGHTS"
            self.send(writer, {"error": {"class": "GenericError", "desc": desc}, **known})
            return
        if command == "quit" and not self.plan.ignores_quit:
            # Before the answer, and without a STOP.
            self.emit("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})
        if command == "system_reset" and self.actions["reboot"] == "reset":
            self.reset()
        running = self.status == "running"
        answers = {
            "query-status": {"status": self.status, "running": running, "singlestep": False},
            "query-sev": self.plan.sev,
        }
        self.send(writer, {"return": answers.get(command, {}), **known})
        match command:
            case "system_reset" if self.actions["reboot"] == "shutdown":
                self.shut_down("host-qmp-system-reset")
            case "set-action":
                self.actions |= message["arguments"]
            case "stop":
                self.hold("paused")
            case "migrate-set-capabilities":
                wanted = message["arguments"]["capabilities"]
                self.capabilities |= {one["capability"] for one in wanted if one["state"]}
            case "getfd":
                self.named[message["arguments"]["fdname"]] = self.passed.pop(0)
            case "migrate":
                self.migrate(self.named[message["arguments"]["uri"].removeprefix("fd:")])
            case "migrate-incoming":
                self.restore(self.named[message["arguments"]["uri"].removeprefix("fd:")])
            case "cont" if not running and self.status != "inmigrate":
                self.run_guest()
            case "system_wakeup":
                self.status = "running"
                self.emit("WAKEUP")
            case "system_powerdown":
                self.emit("POWERDOWN")
                self.presses += 1
                if running and self.presses > self.plan.deaf_to_powerdown:
                    self.shut_down("guest-shutdown")
            case "quit" if not self.plan.ignores_quit:
                self.exit(0)

    def run_guest(self) -> None:
        if self.status == "prelaunch" and self.ram:
            self.ram.boot()
        self.status = "running"
        self.emit("RESUME")
        self.start_agent(self.kind)

    def hold(self, status: str) -> None:
        if self.status == "running":
            self.status = status
            self.emit("STOP")

    def reset(self) -> None:
        self.emit("RESET", {"guest": False, "reason": "host-qmp-system-reset"})
        self.stop_agent()
        self.prepared, self.renewed_as, self.kind = False, "", self.plan.agent
        if self.status == "running":
            self.start_agent(self.kind)
        else:
            self.status = "prelaunch"  # also a guest that has run: no event tells of it

    # --- to a file and back ---

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
                return
        try:
            if self.plan.restore == "fails":
                raise migration.Refused("load of migration failed: Input/output error")
            self.prepared = migration.load(descriptor, self.argv, self.ram, self.capabilities)
        except migration.Refused as error:
            self.emit_migration("failed")
            print(f"qemu-system-x86_64: {error}", file=sys.stderr, flush=True)
            self.exit(1)
            return
        self.kind = self.plan.clones_agent or self.plan.agent
        self.status = "paused"
        self.emit_migration("completed")

    # --- the end ---

    def sigterm(self) -> None:
        self.tell("SIGTERM")
        if not self.plan.ignores_sigterm:
            # An action of pause is for the guest's own shutdown alone.
            self.emit("SHUTDOWN", {"guest": False, "reason": "host-signal"})
            self.exit(0)

    def shut_down(self, reason: str) -> None:
        """The guest's own: power off, or a reboot."""
        self.emit("SHUTDOWN", {"guest": True, "reason": reason})
        if self.actions["shutdown"] == "pause":
            self.status = "shutdown"
            self.emit("STOP")
        else:
            self.exit(0)

    def panic(self) -> None:
        if self.actions["panic"] == "pause":
            self.emit("GUEST_PANICKED", {"action": "pause"})
            self.status = "guest-panicked"
            self.emit("STOP")
        else:
            self.emit("GUEST_PANICKED", {"action": "poweroff"})
            self.emit("SHUTDOWN", {"guest": True, "reason": "guest-panic"})
            self.exit(0)

    def exit(self, code: int) -> None:
        """Exit once everything written has gone out; a negative code is a signal to die by."""
        asyncio.get_running_loop().create_task(self._exit(code))

    async def _exit(self, code: int) -> None:
        writers = [*self.clients, *([self.control] if self.control else [])]
        for writer in writers:
            with contextlib.suppress(OSError):
                await writer.drain()
        if code < 0:
            os.kill(os.getpid(), -code)
        os._exit(code)

    # --- the guest ---

    def start_agent(self, kind: str) -> None:
        if kind == "none" or self.agent:
            return
        # Takes a third of a second to import, which a program that is to fail need not spend.
        from tests.support import fake_agent

        loop = asyncio.get_running_loop()

        def tell(what: str, **more: object) -> None:
            loop.call_soon_threadsafe(lambda: self.tell(what, **more))

        self.agent = fake_agent.start(
            kind, self.plan, self.host_port(7002), self.directory, tell, self
        )

    def stop_agent(self) -> None:
        if self.agent:
            self.agent.stop(None).wait()
            self.agent = None


def main(directory: Path) -> None:
    if "-uuid" not in sys.argv:
        # The probe for KVM, or somebody who asks for the version.
        sys.exit(1)
    plan = scenario.read(directory / "scenario.json")
    sys.stderr.write(plan.says)
    if plan.exits is not None:
        sys.exit(plan.exits)
    try:
        program = FakeQemu(directory, sys.argv)
    except migration.Refused as error:
        sys.exit(f"qemu-system-x86_64: {error}")
    starts = directory / f"starts-{program.vm_id}"
    with starts.open("a") as file:
        file.write(".")
    if starts.stat().st_size <= plan.port_races:
        forward = f"tcp:127.0.0.1:{program.host_port(7002)}-:7002"
        print(f"Could not set up host forwarding rule '{forward}'", file=sys.stderr)
        sys.exit(1)
    asyncio.run(program.run())
