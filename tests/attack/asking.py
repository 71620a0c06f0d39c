"""Attacks that are one request: what most of them are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.attack.kinds import From, attack

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.attack.kinds import Act, Came
    from tests.attack.place import Place

#: In a path: the id of Bob's VM, and of the paused one of the supervisor that asks nobody.
BOBS, PAUSED = "{bobs}", "{paused}"

#: What begins a WebSocket.
UPGRADE = (
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
)


def path_in(place: Place, path: str) -> str:
    if BOBS in path:
        return path.replace(BOBS, place.victim())
    return path.replace(PAUSED, place.paused()) if PAUSED in path else path


def http(service: str, method: str, path: str, body: Any = None, **how: Any) -> Act:
    """A request over HTTP.

    :param service: a name in `Place`
    :param how: as `Service.ask` takes it
    """

    def act(place: Place) -> Came:
        where = path_in(place, path)
        came: Came = getattr(place, service).ask(method, where, body, **how).came
        return came

    return act


def grpc(service: str, name: str, message: Callable[[Place], Any], **how: Any) -> Act:
    """A call over gRPC; a stream's first message."""

    def act(place: Place) -> Came:
        asked = message(place)
        came: Came = getattr(place, service).call(name, asked, **how)[0]
        return came

    return act


def network(what: str, act: Act, held_by: str, refusal: str, **more: Any) -> None:
    attack(From.NETWORK, what, held_by=held_by, refusal=refusal, **more)(act)


def tenant(what: str, act: Act, held_by: str, refusal: str, **more: Any) -> None:
    attack(From.TENANT, what, held_by=held_by, refusal=refusal, **more)(act)


def browser(what: str, act: Act, held_by: str, refusal: str, **more: Any) -> None:
    attack(From.BROWSER, what, held_by=held_by, refusal=refusal, **more)(act)
