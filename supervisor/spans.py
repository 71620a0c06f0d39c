"""Traces, to whoever the variables of OpenTelemetry's SDK name; without them nothing is done.

A request is a span; so is each step of its run, each QMP command and each call of an agent that is
waited for meanwhile. The SDK is imported only if something is to be sent.

Source: OpenTelemetry "Semantic conventions" 1.45 for HTTP and RPC; W3C "Trace Context".
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog

from supervisor.build import build_info

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from contextvars import Context

    Attributes = Mapping[str, str | int]

#: Each of them says where traces go.
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
#: Where a Jaeger takes its own format, and where OTLP: its documentation's "APIs".
_JAEGERS_OWN, _JAEGERS_OTLP = 14268, 4318
_NS = 1_000_000_000
#: How long the last traces may take at the end.
_LAST_S = 2.0

#: What to do if the SDK is not installed.
ADVICE = "install the extra: pip install 'qmp-supervisor[tracing]', or '<the wheel>[tracing]'"

log = structlog.stdlib.get_logger()

#: The SDK's, while traces are sent.
_api: Any = None
_tracer: Any = None


@contextmanager
def sending(jaeger_url: str | None) -> Iterator[None]:
    """Send traces during the block, if the environment says so; the last at its end.

    :param jaeger_url: where to, if no variable of OpenTelemetry's says it
    Without the SDK none are sent: its variables are often set for a whole machine.
    """
    global _api, _tracer
    if not wanted(jaeger_url):
        yield
        return
    try:
        provider = _provider(jaeger_url)
    except (ImportError, ValueError) as error:  # or what a variable says makes no sense
        advice = ADVICE if isinstance(error, ImportError) else "see the variables OTEL_…"
        log.warning("no traces are sent", problem=str(error), advice=advice)
        yield
        return
    _api = import_module("opentelemetry.trace")
    _tracer = provider.get_tracer("qmp-supervisor", build_info().version)
    try:
        yield
    finally:
        _api = _tracer = None
        # Nobody waits for a collector that does not answer.
        last = Thread(target=provider.shutdown, daemon=True)
        last.start()
        last.join(_LAST_S)


def wanted(jaeger_url: str | None) -> bool:
    """Whether the environment says that traces are sent."""
    asked = bool(jaeger_url) or any(os.environ.get(name) for name in _ENDPOINTS)
    return asked and os.environ.get("OTEL_SDK_DISABLED", "").lower() != "true"


def missing() -> str:
    """What is not installed for that; empty if all is."""
    try:
        _sdk()
    except ImportError as error:
        return str(error)
    return ""


def _sdk() -> tuple[Any, ...]:
    """:raises ImportError: if it is not installed"""
    sdk, exporter = "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    return tuple(
        map(import_module, (f"{sdk}.trace", f"{sdk}.trace.export", f"{sdk}.resources", exporter))
    )


def _provider(jaeger_url: str | None) -> Any:
    sdk, export, resources, exporter = _sdk()
    given = any(os.environ.get(name) for name in _ENDPOINTS)
    endpoint = None if given or not jaeger_url else otlp_of(jaeger_url)
    about = {"service.name": "qmp-supervisor", "service.version": build_info().version}
    if name := os.environ.get("OTEL_SERVICE_NAME"):
        about["service.name"] = name
    provider = sdk.TracerProvider(resource=resources.Resource.create(about))
    sender = exporter.OTLPSpanExporter(endpoint=endpoint)
    provider.add_span_processor(export.BatchSpanProcessor(sender))
    return provider


def otlp_of(jaeger_url: str) -> str:
    """Where the same Jaeger takes OTLP: the original's URL is of a format that few still take."""
    url = urlsplit(jaeger_url)
    if url.port != _JAEGERS_OWN:
        return jaeger_url
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
    return f"{url.scheme}://{host}:{_JAEGERS_OTLP}/v1/traces"


class Span:
    """A request's, or nobody's."""

    def __init__(self, span: Any) -> None:
        self._span = span

    def end(self, name: str, attributes: Attributes, *, failed: bool) -> None:
        """What is known at its end."""
        if self._span is None:
            return
        self._span.update_name(name)
        self._span.set_attributes(attributes)
        if failed:
            self._span.set_status(_api.StatusCode.ERROR)


_NOBODYS = Span(None)


@contextmanager
def serving(traceparent: str) -> Iterator[Span]:
    """A request that is served.

    :param traceparent: the caller's; empty if there is none
    """
    if _tracer is None:
        yield _NOBODYS
        return
    kind = _api.SpanKind.SERVER
    context = _propagator().extract({"traceparent": traceparent}) if traceparent else None
    with _tracer.start_as_current_span("request", context=context, kind=kind) as span:
        yield Span(span)


@contextmanager
def asking(name: str, attributes: Attributes) -> Iterator[tuple[tuple[str, str], ...]]:
    """Something that a request waits for. What nobody waits for is no span.

    :returns: metadata to send along
    """
    if _tracer is None or not _api.get_current_span().is_recording():
        yield ()
        return
    kind = _api.SpanKind.CLIENT
    with _tracer.start_as_current_span(name, kind=kind, attributes=attributes):
        carrier: dict[str, str] = {}
        _propagator().inject(carrier)
        yield tuple(carrier.items())


def carry_into(context: Context) -> None:
    """What is done in this context is done for the present request, while that lasts."""
    if _tracer is not None:
        module = import_module("opentelemetry.context")
        context.run(module.attach, module.get_current())


def tell_steps(began: float, steps: Iterable[tuple[str, float]], attributes: Attributes) -> None:
    """The steps of a run, once they are known, as spans of the request that asked for it.

    :param began: seconds since 1970
    :param steps: names, and how many seconds each took
    """
    if _tracer is None or not _api.get_current_span().get_span_context().is_valid:
        return
    at = round(began * _NS)
    for name, took_s in steps:
        span = _tracer.start_span(name, start_time=at, attributes=attributes)
        at += round(took_s * _NS)
        span.end(end_time=at)


def _propagator() -> Any:
    module = import_module("opentelemetry.trace.propagation.tracecontext")
    return module.TraceContextTextMapPropagator()
