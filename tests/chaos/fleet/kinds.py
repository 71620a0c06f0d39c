"""The kinds of faults: what is done to whom, at which steps of a run, and how long it lasts."""

from __future__ import annotations

import signal
from functools import partial
from typing import TYPE_CHECKING

import attrs

from tests.chaos.fleet.callers import ASYNC, KEY, WAITS
from tests.chaos.fleet.case import ASKED, HERE, KEYED, LAUNCHING, THERE, Step
from tests.chaos.fleet.faults import (
    cut,
    drain,
    fill,
    jump,
    kill,
    kill_nats,
    leave,
    lose,
    lose_majority,
    lose_while_full,
    pause,
    restart_all_nats,
    stop,
    stop_nats,
    suspend,
    terminate,
    twice,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.chaos.fleet.faults import Harm

_HOUR_S = 3600.0


@attrs.frozen
class Injection:
    """One fault at one step.

    :param layout: whether the run is done ``here``, where it is posted, or ``there``; or is
        ``asked`` for at that moment of a host that takes it without the queue
    :param form: how it is posted
    """

    kind: str
    layout: str
    step: Step
    form: str
    harm: Harm

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.layout}, {self.step.name}"


#: All, in the order in which they are declared.
ALL: list[Injection] = []
_FORMS = (WAITS, KEY, ASYNC)
#: To another host.
_WAYS = ("there", "asked")


def _declare(
    kind: str,
    harm: Harm,
    steps: Iterable[str] = (),
    layouts: Iterable[str] = _WAYS,
    form: str = "",
) -> None:
    """:param steps: their names; none: all there are"""
    for layout in layouts:
        for step in {"there": THERE, "asked": ASKED, "here": HERE}[layout]:
            is_for_all = step is not LAUNCHING and (step is not KEYED or form == KEY)
            if step.name not in steps if steps else not is_for_all:
                continue
            posted = form or _FORMS[len(ALL) % len(_FORMS)]
            ALL.append(Injection(kind, layout, step, posted, harm))


_FEW = ("on record", "claimed", "before sent", "with the agent")
_LATE = ("booting", "before sent", "sent", "with the agent", "before answered")
_SOME = ("posted", "in the queue", "claimed", "before sent", "sent", "with the agent", "answered")
_ALL_WAYS = (*_WAYS, "here")
#: A cut of one direction, or one that is answered, differs from another one only if it lasts.
_CUTS = (("drop", "short"), ("drop", "long"), ("reject", "long"), ("in", "long"), ("out", "long"))

for _verb, _does in (("SIGKILL", kill), ("SIGSTOP", stop)):
    for _how in ("short", "long"):
        _entry, _owner, _third = (
            partial(_does, role=one, how=_how) for one in ("entry", "owner", "bystander")
        )
        _declare(f"{_verb} of the entry host, {_how}", _entry)
        _declare(f"{_verb} of the owner, {_how}", _owner, layouts=_ALL_WAYS)
        _declare(f"{_verb} of a bystander, {_how}", _third, _FEW)
for _how in ("short", "long"):
    _harm = partial(kill, role="owner", how=_how)
    _declare(f"SIGKILL of the owner as it launches, {_how}", _harm, ("launching",), _ALL_WAYS)
_declare("its host is lost as it launches", partial(lose, role="owner"), ("launching",), _ALL_WAYS)
_declare("SIGTERM of the owner as it launches", partial(terminate, role="owner"), ("launching",))
_declare(
    "SIGSTOP of the owner, until its message is another's",
    partial(stop, role="owner", how="until the queue gives up"),
    ("pulled", "claimed"),
)
for _role in ("entry", "owner"):
    _declare(f"{_role}: SIGTERM, and a start", partial(terminate, role=_role))
    _declare(f"{_role}: drained", partial(drain, role=_role))
    _declare(f"{_role}: its host is lost", partial(lose, role=_role))
    _declare(f"{_role}: its host is paused, long", partial(pause, role=_role, how="long"))
    _declare(f"{_role}: its host is paused, short", partial(pause, role=_role, how="short"), _FEW)
    _declare(f"{_role}: its host sleeps", partial(suspend, role=_role), _LATE)
    for _by in (_HOUR_S, -_HOUR_S, 20.0, -20.0):
        _harm = partial(jump, role=_role, by_s=_by)
        _declare(f"{_role}: its clock jumps by {_by:+.0f} s", _harm, _FEW[1:])
    for _way, _how in _CUTS:
        _harm = partial(cut, role=_role, what="NATS", way=_way, how=_how)
        _declare(f"{_role}: cut from NATS, {_way}, {_how}", _harm, _LATE)
        _harm = partial(cut, role=_role, what="members", way=_way, how=_how)
        _declare(f"{_role}: cut from members, {_way}, {_how}", _harm, _FEW[1:])
    for _way in ("drop", "in", "out"):
        _harm = partial(cut, role=_role, what="host", way=_way, how="long")
        _declare(f"{_role}: its host is cut off, {_way}", _harm, _LATE)
for _by in (signal.SIGKILL, signal.SIGTERM):
    _harm = partial(lose_while_full, others=_by)
    _declare(
        f"its host is lost, and {_by.name} of the others",
        _harm,
        ("booting", "before sent"),
        _ALL_WAYS,
        ASYNC,
    )
_declare("its only host is lost", partial(lose, role="owner"), layouts=("here",))
for _which in ("leader", "follower", "connected"):
    _declare(f"NATS, {_which}: SIGKILL", partial(kill_nats, which=_which), _SOME)
    for _how in ("short", "long"):
        _harm = partial(stop_nats, which=_which, how=_how)
        _declare(f"NATS, {_which}: SIGSTOP, {_how}", _harm, _FEW)
_routes = partial(cut, role="leader", what="routes", way="drop", how="long")
_declare("NATS, leader: its routes are cut", _routes, _FEW)
_declare("NATS: all are killed, and started", restart_all_nats)
_declare("NATS: the majority is lost", lose_majority)
_declare("NATS: a full disk", partial(fill, which="one"), _FEW)
_declare("NATS: two full disks", partial(fill, which="two"), _FEW)
_declare("the caller leaves", leave, layouts=_ALL_WAYS, form=WAITS)
_declare("posted twice", twice, form=KEY)
_declare("posted twice, here", twice, _LATE, layouts=("here",), form=KEY)
for _verb, _does, _how in (
    ("SIGSTOP", stop, "short"),
    ("SIGSTOP", stop, "long"),
    ("SIGKILL", kill, "short"),
):
    _second = partial(_does, role="entry", how=_how)
    _harm = partial(twice, fault=_second)
    _declare(f"posted twice, and {_verb}, {_how}", _harm, ("with a key", *_SOME), form=KEY)
_declare("posted twice, and the first leaves", partial(twice, fault=leave), _SOME, form=KEY)
_ahead = partial(twice, fault=None, ahead_s=20.0)
_declare("posted twice, the second clock is ahead", _ahead, ("with a key",), form=KEY)

#: Names of the short form.
SHORT = {
    "SIGSTOP of the owner, long, there, before sent",
    "posted twice, there, with a key",
    "posted twice, and SIGKILL, short, asked, claimed",
    "NATS, leader: SIGKILL, there, sent",
    "owner: cut from members, drop, short, there, claimed",
    "the caller leaves, there, booting",
}
