"""Waits of a supervisor that are for a guest's or a host's sake, of which there is none here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping


def make() -> None:
    """Shorten them in this process."""
    from supervisor import config
    from supervisor.waiting import Backoff

    retry = Backoff(0.3, 300.0)
    hasty = config.Timing(
        pool_look_s=0.3,
        pool_retry=retry,
        template_look_s=0.3,
        template_retry=retry,
        template_settle_s=0.0,
    )
    load = config.load

    def load_hasty(environ: Mapping[str, str]) -> config.Config:
        return attrs.evolve(load(environ), timing=hasty)

    config.load = load_hasty
