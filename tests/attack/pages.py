"""From a browser: what a page of another site can make it send, as bytes.

The supervisor asks nobody who calls, so nothing but the checks of web pages is in the way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.attack.asking import PAUSED, UPGRADE, browser, http
from tests.attack.kinds import Came, From, attack

if TYPE_CHECKING:
    from tests.attack.place import Place

HOST, ORIGIN, FETCH, TYPE = (
    "the names of a host",
    "the origin of a page",
    "Sec-Fetch-Site",
    "the content type of a body",
)
EVIL = "http://evil.example"
RESUME = f"/vms/{PAUSED}/resume"

# --- its own name stands for our address --------------------------------------------------------

browser(
    "a page whose name was bound to our address reads all VMs",
    http("unasked", "GET", "/vms", host="evil.example", who=""),
    HOST,
    "421",
)
browser(
    "the same page sends a run with JSON, which is of its own origin",
    http("unasked", "POST", RESUME, {}, host="evil.example", headers=[("Origin", EVIL)], who=""),
    HOST,
    "421",
)


@attack(
    From.BROWSER,
    "a proxy's client asks for another host's URL under our name",
    held_by="the host in a target",
    refusal="421",
)
def absolute_target(place: Place) -> Came:
    sent = b"GET http://evil.example/vms HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    return place.unasked.came_of(place.unasked.exchange(sent), "GET ", "")


# --- from its own name -------------------------------------------------------------------------

browser(
    "a form without a body lets a VM go on",
    http("unasked", "POST", RESUME, headers=[("Origin", EVIL)], who=""),
    ORIGIN,
    "403",
)
browser(
    "a form in a sandboxed frame lets a VM go on: its origin is null",
    http("unasked", "POST", RESUME, headers=[("Origin", "null")], who=""),
    ORIGIN,
    "403",
)
browser(
    "a page of another port of this host lets a VM go on",
    http("unasked", "POST", RESUME, headers=[("Origin", "http://localhost:3000")], who=""),
    ORIGIN,
    "403",
)
browser(
    "an EventSource follows all events",
    http(
        "unasked",
        "GET",
        "/events",
        headers=[("Origin", EVIL), ("Accept", "text/event-stream")],
        who="",
    ),
    ORIGIN,
    "403",
)
browser(
    "a fetch asks by OPTIONS whether it may send JSON",
    http(
        "unasked",
        "OPTIONS",
        "/run",
        headers=[
            ("Origin", EVIL),
            ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", "content-type"),
        ],
        who="",
    ),
    ORIGIN,
    "403",
)
browser(
    "a link or an image gets a page's answer: the browser sends no Origin",
    http("unasked", "GET", "/vms", headers=[("Sec-Fetch-Site", "cross-site")], who=""),
    FETCH,
    "403",
)
browser(
    "a script's address of a sibling host gets an answer",
    http("unasked", "GET", "/vms", headers=[("Sec-Fetch-Site", "same-site")], who=""),
    FETCH,
    "403",
)


browser(
    "another site runs a part of our page",
    http("unasked", "GET", "/page/api.mjs", headers=[("Sec-Fetch-Site", "cross-site")], who=""),
    FETCH,
    "403",
)
browser(
    "a page types on the console of a VM",
    http(
        "unasked",
        "GET",
        f"/vms/{PAUSED}/console",
        headers=[("Origin", EVIL), *UPGRADE],
        who="",
    ),
    "the origin of a WebSocket",
    "403",
    through="101",
)


# --- from a browser that sends neither ----------------------------------------------------------

browser(
    "a form of an old browser sends a body as text/plain",
    http("unasked", "POST", RESUME, b"{}", headers=[("Content-Type", "text/plain")], who=""),
    TYPE,
    "415",
)
browser(
    "a script of an old browser sends a body without a type",
    http("unasked", "POST", RESUME, b"{}", who=""),
    TYPE,
    "415",
)
