"""How an attack is declared, and how what came of it is judged."""

from __future__ import annotations

import enum
import traceback
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.attack.place import Place
    from tests.attack.service import Service

    Act = Callable[[Place], "Came"]


class From(enum.StrEnum):
    """Where an attack comes from."""

    GUEST = "guest"
    LOCAL_USER = "local user"
    TENANT = "tenant"
    NETWORK = "network"
    BROWSER = "browser"


class Need(enum.StrEnum):
    """What a host must have for an attack, with what to do if it has not."""

    ROOT = "needs root"
    CHROMIUM = "install chromium"


@attrs.frozen
class Request:
    """A request that reached the API, as the audit log should have it.

    :param what: what the line's ``what`` begins with
    :param who: the caller's name; None if nobody is known to call
    """

    service: Service
    id: str
    what: str
    who: str | None = None


@attrs.frozen
class Came:
    """What came of an attack.

    :param status: HTTP's status, gRPC's code, or a word of the attack's own
    :param request: None if the attack did not reach the API
    :param detail: what the table adds to the status, if the attack got through
    """

    status: str
    request: Request | None = None
    detail: str = ""


@attrs.frozen
class Attack:
    """One attack.

    :param what: what is tried, in one line; the attacker is the subject
    :param defence: what holds it; a name of `tests.attack.defences`
    :param refusal: the status that it must meet
    :param below: why no line of the audit log tells of it; empty if a line must
    :param through: the statuses that it may meet if it gets through, with | between; empty for any
        success
    """

    origin: From
    what: str
    defence: str
    refusal: str
    act: Act
    below: str
    through: str
    short: bool
    needs: frozenset[Need]


#: All that are declared, in their order.
ATTACKS: list[Attack] = []


def attack(
    origin: From,
    what: str,
    *,
    held_by: str,
    refusal: str,
    below: str = "",
    through: str = "",
    short: bool = True,
    needs: frozenset[Need] = frozenset(),
) -> Callable[[Act], Act]:
    """Declare a function as an attack. The parameters are those of `Attack`."""

    def declare(act: Act) -> Act:
        ATTACKS.append(
            Attack(origin, what, held_by, refusal, act, below, through, short and not needs, needs)
        )
        return act

    return declare


@attrs.frozen
class Row:
    """A line of the table.

    :param met: what came of it
    :param audit: the line of the audit log in short, or why there is none
    :param held: None if the attack was not run
    """

    attack: Attack
    met: str
    audit: str = ""
    held: bool | None = None
    got_through: bool = False


def run(one: Attack, place: Place) -> Row:
    """Attack once."""
    try:
        came = one.act(place)
    except Exception as error:  # an attack that is at fault itself has shown nothing
        where = traceback.extract_tb(error.__traceback__)
        ours = [f"{frame.name}:{frame.lineno}" for frame in where if "/attack/" in frame.filename]
        return Row(one, f"{error!r} in {' > '.join(ours)}", held=False)
    ways = one.through.split("|") if one.through else []
    got_through = came.status in ways if ways else _succeeded(came.status)
    if came.status != one.refusal:
        met = " ".join(f"{came.status} {came.detail}".split())
        return Row(one, met, held=False, got_through=got_through)
    if one.below:
        return Row(one, came.status, f"- {one.below}", held=True)
    line = came.request.service.audit_line(came.request.id) if came.request else None
    problem = _problem(came, line)
    if problem or line is None:
        return Row(one, came.status, problem, held=False)
    shown = f"{line['caller'] or 'nobody'}, {line['what']}, {line['error'] or line['status']}"
    return Row(one, came.status, shown, held=True)


def _problem(came: Came, line: dict[str, object] | None) -> str:
    """What is wrong with the line of the audit log; empty if it tells what came of the attack."""
    request = came.request
    if request is None or line is None:
        return "NO AUDIT LINE"
    wanted = {"outcome": "refused", "status": came.status, "caller": request.who}
    for name, value in wanted.items():
        if str(line[name]) != str(value):
            return f"AUDIT LINE: {name} is {line[name]}, not {value}"
    if not str(line["what"]).startswith(request.what):
        return f"AUDIT LINE: what is {line['what']}, not {request.what}"
    return ""


def _succeeded(status: str) -> bool:
    return status[:1] in ("2", "3") if status.isdecimal() else status in ("OK", "through")
