"""Which build this is: read from the installation, not stamped at build time."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

import attrs

_DISTRIBUTION = "qmp-supervisor"


@attrs.frozen
class BuildInfo:
    """:param commit: empty if unknown. :param build_time: RFC 3339, of the installation"""

    version: str
    commit: str
    build_time: str


@cache
def build_info() -> BuildInfo:
    """Blocking, once."""
    distribution = metadata.distribution(_DISTRIBUTION)
    record = next((file for file in distribution.files or () if file.name == "RECORD"), None)
    installed = Path(str(record.locate())).stat().st_mtime if record else 0.0
    return BuildInfo(
        version=distribution.version,
        commit=_commit(distribution),
        build_time=datetime.fromtimestamp(installed, UTC).isoformat(timespec="seconds"),
    )


def _commit(distribution: metadata.Distribution) -> str:
    """The commit that pip installed (PEP 610), or the commit of the checkout that this runs in."""
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if commit := origin.get("vcs_info", {}).get("commit_id"):
        return str(commit)
    checkout = Path(__file__).parents[1]
    if not (checkout / ".git").exists():
        return ""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
