"""What a caller may ask for, whichever wire the request comes over.

A wire makes these values from its own words. A wrong value gets its sentence here, so that it gets
the same one over both wires. Pure.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, TypeVar

import attrs

from supervisor.config import (
    MAX_COMPUTATION,
    Forwards,
    Policy,
    RestartPolicy,
    Tee,
    TemplateUse,
    against_no_forwards,
)
from supervisor.config.settings import parse_seconds
from supervisor.errors import InvalidRequest, TooLarge
from supervisor.state.record import EndMode, RunOptions, request_hash

if TYPE_CHECKING:
    from supervisor.config import Config

E = TypeVar("E", bound=enum.StrEnum)

_LONGEST_KEY = 255
#: The most events of a page.
MAX_PAGE = 1000
#: Digits of an event's number.
_LONGEST_NUMBER = 18


def _fits(_: object, __: object, computation: bytes) -> None:
    if not computation:
        raise InvalidRequest("computation is empty", member="computation")
    if len(computation) > MAX_COMPUTATION:
        raise TooLarge(
            f"computation is {len(computation)} bytes, the limit is {MAX_COMPUTATION}",
            member="computation",
        )


@attrs.frozen
class RunRequest:
    """A computation and what its VM should be like. None: the supervisor's default.

    :param ttl: seconds from the guest's first instruction to the VM's shutdown
    :raises InvalidRequest: if the computation is empty; TooLarge if it is over the limit
    """

    computation: bytes = attrs.field(validator=_fits)
    ttl: float | None = None
    restart: RestartPolicy | None = None
    keep_disk: bool | None = None
    template: TemplateUse | None = None
    forwards: Forwards | None = None
    tee: Tee | None = None
    tee_policy: Policy | None = None

    def options(
        self, config: Config, idempotency_key: str | None, request_id: str = ""
    ) -> RunOptions:
        """What is asked for, with the supervisor's defaults for the rest.

        :raises InvalidRequest: if the key is empty or too long, or a setting excludes a member
        """
        keep, key = self.keep_disk, idempotency_key
        if key is not None and not 0 < len(key) <= _LONGEST_KEY:
            raise InvalidRequest(f"Idempotency-Key must have 1 to {_LONGEST_KEY} characters")
        forwards = self.forwards or config.qemu.net.forwards
        if forwards is Forwards.NONE and (excluded := against_no_forwards(config)):
            raise InvalidRequest(f"forwards=none excludes {excluded[0]}", member="forwards")
        return RunOptions(
            ttl_s=config.life.ttl_s if self.ttl is None else self.ttl,
            restart=self.restart or config.life.restart,
            keep_disk=config.retention.disks if keep is None else keep,
            template=self.template or config.start.templates,
            forwards=forwards,
            tee=self.tee or config.qemu.default_tee,
            tee_policy=str(config.qemu.tee.policy if self.tee_policy is None else self.tee_policy),
            idempotency_key=key,
            request_id=request_id,
            # Megabytes to hash, for nobody but a repetition.
            request_hash=""
            if key is None
            else request_hash(
                self.computation,
                self.ttl,
                self.restart,
                keep,
                template=self.template,
                forwards=self.forwards,
                tee=self.tee,
                tee_policy=self.tee_policy,
            ),
        )


@attrs.frozen
class ShutdownRequest:
    """How to end a VM."""

    mode: EndMode = EndMode.GRACEFUL


@attrs.frozen
class NoMembers:
    """A request about which there is nothing to say."""


@attrs.frozen
class EventsRequest:
    """Which events to tell a reader of.

    :param vm_id: of this VM alone; None: of all, and of the supervisor
    :param after: the number of the last event that the reader knows; None: only new events
    """

    vm_id: str | None = None
    after: int | None = None


# --- from a wire's word to a value ----------------------------------------------------------


def one_of(words: type[E], member: str, given: object) -> E:
    """:raises InvalidRequest: with the words that there are"""
    known = [word.value for word in words]
    if given not in known:
        raise InvalidRequest(f"{member} must be one of {', '.join(known)}", member=member)
    return words(given)


def ttl(given: object) -> float:
    """Seconds, from a duration as Go or ISO 8601 writes it.

    :raises InvalidRequest:
    """
    try:
        return parse_seconds(given if isinstance(given, str) else "")
    except ValueError as error:
        raise InvalidRequest(f"ttl {error}", member="ttl") from None


def tee_policy(given: object) -> Policy:
    """:raises InvalidRequest:"""
    try:
        return Policy.read(given if isinstance(given, str) else "?")
    except ValueError as error:
        raise InvalidRequest(f"tee_policy: {error}", member="tee_policy") from None


def page_size(given: str) -> int:
    """:raises InvalidRequest:"""
    if not given.isdecimal() or not 1 <= int(given[:_LONGEST_NUMBER]) <= MAX_PAGE:
        raise InvalidRequest(f"limit must be a number from 1 to {MAX_PAGE}", member="limit")
    return int(given)


def event_number(given: str | int) -> int:
    """:raises InvalidRequest:"""
    text = str(given)
    if not text.isdecimal() or len(text) > _LONGEST_NUMBER:
        raise InvalidRequest("Last-Event-ID, or after, must be an event's number")
    return int(text)
