"""What the supervisor adds to QEMU: POST /run against a bare QEMU of the same command line.

    scripts/bench boot [--rounds 5] [--json FILE]

In each round a VM is run through a supervisor, from the request to the agent's answer, and
then QEMU alone is started with that VM's argv, from exec to the agent's first answer. Both
answer the same computation; the ratio of the medians is what counts, for seconds differ
from machine to machine and from day to day. Settings come from the environment and, if it is
there, from supervisor.env.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import httpx
from rich.console import Console
from rich.table import Table

from supervisor.cli.environment import load_config
from supervisor.pb import agent_pb2, agent_pb2_grpc
from supervisor.rundir import make_overlay

if TYPE_CHECKING:
    import argparse

COMPUTATION = json.loads((Path(__file__).parents[1] / "computation.json").read_text())[
    "computation"
]
PATIENCE_S = 300.0
SETTINGS = "supervisor.env" if Path("supervisor.env").exists() else None


@contextlib.contextmanager
def supervisor(tmp: Path):
    """A supervisor of its own, and an HTTP client of it."""
    environ = os.environ | {
        "MANAGER_HTTP_PORT": "0",
        "MANAGER_GRPC_PORT": "0",
        "MANAGER_QEMU_TMP_FILE_LOC": str(tmp),
    }
    command = [sys.executable, "-m", "supervisor", "serve"]
    command += ["--env-file", SETTINGS] if SETTINGS else []
    process = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            entry = json.loads(line)
            if entry["message"] == "ready":
                break
        else:
            sys.exit("bench: the supervisor did not start")
        url = f"http://127.0.0.1:{entry['http_port']}"
        with httpx.Client(base_url=url, timeout=PATIENCE_S, trust_env=False) as client:
            yield client
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def supervised(client: httpx.Client) -> tuple[float, dict]:
    """Seconds from request to answer, and all that is known of the VM, which is ended."""
    started = time.perf_counter()
    answer = client.post("/run", json={"computation": COMPUTATION})
    seconds = time.perf_counter() - started
    answer.raise_for_status()
    shown = client.get(f"/vms/{answer.json()['id']}").json()
    client.delete(f"/vms/{shown['id']}").raise_for_status()
    return seconds, shown


def bare(shown: dict) -> float:
    """Seconds from exec to the agent's first answer, of QEMU alone with a VM's argv."""
    directory = Path(shown["directory"])
    config = load_config(SETTINGS).qemu
    directory.mkdir()
    shutil.copyfile(config.firmware.vars_file, directory / "firmware_vars.fd")
    make_overlay(config.disk, directory / "overlay.qcow2")
    port = shown["agent"]["address"]
    started = time.perf_counter()
    qemu = subprocess.Popen(shown["argv"], stdin=subprocess.DEVNULL)
    try:
        while not answers(port):
            if qemu.poll() is not None or time.perf_counter() - started > PATIENCE_S:
                sys.exit("bench: the bare QEMU's agent did not answer")
        return time.perf_counter() - started
    finally:
        qemu.kill()
        qemu.wait()
        shutil.rmtree(directory)


def answers(address: str) -> bool:
    """Whether the agent answers now. A new channel each time: none waits out a failure."""
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            # An attempt that was made too early hangs in QEMU's user network.
            grpc.channel_ready_future(channel).result(timeout=0.25)
        except grpc.FutureTimeoutError:
            return False
        agent_pb2_grpc.AgentServiceStub(channel).Run(
            agent_pb2.RunRequest(computation=bytes(COMPUTATION)), timeout=PATIENCE_S
        )
        return True


def report(with_us: list[float], alone: list[float], phases: list[dict[str, float]]) -> dict:
    result = {
        "rounds": len(alone),
        "post_run_s": with_us,
        "bare_qemu_s": alone,
        "ratio_of_medians": statistics.median(with_us) / statistics.median(alone),
        "phases_median_s": {
            name: statistics.median(one[name] for one in phases) for name in phases[0]
        },
    }
    table = Table("", "median", "min", "max", title="seconds to the agent's answer")
    for label, values in (("POST /run", with_us), ("bare QEMU", alone)):
        median = statistics.median(values)
        table.add_row(label, f"{median:.2f}", f"{min(values):.2f}", f"{max(values):.2f}")
    steps = Table("phase", "reached after", title="median phases of POST /run, in seconds")
    for name, at in result["phases_median_s"].items():
        steps.add_row(name, f"{at:.3f}")
    console = Console()
    console.print(table, steps, f"ratio of the medians: {result['ratio_of_medians']:.3f}")
    return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5)


def main(wanted: argparse.Namespace) -> None:
    with_us, alone, phases = [], [], []
    with tempfile.TemporaryDirectory(prefix="qs-", dir="/tmp") as tmp, supervisor(Path(tmp)) as us:
        for number in range(1, wanted.rounds + 1):
            seconds, shown = supervised(us)
            with_us.append(seconds)
            phases.append(shown["phases_s"])
            alone.append(bare(shown))
            print(f"round {number}: POST /run {seconds:.2f} s, bare QEMU {alone[-1]:.2f} s")
    result = report(with_us, alone, phases)
    if wanted.json:
        wanted.json.write_text(json.dumps(result, indent=2) + "\n")
