"""Which VMs ``GET /vms`` lists, in which order, and how many at a time. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from werkzeug.datastructures import MultiDict

from supervisor.api.words import label, one_of, page_size
from supervisor.errors import InvalidRequest
from supervisor.state.record import Purpose, RelayState
from supervisor.state.status import VmState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from supervisor.vm.vm import Vm

    Wanted = Callable[[Vm], bool]

_BOOLEANS = {"true": True, "false": False}
_OLDEST, _NEWEST = "oldest", "newest"
#: Of which one value is expected; the rest are filters, and may be repeated.
_SINGLE = ("order", "limit", "after", "usage", "host")


def page(vms: Sequence[Vm], asked: MultiDict[str, str]) -> tuple[list[Vm], str | None]:
    """VMs that fit all filters, and the path of the next page, if there are more.

    Filters of one name are alternatives, but for labels, of which each must fit.

    :param asked: the query
    :raises InvalidRequest: if it is not known, or has a value that cannot be
    """
    for name in asked:
        if name not in (*_FILTERS, "label", *_SINGLE):
            known = ", ".join((*_FILTERS, "label", *_SINGLE))
            raise InvalidRequest(f"{name[:64]!r} is no filter; known are {known}", member=name[:64])
        if name in _SINGLE and len(asked.getlist(name)) > 1:
            raise InvalidRequest(f"{name} is said twice", member=name)
    wanted = [_any_of(name, asked.getlist(name)) for name in _FILTERS if name in asked]
    wanted += [_labelled(*label(one)) for one in asked.getlist("label")]
    if asked.get("order", _OLDEST) not in (_OLDEST, _NEWEST):
        raise InvalidRequest(f"order must be {_OLDEST} or {_NEWEST}", member="order")
    newest = asked.get("order") == _NEWEST
    found = sorted((vm for vm in vms if all(fits(vm) for fits in wanted)), key=place)
    if newest:
        found.reverse()
    if after := asked.get("after"):
        # The VM there may be gone by now.
        found = [vm for vm in found if (place(vm) < after if newest else place(vm) > after)]
    if "limit" not in asked:
        return found, None
    limit = page_size(asked["limit"])
    if len(found) <= limit:
        return found, None
    return found[:limit], following(asked, place(found[limit - 1]))


def following(asked: MultiDict[str, str], last: str) -> str:
    """The path of the page after the VM at this place."""
    query = [(name, value) for name, value in asked.items(multi=True) if name != "after"]
    return f"/vms?{urlencode([*query, ('after', last)])}"


def check(page: Mapping[str, Any]) -> None:
    """:raises Exception: if `merged` could not use what another host has answered"""
    merged(MultiDict(), [page])


def merged(
    asked: MultiDict[str, str], pages: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], str | None]:
    """One page of those of several hosts, and the path of the next one.

    :param pages: what each host answered, with the place of each VM
    """
    rows = [row for page in pages for row in page["vms"]]
    rows.sort(key=lambda row: str(row["place"]), reverse=asked.get("order") == _NEWEST)
    limit = page_size(asked["limit"]) if "limit" in asked else len(rows)
    more = len(rows) > limit or any(page["next"] for page in pages)
    last = rows[limit - 1]["place"] if rows[:limit] and more else None
    return rows[:limit], following(asked, last) if last else None


def wants_usage(asked: MultiDict[str, str]) -> bool:
    """:raises InvalidRequest:"""
    return _boolean("usage", asked.get("usage", "false"))


def place(vm: Vm) -> str:
    """In the order of their starts, on all hosts."""
    return f"{vm.record.created_at.isoformat(timespec='microseconds')}_{vm.id}"


def _any_of(name: str, values: list[str]) -> Wanted:
    fits = [_FILTERS[name](value) for value in values]
    return lambda vm: any(one(vm) for one in fits)


def _labelled(name: str, value: str) -> Wanted:
    def fits(vm: Vm) -> bool:
        found = vm.record.options.labels.get(name)
        return found is not None and value in ("", found)

    return fits


def _boolean(name: str, value: str) -> bool:
    if value not in _BOOLEANS:
        raise InvalidRequest(f"{name} must be true or false", member=name)
    return _BOOLEANS[value]


def _of_state(value: str) -> Wanted:
    state = one_of(VmState, "state", value)
    return lambda vm: vm.status.state is state


def _ended(value: str) -> Wanted:
    ended = _boolean("ended", value)
    return lambda vm: vm.ended is ended


def _of_purpose(value: str) -> Wanted:
    purpose = one_of(Purpose, "purpose", value)
    return lambda vm: vm.record.purpose is purpose


def _of_relay(value: str) -> Wanted:
    relay = one_of(RelayState, "relay", value)
    return lambda vm: vm.record.relay is relay


_FILTERS: dict[str, Callable[[str], Wanted]] = {
    "state": _of_state,
    "ended": _ended,
    "purpose": _of_purpose,
    "relay": _of_relay,
    "owner": lambda value: lambda vm: vm.record.owner == value,
    "computed": lambda value: lambda vm: vm.record.computed == value,
}
