"""Which journal the events of a tmp/ are of: their numbers begin anew if tmp/ does."""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_ID = re.compile(r"[0-9a-f]{8}", re.ASCII)


def journal_id(tmp: Path) -> str:
    """Eight hexadecimal digits, the same for as long as this tmp/ exists. Blocking.

    :raises OSError: if it cannot be read or written
    """
    file = tmp / "journal"
    with suppress(FileNotFoundError):
        kept = file.read_text(errors="replace").strip()
        if _ID.fullmatch(kept):
            return kept
    made, draft = secrets.token_hex(4), file.with_name("journal.new")
    with draft.open("w") as opened:
        opened.write(f"{made}\n")
        opened.flush()
        os.fsync(opened.fileno())
    draft.rename(file)
    return made
