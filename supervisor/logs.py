"""Logging: one JSON object on each line of standard error; first ``level``, ``message``, ``ts``."""

from __future__ import annotations

import logging
import sys

import structlog


def configure(level: str) -> None:
    """Format the logs of structlog and of all libraries alike. May be called again.

    :param level: debug, info, warning or error
    """
    shared: list[structlog.types.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        structlog.processors.EventRenamer("message"),
        structlog.contextvars.merge_contextvars,  # the request's id
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _in_order,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # One line for each request to another member says nothing that is not in the audit log.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # It warns of each TLS connection that its other end closes.
    logging.getLogger("asyncio").setLevel(logging.ERROR)


def _in_order(_: object, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    first = {name: event.pop(name) for name in ("level", "message", "ts")}
    return first | dict(event)
