"""What is said of a file that cannot be written."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from supervisor.state import file_errors

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the file system is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EMFILE, "open files"),
        (errno.ENFILE, "the host has"),
    ],
)
def test_what_is_used_up_is_named(tmp_path: Path, number: int, words: str) -> None:
    what, advice = file_errors.describe(OSError(number, os.strerror(number)), tmp_path)
    assert what.startswith(f"{tmp_path}: ")
    assert words in what
    assert advice


def test_file_of_the_error_is_named(tmp_path: Path) -> None:
    """Of a copy, that which is written."""
    target = str(tmp_path / "copy")
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/original", None, target)
    assert file_errors.describe(error, tmp_path)[0].startswith(f"{target}: ")
    error = OSError(errno.ENOENT, os.strerror(errno.ENOENT), 5)
    assert file_errors.describe(error, tmp_path) == (f"{tmp_path}: No such file or directory", "")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("qemu-img: t/overlay: Could not write: No space left on device\n", errno.ENOSPC),
        ("qemu-img: t/overlay: Image is not in qcow2 format\n", None),
        ("", None),
    ],
)
def test_what_a_program_printed_of_the_host(text: str, number: int | None) -> None:
    assert file_errors.in_words(text) == number
