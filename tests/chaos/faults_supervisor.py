"""What may happen to the supervisor: signals in each state, kills at random, a wrong clock."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING

from tests.chaos.case import GONE, Broken, Dead
from tests.chaos.faults_qemu import in_prelaunch
from tests.chaos.kinds import kind
from tests.chaos.place import FORWARDS

if TYPE_CHECKING:
    from tests.chaos.case import Case

#: Seeded by the command line.
CHANCE = random.Random()

_LOAD_THREADS = 3


def _stop(case: Case, number: signal.Signals) -> None:
    case.signal(number)
    code = case.wait_dead()
    case.expect(code == 0, f"after {number.name} it exits with {code}")


@kind("supervisor SIGTERMed (leave): running, held, ended", times=3)
def left(case: Case) -> None:
    case.serve()
    running, held, ended = case.run(), case.run(), case.run()
    case.control(held, "pause")
    case.shut_down(ended)
    _stop(case, signal.SIGTERM)
    case.serve()
    case.until_monitor(running, "ok")
    case.until_monitor(held, "ok")
    case.expect(case.show(held)["state"] == "paused", "a held VM runs")


@kind("supervisor SIGTERMed (leave): an agent at work", short=0)
def left_at_work(case: Case) -> None:
    case.serve()
    vm_id = case.run(hold=True)
    _stop(case, signal.SIGTERM)
    case.serve()
    vm = case.show(vm_id)
    case.expect(vm["relay"]["state"] == "interrupted", f"the relay is {vm['relay']}")


@kind("supervisor SIGTERMed (leave): prelaunch", short=0)
def left_unborn(case: Case) -> None:
    vm_id = in_prelaunch(case)
    _stop(case, signal.SIGTERM)
    case.serve()
    case.until_ended(vm_id, "crashed")


@kind(
    "supervisor SIGTERMed (leave): waiting to restart a VM",
    settings={"MANAGER_RESTART_BACKOFF": "2s"},
)
def left_before_restart(case: Case) -> None:
    case.serve()
    case.restarts = 1
    vm_id = case.run(restart="on-failure")
    case.signal_qemu(vm_id, signal.SIGKILL)
    case.until(vm_id, lambda vm: vm["restart"]["count"] == 1)
    _stop(case, signal.SIGTERM)
    case.serve(settings={"MANAGER_RESTART_BACKOFF": "10ms"})
    case.wait(lambda: case.show(vm_id)["ended"] or case.show(vm_id)["agent"]["ready"], "its fate")


@kind("supervisor SIGINTed (end): all states", times=3)
def ended(case: Case) -> None:
    case.serve()
    case.control(case.run(), "pause")
    case.run(hold=True)
    case.shut_down(case.run())
    case.run(wait=False)
    _stop(case, signal.SIGINT)


@kind(
    "supervisor SIGINTed twice, a guest that does not heed",
    short=0,
    settings={"MANAGER_POWERDOWN_GRACE": "60s"},
)
def ended_twice(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.signal(signal.SIGINT)
    case.wait(lambda: bool(case.records()[vm_id]["vm"]["ending"]), "the end's begin")
    _stop(case, signal.SIGINT)


@kind("supervisor SIGKILLed while SIGINT ends its VMs", settings={"MANAGER_POWERDOWN_GRACE": "60s"})
def killed_while_ending(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.signal(signal.SIGINT)
    case.wait(lambda: bool(case.records()[vm_id]["vm"]["ending"]), "the end's begin")
    case.crash()
    case.serve(settings={"MANAGER_POWERDOWN_GRACE": "100ms"})
    case.until_ended(vm_id)


@kind("supervisor SIGSTOPped, QEMU SIGKILLed meanwhile")
def asleep(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.signal(signal.SIGSTOP)
    case.signal_qemu(vm_id, signal.SIGKILL)
    case.signal(signal.SIGCONT)
    case.until_ended(vm_id, "crashed", "exit:-9")


@kind("supervisor SIGKILLed at random, under load", times=24, settings={"MANAGER_MAX_VMS": "6"})
def killed_at_random(case: Case) -> None:
    case.serve()
    case.restarts = 100  # how often is the load's business
    stop = threading.Event()
    threads = [
        threading.Thread(target=load, args=(case, stop, CHANCE.random()))
        for _ in range(_LOAD_THREADS)
    ]
    for thread in threads:
        thread.start()
    time.sleep(CHANCE.uniform(0.05, 2.0))
    case.signal(signal.SIGKILL)
    stop.set()
    for thread in threads:
        thread.join()
    case.wait_dead()


def load(
    case: Case, stop: threading.Event, seed: float, templates: tuple[str, ...] = ("auto",)
) -> None:
    """Runs, and what is done to them, until the supervisor is gone."""
    chance = random.Random(seed)
    mine: list[str] = []
    try:
        while not stop.is_set():
            act = chance.randrange(7)
            if act < 3 or not mine:
                restart = chance.choice(("never", "on-failure"))
                template = chance.choice(templates)
                vm_id = case.run(wait=act > 0, hold=act == 1, restart=restart, template=template)
                mine.append(vm_id)
                continue
            vm_id = chance.choice(mine)
            match act:
                case 3:
                    case.ask("POST", f"/vms/{vm_id}/pause")
                case 4:
                    case.ask("POST", f"/vms/{vm_id}/resume")
                case 5:
                    case.shut_down(vm_id, chance.choice(("force", "graceful")))
                case 6:
                    mine.remove(vm_id)
                    case.delete(vm_id)
    except (*GONE, Broken, Dead, AssertionError, TypeError):
        pass  # it is dead, or a limit is reached: what counts is what is there afterwards


@kind("supervisor SIGKILLed again and again as it starts", times=4)
def killed_starting(case: Case) -> None:
    case.serve()
    case.control(case.run(), "pause")
    case.run(hold=True)
    case.run()
    case.crash()
    for _ in range(4):
        case.serve(wait=False)
        time.sleep(CHANCE.uniform(0.0, 0.4))
        case.crash()


@kind("supervisor SIGKILLed with ten VMs", times=2, short=0)
def killed_with_many(case: Case) -> None:
    case.serve()
    many = [case.run(wait=False) for _ in range(9)]
    for vm_id in many:
        case.until(vm_id, lambda vm: vm["relay"]["state"] == "answered")
    case.crash()
    case.serve()
    for vm_id in many:
        case.until_monitor(vm_id, "ok")


@kind("second supervisor on the same tmp/")
def second(case: Case) -> None:
    first = case.serve()
    vm_id = case.run()
    case.serve(wait=False)
    code = case.wait_dead()
    case.supervisor = first
    case.expect(code == 1, f"the second exits with {code}")
    case.expect(f"pid {first.pid}" in case.log.read_text(), "it does not name the first")
    case.until_monitor(vm_id, "ok")


@kind("clock set back a day, and a time to live", times=2, short=0)
def clock_back(case: Case) -> None:
    case.serve()
    mortal = case.run(ttl="3s")
    case.run()
    case.crash()
    case.serve(clock_s=-86400.0)
    case.until_ended(mortal)
    case.run()


@kind("clock set forward a week under ended VMs", short=0, times=2)
def clock_forward(case: Case) -> None:
    case.serve()
    vm_id = case.run(ttl="1h")
    case.crash()
    case.serve(clock_s=6 * 86400.0)
    case.until_monitor(vm_id, "ok")


@kind("a VM's port taken while it is down", settings={"MANAGER_RESTART_BACKOFF": "500ms"})
def port_taken(case: Case) -> None:
    case.serve()
    case.restarts = 1
    vm_id = case.run(restart="on-failure")
    port = case.show(vm_id)["forwards"][0]["host_port"]
    case.signal_qemu(vm_id, signal.SIGKILL)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        case.wait(lambda: _bound(other, port), "the port")
        other.listen()
        vm = case.until(vm_id, lambda vm: vm["restart"]["count"] == 1 and vm["agent"]["ready"])
    case.expect(vm["forwards"][0]["host_port"] != port, "it has a port that is somebody else's")


def _bound(sock: socket.socket, port: int) -> bool:
    try:
        sock.bind((FORWARDS, port))
    except OSError:
        return False
    return True


@kind("qemu-img killed in a run", times=2)
def no_overlay(case: Case) -> None:
    programs = case.tmp.with_name(f"{case.tmp.name}-bin")
    programs.mkdir()
    fake = programs / "qemu-img"
    fake.write_text("#!/bin/sh\nkill -KILL $$\n")
    fake.chmod(0o755)
    case.serve(settings={"PATH": f"{programs}:{os.environ['PATH']}"})
    vm_id = case.run(wait=False)
    case.until_ended(vm_id, "crashed")
    case.crash()


@kind("QEMU's binary gone in a run", short=0, times=2)
def no_qemu(case: Case) -> None:
    own = case.tmp.with_name(f"{case.tmp.name}-qemu")
    subprocess.run(["cp", case.place.qemu, own], check=True)
    case.serve(settings={"MANAGER_QEMU_BIN_PATH": str(own)})
    own.unlink()
    case.until_ended(case.run(wait=False), "crashed")
    case.crash()
