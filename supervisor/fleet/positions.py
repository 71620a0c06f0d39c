"""Where a reader of all hosts' events is. Pure.

Each host numbers its own events. So a reader's position is one number a host, of the journal that
the host had then; and for hosts that it has not heard yet the time from which on it wants theirs.
As text it is an event's id: ``@1764499200.125,a:5f0c21d9:17,b:0d9e77aa:5``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import attrs

from supervisor.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

#: More hosts than a fleet has, and fewer than would be a burden.
_MOST_HOSTS = 256
_PLACE = re.compile(
    r"(?P<host>[a-z0-9-]{1,63}):(?P<journal>[0-9a-f]{8}):(?P<number>[0-9]{1,18})", re.ASCII
)
_SINCE = re.compile(r"@([0-9]{1,12}\.[0-9]{3})", re.ASCII)
_BEGINNING = "0"


@attrs.frozen
class Place:
    """Among one host's events.

    :param journal: which journal's; another one begins its numbers anew
    :param number: of the last event that the reader has
    """

    journal: str
    number: int


@attrs.frozen
class Position:
    """:param since: seconds since 1970: of hosts without a place, events from then on are wanted
    :param places: by host
    """

    since: float
    places: Mapping[str, Place] = attrs.field(factory=dict)

    def __str__(self) -> str:
        places = [f"{host}:{at.journal}:{at.number}" for host, at in sorted(self.places.items())]
        return ",".join([f"@{self.since:.3f}", *places])

    @classmethod
    def parse(cls, given: str) -> Position:
        """:param given: an id; or 0, for all on record

        :raises InvalidRequest:
        """
        if given == _BEGINNING:
            return cls(0.0)
        since, *places = given.split(",")
        began = _SINCE.fullmatch(since)
        found = [_PLACE.fullmatch(one) for one in places]
        by_host = {one["host"]: Place(one["journal"], int(one["number"])) for one in found if one}
        if not began or len(by_host) < len(places) or len(places) > _MOST_HOSTS:
            raise InvalidRequest(
                "where to go on is an event's id, or position, as this fleet gives them, or 0;"
                " among one host's events (host=self) it is a number"
            )
        return cls(float(began[1]), by_host)

    def at(self, host: str, place: Place) -> Position:
        """The same, further along in one host's events."""
        return attrs.evolve(self, places={**self.places, host: place})

    def of(self, host: str) -> Position:
        """What of it one host needs to know."""
        places = {host: self.places[host]} if host in self.places else {}
        return attrs.evolve(self, places=places)
