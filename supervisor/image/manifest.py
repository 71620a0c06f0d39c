"""manifest.json, which lies beside a guest image and says what the image is made of."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from attrs import asdict, frozen

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

FORMAT = 1
NAME = "manifest.json"


@frozen
class File:
    """A file of the image: SHA-256 in hex, size in bytes."""

    sha256: str
    size: int

    @classmethod
    def of(cls, path: Path) -> Self:
        with path.open("rb") as file:
            return cls(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


@frozen
class Manifest:
    """A built image. Paths are relative to its directory.

    *agent* is ``reference``, ``python`` or ``program``. *clone_safe* says whether a guest may be
    copied while it runs: whether its agent serves CloneService of protos/clone.proto, and
    *renews_itself* whether a copy needs no call of that: whether it has a renewer. *packages* holds
    versions by package. *built_at* is in RFC 3339.
    """

    agent: str
    clone_safe: bool
    kernel: str
    command_line: str
    built_at: str
    packages: dict[str, str]
    files: dict[str, File]
    renews_itself: bool = False
    format: int = FORMAT

    def write(self, directory: Path) -> None:
        text = json.dumps(asdict(self), indent=2, sort_keys=True)
        (directory / NAME).write_text(f"{text}\n", encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> Self:
        """The manifest in *directory*. OSError: there is none; ValueError: it cannot be used."""
        try:
            members = json.loads((directory / NAME).read_text(encoding="utf-8"))
            files = {name: File(**file) for name, file in members.pop("files").items()}
            manifest = cls(files=files, **members)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{directory / NAME} is no manifest: {error}") from error
        if manifest.format != FORMAT:
            raise ValueError(f"{directory / NAME} has format {manifest.format}, not {FORMAT}")
        return manifest
