"""What is measured of a running supervisor: one function a question, figures for answers."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from scripts.benchmarks import bare, client
from scripts.benchmarks.figures import Figure, milliseconds, skipped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scripts.benchmarks.host import Host, Supervisor

_PATIENCE_S = 180.0
_POLL_S = 0.05
#: Between one VM's end and the next: a few of them, but no burst.
_GAP_S = 0.03
_STATUS_CONNECTIONS = 4
_STATUS_A_SECOND = 200
#: How often Prometheus asks, and how often it is asked here: nothing is then as fresh as a second.
_SCRAPE_EVERY_S, _SCRAPE_AGAIN_S = 15, 1.5
_RESTRAINT = 5
_ENDED = ("shutdown", "shutoff", "crashed")


def start_vms(supervisor: Supervisor, count: int) -> list[str]:
    """Run so many VMs; their ids, once each VM's agent has answered."""
    answers = client.in_parallel(supervisor.port, [client.post_run()] * count)
    _refuse([body for status, body in answers if status != 200])
    return [body["id"] for _, body in answers]


def begin_vms(supervisor: Supervisor, count: int) -> list[str]:
    """The same for guests without an agent: once each guest runs."""
    answers = client.in_parallel(supervisor.port, [client.post_run("respond-async")] * count)
    _refuse([body for status, body in answers if status != 202])
    deadline = time.monotonic() + _PATIENCE_S
    while any(one["state"] != "running" for one in client.vms(supervisor.port)):
        if time.monotonic() > deadline:
            raise SystemExit("bench: not all VMs came up")
        time.sleep(_POLL_S)
    return [body["id"] for _, body in answers]


def _refuse(problems: list[Any]) -> None:
    if problems:
        raise SystemExit(f"bench: {len(problems)} runs failed, the first: {problems[0]}")


def memory(supervisor: Supervisor, before: int, descriptors: int, count: int) -> Figure:
    """What each VM takes of the supervisor's memory."""
    after, opened = supervisor.memory(), supervisor.descriptors()
    each = (opened - descriptors) / count
    return Figure(
        "supervisor's memory a VM",
        "kB",
        (after - before) / count / 1000,
        100,
        detail=f"PSS {before / 1e6:.0f} MB before, {after / 1e6:.0f} MB with {count} VMs;"
        f" {each:.1f} descriptors a VM, {opened} in all",
        more={"before": before, "after": after, "vms": count, "descriptors": opened},
    )


def idle(supervisor: Supervisor, count: int, seconds: float) -> Figure:
    """What a core has to do for VMs to which nothing happens."""
    cpu, started = supervisor.cpu(), time.monotonic()
    time.sleep(seconds)
    used, took = supervisor.cpu() - cpu, time.monotonic() - started
    return Figure(
        "idle CPU",
        "% of a core",
        100 * used / took,
        2,
        detail=f"{used:.2f} s of {took:.0f} s, {count} VMs",
        more={"cpu_s": used, "seconds": took},
    )


def scrapes(supervisor: Supervisor, count: int, seconds: float, idle: Figure) -> Iterator[Figure]:
    """How long Prometheus waits for ``/metrics``, and what it costs beside idle VMs.

    :param seconds: as long as `idle` was measured: what is done for idle VMs comes in bursts
    :param idle: as `idle` has it, of the same supervisor
    """
    assert idle.value is not None
    took: list[float] = []
    cpu, started = supervisor.cpu(), time.monotonic()
    with client.Connection(supervisor.port) as connection:
        for number in range(int(seconds / _SCRAPE_AGAIN_S)):
            time.sleep(max(0.0, started + number * _SCRAPE_AGAIN_S - time.monotonic()))
            asked = time.perf_counter()
            status, body = connection.ask(client.get("/metrics"))
            took.append(time.perf_counter() - asked)
            if status != 200:
                raise SystemExit(f"bench: GET /metrics answered {status}")
    time.sleep(max(0.0, started + seconds - time.monotonic()))
    used = supervisor.cpu() - cpu - idle.value / 100 * (time.monotonic() - started)
    times = milliseconds(took)
    yield Figure(
        "GET /metrics, p50",
        "ms",
        times["p50_ms"],
        250,
        detail=f"{len(took)} of them, longest {times['max_ms']:.0f} ms; {count} VMs,"
        f" {len(body) / 1e6:.1f} MB",
        more=times,
    )
    yield Figure(
        f"a scrape each {_SCRAPE_EVERY_S} s",
        "% of a core",
        100 * used / len(took) / _SCRAPE_EVERY_S,
        1,
        detail=f"{1000 * used / len(took):.0f} ms of CPU each, beside idle VMs",
    )


