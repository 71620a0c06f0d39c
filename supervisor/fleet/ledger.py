"""Which host has a run, and how far it has come: the record that all members share. Pure.

Each step below makes the next record from one that was read. It counts once it has taken that
one's place, and of two steps from the same record one does. So what is allowed here is all that
can happen to a run, whoever is slow, cut off or back from the dead:

======== ======================================== ===================================
from     by                                       to
======== ======================================== ===================================
queued   a host that has room                     owned by it, with the next epoch
queued   the host whose caller waited             given up, for good
queued   another host, where it is posted again   queued, if the first one is lost
queued   the host that keeps its copy             failed, if it is refused for a day
given up the host whose caller waits after all    queued, if its owner has given it up
given up a host where another run gets its key    replaced
owned    its owner, before the agent gets it      sent
owned    its owner, that cannot                   queued, with the next epoch; given up
owned    the host where it was posted, that has   queued, with the next epoch
         not sent it to its owner
owned    another member, once the owner is lost   queued, with the next epoch; interrupted if
                                                  it has lost `_MOST_LOST` hosts already
sent     its owner, before the caller gets it     answered
sent     another member, once the owner is lost   interrupted, or queued if it may run again
any      its owner                                failed, interrupted, removed with its VM
======== ======================================== ===================================

A run is accepted once its caller was told that it need not wait. From then on nobody's leaving
gives it up, and the owner that would give it up has it queued.
"""

from __future__ import annotations

import enum
import json

import attrs
import cattrs

from supervisor.errors import NotOwner
from supervisor.fleet.facts import Needs  # noqa: TC001 - cattrs resolves it

#: A run that ends each supervisor that takes it must not end those of the whole fleet.
_MOST_LOST = 3
_MOST_EPOCHS = 10**9
#: Bytes of a record. One as long as the broker takes could be given up by nobody: that is longer.
_LONGEST = 1 << 16


def is_epoch(word: str) -> bool:
    """Whether another member's word is one. Of thousands of digits Python makes no number."""
    return word.isdecimal() and len(word) < len(str(_MOST_EPOCHS))


class RunState(enum.StrEnum):
    QUEUED = "queued"
    #: A host has it, and its agent does not.
    OWNED = "owned"
    SENT = "sent"
    ANSWERED = "answered"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    #: Its caller left, or had waited too long, before a host took it.
    GIVEN_UP = "given-up"
    #: Another run has its key.
    REPLACED = "replaced"
    #: Its VM was deleted.
    REMOVED = "removed"

    @property
    def is_final(self) -> bool:
        return self not in (RunState.QUEUED, RunState.OWNED, RunState.SENT)

    @property
    def frees_key(self) -> bool:
        """Whether another run may have its key. So no agent gets it any more."""
        return self in (RunState.GIVEN_UP, RunState.REPLACED, RunState.REMOVED)


