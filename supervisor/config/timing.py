"""Times and amounts that no setting changes. Tests pass shorter times."""

from __future__ import annotations

import attrs

from supervisor.waiting import Backoff


@attrs.frozen(kw_only=True)
class Timing:
    """Names that end in ``_s`` are in seconds.

    :param agent_attempt_s: the longest time of a first attempt to reach an agent
    :param agent_attempt_share: a later attempt may take this share of all the time before it
    :param agent_doubt_s: how long a sign that an agent may not come must last to be told of
    :param agent_look_s: how often such signs are looked for
    :param agent_verdict_s: how long a sign that an agent cannot come must last to end its run
    :param agent_first_look_s: when an agent that has become ready is first asked whether it lives
    :param agent_warm_up_s: the longest time for the first answer of an agent in the pool
    :param disk_error_interval_s: the shortest time between two events of a failing disk
    :param guest_events: how many events of one QEMU the guest may cause at once. After that it
        causes one in each ``guest_event_interval_s``; the others are counted.
    :param http_idle_s: after this, a connection without a request is closed
    :param http_unread_s: after this, a connection is closed if its client reads nothing
    :param housekeeping_retry_s: the wait before housekeeping is started again after an error
    :param held_interval_s: how long a clone is not held after a run took one and while runs come up
    :param pool_look_s: how often the ages and fingerprints of the pool's VMs are checked
    :param pool_retry: the wait after a VM of the pool has ended by itself
    :param qmp_flood_events: more events than this within ``qmp_flood_s`` count as an attack
    :param reader_buffer: events that a reader may lag behind before its stream ends
    :param readers: so many may follow events at a time; each holds a connection and a buffer
    :param retention_look_s: how often the ages of ended VMs are checked
    :param sse_keep_alive_s: how often an idle stream gets a comment, so that no proxy closes it
    :param template_look_s: how often the present fingerprint is checked
    :param template_retry: the wait after a template could not be built
    :param template_settle_s: the wait before a guest is frozen. Work that is not finished then
        would be repeated by each clone.
    :param ttl_sleep_s: the longest wait between two looks at the ttl, because trio's clock stops
        while the host sleeps
    """

    agent_attempt_s: float = 0.5
    agent_attempt_share: float = 1 / 20
    agent_doubt_s: float = 20.0
    agent_look_s: float = 2.0
    agent_verdict_s: float = 5.0
    agent_first_look_s: float = 1.0
    agent_warm_up_s: float = 3.0
    disk_error_interval_s: float = 10.0
    guest_events: int = 100
    guest_event_interval_s: float = 10.0
    http_idle_s: float = 75.0
    http_unread_s: float = 30.0
    housekeeping_retry_s: float = 10.0
    held_interval_s: float = 1.0
    pool_look_s: float = 5.0
    pool_retry: Backoff = attrs.field(default=Backoff(5.0, 300.0))
    qmp_flood_events: int = 5_000
    qmp_flood_s: float = 10.0
    reader_buffer: int = 1024
    readers: int = 256
    #: How often it is looked at whether a console still has readers.
    console_look_s: float = 1.0
    #: How often a log that somebody follows is looked at.
    log_look_s: float = 0.25
    #: How often an agent is asked what its algorithm has printed.
    printed_look_s: float = 1.0
    retention_look_s: float = 60.0
    sse_keep_alive_s: float = 15.0
    template_look_s: float = 10.0
    template_retry: Backoff = attrs.field(default=Backoff(10.0, 600.0))
    template_settle_s: float = 1.0
    ttl_sleep_s: float = 30.0
