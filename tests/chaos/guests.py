"""The real guest, whose kernel and agent have a say: few, for each takes its time to boot."""

from __future__ import annotations

import signal
import socket
import time
from typing import TYPE_CHECKING

import grpc

from supervisor.pb import agent_pb2, agent_pb2_grpc
from tests.chaos.kinds import kind

if TYPE_CHECKING:
    from tests.chaos.case import Case

_STOPPED = (b'"STOP"', b'"status": "shutdown"', b'"status": "guest-panicked"')
_QUICK = {"MANAGER_HEARTBEAT": "500ms", "MANAGER_QMP_TIMEOUT": "5s"}


def _order(case: Case, vm_id: str, key: str) -> None:
    """Have the guest's kernel obey a magic SysRq, which it does not survive; unwatched."""
    forward = case.show(vm_id)["forwards"][2]
    address = f"{forward['host_address']}:{forward['host_port']}"
    program = f"open('/proc/sysrq-trigger', 'w').write('{key}')".encode()
    case.crash()
    with grpc.insecure_channel(address) as channel:
        agent = agent_pb2_grpc.AgentServiceStub(channel)
        agent.Algo(agent_pb2.AlgoRequest(algorithm=program), timeout=60)
        agent.Data(agent_pb2.DataRequest(dataset=b"-"), timeout=60)
        deadly = agent.Result.future(agent_pb2.ResultRequest(), timeout=60)
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(case.tmp / vm_id / "qmp.sock"))
            monitor.settimeout(60)
            monitor.sendall(b'{"execute": "qmp_capabilities"}')
            # It stops at its end, whichever that is; perhaps it has done so already.
            heard = b""
            while not any(word in heard for word in _STOPPED):
                monitor.sendall(b'{"execute": "query-status"}')
                heard = monitor.recv(65536)
                time.sleep(0.05)
        deadly.cancel()


@kind("guest: supervisor SIGKILLed while it boots", times=2, short=0, guests=True)
def booting(case: Case) -> None:
    case.serve()
    vm_id = case.run(wait=False)
    case.until(vm_id, lambda vm: vm["state"] == "running")
    case.crash()
    case.serve()
    case.until(vm_id, lambda vm: vm["relay"]["state"] == "answered")
    case.fresh = False


@kind("guest: adopted, then powers itself off when asked", times=2, short=0, guests=True)
def adopted_and_asked(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.crash()
    case.serve()
    case.shut_down(vm_id)
    case.until_ended(vm_id, "shutoff", "guest-shutdown")
    case.fresh = False


@kind("guest: reset held, supervisor SIGKILLed, resumed", times=1, short=0, guests=True)
def reset_held(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.control(vm_id, "pause")
    case.control(vm_id, "reset")
    case.crash()
    case.serve()
    case.until(vm_id, lambda vm: vm["state"] == "paused" and vm["monitor"] == "ok")
    case.control(vm_id, "resume")
    case.until(vm_id, lambda vm: vm["agent"]["ready"])
    case.fresh = False


@kind(
    "guest: SIGSTOPped, supervisor SIGKILLed, goes on",
    times=1,
    short=0,
    guests=True,
    settings=_QUICK,
)
def stopped(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.signal_qemu(vm_id, signal.SIGSTOP)
    case.until_monitor(vm_id, "lost")
    case.crash()
    case.serve()
    case.until_monitor(vm_id, "lost")
    case.signal_qemu(vm_id, signal.SIGCONT)
    case.until(vm_id, lambda vm: vm["monitor"] == "ok" and vm["agent"]["ready"])
    case.fresh = False


def _does_to_itself(key: str, state: str, *reasons: str) -> None:
    name = {"o": "powers itself off", "b": "reboots", "c": "panics"}[key]

    @kind(f"guest: {name}, supervisor down", times=1, short=0, guests=True)
    def harm(case: Case) -> None:
        case.serve()
        vm_id = case.run()
        _order(case, vm_id, key)
        case.serve()
        vm = case.until_ended(vm_id, state)
        case.expect(vm["reason"] in reasons, f"its reason is {vm['reason']}")
        case.fresh = False


# Nobody heard which event it was; QEMU still knows its RunState.
_does_to_itself("o", "shutoff", "shutdown", "guest-shutdown")
_does_to_itself("b", "shutoff", "shutdown", "guest-reset")
_does_to_itself("c", "crashed", "guest-panicked")
