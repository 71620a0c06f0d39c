"""Waits that no setting changes, in one value that is passed in. A test passes shorter ones."""

from __future__ import annotations

import attrs

from supervisor.waiting import Backoff


@attrs.frozen(kw_only=True)
class Timing:
    """Seconds, if the name does not say otherwise.

    :param agent_attempt_s: how long one attempt to reach an agent may take at first
    :param agent_attempt_share: later attempts may take this share of all the time before
    :param agent_warm_up_s: how long an agent of the pool may take for its first answer
    :param disk_error_interval_s: at most one event of a failing disk in so much time
    :param housekeeping_retry_s: before housekeeping that has failed goes on
    :param pool_look_s: how often ages and fingerprints of the pool's VMs are looked at
    :param pool_retry: after a VM of the pool has ended by itself
    :param qmp_flood_events: more events than this within ``qmp_flood_s`` are an attack
    :param reader_buffer: events that a reader may lag behind before its stream ends
    :param retention_look_s: how often the age of ended VMs is looked at
    :param sse_keep_alive_s: a silent reader gets a comment so often, or a proxy closes the stream
    :param template_look_s: how often a template's fingerprint is looked at
    :param template_retry: after a template could not be built
    :param template_settle_s: what a guest still does when it is frozen, each clone does again
    :param ttl_sleep_s: the longest sleep: a host that slept does not count it on trio's clock
    """

    agent_attempt_s: float = 0.5
    agent_attempt_share: float = 1 / 20
    agent_warm_up_s: float = 3.0
    disk_error_interval_s: float = 10.0
    housekeeping_retry_s: float = 10.0
    pool_look_s: float = 5.0
    pool_retry: Backoff = attrs.field(default=Backoff(5.0, 300.0))
    qmp_flood_events: int = 20_000
    qmp_flood_s: float = 10.0
    reader_buffer: int = 1024
    retention_look_s: float = 60.0
    sse_keep_alive_s: float = 15.0
    template_look_s: float = 10.0
    template_retry: Backoff = attrs.field(default=Backoff(10.0, 600.0))
    template_settle_s: float = 1.0
    ttl_sleep_s: float = 30.0
