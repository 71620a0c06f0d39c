"""Who asks, and what that caller may do. Pure.

Roles are ordered by what they are for, not by rank: a table says what each may do, and nothing
else decides.
"""

from __future__ import annotations

import enum

import attrs


class Role(enum.StrEnum):
    """What a caller is for. docs/reference/roles.md has the table for people."""

    #: A scraper: ``/metrics`` and ``/health``.
    METRICS = "metrics"
    #: A dashboard: sees the host, every VM and its events, changes nothing, reads no reply.
    READ = "read"
    #: A party: its own VMs only, and all that can be done with them.
    RUN = "run"
    #: An operator: every VM.
    OPERATE = "operate"
    #: An operator who may also say who else may.
    ADMIN = "admin"


class Right(enum.StrEnum):
    """What a request needs."""

    METRICS = "metrics"
    #: To see VMs and their events.
    SEE = "see"
    #: To start a run.
    RUN = "run"
    #: To read replies, and to end, pause, resume or reset VMs.
    USE = "use"
    #: To make and remove templates.
    TEMPLATES = "templates"
    #: To see what this host has for confidential guests, and how much of it others take.
    HOST = "host"
    #: To have this host take no runs.
    DRAIN = "drain"


class KnownBy(enum.StrEnum):
    """How the supervisor knows who asks."""

    #: ``MANAGER_AUTH=off``: nobody is asked.
    NOTHING = "nothing"
    SOCKET = "socket"
    TOKEN = "token"
    CERTIFICATE = "certificate"
    #: Another member of the fleet has asked, and says who it is.
    MEMBER = "member"


_RIGHTS = {
    Role.METRICS: {Right.METRICS},
    Role.READ: {Right.METRICS, Right.SEE, Right.HOST},
    Role.RUN: {Right.SEE, Right.RUN, Right.USE},
    Role.OPERATE: set(Right),
    Role.ADMIN: set(Right),
}


@attrs.frozen
class Caller:
    """:param name: what a run's record has as its owner; the same name is the same owner
    :param token_id: of the token that was shown; empty if none was. One caller may have several
    :param claim: id and epoch of the run that another member of the fleet has this one start
    """

    name: str
    role: Role
    known_by: KnownBy
    token_id: str = attrs.field(default="", eq=False)
    claim: tuple[str, int] | None = attrs.field(default=None, eq=False)

    def may(self, right: Right) -> bool:
        return right in _RIGHTS[self.role]

    @property
    def is_party(self) -> bool:
        """Whether there is nothing for this caller but its own: no VM, event, number or name."""
        return self.role is Role.RUN

    def sees(self, owner: str) -> bool:
        """Whether a VM of *owner* exists for this caller. No party has what belongs to nobody.

        :param owner: empty for VMs of the pool and of templates
        """
        return not self.is_party or (bool(owner) and owner == self.name)


def roles_with(right: Right) -> list[Role]:
    return [role for role in Role if right in _RIGHTS[role]]


#: Everybody, if nobody is asked.
ANYBODY = Caller("", Role.ADMIN, KnownBy.NOTHING)
