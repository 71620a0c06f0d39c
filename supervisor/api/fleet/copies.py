"""Copies of runs that nobody waits for, on this host's disk: another host may lose its own."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import structlog
import trio

from supervisor.caller import Caller, KnownBy, Role
from supervisor.errors import LaunchError
from supervisor.state import file_errors
from supervisor.state.files import remove, write_synced

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")

log = structlog.stdlib.get_logger()

_NEW = ".new"


@attrs.frozen
class Copy:
    """A run as another member is asked for it, without an answer that is waited for.

    :param body: of ``POST /run``; empty once nobody will send it again
    """

    caller: Caller
    headers: dict[str, str]
    body: bytes
    request_id: str

    @property
    def waits(self) -> bool:
        return False

    def encode(self) -> bytes:
        """One line about it, and the body."""
        about = {
            "caller": self.caller.name,
            "role": self.caller.role,
            "token": self.caller.token_id,
            "headers": self.headers,
            "request_id": self.request_id,
        }
        return json.dumps(about).encode() + b"\n" + self.body

    @classmethod
    def decode(cls, content: bytes) -> Copy:
        """:raises ValueError: if it is no such thing"""
        line, _, body = content.partition(b"\n")
        try:
            about: dict[str, Any] = json.loads(line)
            role, token = Role(about["role"]), about["token"]
            caller = Caller(about["caller"], role, KnownBy.MEMBER, token)
            return cls(caller, about["headers"], body, about["request_id"])
        except (LookupError, TypeError) as error:
            raise ValueError(f"no copy of a run: {error!r}") from error


class Copies:
    """Those in a directory, by the runs' ids."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def keep(self, run_id: str, copy: Copy) -> None:
        """So that it is there after a crash of this host.

        :raises LaunchError: if it cannot be written
        """

        def write() -> None:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            # Two may be asked for it at once.
            new = self._directory / f"{run_id}.{uuid.uuid4().hex}{_NEW}"
            write_synced(new, copy.encode())
            new.replace(self._directory / run_id)

        await self._try(write)

    async def read(self, run_id: str) -> Copy:
        """:raises LaunchError: if it cannot be read"""

        def read() -> Copy:
            return Copy.decode((self._directory / run_id).read_bytes())

        return await self._try(read)

    async def shorten(self, run_id: str) -> None:
        """Its computation is not needed any more."""
        copy = await self.read(run_id)
        if copy.body:
            await self.keep(run_id, attrs.evolve(copy, body=b""))

    async def drop(self, run_id: str) -> None:
        await remove(self._directory / run_id)

    async def runs(self) -> list[str]:
        """Whose copies are here. What a crash left half-written is removed."""

        def look() -> list[str]:
            found = []
            for file in self._directory.iterdir() if self._directory.is_dir() else ():
                if file.suffix == _NEW:
                    file.unlink()
                else:
                    found.append(file.name)
            return found

        return await self._try(look)

    async def _try(self, act: Callable[[], T]) -> T:
        try:
            return await trio.to_thread.run_sync(act)
        except OSError as error:
            consequence = "the copy of a run cannot be kept or read"
            raise file_errors.launch_error(error, self._directory, consequence) from error
        except ValueError as error:
            raise LaunchError(str(error)) from error
