"""How often, and how many at once: each caller has a share of its own."""

from __future__ import annotations

import ipaddress
import math
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import attrs
import structlog

from supervisor.errors import TooOften

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = structlog.stdlib.get_logger()

#: Callers, and addresses, that have a share of their own. Those beyond have one together: a table
#: is bounded.
_MOST_CALLERS = 4096
_OTHERS = "\0"


class Who(NamedTuple):
    """Whose share of a limit something takes.

    :param name: a caller's, or the network of an address
    :param known: whether it is a caller's. A caller may be called like an address, and whoever has
        many addresses must not take what callers have
    """

    name: str
    known: bool

    @classmethod
    def at(cls, address: str) -> Who:
        """Nobody is known to call from there."""
        return cls(network_of(address), known=False)


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
        self._known: dict[str, _Share] = {}
        self._addresses: dict[str, _Share] = {}

    def take(self, who: Who) -> bool:
        """Whether the caller had a token, which is gone now."""
        if not self._per_s:
            return True
        share = self._share(who)
        if share.tokens < 1:
            return False
        share.tokens -= 1
        return True

    def wait_s(self, who: Who) -> int:
        """Whole seconds until there is a token."""
        return max(1, math.ceil((1 - self._share(who).tokens) / self._per_s))

    def _share(self, who: Who) -> _Share:
        now_s, name = self._now_s(), who.name
        shares = self._known if who.known else self._addresses
        if name not in shares and len(shares) >= _MOST_CALLERS:
            self._forget(shares, now_s)
            if len(shares) >= _MOST_CALLERS:
                name = _OTHERS
        share = shares.setdefault(name, _Share(self._burst, now_s))
        share.tokens = min(self._burst, share.tokens + (now_s - share.at_s) * self._per_s)
        share.at_s = now_s
        return share

    def _forget(self, shares: dict[str, _Share], now_s: float) -> None:
        """Those whose bucket is full again are as good as new."""
        full_s = self._burst / self._per_s
        for name, share in list(shares.items()):
            if now_s - share.at_s >= full_s:
                del shares[name]


class Warnings:
    """Lines of the log that strangers cause: one a second of each kind.

    :param now_s: a monotonic clock
    """

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._told_at: dict[str, float] = {}

    def tell(self, what: str, **more: str) -> None:
        now_s = self._now_s()
        if now_s > self._told_at.get(what, -math.inf) + 1:
            self._told_at[what] = now_s
            log.warning(what, **more)


class AtOnce:
    """How many of something each caller has at the same time."""

    def __init__(self, most: int, what: str, setting: str) -> None:
        self._most = most
        self._what = what
        self._setting = setting
        self._held: Counter[Who] = Counter()

    def check(self, who: Who) -> None:
        """:raises TooOften:"""
        held = self._held[who]
        if held >= self._most:
            raise TooOften(
                f"there are {held} {self._what} of this caller already",
                advice=f"end one, or raise {self._setting}",
                retry_after_s=1,
            )

    @contextmanager
    def one_more(self, who: Who) -> Iterator[None]:
        """:raises TooOften: if the caller has as many as one may have"""
        self.check(who)
        self._held[who] += 1
        try:
            yield
        finally:
            self._held[who] -= 1
            if not self._held[who]:
                del self._held[who]


def plain_address(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An IPv4 address as one, though a socket for both families has it as one of IPv6.

    :raises ValueError: if it is no address
    """
    ip = ipaddress.ip_address(address)
    return (isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped) or ip


def network_of(address: str) -> str:
    """The addresses that one host has at will: a /64 of IPv6, and all of loopback."""
    try:
        ip = plain_address(address)
    except ValueError:
        return address  # a unix socket's
    if ip.is_loopback:
        return "loopback"
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    return str(ipaddress.IPv6Network((ip, 64), strict=False))
