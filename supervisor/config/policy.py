"""Settings for limits, restarts, health checks, shutdown and retention of VMs."""

from __future__ import annotations

import enum

import attrs

from supervisor.config.qemu import size_in_bytes
from supervisor.config.settings import Ratio, Seconds, Size, choice, setting


@choice
class OnStop(enum.StrEnum):
    """What the supervisor does with its VMs when a signal stops it."""

    END = "end"
    LEAVE = "leave"


@choice
class Auth(enum.StrEnum):
    """Whether callers are asked who they are."""

    ON = "on"
    OFF = "off"


@choice
class RestartPolicy(enum.StrEnum):
    """Whether a VM that crashed is booted again."""

    NEVER = "never"
    ON_FAILURE = "on-failure"


@attrs.frozen(kw_only=True)
class LimitsConfig:
    """How many VMs may run at once, and how many runs may wait."""

    max_vms: int = setting("MANAGER_MAX_VMS", 10, "VMs that may run at once")
    max_vms_per_owner: int | None = setting(
        "MANAGER_MAX_VMS_PER_OWNER",
        None,
        "VMs that one caller with the role run may have at once, and runs that wait; unset: no"
        " limit",
    )
    max_memory_per_owner: Size | None = setting(
        "MANAGER_MAX_MEMORY_PER_OWNER",
        None,
        "memory that the VMs of one caller with the role run may have together; unset: no limit",
    )
    memory_overcommit: Ratio = setting(
        "MANAGER_MEMORY_OVERCOMMIT",
        1.0,
        "limit of all VMs' memory together: the host's memory, times this",
    )
    vcpu_overcommit: Ratio = setting(
        "MANAGER_VCPU_OVERCOMMIT",
        16.0,
        "limit of all VMs' virtual CPUs together: the host's CPUs, times this",
    )
    queue: int = setting("MANAGER_QUEUE", 16, "runs that may wait for room; 0: none")
    queue_timeout_s: Seconds = setting(
        "MANAGER_QUEUE_TIMEOUT", 60.0, "longest time that a run waits for room"
    )


@attrs.frozen(kw_only=True)
class LifeConfig:
    """How long a VM lives, how it is watched, and what follows its failure."""

    ttl_s: Seconds | None = setting(
        "MANAGER_TTL", None, "a VM is shut down after this time, unless its run says otherwise"
    )
    ttl_warning_s: Seconds = setting(
        "MANAGER_TTL_WARNING", 60.0, "time from the event expiring to that shutdown"
    )
    restart: RestartPolicy = setting(
        "MANAGER_RESTART",
        RestartPolicy.NEVER,
        "never, or on-failure: a VM that crashes is booted again, unless its run says otherwise",
    )
    restart_backoff_s: Seconds = setting(
        "MANAGER_RESTART_BACKOFF", 1.0, "wait before a restart; doubled each time, up to a minute"
    )
    restart_limit: int = setting(
        "MANAGER_RESTART_LIMIT",
        5,
        "most restarts in a row; a guest that runs for ten minutes resets the count",
    )
    start_timeout_s: Seconds = setting(
        "MANAGER_START_TIMEOUT", 30.0, "longest time from QEMU's start to its guest running"
    )
    attest_timeout_s: Seconds = setting(
        "MANAGER_ATTEST_TIMEOUT",
        600.0,
        "longest time that a guest with a measured launch waits for its owner",
    )
    algorithm_s: Seconds = setting(
        "MANAGER_ALGORITHM_TIMEOUT",
        3600.0,
        "longest time of an algorithm, unless its caller says otherwise",
    )
    heartbeat_s: Seconds = setting(
        "MANAGER_HEARTBEAT", 30.0, "interval at which each QEMU is asked for its status"
    )
    log_size: Size = setting(
        "MANAGER_LOG_SIZE",
        "4M",
        "a VM's log over this size is cut; the part before is kept in a second file",
    )
    answer_s: Seconds = setting(
        "MANAGER_QMP_TIMEOUT",
        10.0,
        "longest time for QEMU's answer on QMP; after it the VM's monitor is lost",
    )


@attrs.frozen(kw_only=True)
class ShutdownConfig:
    """How a VM is ended: the grace period of each step, after which the next step follows."""

    powerdown_grace_s: Seconds = setting(
        "MANAGER_POWERDOWN_GRACE", 60.0, "time for the guest to power off when asked by ACPI"
    )
    powerdown_interval_s: Seconds = setting(
        "MANAGER_POWERDOWN_INTERVAL",
        5.0,
        "the power button is pressed again after this time, because a guest that is still"
        " booting does not hear it",
    )
    quit_grace_s: Seconds = setting(
        "MANAGER_QUIT_GRACE", 10.0, "time for QEMU to exit after QMP quit"
    )
    term_grace_s: Seconds = setting(
        "MANAGER_TERM_GRACE", 5.0, "time for QEMU to exit after SIGTERM; then SIGKILL"
    )

    @property
    def longest_s(self) -> float:
        """Seconds for all steps, with 30 s for the first connection to a QEMU that was just adopted
        and for the kernel to end a killed process.
        """
        return self.powerdown_grace_s + self.quit_grace_s + self.term_grace_s + 30


@attrs.frozen(kw_only=True)
class StopConfig:
    """What happens to the VMs when the supervisor is told to stop."""

    on_sigint: OnStop = setting(
        "MANAGER_ON_SIGINT", OnStop.END, "end: end all VMs first; leave: leave them running"
    )
    on_sigterm: OnStop = setting(
        "MANAGER_ON_SIGTERM",
        OnStop.LEAVE,
        "end: end all VMs first; leave: leave them running for the next supervisor",
    )


@attrs.frozen(kw_only=True)
class RetentionConfig:
    """What is kept of ended VMs: the directory without the disk, until DELETE or these limits."""

    count: int = setting("MANAGER_KEEP_ENDED", 100, "ended VMs whose record and logs are kept")
    age_s: Seconds = setting(
        "MANAGER_KEEP_ENDED_FOR", 7 * 24 * 3600.0, "longest time that they are kept"
    )
    replies_s: Seconds | None = setting(
        "MANAGER_KEEP_REPLIES",
        None,
        "how long a reply is kept after its VM's end; unset: as long as the VM's record",
    )
    result_size: Size = setting(
        "MANAGER_MAX_RESULT", "4G", "largest result of an algorithm that is taken"
    )
    results_size: Size = setting(
        "MANAGER_KEEP_RESULTS",
        "16G",
        "results of ended VMs that are kept, all together; beyond this the oldest are removed",
    )
    disks: bool = setting(
        "MANAGER_KEEP_DISKS",
        False,
        "keep the disks of ended VMs, unless their run says otherwise",
    )
    most_disks: int = setting(
        "MANAGER_MAX_KEPT_DISKS",
        100,
        "ended VMs whose disk is kept; beyond this the oldest are removed, with their records",
    )

    @property
    def result_bytes(self) -> int:
        return size_in_bytes(self.result_size)

    @property
    def results_bytes(self) -> int:
        return size_in_bytes(self.results_size)
