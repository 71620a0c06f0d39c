"""The commands as programs, against a supervisor that runs."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trustme

from supervisor.state.status import Status, VmState
from tests.support.world import PATIENCE_S

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from tests.support.world import Supervisor, World

COMPUTATION = b'{"id": "1"}'
DIGEST = hashlib.sha256(COMPUTATION).hexdigest()


@attrs.frozen
class Cli:
    """``qmp-supervisor`` with this environment added to one that holds no settings."""

    environ: dict[str, str]

    def command(self, *words: str) -> dict[str, Any]:
        clean = {name: value for name, value in os.environ.items() if not _is_setting(name)}
        return {
            "command": [sys.executable, "-m", "supervisor", *words],
            "env": clean | self.environ,
        }

    async def __call__(
        self, *words: str, stdin: bytes = b"", check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        with trio.fail_after(PATIENCE_S):
            done = await trio.run_process(
                **self.command(*words),
                stdin=stdin,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
        assert not check or done.returncode == 0, done.stderr
        return done

    async def json(self, *words: str, stdin: bytes = b"") -> Any:
        return json.loads((await self(*words, "--json", stdin=stdin)).stdout)


def _is_setting(name: str) -> bool:
    return name.startswith(("MANAGER_", "AGENT_GRPC_", "QMP_SUPERVISOR_"))


def cli(supervisor: Supervisor) -> Cli:
    return Cli({"QMP_SUPERVISOR_URL": f"http://127.0.0.1:{supervisor.running.http_port}"})


async def test_run_prints_the_reply_and_nothing_else(world: World) -> None:
    async with world.serve() as supervisor:
        done = await cli(supervisor)("run", "-", stdin=COMPUTATION)
        vm = supervisor.only_vm()
        assert done.stdout.decode() == f"{DIGEST}\n"
        lines = done.stderr.decode().splitlines()
        assert lines[0] == f"VM {vm.id}"
        assert [line.split()[0] for line in lines[1:9]] == list(vm.record.phases)
        seconds = [float(line.split()[1]) for line in lines[1:9]]
        assert sum(seconds) == pytest.approx(vm.record.phases["relay"], abs=0.01)
        forward = vm.record.forwards[2]
        assert f"  127.0.0.1:{forward.host_port} -> guest 7002" in lines
        assert lines[-1] == f"end it with: qmp-supervisor shutdown {vm.id[:8]}"


async def test_run_says_why_it_waits_for_the_agent(world: World) -> None:
    world.scenario(agent="none")
    world.hasten(agent_look_s=0.01, agent_doubt_s=0.05)
    async with world.serve() as supervisor, trio.open_nursery() as nursery:
        command = cli(supervisor).command("run", "-")
        process: trio.Process = await nursery.start(
            partial(trio.run_process, **command, stdin=COMPUTATION, stderr=-1)
        )
        guest = await world.guest()
        assert process.stderr
        said = b""
        while b"waiting for the agent: the guest's network is up" not in said:
            said += await process.stderr.receive_some()
        await guest.order("start-agent", kind="recorder")
        async for data in process.stderr:
            said += data
    assert said.count(b"waiting for the agent") == 1


async def test_run_json_has_the_members_of_post_run(world: World, tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"computation": list(COMPUTATION)}))
    async with world.serve() as supervisor:
        posted = await supervisor.run(COMPUTATION)
        answer = await cli(supervisor).json("run", str(request))
        assert answer.keys() == posted.keys()
        assert answer["computation"] == DIGEST
        assert answer["state"] == "running"
        assert await supervisor.vm(answer["id"]).read_reply() == DIGEST


async def test_run_names_a_wrong_member(world: World) -> None:
    async with world.serve() as supervisor:
        body = b'{"computation": [1, 256]}'
        done = await cli(supervisor)("run", "-", stdin=body, check=False)
        assert done.returncode == 1
        expected = "qmp-supervisor: computation[1] is 256, not a number from 0 to 255\n"
        assert done.stderr.decode() == expected


async def test_run_says_why_an_agent_failed(world: World) -> None:
    world.scenario(agent="status", status=("RESOURCE_EXHAUSTED", "no room"))
    async with world.serve() as supervisor:
        done = await cli(supervisor)("run", "-", stdin=COMPUTATION, check=False)
        assert done.returncode == 1
        assert done.stdout == b""
        assert b"answered RESOURCE_EXHAUSTED: no room" in done.stderr
        assert done.stderr.decode().splitlines()[-1].count("VM") == 1


async def test_run_says_why_qemu_did_not_start(world: World) -> None:
    world.scenario(says="no such machine", exits=1)
    async with world.serve() as supervisor:
        done = await cli(supervisor)("run", "-", stdin=COMPUTATION, check=False)
        assert done.returncode == 1
        assert b"no such machine" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_run_interrupted_ends_the_vm(world: World, number: signal.Signals) -> None:
    world.scenario(agent="silent")
    async with world.serve() as supervisor, trio.open_nursery() as nursery:
        options = cli(supervisor).command("run", "-")
        process = await nursery.start(
            partial(trio.run_process, **options, stdin=COMPUTATION, stderr=-1, check=False)
        )
        guest = await world.guest()
        await guest.until("Run")
        process.send_signal(number)
        with trio.fail_after(PATIENCE_S):
            assert await process.wait() == 128 + number
        assert supervisor.vm(guest.vm_id).status.state is VmState.SHUTOFF
        assert guest.count("system_powerdown") == 0


async def test_ls_show_shutdown_rm(world: World) -> None:
    async with world.serve() as supervisor:
        run = cli(supervisor)
        first, second = [await supervisor.begin(COMPUTATION) for _ in range(2)]
        await supervisor.wait_state(first, "running")
        await supervisor.wait_state(second, "running")
        listed = await run.json("ls")
        assert [vm["id"] for vm in listed["vms"]] == [first, second]
        rows = (await run("ls")).stdout.decode().splitlines()
        headings = ["ID", "FOR", "STATE", "REASON", "OUTCOME", "MONITOR", "AGENT", "UP", "FORWARDS"]
        assert rows[0].split() == headings
        assert [row.split()[:3] for row in rows[1:]] == [
            [first, "run", "running"],
            [second, "run", "running"],
        ]

        shown = (await run("show", first[:13])).stdout.decode()
        assert shown.startswith(f"id        {first}\nstate     running (running)\n")
        assert shown.endswith(f"{shlex.join(supervisor.vm(first).record.command)}\n")
        assert (await run.json("show", first))["id"] == first

        rows = (await run("ls", "-a")).stdout.decode().splitlines()
        assert rows[0].split() == [*headings[:-1], "CREATED", "ENDED", "FORWARDS"]

        ended = (await run("shutdown", first)).stdout.decode()
        assert ended == f"{first} shutoff (guest-shutdown)\n"
        assert (await run.json("shutdown", second, "--force"))["reason"] == "host-qmp-quit"
        assert (await run("rm", first)).stdout.decode() == f"{first}\n"
        assert [vm.id for vm in supervisor.running.service.vms] == [second]
        row = (await run("ls", "-a")).stdout.decode().splitlines()[1]
        listed = await run.json("ls", "-a")
        assert listed["vms"][0]["ended_at"] in row


async def test_https(world: World, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    client = authority.issue_cert("client@test")
    files = {
        "ca.pem": authority.cert_pem,
        "cert.pem": issued.cert_chain_pems[0],
        "key.pem": issued.private_key_pem,
        "client.pem": client.cert_chain_pems[0],
        "client-key.pem": client.private_key_pem,
    }
    paths = {}
    for name, blob in files.items():
        paths[name] = str(tmp_path / name)
        blob.write_to_path(paths[name])
    async with world.serve(
        MANAGER_HTTP_SERVER_CERT=paths["cert.pem"],
        MANAGER_HTTP_SERVER_KEY=paths["key.pem"],
        MANAGER_HTTP_CLIENT_CA_CERTS=paths["ca.pem"],
    ) as supervisor:
        run = Cli({"QMP_SUPERVISOR_URL": f"https://localhost:{supervisor.running.http_port}"})
        trusting = ("--cacert", paths["ca.pem"])
        known = ("--cert", paths["client.pem"], "--key", paths["client-key.pem"])
        assert await run.json("ls", *trusting, *known) == {"vms": [], "next": None}
        distrusting = await run("ls", check=False)
        assert distrusting.returncode == 1
        assert b"--cacert" in distrusting.stderr
        unknown = await run("ls", *trusting, check=False)
        assert unknown.returncode == 1
        assert b"--cert" in unknown.stderr
        plain = Cli({"QMP_SUPERVISOR_URL": f"http://localhost:{supervisor.running.http_port}"})
        told = await plain("ls", check=False)
        assert b"its URL begins with https://" in told.stderr


async def test_https_to_a_supervisor_without_tls(world: World) -> None:
    async with world.serve() as supervisor:
        run = Cli({"QMP_SUPERVISOR_URL": f"https://localhost:{supervisor.running.http_port}"})
        told = await run("ls", check=False)
        assert b"its URL begins with http://" in told.stderr


async def test_doctor_finds_a_supervisor_at_its_port(world: World) -> None:
    async with world.serve() as supervisor:
        port = str(supervisor.running.http_port)
        done = await Cli(world.environ(MANAGER_HTTP_PORT=port))("doctor", "--json", check=False)
        checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
        assert f"127.0.0.1:{port}" in checks["HTTP port"]["detail"]
        rows = {technology for check in checks.values() for technology in check["cells"]}
        assert "tdx" in rows
        # Only the port keeps VMs from starting: the stand-in answers all that is asked of QEMU.
        failed = [name for name, check in checks.items() if check["verdict"] == "fail"]
        assert failed == ["HTTP port"]
        assert done.returncode == 1


async def test_the_printed_command_runs(world: World) -> None:
    """Pasted into a shell as it is, the line starts the program on files that are there."""
    done = await Cli(world.environ())("command", "--prepare")
    line = done.stdout.decode()
    words = shlex.split(line)
    vm_id = words[words.index("-uuid") + 1]
    assert {file.name for file in (world.tmp / vm_id).iterdir()} == {
        "overlay.qcow2",
        "firmware_vars.fd",
        "serial.log",
    }
    assert "-S" not in words
    assert words[0] == str(world.qemu)


async def test_the_explained_preparation_is_what_prepare_does(world: World) -> None:
    done = await Cli(world.environ())("command")
    typed = [line for line in done.stderr.decode().splitlines() if line.startswith("  ")]
    await trio.run_process("\n".join(["set -e", *typed]), shell=True)
    words = shlex.split(done.stdout.decode())
    directory = world.tmp / words[words.index("-uuid") + 1]
    assert (directory / "overlay.qcow2").exists()
    variables = (world.directory / "VARS.fd").read_bytes()
    assert (directory / "firmware_vars.fd").read_bytes() == variables


async def on_a_terminal(supervisor: Supervisor, *words: str) -> str:
    """What a terminal gets of a command: all that it writes, to either stream."""
    master, slave = os.openpty()
    try:
        with trio.fail_after(PATIENCE_S):
            await trio.run_process(
                **cli(supervisor).command(*words), stdin=slave, stdout=slave, stderr=slave
            )
        os.set_blocking(master, False)
        return os.read(master, 2**16).decode()
    finally:
        os.close(slave)
        os.close(master)


@pytest.mark.parametrize(
    "hostile",
    ["\x1b]0;root@host\x07", '{"a": "\x9b2J"}', "\x1b[2J", '{"a": "\\u001b]0;x\\u0007"}'],
)
async def test_a_terminal_gets_no_control_sequence_of_a_guest(world: World, hostile: str) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        vm = supervisor.vm(vm_id)
        vm.dir.reply.write_text(f"before{hostile}after")
        shown = await on_a_terminal(supervisor, "reply", vm_id)
        assert "before" in shown
        vm.record = attrs.evolve(vm.record, error=f"before{hostile}after")
        shown += await on_a_terminal(supervisor, "show", vm_id)
        shown += await on_a_terminal(supervisor, "show", vm_id, "--json")
        assert shown.count("before") == 3
        for sequence in ("\x1b]", "\x07", "\x9b", "\x1b[2J"):
            assert sequence not in shown
        piped = await cli(supervisor)("reply", vm_id)
        assert piped.stdout.decode() == f"before{hostile}after\n"


async def test_a_terminal_gets_no_control_sequence_of_a_vms_reason(world: World) -> None:
    hostile = "before\x1b]0;root@host\x07[bold]\nforged after"
    # A heartbeat would find out what QEMU really says.
    async with world.serve(MANAGER_HEARTBEAT="1h") as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        # As a supervisor shows it that let QEMU say it.
        vm.record = attrs.evolve(vm.record, status=Status(VmState.PAUSED, hostile), error="\x1b[2J")
        for words in (("ls",), ("show", vm.id), ("pause", vm.id), ("ls", "--json")):
            shown = await on_a_terminal(supervisor, *words)
            assert "before" in shown
            assert "\x1b]" not in shown
            assert "\x07" not in shown
        shown = await on_a_terminal(supervisor, "pause", vm.id)
        assert shown.strip() == f"{vm.id} paused (before[bold] forged after)"


async def test_json_reply_on_a_terminal_is_clean_after_it_was_parsed(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        supervisor.vm(vm_id).dir.reply.write_text('{"a": "\\u009b2J\\u001b]0;x\\u0007"}')
        shown = await on_a_terminal(supervisor, "reply", vm_id)
        assert '"a"' in shown
        for sequence in ("\x1b]", "\x07", "\x9b"):
            assert sequence not in shown