def statuses(supervisor: Supervisor, ids: list[str], seconds: float) -> Figure:
    """How many ``GET /vms/<id>/status`` a second, and how long one takes."""
    requests = [client.get(f"/vms/{vm_id}/status") for vm_id in ids]
    cpu = supervisor.cpu()
    load = client.as_fast_as_possible(supervisor.port, requests, _STATUS_CONNECTIONS, seconds)
    busy = 100 * (supervisor.cpu() - cpu) / load.seconds
    times = milliseconds(load.latencies)
    with bare.server() as port:
        floor = client.as_fast_as_possible(port, requests[:1], _STATUS_CONNECTIONS, seconds).rate
    return Figure(
        "GET /vms/<id>/status",
        "/s",
        load.rate,
        2000,
        at_least=True,
        detail=f"{_STATUS_CONNECTIONS} connections, {len(ids)} VMs in turn;"
        f" p50 {times['p50_ms']:.2f}, p99 {times['p99_ms']:.2f} ms; {load.wrong} wrong;"
        f" supervisor at {busy:.0f} % of a core; the same HTTP server with nothing on it:"
        f" {floor:.0f} /s, so {load.rate / floor:.2f} of what it can",
        more={
            **times,
            "requests": len(load.latencies),
            "wrong": load.wrong,
            "cpu": busy,
            "bare_server": floor,
        },
    )


def under_load(
    supervisor: Supervisor, ids: list[str], rate: float, seconds: float
) -> tuple[Figure, list[str]]:
    """Status while runs are accepted; the figure, and the VMs that came of it."""
    port = supervisor.port
    known = {one["id"] for one in client.vms(port)}
    asked = [client.get(f"/vms/{vm_id}/status") for vm_id in ids]
    with ThreadPoolExecutor(2) as threads:
        runs = threads.submit(
            client.at_a_pace, port, [client.post_run("respond-async")], rate, seconds, 4
        )
        status = threads.submit(
            client.at_a_pace, port, asked, _STATUS_A_SECOND, seconds, 4
        ).result()
    accepted = milliseconds(runs.result().latencies)
    started = [one["id"] for one in client.vms(port) if one["id"] not in known]
    late = _answered(port, started)
    times = milliseconds(status.latencies)
    detail = (
        f"{_STATUS_A_SECOND} a second beside {rate:g} runs a second for {seconds:g} s,"
        f" {len(ids)} VMs before;"
        f" p50 {times['p50_ms']:.1f}, longest {times['max_ms']:.0f} ms; run accepted:"
        f" p50 {accepted['p50_ms']:.1f}, p99 {accepted['p99_ms']:.0f} ms;"
        f" all {len(started)} answered {late:.1f} s after the last"
    )
    wrong = status.wrong + runs.result().wrong
    detail += f"; {wrong} wrong"
    more = {**times, "accepted": accepted, "wrong": wrong, "runs": len(started), "late_s": late}
    name = f"status p99 under runs, {len(ids)} VMs"
    return Figure(name, "ms", times["p99_ms"], 50, detail=detail, more=more), started


def _answered(port: int, ids: list[str]) -> float:
    """Seconds until all of these have their agent's answer."""
    started, waiting = time.monotonic(), ids
    with client.Connection(port) as connection:
        while waiting and time.monotonic() - started < _PATIENCE_S:
            shown = [connection.json(client.get(f"/vms/{vm_id}"))[1] for vm_id in waiting]
            _refuse([one for one in shown if one["relay"]["state"] == "failed"])
            waiting = [one["id"] for one in shown if one["relay"]["state"] != "answered"]
    if waiting:
        raise SystemExit(f"bench: {len(waiting)} of {len(ids)} runs were not answered")
    return time.monotonic() - started


