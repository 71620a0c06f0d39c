"""Bearer tokens: 32 random bytes that a caller shows. Their file has hashes only.

One SHA-256 is enough: nobody can guess 256 random bits, whatever a guess costs. A slow hash is for
passwords, and would let strangers keep the supervisor busy.

The file is replaced as a whole, under a lock, and belongs to whoever its directory belongs to.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import attrs
import cattrs

from supervisor.api.auth.files import changing
from supervisor.caller import Caller, KnownBy, Role
from supervisor.errors import HostError, Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: What every token begins with, so that people and scanners know one when they see one.
PREFIX = "qms_"

#: Names of callers. Without a colon: `supervisor.api.auth.door` makes names with one.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")

#: For so long the file says why a token is not valid any more.
_REMEMBERED = timedelta(days=30)


@attrs.frozen(kw_only=True)
class Token:
    """What is on file about a token.

    :param id: eight hexadecimal digits, to tell tokens of one name apart
    :param sha256: of the whole token, hexadecimal
    """

    id: str
    name: str = attrs.field(validator=attrs.validators.matches_re(NAME))
    role: Role
    sha256: str = attrs.field(validator=attrs.validators.matches_re(r"[0-9a-f]{64}"))
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    def ended_at(self, now: datetime) -> datetime | None:
        """Since when it is not valid; None if it is valid."""
        if self.revoked_at:
            return self.revoked_at
        return self.expires_at if self.expires_at and self.expires_at <= now else None

    def state(self, now: datetime) -> str:
        if self.revoked_at:
            return "revoked"
        return "expired" if self.ended_at(now) else "valid"


_converter = cattrs.Converter(forbid_extra_keys=True)


def _time(text: Any, _: object) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError("a time needs its zone")
    return time


_converter.register_structure_hook(datetime, _time)
_converter.register_unstructure_hook(datetime, datetime.isoformat)


def read(file: Path) -> tuple[Token, ...]:
    """The tokens on file; none if there is no file. Blocking.

    :raises HostError: if it is not what this module wrote, or if another user may change it
    """
    try:
        with file.open("rb") as opened:
            stat = os.fstat(opened.fileno())
            content = opened.read()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise HostError(
            f"the tokens' file {file} cannot be read: {error.strerror}",
            advice="'qmp-supervisor token' is to be run as the supervisor's user",
        ) from error
    if stat.st_uid not in (0, os.geteuid()) or stat.st_mode & 0o022:
        raise HostError(
            f"other users may change the tokens' file {file}",
            advice="make it the supervisor's user's, with mode 0600",
        )
    try:
        return tuple(_converter.structure(json.loads(content)["tokens"], list[Token]))
    except Exception as error:  # whatever its bytes make json or cattrs raise
        raise HostError(
            f"{file} is not a file of tokens: {error!r}",
            advice="restore it, or remove it and create new tokens",
        ) from error


def create(
    file: Path, name: str, role: Role, lifetime_s: float | None, now: datetime
) -> tuple[Token, str]:
    """A new token: what is on file, and the token itself, which is nowhere else. Blocking.

    :raises HostError: if the file cannot be read or written
    """
    secret = PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("=")
    token = Token(
        id=secrets.token_hex(4),
        name=name,
        role=role,
        sha256=_hash(secret),
        created_at=now,
        expires_at=now + timedelta(seconds=lifetime_s) if lifetime_s else None,
    )
    try:
        file.parent.mkdir(mode=0o700, exist_ok=True)  # tmp/, before the first start
        with changing(file.parent):
            kept = [
                one
                for one in read(file)
                if not (ended := one.ended_at(now)) or now - ended < _REMEMBERED
            ]
            _write(file, [*kept, token])
    except OSError as error:
        raise _unwritable(file, error) from error
    return token, secret


def revoke(file: Path, which: str, now: datetime) -> list[Token]:
    """Revoke the valid tokens of this name, or the one with this id; those. Blocking.

    :raises HostError: if the file cannot be read or written
    """
    try:
        with changing(file.parent):
            tokens = [
                attrs.evolve(one, revoked_at=now)
                if which in (one.id, one.name) and not one.ended_at(now)
                else one
                for one in read(file)
            ]
            revoked = [one for one in tokens if one.revoked_at == now]
            if revoked:
                _write(file, tokens)
    except OSError as error:
        raise _unwritable(file, error) from error
    return revoked


def find(tokens: Sequence[Token], secret: str, now: datetime) -> Caller:
    """Whose token this is.

    :raises Unauthenticated: if it is nobody's, expired or revoked; says which
    """
    shown = _hash(secret)
    # All of them, however soon one fits: the time tells nothing about the file.
    found = [one for one in tokens if hmac.compare_digest(one.sha256, shown)]
    if not found:
        raise Unauthenticated("the token is not known here")
    token = found[0]
    if token.ended_at(now):
        why = f"the token {token.id} is {token.state(now)}"
        raise Unauthenticated(why, token_id=token.id)
    return Caller(token.name, token.role, KnownBy.TOKEN, token.id)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _write(file: Path, tokens: Sequence[Token]) -> None:
    """Replace the file, which nobody but its owner can read. Under the lock."""
    content = json.dumps({"tokens": _converter.unstructure(tokens)}, indent=1).encode() + b"\n"
    descriptor, draft = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # 0600
    try:
        with open(descriptor, "wb") as opened:
            opened.write(content)
            opened.flush()
            if os.geteuid() == 0:  # written by root, perhaps for a supervisor that is not
                owner = file.parent.stat()
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            os.fsync(descriptor)
        os.replace(draft, file)
    except BaseException:
        os.unlink(draft)
        raise


def _unwritable(file: Path, error: OSError) -> HostError:
    return HostError(
        f"the tokens' file {file} cannot be written: {error.strerror}",
        advice="run this as the supervisor's user, and with its settings: see --env-file",
    )


def now() -> datetime:
    return datetime.now(UTC)
