"""VMs run through a supervisor, as its clients have them."""

from __future__ import annotations

import base64
import json
import os
import select
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import psutil

from scripts.benchmarks import client, guest, host

_POLL_S = 0.1
#: A supervisor that has just started does not know yet whether there can be a template.
_LOOKED_INTO_S = 10.0


@attrs.frozen
class Run:
    """A computation that was answered.

    :param begun_at: when it was posted, on ``time.perf_counter``
    :param answered_at: when the whole answer was here
    :param vm: what ``GET /vms/<id>`` says
    """

    begun_at: float
    answered_at: float
    vm: dict[str, Any]

    @property
    def seconds(self) -> float:
        return self.answered_at - self.begun_at

    @property
    def phases(self) -> dict[str, float]:
        """When each step was done, in seconds after the request; the last is the answer."""
        return {**self.vm["phases_s"], "answer": self.seconds}


def run(connection: client.Connection, **options: str) -> Run:
    """Post a computation and have the agent's answer.

    :param options: members of the request beside it
    :raises Unmeasured: if it fails, or is another's answer
    """
    return _shown(connection, *_post(connection, options))


def _post(connection: client.Connection, options: dict[str, str]) -> tuple[float, float, str]:
    """When it was posted, when it was answered, and the VM's id."""
    mine, computation = guest.computation()
    body = {"computation": base64.b64encode(computation).decode(), **options}
    request = client.post("/run", json.dumps(body).encode())
    begun_at = time.perf_counter()
    status, answer = connection.json(request)
    answered_at = time.perf_counter()
    if status != 200:
        raise guest.Unmeasured(f"POST /run was answered {status}: {answer}")
    if not guest.answers_to(answer["computation"], mine):
        raise guest.Unmeasured("POST /run was given an answer to another computation")
    return begun_at, answered_at, answer["id"]


def _shown(connection: client.Connection, begun_at: float, answered_at: float, vm_id: str) -> Run:
    return Run(begun_at, answered_at, show(connection, vm_id))


def show(connection: client.Connection, vm_id: str) -> dict[str, Any]:
    return dict(connection.json(client.get(f"/vms/{vm_id}"))[1])


def remove(port: int, ids: list[str]) -> None:
    """End VMs without asking their guests, and have them forgotten."""
    force = json.dumps({"mode": "force"}).encode()
    client.in_parallel(port, [client.post(f"/vms/{one}/shutdown", force) for one in ids])
    client.in_parallel(port, [client.delete(f"/vms/{one}") for one in ids])


def power_off(connection: client.Connection, vm: dict[str, Any]) -> float:
    """Seconds from ``POST /vms/<id>/shutdown`` to QEMU's process being gone.

    :raises Unmeasured: if it does not go, or not in good order
    """
    request = client.post(f"/vms/{vm['id']}/shutdown", b"{}")
    process = os.pidfd_open(vm["pid"])
    try:
        with ThreadPoolExecutor(1) as threads:
            begun_at = time.perf_counter()
            asked = threads.submit(connection.json, request)
            gone, _, _ = select.select([process], [], [], guest.PATIENCE_S)
            took = time.perf_counter() - begun_at
            status, answer = asked.result()
    finally:
        os.close(process)
    if not gone or status != 200 or answer["state"] != "shutoff":
        raise guest.Unmeasured(f"a graceful shutdown was answered {status}: {answer}")
    return took


def live_status_rate(port: int, vm_id: str, seconds: float) -> float:
    """``GET /vms/<id>/status?live=1`` a second, one after another on one connection."""
    asked = [client.get(f"/vms/{vm_id}/status?live=1")]
    return client.as_fast_as_possible(port, asked, 1, seconds).rate


# --- templates and the pool -----------------------------------------------------------------


def wait_for_template(connection: client.Connection) -> dict[str, Any]:
    """The template that runs are started from, once it is ready.

    :raises Unmeasured: if there is none, and will be none
    """
    begun_at = time.monotonic()
    while (waited := time.monotonic() - begun_at) < guest.PATIENCE_S:
        status, answer = connection.json(client.get("/templates"))
        if status != 200:
            raise guest.Unmeasured(f"GET /templates was answered {status}")
        if not answer["possible"] and waited > _LOOKED_INTO_S:
            raise guest.Unmeasured(f"no template: {answer['why']}")
        for one in answer["templates"]:
            if one["state"] == "failed":
                raise guest.Unmeasured(f"no template: {one['problem']}")
            if one["state"] == "ready":
                return dict(one)
        time.sleep(_POLL_S)
    raise guest.Unmeasured(f"no template within {guest.PATIENCE_S:g} s")


def wait_for_metric(connection: client.Connection, wanted: str, least: int) -> None:
    """Return once this metric is so much.

    :raises Unmeasured: if that takes too long
    """
    deadline = time.monotonic() + guest.PATIENCE_S
    while time.monotonic() < deadline:
        _, metrics = connection.ask(client.get("/metrics"))
        for line in metrics.decode().splitlines():
            if line.startswith(f"{wanted} ") and float(line.removeprefix(wanted)) >= least:
                return
        time.sleep(_POLL_S)
    raise guest.Unmeasured(f"{wanted} was not {least} within {guest.PATIENCE_S:g} s")


# --- many at once ---------------------------------------------------------------------------


def burst(port: int, count: int, **options: str) -> list[Run]:
    """So many runs posted at the same moment, each on a connection of its own.

    :raises Unmeasured: if one fails, or two have the same VM or agent
    """
    together = threading.Barrier(count, timeout=guest.PATIENCE_S)

    def one(_: int) -> tuple[float, float, str]:
        with client.Connection(port) as connection:
            together.wait()
            return _post(connection, options)

    with ThreadPoolExecutor(count) as threads:
        posted = list(threads.map(one, range(count)))
    with client.Connection(port) as connection:
        runs = [_shown(connection, *one) for one in posted]
    for what in ("id", "pid"):
        if len({one.vm[what] for one in runs}) != count:
            raise guest.Unmeasured(f"{count} runs do not have {count} VMs")
    if len({one.vm["agent"]["address"] for one in runs}) != count:
        raise guest.Unmeasured(f"{count} runs do not have {count} agents")
    return runs


def together_s(runs: list[Run]) -> float:
    """Seconds from the first request to the last answer."""
    return max(one.answered_at for one in runs) - min(one.begun_at for one in runs)


def idle(vms: list[dict[str, Any]], settle_s: float, seconds: float) -> dict[str, Any]:
    """What VMs take to which nothing happens: bytes of each, and percent of a core.

    :param settle_s: how long nothing is to happen before
    """
    time.sleep(settle_s)
    processes = [psutil.Process(one["pid"]) for one in vms]
    sizes = [host.memory(one.pid) for one in processes]
    before, begun_at = [_cpu_s(one) for one in processes], time.monotonic()
    time.sleep(seconds)
    used = [_cpu_s(one) - then for one, then in zip(processes, before, strict=True)]
    took = time.monotonic() - begun_at
    private = [one["Private_Clean"] + one["Private_Dirty"] for one in sizes]
    return {
        "vms": len(vms),
        "pss_bytes": [one["Pss"] for one in sizes],
        "rss_bytes": [one["Rss"] for one in sizes],
        "private_bytes": private,
        "cpu_percent": [100 * one / took for one in used],
        "cpu_percent_median": statistics.median(100 * one / took for one in used),
        "seconds": took,
    }


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
