"""The program that renews a copy, as the agent starts it and hears of it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

from supervisor.agent.reference.renewal import Renewer

if TYPE_CHECKING:
    from pathlib import Path


def a_renewer(tmp_path: Path, script: str) -> Renewer:
    program = tmp_path / "renewer"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return Renewer(shlex.quote(str(program)))


def test_a_renewer_tells_that_it_has_renewed(tmp_path: Path) -> None:
    go = tmp_path / "go"
    renewer = a_renewer(tmp_path, f"printf w; until [ -e {go} ]; do :; done; printf r")
    assert not renewer.has_renewed(0)
    assert not renewer.problem
    go.touch()
    assert renewer.has_renewed(60)
    assert renewer.has_renewed(0)
    assert not renewer.problem


@pytest.mark.parametrize(
    ("says", "problem"),
    [
        ("printf 'n\\001'", "the host's name cannot be set: EPERM"),
        ("printf 'f\\034'", "files cannot be written: ENOSPC"),
        ("exit", "the renewer has ended"),
    ],
)
def test_a_renewer_tells_why_it_has_not(tmp_path: Path, says: str, problem: str) -> None:
    renewer = a_renewer(tmp_path, f"printf w; read -t 0 _; {says}")
    while not renewer.problem:
        assert not renewer.has_renewed(60)
    assert renewer.problem == problem


@pytest.mark.parametrize(
    ("script", "problem"),
    [("printf 'o\\002'", "files cannot be opened: ENOENT"), ("exit", "the renewer has ended")],
)
def test_a_renewer_that_does_not_wait_is_an_error(
    tmp_path: Path, script: str, problem: str
) -> None:
    with pytest.raises(OSError, match=problem):
        a_renewer(tmp_path, script)
