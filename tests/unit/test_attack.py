"""What `scripts/attack` takes for a refusal, and what it takes for an attack that got through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.attack import __main__ as attack
from tests.attack.kinds import Attack, Came, From, Need, Request, Row, run

if TYPE_CHECKING:
    from tests.attack.place import Place
    from tests.attack.service import Service

LINE: dict[str, Any] = {
    "what": "GET /vms",
    "caller": "alice",
    "outcome": "refused",
    "status": 404,
    "error": "VmNotFound",
}
NOWHERE = cast("Place", None)


class Audited:
    """In the place of a service: its audit log has one line, or none."""

    def __init__(self, line: dict[str, Any] | None) -> None:
        self._line = line

    def audit_line(self, request_id: str) -> dict[str, Any] | None:
        return self._line if request_id == "1" else None


def attacked(came: Came, *, below: str = "", through: str = "") -> Row:
    needs = frozenset[Need]()
    one = Attack(
        From.TENANT, "tries", "a defence", "404", lambda _: came, below, through, True, needs
    )
    return run(one, NOWHERE)


def met(status: str, line: dict[str, Any] | None, who: str = "alice", id_: str = "1") -> Came:
    return Came(status, Request(cast("Service", Audited(line)), id_, "GET ", who))


def test_refusal_that_is_on_the_audit_log() -> None:
    row = attacked(met("404", LINE))
    assert (row.held, row.got_through) == (True, False)
    assert row.audit == "alice, GET /vms, VmNotFound"


@pytest.mark.parametrize(
    "came",
    [
        met("404", None),
        met("404", LINE, id_="2"),
        met("404", LINE, who="bob"),
        met("404", LINE | {"status": 403}),
        met("404", LINE | {"outcome": "answered"}),
        met("404", LINE | {"what": "POST /run"}),
        met("403", LINE | {"status": 403}),
        Came("404"),
    ],
)
def test_refusal_that_is_not_the_one(came: Came) -> None:
    row = attacked(came)
    assert (row.held, row.got_through) == (False, False)


@pytest.mark.parametrize("status", ["200", "204", "308", "OK", "through"])
def test_attack_that_gets_through(status: str) -> None:
    row = attacked(met(status, LINE), below="a packet")
    assert (row.held, row.got_through) == (False, True)


def test_attack_that_gets_through_by_a_status_of_its_own() -> None:
    assert attacked(Came("429"), through="429").got_through
    assert not attacked(Came("200"), through="429").got_through


def test_attack_that_breaks_has_shown_nothing() -> None:
    def broken(_: Place) -> Came:
        raise ValueError("broken")

    one = Attack(From.GUEST, "tries", "a defence", "404", broken, "", "", True, frozenset())
    row = run(one, NOWHERE)
    assert (row.held, row.got_through) == (False, False)


@pytest.mark.parametrize(
    ("held", "code"),
    [([True], 0), ([True, None], 2), ([True, None, False], 1)],
)
def test_exit_code(held: list[bool | None], code: int) -> None:
    one = Attack(From.GUEST, "", "", "", lambda _: Came(""), "", "", True, frozenset())
    assert attack._code([Row(one, "", held=word) for word in held]) == code
