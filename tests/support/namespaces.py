"""Whether user namespaces can be made here. In a chroot, and in many containers, they cannot."""

from __future__ import annotations

import subprocess

import pytest

_tried = subprocess.run(
    ["unshare", "--user", "--map-root-user", "true"], capture_output=True, text=True, check=False
)

needs_namespaces = pytest.mark.skipif(
    _tried.returncode != 0,
    reason=f"no user namespace can be made here, as in a chroot: {_tried.stderr.strip()}",
)
