"""What an algorithm can do to a real guest: nothing. And what its agent tells meanwhile."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import grpc
import pytest

from supervisor.pb import agent_pb2, agent_pb2_grpc
from supervisor.pb.compute_pb2 import ComputeRequest, Outcome, UploadRequest
from supervisor.pb.compute_pb2_grpc import ComputeServiceStub
from supervisor.pb.guest_pb2 import SetClockRequest, StatusRequest, StatusResponse
from supervisor.pb.guest_pb2_grpc import GuestServiceStub
from tests.support.agent_process import WRITE
from tests.support.guest_images import trusting_image
from tests.vm.conftest import PATIENCE_S, started, started_with_template
from tests.vm.test_run import computation, host_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.vm.conftest import Supervisor

MIB = 1 << 20


class Guest(NamedTuple):
    """A guest's agent, and its console."""

    agent: agent_pb2_grpc.AgentServiceStub
    compute: ComputeServiceStub
    guest: GuestServiceStub
    console: Path

    def have(self, algorithm: bytes, dataset: bytes = b"-") -> None:
        self.agent.Algo(agent_pb2.AlgoRequest(algorithm=algorithm), timeout=PATIENCE_S)
        self.agent.Data(agent_pb2.DataRequest(dataset=dataset), timeout=PATIENCE_S)

    def run(self, algorithm: bytes, **limits: int) -> tuple[Outcome, bytes]:
        self.have(algorithm)
        parts = self.compute.Compute(ComputeRequest(**limits), timeout=PATIENCE_S)
        outcome = next(parts).outcome
        return outcome, b"".join(part.chunk for part in parts)

    def tell(self, expression: bytes) -> str:
        """What an expression is in an algorithm."""
        outcome, result = self.run(WRITE % (b"repr(%b).encode()" % expression))
        assert outcome.state == Outcome.STATE_SUCCEEDED, outcome
        return result.decode()

    def told(self) -> str:
        """What is on its console."""
        return self.console.read_bytes().decode(errors="replace").replace("\r", "")

    def status_of_the_next(self) -> StatusResponse:
        """Of the agent that /init starts when this one has ended."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            # A call may be lost with the connection to the one before.
            with suppress(grpc.RpcError):
                answer: StatusResponse
                answer = self.guest.Status(StatusRequest(), timeout=PATIENCE_S, wait_for_ready=True)
                return answer
        raise AssertionError("there is no agent any more")

    def status(self) -> StatusResponse:
        answer: StatusResponse = self.guest.Status(StatusRequest(), timeout=PATIENCE_S)
        return answer


def _guest_of(serving: AbstractContextManager[Supervisor]) -> Iterator[Guest]:
    with serving as supervisor:
        vm = supervisor.run(computation("agent"))
        address = f"127.0.0.1:{host_port(vm, 7002)}"
        console = supervisor.tmp / vm["id"] / "serial.log"
        with grpc.insecure_channel(address, [("grpc.max_receive_message_length", -1)]) as channel:
            yield Guest(
                agent_pb2_grpc.AgentServiceStub(channel),
                ComputeServiceStub(channel),
                GuestServiceStub(channel),
                console,
            )


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    yield from _guest_of(started())


@pytest.fixture(scope="module")
def trusting() -> Iterator[Guest]:
    disk = str(trusting_image())
    yield from _guest_of(started_with_template(MANAGER_QEMU_DISK_IMG_FILE=disk))


def test_algorithm_is_nobody_and_alone(guest: Guest) -> None:
    told = guest.tell(
        b"[__import__('os').getuid(), __import__('os').getgroups(), __import__('os').getppid(),"
        b" [p for p in __import__('os').listdir('/proc') if p.isdigit()][1:]]"
    )
    own = guest.tell(b"__import__('os').getpid()")
    assert told == f"[65534, [], 0, ['{own}']]"


#: What must fail, and how: each is an expression with `os`, `ctypes` and `socket`.
FORBIDDEN = {
    "open('/proc/1/mem', 'rb')": "PermissionError",
    "open('/proc/1/environ', 'rb').read()": "PermissionError",
    "os.kill(1, 9)": "PermissionError",
    "open('/proc/sysrq-trigger', 'w')": "PermissionError",
    "open('/sys/power/state', 'w')": "FileNotFoundError",
    "open('/dev/sev-guest')": "FileNotFoundError",
    "open('/dev/sda')": "FileNotFoundError",
    "open('/dev/ttyS0')": "FileNotFoundError",
    "open('/usr/mine', 'w')": "PermissionError",
    "open('/mine', 'w')": "PermissionError",
    "open('/run/data/0', 'ab')": "PermissionError",
    "os.remove('/run/data/0')": "OSError",
    "os.mknod('/tmp/mem', 0o20666, os.makedev(1, 1))": "PermissionError",
    "os.setuid(0)": "PermissionError",
    "socket.create_connection(('127.0.0.1', 7002))": "ConnectionRefusedError",
    "socket.create_connection(('10.0.2.2', 1))": "OSError",
    "check(libc.ptrace(16, 1, 0, 0))": "OSError",
    "check(libc.unshare(0x10000000))": "OSError",  # a user namespace
    "check(libc.umount2(b'/run', 2))": "OSError",
    "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)": "OSError",
    "os.close(libc.syscall(425, 1, ctypes.create_string_buffer(120)))": "OSError",  # io_uring
}
TRY = b"""
import ctypes, os, socket, sys
libc = ctypes.CDLL(None)
def check(result):
    if result:
        raise OSError