def delete(supervisor: Supervisor, ids: list[str]) -> None:
    answers = client.in_parallel(supervisor.port, [client.delete(f"/vms/{one}") for one in ids])
    _refuse([body for status, body in answers if status != 204])


# --- events ---------------------------------------------------------------------------------


def events(supervisor: Supervisor, host: Host, vms: int, rounds: int) -> Figure:
    """From a guest's power-off to a reader of ``/events``."""
    name = f"SHUTDOWN to a reader, p99, {vms} VMs"
    seen: dict[str, int] = {}

    def heard(event: dict[str, Any], now: int) -> None:
        if event.get("event") == "state" and event.get("state") == "shutdown":
            seen.setdefault(event["vm"], now)

    try:
        reader = client.EventReader(supervisor.port, heard)
    except LookupError as error:
        return skipped(name, error)
    host.sent.unlink(missing_ok=True)
    try:
        for _ in range(rounds):
            ids = start_vms(supervisor, vms)
            _power_off(supervisor, ids)
            deadline = time.monotonic() + 10
            while not seen.keys() >= set(ids) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
    finally:
        reader.close()
    sent = dict(line.split() for line in host.sent.read_text().splitlines())
    took = [(seen[vm_id] - int(at)) / 1e6 for vm_id, at in sent.items() if vm_id in seen]
    if not took:
        return skipped(name, "no event of a shutdown came")
    times = milliseconds(took)
    detail = (
        f"{len(took)} of {len(sent)} power-offs seen; p50 {times['p50_ms']:.2f},"
        f" longest {times['max_ms']:.1f} ms"
    )
    more = {**times, "sent": len(sent), "seen": len(took)}
    return Figure(name, "ms", times["p99_ms"], 10, detail=detail, more=more)


def _power_off(supervisor: Supervisor, ids: list[str]) -> None:
    """Have each peer power off, one after another."""
    with client.Connection(supervisor.port) as connection:
        pids = [connection.json(client.get(f"/vms/{vm_id}"))[1]["pid"] for vm_id in ids]
    for pid in pids:
        os.kill(pid, signal.SIGUSR1)
        time.sleep(_GAP_S)


# --- adoption -------------------------------------------------------------------------------


def adoption(
    supervisor: Supervisor, ids: list[str], what: str, empty_s: float, goal_s: float
) -> Figure:
    """How long after its exec a supervisor has every VM that it finds, and its monitor.

    :param empty_s: from exec to ready where there was nothing to find
    """
    name = f"adoption of {len(ids)} {what}"
    try:
        all_at = _adopted_at(supervisor, ids)
    except LookupError as error:
        return skipped(name, error)
    total = all_at - supervisor.executed_at
    ready = supervisor.ready_at - supervisor.executed_at
    detail = (
        f"from exec until GET /vms has all with monitor ok, asked now and then;"
        f" ready was logged {ready:.2f} s after exec, and with nothing to adopt {empty_s:.2f} s"
    )
    more = {
        "exec_to_all_s": total,
        "ready_to_all_s": total - ready,
        "exec_to_ready_s": ready,
        "exec_to_ready_empty_s": empty_s,
    }
    return Figure(name, "s", total, goal_s, detail=detail, more=more)


def _adopted_at(supervisor: Supervisor, ids: list[str]) -> float:
    """When the last VM was adopted, in seconds since the epoch.

    :raises LookupError: if they are not adopted
    """
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        asked = time.time()
        found = {one["id"]: one for one in client.vms(supervisor.port)}
        now = time.time()
        missing = [vm_id for vm_id in ids if vm_id not in found]
        if missing:
            raise LookupError(f"a new supervisor knows nothing of {len(missing)} VMs")
        mine = [found[vm_id] for vm_id in ids]
        if any("monitor" not in one for one in mine):
            raise LookupError("GET /vms tells nothing of the monitors")
        ended = [one for one in mine if one["state"] in _ENDED]
        if ended:
            how = f"{ended[0]['state']}, {ended[0]['reason']}"
            raise LookupError(f"{len(ended)} VMs are taken for ended, the first as {how}")
        if all(one["monitor"] == "ok" for one in mine):
            return now
        # To ask is work for the supervisor, which has other things to do.
        time.sleep(max(_POLL_S, _RESTRAINT * (now - asked)))
    raise LookupError("not all VMs have a monitor after minutes")
