"""The files of what a VM's algorithms have computed, and of what they have printed."""

from __future__ import annotations

import errno
import os
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import attrs
import trio

from supervisor.state.files import remove, write_synced
from supervisor.state.log_file import LogFile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from io import BufferedWriter
    from pathlib import Path


@attrs.frozen
class Results:
    """Of one VM, whose directory is *path*."""

    path: Path

    @property
    def outcome(self) -> Path:
        """What became of the last algorithm, in JSON."""
        return self.path / "outcome.json"

    @property
    def printed(self) -> Path:
        """What algorithms have printed."""
        return self.path / "algorithm.log"

    def file(self, sha256: str) -> Path:
        """What an algorithm has computed. Its name is of its content, which never changes."""
        return self.path / f"result-{sha256[:16]}"

    @property
    def files(self) -> list[Path]:
        """All of them, and those that have not become one. Blocking."""
        return list(self.path.glob("result-*"))

    @property
    def drafts(self) -> list[Path]:
        """What has not become a result, or an outcome. Blocking."""
        return [*self.path.glob("result-*.new"), *self.path.glob(f"{self.outcome.name}.new")]

    def size(self) -> int:
        """Of all results, in bytes. Blocking, for no longer than a look at a directory."""
        size = 0
        for file in self.files:
            with suppress(OSError):
                size += file.stat().st_size
        return size

    async def drop(self) -> None:
        """Remove the last result and its outcome. A failure is logged."""
        for file in (*await trio.to_thread.run_sync(lambda: self.files), self.outcome):
            await remove(file)

    async def drop_printed(self) -> None:
        """The same of all that was printed."""
        for file in LogFile(self.printed, 0).files:
            await remove(file)

    async def add_printed(self, data: bytes, limit: int) -> None:
        """All of it, or nothing.

        :param limit: of the log, in bytes
        :raises OSError: if it cannot be written
        """
        await trio.to_thread.run_sync(self._add_printed, data, limit)

    def _add_printed(self, data: bytes, limit: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        with open(os.open(self.printed, flags, 0o600), "wb", buffering=0) as log:
            size = os.fstat(log.fileno()).st_size
            if log.write(data) != len(data):
                log.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.printed))
        if size + len(data) > limit:
            LogFile(self.printed, limit).look(time.time())

    @asynccontextmanager
    async def writing(
        self, sha256: str
    ) -> AsyncIterator[trio._file_io.AsyncIOWrapper[BufferedWriter]]:
        """A file that becomes a result at the end of the block, synced. It counts once an outcome
        names it.

        :raises OSError: if it cannot be written
        """
        file = self.file(sha256)
        draft = file.with_name(f"{file.name}.new")
        try:
            async with await trio.open_file(draft, "wb") as opened:
                yield opened
                await opened.flush()
                await trio.to_thread.run_sync(os.fsync, opened.fileno())
            await trio.to_thread.run_sync(os.replace, draft, file)
        finally:
            with trio.CancelScope(shield=True):
                await remove(draft)

    async def keep(self, outcome: bytes, sha256: str) -> None:
        """Write what became of an algorithm, and remove all results but the one that it names.

        :raises OSError: if it cannot be written
        """
        await trio.to_thread.run_sync(self._replace_outcome, outcome)
        for file in await trio.to_thread.run_sync(lambda: self.files):
            if file != self.file(sha256):
                await remove(file)

    def _replace_outcome(self, content: bytes) -> None:
        draft = self.outcome.with_name(f"{self.outcome.name}.new")
        try:
            write_synced(draft, content)
            draft.replace(self.outcome)
        finally:
            draft.unlink(missing_ok=True)
