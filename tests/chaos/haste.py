"""Waits of a supervisor that are for a guest's or a host's sake, of which there is none here."""

from __future__ import annotations


def make() -> None:
    """Shorten them in this process."""
    from supervisor.runs import pool, template_builder

    template_builder._SETTLE_S = 0.0
    template_builder._LOOK_S = template_builder._RETRY_S = 0.3
    pool._LOOK_S = pool._RETRY_S = 0.3
