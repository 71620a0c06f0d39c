"""How Hypercorn serves: deadlines, lengths, its log and TLS."""

from __future__ import annotations

import logging
import ssl
from functools import partial
from typing import TYPE_CHECKING

import trio
from hypercorn.config import Config as HypercornConfig

from supervisor.api.http.connections import Settings
from supervisor.api.rates import Warnings
from supervisor.api.sockets import watched_tls
from supervisor.tls import as_tolerant_as_others

if TYPE_CHECKING:
    from supervisor.config import Config, HttpConfig

#: Of a client to a console: what is typed, or pasted.
_LONGEST_MESSAGE = 64 * 1024


def hypercorn_settings(config: Config) -> Settings:
    """Hypercorn's settings, except the sockets."""
    hypercorn = Settings()
    hypercorn.include_server_header = False
    hypercorn.graceful_timeout = 1
    hypercorn.ssl_handshake_timeout = config.callers.header_timeout_s
    hypercorn.header_timeout_s = config.callers.header_timeout_s
    hypercorn.warnings = Warnings(trio.current_time)
    hypercorn.keep_alive_timeout = config.timing.http_idle_s
    hypercorn.keep_alive_max_requests = 2**31  # pollers keep their connection open
    hypercorn.websocket_max_message_size = _LONGEST_MESSAGE
    hypercorn.websocket_ping_interval = (
        config.timing.sse_keep_alive_s
    )  # so that who is gone is noticed
    hypercorn.loglevel = "WARNING"
    hypercorn.errorlog = logging.getLogger("hypercorn.error")  # so that our formatter writes it
    hypercorn.errorlog.setLevel(hypercorn.loglevel)  # which it sets of loggers of its own alone
    hypercorn.unread_s = config.timing.http_unread_s
    hypercorn.tls = watched_tls("HTTP", config.http, partial(_ssl_context, config.http))
    return hypercorn


def _ssl_context(http: HttpConfig) -> ssl.SSLContext:
    """As Hypercorn makes it, for what it speaks."""
    files = HypercornConfig()
    files.certfile, files.keyfile = str(http.server_cert), str(http.server_key)
    if http.client_ca_certs:
        files.ca_certs = str(http.client_ca_certs)
        files.verify_mode = ssl.CERT_REQUIRED
    context = files.create_ssl_context()
    assert context
    return as_tolerant_as_others(context)
