"""How often, and how many at once: each caller has a share of its own."""

from __future__ import annotations

import ipaddress
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs

from supervisor.errors import TooOften

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Callers that have a share of their own. Those beyond have one together: the table is bounded.
_MOST_CALLERS = 4096
_OTHERS = "\0"


@attrs.define
class _Share:
    tokens: float
    at_s: float


class Rates:
    """A token bucket for each caller.

    :param per_s: tokens that come each second; 0: there is no limit
    :param burst: tokens that a caller has at first, and at most
    :param now_s: a monotonic clock
    """

    def __init__(self, per_s: float, burst: float, now_s: Callable[[], float]) -> None:
        self._per_s = per_s
        self._burst = burst
        self._now_s = now_s
        self._shares: dict[str, _Share] = {}

    def take(self, who: str) -> bool:
        """Whether the caller had a token, which is gone now."""
        if not self._per_s:
            return True
        share = self._share(who)
        if share.tokens < 1:
            return False
        share.tokens -= 1
        return True

    def wait_s(self, who: str) -> int:
        """Whole seconds until there is a token."""
        return max(1, math.ceil((1 - self._share(who).tokens) / self._per_s))

    def _share(self, who: str) -> _Share:
        now_s, who = self._now_s(), network_of(who)
        if who not in self._shares and len(self._shares) >= _MOST_CALLERS:
            self._forget(now_s)
            if len(self._shares) >= _MOST_CALLERS:
                who = _OTHERS
        share = self._shares.setdefault(who, _Share(self._burst, now_s))
        share.tokens = min(self._burst, share.tokens + (now_s - share.at_s) * self._per_s)
        share.at_s = now_s
        return share

    def _forget(self, now_s: float) -> None:
        """Those whose bucket is full again are as good as new."""
        full_s = self._burst / self._per_s
        for who, share in list(self._shares.items()):
            if now_s - share.at_s >= full_s:
                del self._shares[who]


class AtOnce:
    """How many of something each caller has at the same time."""

    def __init__(self, most: int, what: str, setting: str) -> None:
        self._most = most
        self._what = what
        self._setting = setting
        self._held: dict[str, int] = {}

    def check(self, who: str) -> None:
        """:raises TooOften:"""
        held = self._held.get(network_of(who), 0)
        if held >= self._most:
            raise TooOften(
                f"there are {held} {self._what} of this caller already",
                advice=f"end one, or raise {self._setting}",
                retry_after_s=1,
            )

    @contextmanager
    def one_more(self, who: str) -> Iterator[None]:
        """:raises TooOften: if the caller has as many as one may have"""
        self.check(who)
        who = network_of(who)
        self._held[who] = self._held.get(who, 0) + 1
        try:
            yield
        finally:
            self._held[who] -= 1
            if not self._held[who]:
                del self._held[who]


def network_of(who: str) -> str:
    """One host may have a whole /64 of IPv6 addresses; all else is as it is."""
    try:
        address = ipaddress.IPv6Address(who)
    except ValueError:
        return who
    return str(ipaddress.IPv6Network((address, 64), strict=False))
