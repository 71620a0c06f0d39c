"""The filter of system calls, on this machine's kernel: a process that has it tries each call."""

from __future__ import annotations

import subprocess
import sys

import pytest

# The stranger stays a zombie, which kill finds, until somebody reaps it.
WITH_A_STRANGER = """
import os, subprocess
from supervisor.agent.reference.confinement import end_first

stranger = os.posix_spawn("/bin/true", ["true"], {})
waits = f"read -r _; while kill -0 {stranger} 2>&1; do :; done"
end_first(subprocess.Popen(["sh", "-c", waits], stdin=-1, stdout=-1))
"""
FILTERED = """
import ctypes, errno, mmap, os, socket, subprocess, sys, threading
from supervisor.agent.reference.confinement import PR_SET_NO_NEW_PRIVS, Libc
from supervisor.agent.reference.syscall_filter import *

libc = ctypes.CDLL(None, use_errno=True)

def call(number, *arguments):
    result = libc.syscall(*map(ctypes.c_long, (number, *arguments)))
    if result == 0 and number in (CLONE, CLONE3):
        os._exit(0)
    return "is" if result >= 0 else errno.errorcode[ctypes.get_errno()]

def call_by_i386(number):
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\\xb8" + number.to_bytes(4, "little") + b"\\xcd\\x80\\xc3")
    run = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    result = run()
    return "is" if result >= 0 else errno.errorcode[-result]

def thread():
    ended = []
    started = threading.Thread(target=lambda: ended.append("is"))
    started.start()
    started.join()
    return ended[0]

def filtered(program):
    Libc().prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    Libc().filter_system_calls(program)
    return "is"

# Of two filters that refuse a call, the later one's error counts: see seccomp(2).
X32_IS_E2BIG = b"".join([
    instruction(LOAD, NUMBER),
    instruction(JUMP_IF_AT_LEAST, X32, if_not=1),
    instruction(RETURN, ERROR | errno.E2BIG),
    instruction(RETURN, ALLOW),
])
filtered(X32_IS_E2BIG)
if sys.argv[2:]:
    filtered(filter_program())
print(eval(sys.argv[1]))
"""
PATIENCE_S = 60
#: What a call gives, without the filter and with it.
CALLS = {
    "call(ADD_KEY, 0, 0, 0, 0, 0)": ("EFAULT", "ENOSYS"),
    "call(REQUEST_KEY, 0, 0, 0, 0)": ("EFAULT", "ENOSYS"),
    "call(KEYCTL, -1)": ("ENOTSUP", "ENOSYS"),
    "call(IO_URING_SETUP, 0, 0)": ("EFAULT", "ENOSYS"),
    "call(CLONE3, 0, 0)": ("EINVAL", "ENOSYS"),
    # A thread that shares nothing: the kernel makes none.
    "call(CLONE, CLONE_PARENT | 0x10000, 0, 0, 0, 0)": ("EINVAL", "EPERM"),
    "call(CLONE, 1 << 32 | CLONE_PARENT | 0x10000, 0, 0, 0, 0)": ("EINVAL", "EPERM"),
    "call(CLONE, 17, 0, 0, 0, 0)": ("is", "is"),
    "call(SOCKET, socket.AF_NETLINK, 3, 0)": ("is", "EAFNOSUPPORT"),
    "call(SOCKET, 1 << 32 | socket.AF_NETLINK, 3, 0)": ("is", "EAFNOSUPPORT"),
    "call(SOCKET, socket.AF_UNIX, -1, 0)": ("EINVAL", "EINVAL"),
    "call(SOCKET, socket.AF_INET, 1, 0)": ("is", "is"),
    "call(SOCKET, socket.AF_INET6, -1, 0)": ("EINVAL", "EINVAL"),
    "call(SOCKETPAIR, socket.AF_NETLINK, 3, 0, 0)": ("EFAULT", "EAFNOSUPPORT"),
    "call(SOCKETPAIR, socket.AF_UNIX, 1, 0, 0)": ("EFAULT", "EFAULT"),
    "call(X32 | 39)": ("E2BIG", "ENOSYS"),  # getpid of x32
    "call_by_i386(20)": ("is", "ENOSYS"),  # getpid of i386
    "thread()": ("is", "is"),
    "subprocess.run(['sh', '-c', '(echo is)'], capture_output=True).stdout.decode()[:-1]": (
        "is",
        "is",
    ),
}


def run(program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE_S)
    return done.stdout.strip()


@pytest.mark.parametrize(("call", "results"), CALLS.items(), ids=list(CALLS))
def test_filter_refuses_what_no_namespace_covers(call: str, results: tuple[str, str]) -> None:
    assert (run(FILTERED, call), run(FILTERED, call, "filtered")) == results


def test_end_of_the_first_process_needs_no_stranger() -> None:
    run(WITH_A_STRANGER)
