"""A guest whose algorithms may do to it what they like: the agent does not confine them."""

from __future__ import annotations

import fcntl
import hashlib
from pathlib import Path

from supervisor.image import image

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / "build" / "trusting-guest"


def trusting_image() -> Path:
    """The disk of such a guest, built if there is none of today's sources; takes half a minute."""
    hashes = hashlib.sha256()
    for room in ("image", "agent/reference"):
        for path in sorted((ROOT / "supervisor" / room).iterdir()):
            if path.is_file():
                hashes.update(path.read_bytes())
    stamp = DIRECTORY.with_suffix(".built-from")
    DIRECTORY.parent.mkdir(exist_ok=True)
    with stamp.open("a+") as file:  # other test processes may want the same
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        if file.read() != hashes.hexdigest() or not DIRECTORY.exists():
            image.build(DIRECTORY, agent_arguments=["--trust-algorithms"])
            file.truncate(0)
            file.write(hashes.hexdigest())
    return DIRECTORY / image.DISK
