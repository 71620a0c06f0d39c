"""The system calls that a confined algorithm does without: a seccomp filter for x86-64.

Sources: seccomp(2); linux/filter.h, linux/seccomp.h, linux/audit.h; arch/x86/entry/syscalls. The
kernel runs the program at each system call, over ``struct seccomp_data``: number, architecture,
instruction pointer, arguments. Programs that the algorithm runs have the filter too.
"""

from __future__ import annotations

import errno
import socket
import struct

LOAD, JUMP_IF_EQUAL, JUMP_IF_AT_LEAST, JUMP_IF_BITS, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, ERROR = 0x7FFF0000, 0x00050000
# Offsets in seccomp_data. Of an argument of 64 bits, the lower half comes first.
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16
X86_64 = 0xC000003E
# The numbers of x32 begin here. They mean what those of x86-64 mean.
X32 = 1 << 30

SOCKET, SOCKETPAIR, CLONE = 41, 53, 56
ADD_KEY, REQUEST_KEY, KEYCTL = 248, 249, 250
IO_URING_SETUP, CLONE3 = 425, 435
CLONE_PARENT = 0x8000
# A network namespace keeps these to itself.
FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)


def instruction(code: int, value: int, if_so: int = 0, if_not: int = 0) -> bytes:
    """A ``struct sock_filter``. A jump skips *if_so* or *if_not* of those that follow."""
    return struct.pack("=HBBI", code, if_so, if_not, value)


def _refused(error: int) -> list[bytes]:
    return [instruction(RETURN, ERROR | error)]


def _refused_with(bits: int, error: int) -> list[bytes]:
    """A call whose first argument has one of *bits*."""
    return [
        instruction(LOAD, FIRST_ARGUMENT),
        instruction(JUMP_IF_BITS, bits, if_not=1),
        instruction(RETURN, ERROR | error),
        instruction(RETURN, ALLOW),
    ]


def _refused_but_for(values: tuple[int, ...], error: int) -> list[bytes]:
    """A call whose first argument is none of *values*."""
    to_allow = range(len(values), 0, -1)
    return [
        instruction(LOAD, FIRST_ARGUMENT),
        *(instruction(JUMP_IF_EQUAL, *pair) for pair in zip(values, to_allow, strict=True)),
        instruction(RETURN, ERROR | error),
        instruction(RETURN, ALLOW),
    ]


RULES = {
    # What is in a keyring would be there for the next algorithm.
    ADD_KEY: _refused(errno.ENOSYS),
    REQUEST_KEY: _refused(errno.ENOSYS),
    KEYCTL: _refused(errno.ENOSYS),
    # It opens sockets without a system call.
    IO_URING_SETUP: _refused(errno.ENOSYS),
    # Its flags are in memory, where no filter can look. The C library then uses clone.
    CLONE3: _refused(errno.ENOSYS),
    # Such a child would be the agent's.
    CLONE: _refused_with(CLONE_PARENT, errno.EPERM),
    SOCKET: _refused_but_for(FAMILIES, errno.EAFNOSUPPORT),
    SOCKETPAIR: _refused_but_for(FAMILIES, errno.EAFNOSUPPORT),
}


def filter_program() -> bytes:
    """The instructions. All but what RULES refuse is allowed, by the numbers of x86-64 only."""
    program = [
        instruction(LOAD, ARCHITECTURE),
        instruction(JUMP_IF_EQUAL, X86_64, if_so=1),
        *_refused(errno.ENOSYS),
        instruction(LOAD, NUMBER),
        instruction(JUMP_IF_AT_LEAST, X32, if_not=1),
        *_refused(errno.ENOSYS),
    ]
    for number, rule in RULES.items():
        program += [instruction(JUMP_IF_EQUAL, number, if_not=len(rule)), *rule]
    return b"".join([*program, instruction(RETURN, ALLOW)])
