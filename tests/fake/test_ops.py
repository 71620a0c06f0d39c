"""/health, /metrics, and errors that no route of ours makes."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
import trio

from supervisor.runs import usage
from supervisor.tee.facts import Technology
from supervisor.tee.judge import Layer
from tests.unit.test_alerts import check, promtool

if TYPE_CHECKING:
    from tests.support.world import Supervisor, World


async def test_health(world: World) -> None:
    async with world.serve(MANAGER_INSTANCE_ID="one") as supervisor:
        answer = await supervisor.http.get("/health")
        assert answer.status_code == 200
        health = answer.json()
        assert health.keys() == {
            *("status", "version", "commit", "description", "build_time", "instance_id")
        }
        assert health["status"] == "pass"
        assert health["instance_id"] == "one"
        assert re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+.*", health["version"])
        assert datetime.fromisoformat(health["build_time"]).tzinfo
        git = ["git", "-C", str(Path(__file__).parents[2]), "rev-parse", "HEAD"]
        head = await trio.run_process(git, capture_stdout=True)
        assert health["commit"] == head.stdout.decode().strip()


async def test_host(world: World) -> None:
    async with world.serve() as supervisor:
        rows = (await supervisor.http.get("/host")).json()["technologies"]
    assert list(rows) == [str(technology) for technology in Technology]
    for row in rows.values():
        assert list(row) == [str(layer) for layer in Layer]
        assert {tuple(cell) for cell in row.values()} == {("verdict", "found", "advice")}
    # Of this very supervisor: its QEMU is a stand-in, and its guests are emulated.
    assert rows["sev-snp"]["qemu"]["found"].startswith("QEMU 7.2.0 knows no sev-snp-guest")


async def test_instance_id_is_a_new_uuid_unless_set(world: World) -> None:
    ids = set()
    for _ in range(2):
        async with world.serve() as supervisor:
            ids.add(UUID((await supervisor.http.get("/health")).json()["instance_id"]))
    assert len(ids) == 2


async def metrics(supervisor: Supervisor) -> dict[str, float]:
    answer = await supervisor.http.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


async def test_metrics(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "_FRESH_S", 0)
    async with world.serve() as supervisor:
        before = await metrics(supervisor)
        assert before['qmp_supervisor_vms{state="running"}'] == 0
        assert before['qmp_supervisor_runs_total{outcome="answered"}'] == 0
        await supervisor.run()
        world.scenario(says="no", exits=1)
        await supervisor.post(b"1")
        after = await metrics(supervisor)
        assert after['qmp_supervisor_vms{state="running"}'] == 1
        assert after['qmp_supervisor_vms{state="crashed"}'] == 1
        assert after['qmp_supervisor_runs_total{outcome="answered"}'] == 1
        assert after['qmp_supervisor_runs_total{outcome="failed"}'] == 1
        assert after["qmp_supervisor_run_seconds_count"] == 1
        assert after["process_open_fds"] > 0
        assert after['qmp_supervisor_step_seconds_count{start="cold",step="relay"}'] == 1
        assert after['qmp_supervisor_events_total{event="relay"}'] >= 2
        assert after['qmp_supervisor_requests_total{status="200",wire="http"}'] == 2
        assert after["qmp_supervisor_tmp_free_bytes"] <= after["qmp_supervisor_tmp_size_bytes"]
        assert after["qmp_supervisor_event_log_bytes"] > 100


@promtool
async def test_metrics_as_prometheus_reads_them(world: World, tmp_path: Path) -> None:
    async with world.serve() as supervisor:
        await supervisor.run()
        file = tmp_path / "metrics"
        file.write_text((await supervisor.http.get("/metrics")).text)
    with file.open() as metrics_:
        check("check", "metrics", stdin=metrics_)


async def test_metrics_of_running_vms(world: World) -> None:
    """And of no others."""
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        found = await metrics(supervisor)
        assert found[f'qmp_supervisor_vm_memory_bytes{{vm="{vm_id}"}}'] > 2**20
        assert found[f'qmp_supervisor_vm_cpu_seconds_total{{vm="{vm_id}"}}'] > 0
        assert found[f'qmp_supervisor_vm_disk_written_bytes_total{{vm="{vm_id}"}}'] >= 0
        await supervisor.http.post(f"/vms/{vm_id}/shutdown", json={"mode": "force"})
        assert not [name for name in await metrics(supervisor) if vm_id in name]


async def test_ready(world: World) -> None:
    async with world.serve() as supervisor:
        templates = supervisor.running.service.vms.templates
        templates.looked = False
        answer = await supervisor.http.get("/ready")
        assert (answer.status_code, answer.json()["status"]) == (503, "fail")
        templates.looked = True
        assert (await supervisor.http.get("/ready")).json() == {"status": "pass"}


async def test_refused_runs_are_counted_by_reason(world: World) -> None:
    async with world.serve(MANAGER_MAX_VMS="1", MANAGER_QUEUE="0") as supervisor:
        await supervisor.run()
        assert (await supervisor.post(b"1")).status_code == 429
        after = await metrics(supervisor)
        assert after['qmp_supervisor_runs_refused_total{reason="queue-full"}'] == 1
        assert after['qmp_supervisor_runs_refused_total{reason="timeout"}'] == 0


@pytest.mark.parametrize(
    ("method", "path", "status", "advice"),
    [
        ("GET", "/nowhere", 404, "/vms/<vm_id>/status"),
        ("GET", "/run", 405, "POST"),
        ("POST", "/vms", 405, "GET"),
    ],
)
async def test_wrong_path_and_wrong_method_are_told_what_there_is(
    world: World, method: str, path: str, status: int, advice: str
) -> None:
    async with world.serve() as supervisor:
        answer = await supervisor.http.request(method, path)
        assert answer.status_code == status
        assert answer.headers["Content-Type"] == "application/problem+json"
        problem = answer.json()
        assert problem.keys() == {
            *("type", "title", "status", "detail", "instance", "advice", "request_id")
        }
        assert problem["instance"] == path
        assert path in problem["detail"]
        assert advice in problem["advice"]
        assert problem["type"].startswith("urn:qmp-supervisor:problem:")
        if status == 405:
            assert "Allow" in answer.headers


async def test_address_without_an_id_is_a_problem_like_any_other(world: World) -> None:
    async with world.serve() as supervisor:
        for method, path in (("GET", "/vms//status"), ("POST", "/vms//pause"), ("GET", "/vms/")):
            answer = await supervisor.http.request(method, path)
            assert (answer.status_code, path) == (404, path)
            assert answer.headers["Content-Type"] == "application/problem+json"
