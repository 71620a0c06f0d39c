"""Tokens: what is on file, who may have made it, and who shows which."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from supervisor import cli
from supervisor.api.auth import tokens
from supervisor.caller import Caller, KnownBy, Role
from supervisor.errors import HostError, Unauthenticated

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


def test_token_is_its_owners(file: Path) -> None:
    _, secret = tokens.create(file, "alice", Role.RUN, None, NOW)
    tokens.create(file, "bob", Role.READ, None, NOW)
    known = tokens.read(file)
    assert tokens.find(known, secret, NOW) == Caller("alice", Role.RUN, KnownBy.TOKEN)


def test_file_has_no_token_and_is_its_owners_alone(file: Path) -> None:
    _, secret = tokens.create(file, "alice", Role.RUN, None, NOW)
    assert secret.startswith("qms_")
    assert len(secret) == 4 + 43  # 32 bytes
    assert secret not in file.read_text()
    assert secret.removeprefix("qms_") not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert os.listdir(file.parent) == ["tokens.json"]


def test_two_tokens_are_not_alike(file: Path) -> None:
    made = [tokens.create(file, "alice", Role.RUN, None, NOW) for _ in range(2)]
    assert len({secret for _, secret in made}) == 2
    assert len({token.id for token, _ in made}) == 2


@pytest.mark.parametrize("change", ["", "x", "X" * 47])
def test_unknown_token(file: Path, change: str) -> None:
    _, secret = tokens.create(file, "alice", Role.RUN, None, NOW)
    with pytest.raises(Unauthenticated, match="not known"):
        tokens.find(tokens.read(file), change or secret.swapcase(), NOW)


def test_expired_token(file: Path) -> None:
    _, secret = tokens.create(file, "alice", Role.RUN, 60, NOW)
    known = tokens.read(file)
    assert tokens.find(known, secret, NOW + timedelta(seconds=59))
    with pytest.raises(Unauthenticated, match="expired"):
        tokens.find(known, secret, NOW + timedelta(seconds=60))


def test_revoked_by_name_or_id(file: Path) -> None:
    (first, one), (_, two) = [tokens.create(file, "alice", Role.RUN, None, NOW) for _ in range(2)]
    assert [token.id for token in tokens.revoke(file, first.id, NOW)] == [first.id]
    with pytest.raises(Unauthenticated, match="revoked"):
        tokens.find(tokens.read(file), one, NOW)
    assert tokens.find(tokens.read(file), two, NOW)
    assert len(tokens.revoke(file, "alice", NOW + timedelta(seconds=1))) == 1
    assert tokens.revoke(file, "alice", NOW + timedelta(seconds=2)) == []


def test_ended_tokens_are_forgotten_after_a_while(file: Path) -> None:
    tokens.create(file, "old", Role.RUN, 60, NOW)
    tokens.create(file, "new", Role.RUN, None, NOW + timedelta(days=30))
    assert [one.name for one in tokens.read(file)] == ["old", "new"]
    tokens.create(file, "newer", Role.RUN, None, NOW + timedelta(days=31))
    assert [one.name for one in tokens.read(file)] == ["new", "newer"]


def test_no_file_is_no_token(file: Path) -> None:
    assert tokens.read(file) == ()


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"tokens": [{}]}', '{"tokens": [{"id": "1", "name": "a:b"}]}', "\xff"],
)
def test_file_that_is_something_else(file: Path, content: str) -> None:
    file.write_text(content)
    with pytest.raises(HostError, match="is not a file of tokens"):
        tokens.read(file)


@pytest.mark.parametrize("member", ["role", "name", "sha256", "expires_at", "more"])
def test_file_that_was_changed_by_hand(file: Path, member: str) -> None:
    tokens.create(file, "alice", Role.RUN, 60, NOW)
    content = json.loads(file.read_text())
    content["tokens"][0][member] = "2026-01-01T00:00:00"  # not even a time: it has no zone
    file.write_text(json.dumps(content))
    with pytest.raises(HostError, match="is not a file of tokens"):
        tokens.read(file)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_file_that_others_may_change(file: Path, mode: int) -> None:
    tokens.create(file, "alice", Role.RUN, None, NOW)
    file.chmod(mode)
    with pytest.raises(HostError, match="other users may change"):
        tokens.read(file)


def test_failed_write_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens.create(file, "alice", Role.RUN, None, NOW)
    before = file.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(HostError, match="No space left"):
        tokens.create(file, "bob", Role.RUN, None, NOW)
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == ["tokens.json"]


# --- the command ------------------------------------------------------------------------------


def _run(file: Path, *arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(cli.main, ["token", *arguments], env={"MANAGER_TOKENS": str(file)})
    return done.exit_code, done.stdout, done.stderr


def test_command_prints_the_token_alone(file: Path) -> None:
    code, out, err = _run(file, "create", "alice", "--role", "run", "--expires", "30d")
    assert code == 0
    caller = tokens.find(tokens.read(file), out.strip(), tokens.now())
    assert caller == Caller("alice", Role.RUN, KnownBy.TOKEN)
    assert out.strip() not in err


def test_command_lists_and_revokes(file: Path) -> None:
    _, secret, _ = _run(file, "create", "alice", "--role", "run")
    assert _run(file, "revoke", "alice")[0] == 0
    assert _run(file, "revoke", "alice")[0] == 1
    code, out, _ = _run(file, "list", "--json")
    assert code == 0
    assert secret.strip() not in out
    assert [(one["name"], one["role"], one["state"]) for one in json.loads(out)] == [
        ("alice", "run", "revoked")
    ]
    assert "revoked" in _run(file, "list")[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ("create", "alice"),
        ("create", "alice", "--role", "root"),
        ("create", "uid:0", "--role", "run"),
        ("create", "a\nb", "--role", "run"),
        ("create", "alice", "--role", "run", "--expires", "-1h"),
    ],
)
def test_command_refuses(file: Path, arguments: tuple[str, ...]) -> None:
    assert _run(file, *arguments)[0] == 2
    assert not file.exists()


def test_command_makes_the_directory_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "tmp" / "tokens.json"
    assert _run(file, "create", "alice", "--role", "run")[0] == 0
    assert file.parent.stat().st_mode & 0o777 == 0o700
