"""The protocols as buf judges them: what was released still works, and all has a comment.

tests/vectors/protos/released.binpb is what `buf build protos --exclude-source-info` made of the
last release; it is made anew with each.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import pages

BUF = Path(sys.executable).with_name("buf")
RELEASED = pages.ROOT / "tests/vectors/protos/released.binpb"


@pytest.fixture
def protos(tmp_path: Path) -> Path:
    """A copy: buf would take the clone for its workspace."""
    return Path(shutil.copytree(pages.ROOT / "protos", tmp_path / "protos"))


def buf(protos: Path, command: str, rules: str, *options: str) -> list[str]:
    """What it finds, a line each."""
    config = json.dumps({"version": "v2", command: {"use": [rules]}})
    words = [str(BUF), command, ".", "--config", config, *options]
    done = subprocess.run(words, cwd=protos, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 100), done.stderr  # 100: it has found something
    return done.stdout.splitlines()


def test_nothing_that_was_released_is_broken(protos: Path) -> None:
    assert not buf(protos, "breaking", "FILE", "--against", str(RELEASED))


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ("string id = 1;", "string id = 99;", "was deleted"),
        ("rpc Pause(", "rpc Hold(", "was deleted"),
        ("string id = 1;", "int64 id = 1;", "changed type"),
    ],
)
def test_what_would_be_found(protos: Path, before: str, after: str, found: str) -> None:
    file = protos / "vm.proto"
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after, 1))
    said = buf(protos, "breaking", "FILE", "--against", str(RELEASED))
    assert any(found in line for line in said), said


def test_all_is_documented(protos: Path) -> None:
    assert not buf(protos, "lint", "COMMENTS")
