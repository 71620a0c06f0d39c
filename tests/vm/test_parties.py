"""Parties who do not show each other what they bring, by the command, with a real guest."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from supervisor.pb import agent_pb2
from supervisor.pb.agent_pb2_grpc import AgentServiceStub
from tests.vm.conftest import PATIENCE_S, started_with_template
from tests.vm.test_agent_access import Caller, _code

if TYPE_CHECKING:
    from tests.vm.conftest import Supervisor

LINE = b"""
import csv, os, socket, sys

n = sx = sy = sxx = sxy = 0.0
with open(os.environ["DATASET_FILE"], newline="") as file:
    for row in csv.DictReader(file):
        x, y = float(row["x"]), float(row["y"])
        n, sx, sy, sxx, sxy = n + 1, sx + x, sy + y, sxx + x * x, sxy + x * y
slope = (n * sxy - sx * sy) / (n * sxx - sx * sx)
with socket.socket(socket.AF_UNIX) as result:
    result.connect(sys.argv[2])
    result.sendall(f"{int(n)} rows: {slope:.2f} x + {(sy - slope * sx) / n:.1f}".encode())
"""


def test_three_parties_and_an_owner(tmp_path: Path) -> None:
    (tmp_path / "line.py").write_bytes(LINE)
    (tmp_path / "computation.json").write_text("{}")
    random.seed(7)
    rows = [f"{x:.4f},{3 * x + 7 + random.gauss(0, 1):.4f}\n" for x in range(300_000)]
    (tmp_path / "points.csv").write_text("x,y\n" + "".join(rows))
    assert (tmp_path / "points.csv").stat().st_size > 5_000_000
    with started_with_template(MANAGER_AUTH="on") as supervisor:
        for name in ("owner", "alice", "bob", "carol"):
            token(supervisor, name, tmp_path)
        parties = ["--algorithm-by", "alice", "--data-by", "bob", "--result-for", "carol"]
        command(supervisor, tmp_path, "owner", "run", *parties, "computation.json")
        (vm,) = supervisor.get("/vms")["vms"]
        vm_id = vm["id"]
        command(supervisor, tmp_path, "alice", "send", vm_id, "--algorithm", "line.py")
        command(supervisor, tmp_path, "bob", "send", vm_id, "--data", "points.csv")
        for name in ("owner", "alice", "bob"):
            words = command(supervisor, tmp_path, name, "compute", "--vm", vm_id, code=1)
            assert "is for carol" in words
        told = command(supervisor, tmp_path, "carol", "compute", "--vm", vm_id, "-o", "result")
        assert "computed over 1 data set in" in told
        assert (tmp_path / "result").read_text() == "300000 rows: 3.00 x + 7.0"
        # Nobody was given the agent's credential, so its port is of no use.
        result = agent_pb2.ResultRequest()
        assert _direct(vm, result) == "UNAUTHENTICATED"
        command(supervisor, tmp_path, "owner", "shutdown", "--force", vm_id)
        again = tmp_path / "again"
        command(supervisor, tmp_path, "carol", "result", vm_id, "-o", str(again))
        assert again.read_bytes() == (tmp_path / "result").read_bytes()


def _direct(vm: dict[str, object], message: object) -> str:
    import grpc

    port = next(one["host_port"] for one in Caller(vm).vm["forwards"] if one["guest_port"] == 7002)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        return _code(AgentServiceStub(channel).Result, message, (), PATIENCE_S)


def token(supervisor: Supervisor, name: str, directory: Path) -> None:
    environ = os.environ | {"MANAGER_QEMU_TMP_FILE_LOC": str(supervisor.tmp)}
    done = subprocess.run(
        [str(Path(sys.prefix, "bin", "qmp-supervisor")), "token", "create", name, "--role", "run"],
        env=environ,
        check=True,
        capture_output=True,
    )
    (directory / f"{name}.token").write_bytes(done.stdout)


def command(supervisor: Supervisor, directory: Path, name: str, *words: str, code: int = 0) -> str:
    """What the command tells a person."""
    url = str(supervisor.http.base_url)
    who = ["--url", url, "--token-file", f"{name}.token"]
    program = str(Path(sys.prefix, "bin", "qmp-supervisor"))
    done = subprocess.run(
        [program, words[0], *who, *words[1:]],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == code, (words, done.stdout, done.stderr)
    return done.stderr
