"""``/``: the page for a browser, and the files that it is made of.

Everybody may have them: they say nothing of this host. What they show comes from the API, which
asks who calls. The files are read once, at the start.

Source: W3C "Content Security Policy Level 3", "Trusted Types".
"""

from __future__ import annotations

import hashlib
import mimetypes
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from quart import Blueprint, Response, request
from werkzeug.exceptions import NotFound

from supervisor.api.callers import needs

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Where the files are.
DIRECTORY = Path(__file__).parents[2] / "page"
_PAGE = "index.html"
_TYPES = {".mjs": "text/javascript", ".LICENSE": "text/plain"}
#: In the page, in the place of what is another one in each answer.
_NONCE = b"{{nonce}}"

#: Scripts and connections of this very origin, and nothing else. No script can make a script of a
#: text, so what a guest prints stays text. xterm.js makes style sheets: those have the nonce.
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'nonce-{nonce}'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)


@attrs.frozen
class _File:
    content: bytes
    type: str
    etag: str


def _files() -> Iterator[tuple[str, _File]]:
    for path in sorted(DIRECTORY.rglob("*")):
        if not path.is_file():
            continue
        content = path.read_bytes()
        kind = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "text/plain"
        digest = hashlib.sha256(content).hexdigest()[:32]
        yield str(path.relative_to(DIRECTORY)), _File(content, f"{kind}; charset=utf-8", digest)


def blueprint() -> Blueprint:
    routes = Blueprint("page", __name__)
    files = dict(_files())
    page = files.pop(_PAGE)

    @routes.get("/")
    @needs(None)
    async def show_page() -> Any:
        nonce = secrets.token_urlsafe(16)
        return Response(
            page.content.replace(_NONCE, nonce.encode()),
            content_type=page.type,
            headers={
                "Cache-Control": "no-store",
                "Content-Security-Policy": _POLICY.format(nonce=nonce),
                "Cross-Origin-Opener-Policy": "same-origin",
                "Referrer-Policy": "no-referrer",
            },
        )

    @routes.get("/page/<path:name>")
    @needs(None)
    async def show_file(name: str) -> Any:
        if name not in files:
            raise NotFound
        found = files[name]
        # Asked for each time: after an upgrade no part is of the version before.
        headers = {"Cache-Control": "no-cache"}
        answer = Response(found.content, content_type=found.type, headers=headers)
        answer.set_etag(found.etag)
        return await answer.make_conditional(request)

    return routes
