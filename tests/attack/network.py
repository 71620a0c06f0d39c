"""A network of the attacks' own, if they run as root: addresses that the host need not have."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.attack.guests import LINK_LOCAL, OWN, OWN_6

_INSIDE = "ATTACK_NETWORK"


def is_own() -> bool:
    return _INSIDE in os.environ


def enter() -> None:
    """Go on as a new process in a network of its own; as it is without root."""
    if is_own():
        _set_up()
    elif os.geteuid() == 0:
        words = ["unshare", "--net", "--mount", sys.executable, "-m", "tests.attack", *sys.argv[1:]]
        os.execvpe(words[0], words, os.environ | {_INSIDE: "1"})


def _set_up() -> None:
    """Give the network its addresses and its resolver."""
    for words in (
        "link set lo up",
        f"address add {OWN}/32 dev lo",
        f"address add {LINK_LOCAL}/32 dev lo",
        f"-6 address add {OWN_6}/128 dev lo nodad",
    ):
        subprocess.run(["ip", *words.split()], check=True)
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        file.write("nameserver 127.0.0.1\nnameserver ::1\n")
        file.flush()
        Path(file.name).chmod(0o644)
        # Seen in this namespace alone, and gone with it.
        target = os.path.realpath("/etc/resolv.conf")
        subprocess.run(["mount", "--bind", file.name, target], check=True)