@attrs.frozen(kw_only=True)
class Run:
    """A run as the fleet knows it. Its computation is with the entry host and the owner alone.

    :param entry: the host that a caller posted it to
    :param owner: the host that has it; empty if none has
    :param epoch: grows by one whenever another host is to have it
    :param vm: its VM, once it has one; empty before
    :param repeats: whether it is sent again if a host is lost that has sent it
    :param moves: whether another host may have it if its owner is lost
    :param lost: how many hosts were lost with it, after which another one was to have it
    :param key: the name of its idempotency key's record; empty if it has none
    :param accepted: whether it is done though nobody waits: two hosts have its computation
    """

    id: str
    entry: str
    needs: Needs
    state: RunState = RunState.QUEUED
    owner: str = ""
    epoch: int = 0
    vm: str = ""
    repeats: bool = False
    moves: bool = True
    lost: int = 0
    key: str = ""
    accepted: bool = False

    def encode(self) -> bytes:
        return json.dumps(attrs.asdict(self)).encode()

    @classmethod
    def decode(cls, content: bytes) -> Run:
        """:raises ValueError: if it is no such thing"""
        if len(content) > _LONGEST:
            raise ValueError(f"no record of a run: it has {len(content)} bytes")
        try:
            run = _converter.structure(json.loads(content), cls)
        except (cattrs.BaseValidationError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"no record of a run: {error!r}") from error
        if not 0 <= run.epoch < _MOST_EPOCHS:
            raise ValueError("no record of a run: it has an epoch that no run comes to")
        return run

    def is_of(self, host: str, epoch: int) -> bool:
        return (self.owner, self.epoch) == (host, epoch)

    # --- steps ------------------------------------------------------------------------------

    def claimed(self, host: str, epoch: int) -> Run:
        """
        :param epoch: that it was queued in
        :raises NotOwner: if it is not queued in this epoch
        """
        if self.state is RunState.OWNED and self.is_of(host, epoch + 1):
            return self  # the answer to this step was lost
        if self.state is not RunState.QUEUED or self.epoch != epoch:
            raise NotOwner(f"run {self.id} is {self._told}")
        return attrs.evolve(self, state=RunState.OWNED, owner=host, epoch=epoch + 1)

    def entered(self, entry: str, lost: str) -> Run:
        """It was posted again to another host, for the one that it was posted to is lost.

        :raises NotOwner: if a host has it, or it is another's by now
        """
        if self.entry == entry:
            return self
        if self.state is not RunState.QUEUED or self.entry != lost:
            raise NotOwner(f"run {self.id} is {self._told}")
        return attrs.evolve(self, entry=entry)

    def taken(self) -> Run:
        """Its caller is told that it is accepted."""
        run = self._queued() if self.state is RunState.GIVEN_UP and self.entry else self
        return run if run.state.is_final else attrs.evolve(run, accepted=True)

    def expired(self) -> Run:
        """It is accepted, and hosts have refused it for too long.

        :raises NotOwner: if a host has it
        """
        if self.state is not RunState.QUEUED:
            raise NotOwner(f"run {self.id} is {self._told}")
        return attrs.evolve(self, state=RunState.FAILED)

    def given_up(self) -> Run:
        """Those who waited where it was posted are gone. It is not revived: its key is free.

        :raises NotOwner: if another host has it, or it is accepted
        """
        is_there = self.state is RunState.OWNED and self.owner == self.entry and not self.vm
        is_open = is_there or self.state in (RunState.QUEUED, RunState.GIVEN_UP)
        if self.accepted or not is_open:
            raise NotOwner(f"run {self.id} is {self._told}")
        return attrs.evolve(self, state=RunState.GIVEN_UP, entry="")

    def revived(self, entry: str) -> Run:
        """It was given up by a host that asked before its caller waited.

        :raises NotOwner: if it was not, or was posted to another host
        """
        if self.state is RunState.QUEUED:
            return self
        if self.state is not RunState.GIVEN_UP or self.entry != entry:
            raise NotOwner(f"run {self.id} is {self._told}")
        return self._queued()

    def replaced(self) -> Run:
        """Another run is to have its key. It is not revived any more.

        :raises NotOwner: if it was not given up, or somebody waits after all
        """
        if not self.state.frees_key:
            raise NotOwner(f"run {self.id} is {self._told}")
        return attrs.evolve(self, state=RunState.REPLACED)

    def taken_back(self, entry: str, host: str, epoch: int) -> Run:
        """The host that it was posted to has not sent it to the one that has it.

        :raises NotOwner: if it is another host's by now, or an agent may have it
        """
        if self.entry == entry and self.state is RunState.QUEUED:
            return self  # that one did not take it, or the answer to this step was lost
        is_unsent = self.state is RunState.OWNED and not (self.vm or self.accepted)
        if self.entry != entry or not is_unsent or not self.is_of(host, epoch):
            raise NotOwner(f"run {self.id} is {self._told}")
        return self._queued()

    def handed_back(self, host: str, epoch: int) -> Run:
        """:raises NotOwner: if it is not this host's, or its agent may have it"""
        self._check(host, epoch)
        if self.state is not RunState.OWNED:
            raise NotOwner(f"run {self.id} is {self._told}")
        return self._queued()

    def advanced(self, host: str, epoch: int, state: RunState, vm: str) -> Run:
        """A step of its owner.

        :param state: sent, answered, failed, interrupted, or given up if nobody sends it; or owned,
            before it is sent again
        :param vm: its VM; empty if it has none. The first one that sends it is the only one
        :raises NotOwner: if it is not this host's, or is over, or is another VM's
        """
        self._check(host, epoch)
        if self.vm and self.vm != vm:  # two requests for one claim may have made two
            raise NotOwner(f"run {self.id} is VM {self.vm}'s, and not {vm or 'to be given up'}")
        # An answer that did not reach the owner's disk has reached nobody.
        lost_as = (RunState.INTERRUPTED, RunState.FAILED)
        is_lost = self.state is RunState.ANSWERED and state in lost_as
        is_open = (self.repeats and not self.state.frees_key) or is_lost
        if self.state.is_final and self.state is not state and not is_open:
            raise NotOwner(f"run {self.id} is {self._told}")
        if state is RunState.GIVEN_UP and self.accepted:
            return self._queued()
        return attrs.evolve(self, state=state, vm=vm)

    def removed(self, host: str, epoch: int) -> Run:
        """:raises NotOwner: if it is not this host's"""
        self._check(host, epoch)
        return attrs.evolve(self, state=RunState.REMOVED)

    def without_owner(self, entry: str) -> Run:
        """What becomes of it if its owner is lost; itself if nothing does.

        :param entry: the host that has its computation, and asks
        """
        is_sent, is_owned = self.state is RunState.SENT, self.state is RunState.OWNED
        if self.moves and (is_owned or (is_sent and self.repeats)) and self.lost < _MOST_LOST:
            return attrs.evolve(self._queued(), entry=entry, lost=self.lost + 1)
        if is_sent or (is_owned and self.moves):
            return attrs.evolve(self, state=RunState.INTERRUPTED)
        return self

    def _queued(self) -> Run:
        return attrs.evolve(self, state=RunState.QUEUED, owner="", epoch=self.epoch + 1, vm="")

    def _check(self, host: str, epoch: int) -> None:
        if not self.is_of(host, epoch):
            raise NotOwner(
                f"run {self.id} is {self._told} in epoch {self.epoch}, and not {host}'s in {epoch}"
            )

    @property
    def _told(self) -> str:
        return f"{self.state} by {self.owner}" if self.owner else str(self.state)


_converter = cattrs.Converter()
