"""What the figures were measured on. No names, no paths: results are published."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scripts.benchmarks import guest

_REPOSITORY = Path(__file__).parents[2]


def facts(
    load: tuple[float, float, float], libvirt: str | None, accelerator: str | None
) -> dict[str, Any]:
    """The machine, the programs and the guest.

    :param load: averages before anything was started
    :param libvirt: its version
    :param accelerator: by the command lines of the VMs that were measured
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 1e9, 1),
        "kernel": platform.release(),
        "load_at_start": [round(one, 2) for one in load],
        "accelerator": accelerator,
        "qemu": _version("qemu-system-x86_64", "--version"),
        "libvirt": libvirt,
        "python": platform.python_version(),
        "guest": {"vcpus": guest.VCPUS, "memory_mb": guest.MEMORY_MB, **_image()},
    }


def _cpu_model() -> str:
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return found[1].strip() if found else platform.machine()


def _version(*command: str) -> str | None:
    said = subprocess.run(command, capture_output=True, text=True).stdout
    found = re.search(r"\d+\.\d+(\.\d+)?", said)
    return found[0] if found else None


def _commit() -> str | None:
    """The commit, marked where what was measured is not it."""
    command = ["git", "-C", str(_REPOSITORY), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        said = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return said.stdout.strip() or None


def _image() -> dict[str, Any]:
    """What its manifest says of the image."""
    try:
        manifest = json.loads((guest.IMAGE.parent / "manifest.json").read_text())
        sha256 = manifest["files"][guest.IMAGE.name]["sha256"]
    except (OSError, ValueError, KeyError):
        return {}
    return {"kernel": manifest.get("kernel"), "agent": manifest.get("agent"), "sha256": sha256}
