"""Which version's files are in tmp/: an upgrade reads those of before, a downgrade is refused.

All that is kept counts: records, events, tokens, results, templates. Everything here blocks.
"""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING

import structlog

from supervisor.build import build_info
from supervisor.errors import HostError
from supervisor.guest_text import clean
from supervisor.state.files import write_synced
from supervisor.state.record_file import VERSION
from supervisor.state.tmp_dir import FORMAT

if TYPE_CHECKING:
    from pathlib import Path

_LONGEST = 4096

log = structlog.stdlib.get_logger()


def check(tmp: Path) -> None:
    """Refuse what a later version has written, before anything is read; note what this one writes.

    :raises HostError: if a later version was here, or what it noted cannot be read
    """
    file = tmp / FORMAT
    number, by = 0, ""
    try:
        found = json.loads(_read(file))
        number, by = int(found["format"]), str(found["written_by"])
    except FileNotFoundError:
        pass  # nobody was, or a version that noted nothing
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        raise HostError(
            f"{file} cannot be read: {type(error).__name__}: {error}",
            advice="remove it if no later version of the supervisor has used the directory",
        ) from error
    if number > VERSION:
        raise HostError(
            f"{tmp} was last used by qmp-supervisor {clean(by, 100)}, and this version ({_own()})"
            " does not know all that is written there",
            advice="install that version again, which takes up the VMs; or use another directory:"
            " MANAGER_QEMU_TMP_FILE_LOC",
        )
    if number < VERSION:
        _write(file)


def _read(file: Path) -> bytes:
    """The file, and nothing else that somebody could put there; not all of one that is too long."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no regular file")
        return os.read(descriptor, _LONGEST)
    finally:
        os.close(descriptor)


def _write(file: Path) -> None:
    draft = file.with_suffix(".new")
    try:
        draft.unlink(missing_ok=True)  # a link would be followed
        content = {"format": VERSION, "written_by": _own()}
        write_synced(draft, json.dumps(content).encode() + b"\n")
        os.replace(draft, file)
    except OSError as error:
        # No disk is so full that VMs should have no supervisor.
        log.warning("a later downgrade will not be noticed", problem=f"{file}: {error.strerror}")


def _own() -> str:
    return build_info().version
