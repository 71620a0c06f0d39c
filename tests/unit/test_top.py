"""The shares of CPU that ``top`` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from rich.console import Console

from supervisor.cli.top import table

if TYPE_CHECKING:
    from supervisor.client import models

SOME = {"state": "running", "uptime_s": 61.0, "purpose": "run", "owner": None, "labels": {"a": ""}}


def vm(name: str, second: int, cpu_s: float | None) -> models.Summary:
    usage = {"at": f"2026-11-29T00:00:0{second}Z", "cpu_s": cpu_s, "memory_bytes": 3 * 2**20}
    found = SOME | {"id": name, "usage": None if cpu_s is None else usage}
    return cast("models.Summary", found)


def rows(
    before: list[models.Summary], now: list[models.Summary], **fleet: list[str]
) -> list[list[str]]:
    console = Console(width=100)
    pages = [cast("models.Page", {"vms": vms, "next": None, **fleet}) for vms in (before, now)]
    with console.capture() as shown:
        console.print(table(*pages))
    return [line.split() for line in shown.get().splitlines()]


def test_shares_of_the_time_between_two_looks() -> None:
    before = [vm("idle", 1, 5.0), vm("busy", 1, 5.0), vm("again", 1, 9.0), vm("same", 1, 1.0)]
    now = [
        *(vm("idle", 3, 5.0), vm("busy", 3, 8.0), vm("again", 3, 1.0), vm("same", 1, 1.0)),
        *(vm("new", 3, 1.0), vm("starts", 3, None)),
    ]
    heading, *found = rows(before, now)
    assert heading[:3] == ["ID", "CPU", "MEMORY"]
    assert [row[0] for row in found[:2]] == ["busy", "idle"]
    assert found[0] == ["busy", "150", "%", "3", "MiB", "running", "1m", "1s", "run", "a"]
    assert found[1][1:3] == ["0", "%"]
    # No two looks at the same QEMU.
    assert {row[0]: row[1] for row in found[2:]} == dict.fromkeys(
        ("again", "same", "new", "starts"), "-"
    )
    assert found[-1][2] == "-"


def test_a_fleets_hosts_and_those_that_have_not_answered() -> None:
    here = vm("one", 1, 1.0) | {"host": "a"}
    heading, row, *missing = rows([here], [here], missing=["b", "c"])
    assert heading[:3] == ["ID", "HOST", "CPU"]
    assert row[:3] == ["one", "a", "-"]
    assert [" ".join(line) for line in missing] == ["without the VMs of b, c: no answer"]
