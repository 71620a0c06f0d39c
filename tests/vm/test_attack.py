"""The short form of scripts/attack: nobody gets further than they should."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]


def test_no_attack_gets_through() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.attack", "--short"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
