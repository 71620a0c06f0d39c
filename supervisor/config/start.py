"""Settings for templates, held clones and the pool, which make a VM ready sooner."""

from __future__ import annotations

import enum

import attrs

from supervisor.config.settings import Seconds, choice, setting


@choice
class TemplateUse(enum.StrEnum):
    """Whether a VM starts from a template. Only a run can require this, not MANAGER_TEMPLATES."""

    AUTO = "auto"
    OFF = "off"
    REQUIRE = "require"


@attrs.frozen(kw_only=True)
class StartConfig:
    """Templates, held clones and the pool."""

    templates: TemplateUse = setting(
        "MANAGER_TEMPLATES",
        TemplateUse.AUTO,
        "auto: start VMs from a template, if the image allows it; off: boot each VM from cold",
    )
    clone_timeout_s: Seconds = setting(
        "MANAGER_CLONE_TIMEOUT",
        10.0,
        "a VM from a template is booted from cold if its agent does not answer within this time",
    )
    held_clones: int = setting(
        "MANAGER_HELD_CLONES",
        2,
        "VMs that are restored from the template, and wait for a run before their first"
        " instruction; a run that finds no room takes theirs",
    )
    pool_size: int = setting(
        "MANAGER_POOL_SIZE",
        0,
        "VMs that are kept ready for runs; they count towards MANAGER_MAX_VMS",
    )
    pool_max_age_s: Seconds = setting(
        "MANAGER_POOL_MAX_AGE", 3600.0, "a VM of the pool that is older than this is replaced"
    )
    pool_interval_s: Seconds = setting(
        "MANAGER_POOL_INTERVAL",
        1.0,
        "shortest time between the starts of two VMs of the pool, and after a run took one",
    )
