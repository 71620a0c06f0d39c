"""Who may do what: the table of rights."""

from __future__ import annotations

import pytest

from supervisor.caller import ANYBODY, Caller, KnownBy, Right, Role


@pytest.mark.parametrize(
    ("role", "rights"),
    [
        (Role.METRICS, {"metrics"}),
        (Role.READ, {"metrics", "see", "host"}),
        (Role.RUN, {"see", "run", "use"}),
        (Role.OPERATE, {"metrics", "see", "run", "use", "templates", "host", "drain"}),
        (Role.ADMIN, {"metrics", "see", "run", "use", "templates", "host", "drain"}),
    ],
)
def test_what_a_role_may(role: Role, rights: set[str]) -> None:
    caller = Caller("alice", role, KnownBy.TOKEN)
    assert {right.value for right in Right if caller.may(right)} == rights


@pytest.mark.parametrize("role", Role)
def test_a_party_sees_its_own_vms_only(role: Role) -> None:
    caller = Caller("alice", role, KnownBy.TOKEN)
    assert caller.sees("alice")
    assert caller.sees("bob") is (role is not Role.RUN)
    assert caller.sees("") is (role is not Role.RUN)
    assert caller.is_party is (role is Role.RUN)


def test_a_party_without_a_name_has_not_what_nobody_has() -> None:
    assert not Caller("", Role.RUN, KnownBy.TOKEN).sees("")


def test_if_nobody_is_asked_everybody_may_all() -> None:
    assert all(ANYBODY.may(right) for right in Right)
    assert ANYBODY.sees("alice")
