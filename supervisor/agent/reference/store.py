"""The algorithm and the data sets that the agent was sent, as files: in a guest, /tmp is RAM."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from typing import NamedTuple

from .refusal import Refusal, StatusCode

ALGORITHM, DATASET = "algorithm", "dataset"
MOST_DATASETS = 64
# Below the store's directory, and below that of an algorithm that runs.
DATASETS = "data"


def dataset(number: int) -> str:
    """The kind of a data set."""
    return f"{DATASET} {number}" if number else DATASET


def file_of(kind: str) -> str:
    """Where a file of this kind is, below a directory."""
    if kind == ALGORITHM:
        return ALGORITHM
    return f"{DATASETS}/{kind.removeprefix(DATASET).strip() or 0}"


class Stored(NamedTuple):
    """What has arrived whole. *id* is its SHA-256 in hex, the same in every guest."""

    id: str
    size: int


class Store:
    """One file of each kind, the last that arrived whole. Close it at the end.

    Methods may be called from many threads at once.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._directory = ""
        self._stored: dict[str, Stored] = {}
        self._numbers = 0
        self._arriving: list[Arriving] = []

    @property
    def arriving(self) -> list[Arriving]:
        """What has begun to arrive."""
        with self._lock:
            return list(self._arriving)

    @property
    def is_empty(self) -> bool:
        with self._lock:
            return not self._stored and not self._arriving

    def put(self, kind: str, content: bytes) -> Stored:
        """Refusal: there is no room for *content*."""
        arriving = self.begin(kind, len(content))
        try:
            arriving.write(content)
            return arriving.finish()
        finally:
            arriving.abort()

    def begin(self, kind: str, size: int) -> Arriving:
        """A file to be written, then finished or aborted. *size*: 0 if nobody knows.

        Refusal: there is no room for *size* bytes.
        """
        with self._lock:
            if size > self._free():
                raise self.no_room(kind, size)
            self._numbers += 1
            path = f"{self._opened()}/arriving-{self._numbers}"
            arriving = Arriving(self, kind, size, path)
            self._arriving.append(arriving)
        return arriving

    def link(self, directory: str, datasets: int) -> dict[str, Stored]:
        """Gives the new *directory* a link to each file, named by its kind; what they are.

        *datasets*: so many of the first; 0 for all.
        """
        first = {ALGORITHM, *map(dataset, range(datasets))}
        with self._lock:
            os.mkdir(directory)
            os.mkdir(f"{directory}/{DATASETS}")
            wanted = {
                kind: stored
                for kind, stored in self._stored.items()
                if not datasets or kind in first
            }
            for file in map(file_of, wanted):
                os.link(f"{self._directory}/{file}", f"{directory}/{file}")
            return wanted

    def name(self) -> str:
        """A path below the store's directory that nothing has had."""
        with self._lock:
            self._numbers += 1
            return f"{self._opened()}/{self._numbers}"

    def keep(self, arriving: Arriving, stored: Stored) -> None:
        with self._lock:
            os.replace(arriving.path, f"{self._directory}/{file_of(arriving.kind)}")
            self._stored[arriving.kind] = stored
            self._arriving.remove(arriving)

    def forget(self, arriving: Arriving) -> None:
        with self._lock:
            os.unlink(arriving.path)
            self._arriving.remove(arriving)

    def no_room(self, kind: str, size: int, received: int = 0) -> Refusal:
        """Of a file that does not fit: how much room there was, and what else takes room."""
        with self._lock:
            asked = f"{size} bytes were announced, " if size else ""
            held = "".join(
                f"; {stored.size} bytes are the {held_kind} before, kept until the next is whole"
                for held_kind, stored in self._stored.items()
            )
            why = (
                f"the {kind} does not fit: the agent's machine has no more room for files:"
                f" {asked}{self._free() + received} bytes were free for it{held};"
                " raise MANAGER_QEMU_MEMORY_SIZE"
            )
        return Refusal(StatusCode.RESOURCE_EXHAUSTED, why)

    def close(self) -> None:
        import shutil

        if self._directory:
            shutil.rmtree(self._directory)

    def _free(self) -> int:
        """How many bytes of files there is room for."""
        space = os.statvfs(self._opened())
        return space.f_bavail * space.f_frsize

    def _opened(self) -> str:
        # Imported here because it takes long and the agent should answer before.
        import tempfile

        if not self._directory:
            self._directory = tempfile.mkdtemp(prefix="agent-")
            os.mkdir(f"{self._directory}/{DATASETS}")
        return self._directory


class Arriving:
    """A file of which *received* bytes have arrived. For one thread."""

    def __init__(self, store: Store, kind: str, size: int, path: str) -> None:
        self.kind = kind
        self.size = size
        self.path = path
        self.received = 0
        self._store = store
        self._hash = hashlib.sha256()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._is_open = True

    def write(self, content: bytes) -> None:
        """Refusal: there is no room for *content*."""
        written = 0
        try:
            while written < len(content):
                written += os.write(self._file, content[written:])
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise self._store.no_room(self.kind, self.size, self.received + written) from error
        self._hash.update(content)
        self.received += len(content)

    def finish(self, sha256: str = "") -> Stored:
        """Puts it in the place of the one before. Refusal: it is not what it should be."""
        stored = Stored(self._hash.hexdigest(), self.received)
        if self.size not in (0, self.received):
            why = f"{self.received} bytes of {self.kind} came, {self.size} were announced"
            raise Refusal(StatusCode.INVALID_ARGUMENT, why)
        if sha256.lower() not in ("", stored.id):
            why = f"the {self.kind} that came has the SHA-256 {stored.id}, {sha256} was announced"
            raise Refusal(StatusCode.INVALID_ARGUMENT, why)
        if self.kind == ALGORITHM and not stored.size:
            raise Refusal(StatusCode.INVALID_ARGUMENT, "the algorithm is empty")
        self._close()
        self._store.keep(self, stored)
        return stored

    def abort(self) -> None:
        """Forgets it, unless it is finished."""
        if self._is_open:
            self._close()
            self._store.forget(self)

    def _close(self) -> None:
        self._is_open = False
        os.close(self._file)
