"""What only the supervisor and one VM's run know."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from supervisor.state.secret import Secret

if TYPE_CHECKING:
    from pathlib import Path


def test_each_vm_has_its_own(tmp_path: Path) -> None:
    secrets = [Secret.new() for _ in range(100)]
    assert len({one.credential for one in secrets}) == 100
    assert len({one.entropy for one in secrets}) == 100
    assert {len(one.credential) for one in secrets} == {43}
    assert {len(one.entropy) for one in secrets} == {64}


def test_is_read_as_it_was_written_by_its_user_alone(tmp_path: Path) -> None:
    file, secret = tmp_path / "secret", Secret.new()
    secret.write(file)
    assert Secret.read(file) == secret
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        secret.write(file)  # which would be another's file


def test_what_is_no_secret_is_none(tmp_path: Path) -> None:
    assert Secret.read(tmp_path / "secret") is None
    (tmp_path / "secret").write_bytes(b"short")
    assert Secret.read(tmp_path / "secret") is None


def test_is_not_told_by_accident() -> None:
    secret = Secret.new()
    assert secret.credential not in repr(secret)
    assert secret.entropy.hex() not in repr(secret)
    assert repr(secret.entropy)[2:-1] not in repr(secret)
    assert secret.credential_hash == hashlib.sha256(secret.credential.encode()).hexdigest()
