"""Becomes a QEMU whose network is a namespace of its own: a program, run with Python's ``-I``.

The process that the supervisor started stays the same and becomes QEMU, so its pid, its exit code
and the signals to it are QEMU's. It has a child for each way into the namespace or out of it, which
the kernel kills when QEMU ends:

- pasta carries packets between the namespace and the host's network
- systemd-socket-proxyd passes on, to a port of the namespace, what connects to a socket that the
  supervisor listens on. It takes the socket as a descriptor: nothing here may make a file where
  the supervisor would look for it
- a second one passes on, to a socket of the supervisor's, what connects to a port of the namespace

Whoever takes over QEMU is still held by the rules: QEMU has no capability in its namespaces.

Arguments: the rules for nft, the name server in the namespace, the words of pasta up to ``--``,
the descriptor of the socket and the words of systemd-socket-proxyd up to ``--``, the port and the
words of the second one up to ``--``, and QEMU's command. Without words there is no such child. It
imports Python's library only.

Source: unshare(2), user_namespaces(7), prctl(2), pasta(1), nft(8), systemd-socket-proxyd(8),
sd_listen_fds(3).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager, nullcontext

TYPE_CHECKING = False  # a VM's start would wait for the import of typing
if TYPE_CHECKING:
    from collections.abc import Iterator

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_MS_REC, _MS_PRIVATE, _MS_BIND = 0x4000, 0x40000, 0x1000
_PR_SET_PDEATHSIG = 1
_RESOLV_CONF = "/etc/resolv.conf"
#: Where a program finds the first socket that it is passed: ``SD_LISTEN_FDS_START``.
_FIRST_PASSED = 3
_WITHOUT_RIGHTS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")

_libc = ctypes.CDLL(None, use_errno=True)


def search_path() -> str:
    """Where programs are looked for: also where only root's PATH leads, and systemd's own."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin:/usr/lib/systemd:/lib/systemd"


def main(rules: str, name_server: str, *words: str) -> None:
    os.environ["PATH"] = search_path()
    pasta, words = _split(words)
    inward, words = _split(words)
    outward, qemu = _split(words)
    if inward:
        os.set_inheritable(int(inward[0]), False)  # else QEMU and pasta would have the socket too
    _enter_user_namespace()
    with _packets(pasta, rules, name_server) if pasta else nullcontext():
        _check(_libc.unshare(_CLONE_NEWNET | _CLONE_NEWNS))
        _run("ip", "link", "set", "lo", "up")
    parent = os.getpid()
    if inward and os.fork() == 0:
        _become_proxy(int(inward[0]), inward[1:], parent)
    if outward:
        listener = _listen(int(outward[0]))
        if os.fork() == 0:
            _become_proxy(listener, outward[1:], parent)
    os.execvp(_WITHOUT_RIGHTS[0], [*_WITHOUT_RIGHTS, *qemu])


def _split(words: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    at = words.index("--")
    return words[:at], words[at + 1 :]


def _enter_user_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    _check(_libc.unshare(_CLONE_NEWUSER))
    for name, content in (
        ("setgroups", "deny"),
        ("uid_map", f"0 {uid} 1"),
        ("gid_map", f"0 {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(content)


@contextmanager
def _packets(pasta: tuple[str, ...], rules: str, name_server: str) -> Iterator[None]:
    """Have pasta carry packets, by the rules, between the namespace that the body enters and the
    host's network.
    """
    begin, begun = os.pipe()
    is_ready, ready = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(begun)
        _become_pasta(pasta, parent, begin, ready)
    os.close(ready)
    yield
    _use_name_server(name_server)
    # Before there is a way out.
    _run("nft", "-f", "-", told=rules)
    os.write(begun, b"\n")
    os.close(begun)
    if not os.read(is_ready, 1):
        os.waitpid(child, 0)
        sys.exit("pasta did not start")


def _become_pasta(words: tuple[str, ...], parent: int, begin: int, ready: int) -> None:
    """Wait for the parent's namespace, then run pasta, outside that namespace."""
    _end_with(parent)
    to_loopback = _to_loopback(words[0])
    if not os.read(begin, 1):
        os._exit(1)  # the parent has ended
    # pasta may not look at the parent's /proc, so it gets the namespace as a descriptor; and as one
    # of these two, since a later pasta closes all others.
    os.dup2(os.open(f"/proc/{parent}/ns/net", os.O_RDONLY), 0)
    os.dup2(ready, 1)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # an ignored one ends pasta of 2023
    # pasta writes its pid when it is ready.
    ends = ("--pid", "/proc/self/fd/1", "--netns-only", "--netns", "/proc/self/fd/0")
    os.execvp(words[0], [*words, *to_loopback, *ends])


def _to_loopback(pasta: str) -> list[str]:
    """What makes pasta lead the host's ports to the namespace's loopback, where QEMU listens.

    One of October 2024 or later has to be told so; one before does not know the word.
    """
    word = "--host-lo-to-ns-lo"
    asked = subprocess.run((pasta, word, "--version"), capture_output=True, check=False)
    return [] if asked.returncode else [word]


def _listen(port: int) -> int:
    """A listening socket of the namespace's loopback, which no program inherits."""
    import socket  # a VM's start would wait for it, and few need it

    return socket.create_server(("127.0.0.1", port)).detach()


def _become_proxy(listener: int, words: tuple[str, ...], parent: int) -> None:
    _end_with(parent)
    os.dup2(listener, _FIRST_PASSED)
    os.set_inheritable(_FIRST_PASSED, True)  # if it had that number already
    os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
    os.execvp(_WITHOUT_RIGHTS[0], [*_WITHOUT_RIGHTS, *words])


def _end_with(parent: int) -> None:
    """Be a child that ends when its parent does, and has nothing of it."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    if os.getppid() != parent:
        os._exit(1)  # the parent had ended before
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)  # the QMP socket is QEMU's alone


def _use_name_server(address: str) -> None:
    """Have QEMU, which asks the host's name server for its guest, ask this one."""
    root = b"none", b"/", None
    _check(_libc.mount(*root, _MS_REC | _MS_PRIVATE, None))
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(f"nameserver {address}\n")
        file.flush()
        target = os.path.realpath(_RESOLV_CONF).encode()
        _check(_libc.mount(file.name.encode(), target, None, _MS_BIND, None))


def _run(*command: str, told: str = "") -> None:
    done = subprocess.run(command, input=told, text=True, stdout=sys.stderr, check=False)
    if done.returncode:
        sys.exit(f"{command[0]} failed with exit code {done.returncode}")


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    main(*sys.argv[1:])
