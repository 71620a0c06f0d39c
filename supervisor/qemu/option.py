"""How QEMU's options are written. Pure."""

from __future__ import annotations


def escape(value: object) -> str:
    """A value for one of QEMU's comma-separated options, in which a comma is written twice."""
    return str(value).replace(",", ",,")
