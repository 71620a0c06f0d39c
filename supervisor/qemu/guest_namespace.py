"""Becomes a QEMU whose network is a namespace of its own: a program, run with Python's ``-I``.

The process that the supervisor started stays the same and becomes QEMU, so its pid, its exit code
and the signals to it are QEMU's. Its one child is pasta, which carries packets between the
namespace and the host's network. The kernel kills pasta when QEMU ends.

Whoever takes over QEMU is still held by the rules: QEMU has no capability in its namespaces.

Arguments: the rules for nft, the name server in the namespace, the words of pasta up to ``--``, and
QEMU's command. It imports Python's library only.

Source: unshare(2), user_namespaces(7), prctl(2), pasta(1), nft(8).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_MS_REC, _MS_PRIVATE, _MS_BIND = 0x4000, 0x40000, 0x1000
_PR_SET_PDEATHSIG = 1
_RESOLV_CONF = "/etc/resolv.conf"

_libc = ctypes.CDLL(None, use_errno=True)


def search_path() -> str:
    """Where programs are looked for: also where only root's PATH leads."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def main(rules: str, name_server: str, *words: str) -> None:
    os.environ["PATH"] = search_path()
    split = words.index("--")
    pasta, qemu = words[:split], words[split + 1 :]
    _enter_user_namespace()
    begin, begun = os.pipe()
    is_ready, ready = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(begun)
        _become_pasta(pasta, parent, begin, ready)
    os.close(ready)
    _check(_libc.unshare(_CLONE_NEWNET | _CLONE_NEWNS))
    _use_name_server(name_server)
    _run("ip", "link", "set", "lo", "up")
    # Before there is a way out.
    _run("nft", "-f", "-", told=rules)
    os.write(begun, b"\n")
    os.close(begun)
    if not os.read(is_ready, 1):
        os.waitpid(child, 0)
        sys.exit("pasta did not start")
    dropped = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
    os.execvp(dropped[0], [*dropped, *qemu])


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


def _become_pasta(words: tuple[str, ...], parent: int, begin: int, ready: int) -> None:
    """Wait for the parent's namespace, then run pasta, outside that namespace."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    to_loopback = _to_loopback(words[0])
    if not os.read(begin, 1):
        os._exit(1)  # the parent has ended
    # pasta may not look at the parent's /proc, so it gets the namespace as a descriptor; and as one
    # of these two, since a later pasta closes all others. 0 was the QMP socket, QEMU's alone.
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