for one in sys.argv[1].splitlines():
    try:
        print(one, 'is', eval(one))
    except OSError as error:
        print(type(error).__name__)
"""


def test_algorithm_reaches_neither_agent_nor_guest(guest: Guest) -> None:
    guest.have(TRY, "\n".join(FORBIDDEN).encode())
    (part,) = guest.compute.Compute(ComputeRequest(), timeout=PATIENCE_S)
    told = part.outcome.stdout.tail.decode().splitlines()
    assert dict(zip(FORBIDDEN, told, strict=True)) == FORBIDDEN


#: Leaves files, and a process that has a lock on what outlives it: the file of the data set.
LEAVE = b"""
import fcntl, os, time
open('/tmp/mine', 'w').close()
open('/dev/shm/mine', 'w').close()
lock = open(os.environ['DATASET_FILE'])
fcntl.flock(lock, fcntl.LOCK_EX)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            time.sleep(1)
    os._exit(0)
os.wait()
"""
LOOK = b"""
import fcntl, os
lock = open(os.environ['DATASET_FILE'])
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
print(os.listdir('/tmp'), os.listdir('/dev/shm'))
"""


def test_nothing_of_an_algorithm_is_left(guest: Guest) -> None:
    outcome, _ = guest.run(LEAVE + WRITE % b"b'x'")
    assert outcome.state == Outcome.STATE_SUCCEEDED, outcome
    guest.agent.Algo(agent_pb2.AlgoRequest(algorithm=LOOK), timeout=PATIENCE_S)
    (part,) = guest.compute.Compute(ComputeRequest(), timeout=PATIENCE_S)
    assert part.outcome.stdout.tail == b"[] []\n", part.outcome


KEYS = b"""
import ctypes
libc = ctypes.CDLL(None)
SESSIONS_OF_USER = -5
"""
ADD_KEY = KEYS + b"libc.syscall(248, b'user', b'mine', b'secret', 6, SESSIONS_OF_USER)"
FIND_KEY = KEYS + b"print(libc.syscall(250, 10, SESSIONS_OF_USER, b'user', b'mine', 0))"


def test_no_key_is_left_to_the_next_algorithm(guest: Guest) -> None:
    guest.run(ADD_KEY)
    outcome, _ = guest.run(FIND_KEY)
    assert outcome.stdout.tail == b"-1\n", outcome


#: Has a child that is its parent's, the agent's: nobody else can reap that.
GIVE_A_CHILD = b"""
import ctypes, os, signal
CLONE_PARENT = 0x8000
libc = ctypes.CDLL(None, use_errno=True)
child = libc.syscall(56, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
if child == 0:
    signal.pause()
print(child, os.strerror(ctypes.get_errno()), flush=True)
"""


def test_algorithm_gives_the_agent_no_child(guest: Guest) -> None:
    outcome, _ = guest.run(GIVE_A_CHILD)
    assert outcome.stdout.tail == b"-1 Operation not permitted\n", outcome
    assert guest.tell(b"'still there'") == "'still there'"


#: Confines a program as the agent does, where the kernel refuses to watch it, and then without
#: the filter of system calls.
CONFINE = b"""
import os, sys, tempfile
sys.path.append('/usr/lib/python3/dist-packages')
from agent import confinement, syscall_filter
allow_all = syscall_filter.instruction(syscall_filter.RETURN, syscall_filter.ALLOW)
confinement.filter_program = lambda: allow_all
command = ['/usr/bin/python3', '-c', sys.argv[1]]
def start():
    return confinement.Confinement().start(tempfile.mkdtemp(), command, {}, 64)
def left():
    try:
        return os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return [name for name in os.listdir('/sys/fs/cgroup') if name.startswith('algorithm')]
pidfd_open = os.pidfd_open
os.pidfd_open = lambda pid: open('/no/more')
try:
    start()
except FileNotFoundError:
    print(left())
os.pidfd_open = pidfd_open
with start() as process:
    child = int(process.stdout.readline().split()[0])
print(child > 1, left())
"""


def test_confinement_leaves_nothing(trusting: Guest) -> None:
    trusting.have(CONFINE, GIVE_A_CHILD)
    (part,) = trusting.compute.Compute(ComputeRequest(time_limit_s=60), timeout=PATIENCE_S)
    assert part.outcome.stdout.tail == b"[]\nTrue []\n", part.outcome


EAT = b"kept = []\nwhile True: kept.append(b'x' * (1 << 20))"


@pytest.mark.parametrize(
    "algorithm",
    [
        EAT,
        b"import os, time\nif os.fork() == 0:\n    while True: time.sleep(1)\n" + EAT,
        b"file = open('/tmp/mine', 'wb')\nwhile True: file.write(bytes(1 << 20))",
    ],
    ids=["itself", "with a child", "in files"],
)
def test_algorithm_that_is_out_of_memory_is_told_so(guest: Guest, algorithm: bytes) -> None:
    outcome, _ = guest.run(algorithm, memory_limit_mib=64)
    assert outcome.state == Outcome.STATE_OUT_OF_MEMORY, outcome
    assert outcome.error == "the algorithm was killed for want of memory: limit 64 MiB"


#: More than any guest of the tests has.
ENOUGH_MIB = 4096


def test_want_of_memory_in_all_of_the_guest_is_told_as_such(guest: Guest) -> None:
    outcome, _ = guest.run(EAT, memory_limit_mib=ENOUGH_MIB)
    assert outcome.state == Outcome.STATE_OUT_OF_MEMORY, outcome
    assert outcome.error == (
        f"the guest ran out of memory and killed the algorithm (limit {ENOUGH_MIB} MiB);"
        " raise MANAGER_QEMU_MEMORY_SIZE"
    )


def test_want_of_memory_is_told_of_an_algorithm_that_is_trusted(trusting: Guest) -> None:
    outcome, _ = trusting.run(EAT)
    assert outcome.state == Outcome.STATE_OUT_OF_MEMORY, outcome
    assert outcome.error == (
        "the guest ran out of memory and killed the algorithm (no limit);"
        " raise MANAGER_QEMU_MEMORY_SIZE"
    )
    killed, _ = trusting.run(b"import os; os.kill(os.getpid(), 9)")
    assert (killed.state, killed.error) == (
        Outcome.STATE_FAILED,
        "the algorithm was ended by signal 9",
    )


def test_agent_outlives_an_algorithm_that_takes_all_memory(guest: Guest) -> None:
    before = guest.status().instance_id
    guest.have(EAT)
    with pytest.raises(grpc.RpcError) as caught:
        guest.agent.Result(agent_pb2.ResultRequest(), timeout=PATIENCE_S)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    told = r"killed for want of memory: limit \d+ MiB, the default: all the guest can give"
    assert re.search(told, caught.value.details() or "")
    after = guest.status()
    assert (after.instance_id, after.last_end) == (before, "")


@pytest.mark.parametrize(
    "algorithm",
    [b"import os\nwhile True:\n try: os.fork()\n except OSError: pass", b"while True: print(1)"],
    ids=["forks", "prints"],
)
def test_agent_answers_while_an_algorithm_misbehaves(guest: Guest, algorithm: bytes) -> None:
    guest.have(algorithm)
    call = guest.compute.Compute(ComputeRequest(time_limit_s=3), timeout=PATIENCE_S)
    while guest.status().state != StatusResponse.STATE_RUNNING:
        pass
    assert next(call).outcome.state == Outcome.STATE_TIMED_OUT
    assert guest.status().state == StatusResponse.STATE_IDLE


@pytest.mark.parametrize("announced", [0, 256 * MIB], ids=["no size", "size"])
def test_upload_that_the_guest_has_no_room_for_is_refused(guest: Guest, announced: int) -> None:
    """The tests' guests have 512 MiB, half of which is for files."""
    guest.have(b"-", b"ten bytes.")
    first = UploadRequest(kind=UploadRequest.KIND_DATASET, size=announced)
    rest = [] if announced else [UploadRequest(chunk=bytes(MIB))] * 256
    with pytest.raises(grpc.RpcError) as caught:
        guest.compute.Upload(iter([first, *rest]), timeout=PATIENCE_S)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    told = caught.value.details() or ""
    (free,) = re.findall(r"(\d+) bytes were free for it", told)
    assert 150 * MIB < int(free) < 256 * MIB
    assert "; 10 bytes are the dataset before, kept until the next is whole;" in told
    assert (f"{announced} bytes were announced" in told) == bool(announced)
    assert told.endswith("; raise MANAGER_QEMU_MEMORY_SIZE")
    assert guest.tell(b"'still there'") == "'still there'"


def test_clock_is_set_to_the_hosts_time_only(trusting: Guest) -> None:
    outcome, _ = trusting.run(
        b"import time\ntime.clock_settime(time.CLOCK_REALTIME, time.time() - 3600)"
        + WRITE % b"b'x'"
    )
    assert outcome.state == Outcome.STATE_SUCCEEDED
    set_clock = trusting.guest.SetClock
    for wrong_s in (-3600, 60):
        wrong = SetClockRequest(unix_time_ns=time.time_ns() + wrong_s * 10**9)
        with pytest.raises(grpc.RpcError) as caught:
            set_clock(wrong, timeout=PATIENCE_S)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    moved = set_clock(SetClockRequest(unix_time_ns=time.time_ns()), timeout=PATIENCE_S).moved_ns
    assert 3590 < moved / 10**9 < 3610


#: How a root algorithm ends the agent, and how /init tells of the end.
ENDS = {
    b"import os; os.kill(os.getppid(), 9)": "signal 9",
    # It stays until then: the agent has nothing to answer before it ends.
    b"import os, signal; os.kill(os.getppid(), signal.SIGTERM); signal.pause()": "status 0",
    # SysRq f has the kernel act as if it had no memory left.
    b"import os\nopen(f'/proc/{os.getppid()}/oom_score_adj', 'w').write('1000')\n"
    b"open('/proc/self/oom_score_adj', 'w').write('-1000')\n"
    b"open('/proc/sysrq-trigger', 'w').write('f')": "signal 9, for want of memory",
}


@pytest.mark.parametrize(("algorithm", "reason"), ENDS.items(), ids=list(ENDS.values()))
def test_end_of_an_agent_is_told_by_the_next(
    trusting: Guest, algorithm: bytes, reason: str
) -> None:
    before = trusting.status().instance_id
    trusting.have(algorithm)
    with pytest.raises(grpc.RpcError) as caught:
        trusting.agent.Result(agent_pb2.ResultRequest(), timeout=PATIENCE_S)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    after = trusting.status_of_the_next()
    assert after.last_end == reason
    assert after.instance_id != before
    assert f"] problem: the agent ended: {reason}\n" in trusting.told()


def test_console_says_that_the_guest_is_up(guest: Guest) -> None:
    assert guest.told().count("] up\n") == 1
    assert "problem" not in guest.told()
