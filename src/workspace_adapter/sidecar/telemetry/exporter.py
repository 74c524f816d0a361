"""Sends spans over OTLP, by OpenTelemetry's SDK.

Only a workspace that is told an endpoint imports this, and the SDK with it. The provider is
our own, not the process's: what other libraries here would trace stays out of it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from ... import __version__
from ...traces import Place, Span

_SERVICE = "workspace-adapter"


class Exporter:
    """One queue, one thread of the SDK's; nothing here waits for it but :meth:`close`.

    Making one raises whatever the SDK does about a variable of its own that cannot be used.
    """

    def __init__(self, endpoint: str, *, workspace_id: str) -> None:
        self._ids = _Given()
        self._provider = TracerProvider(
            id_generator=self._ids,
            resource=_resource(workspace_id),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        self._tracer = self._provider.get_tracer("workspace_adapter", __version__)

    def export(self, place: Place, spans: Iterable[Span]) -> None:
        """Have the spans of one turn sent, soon."""
        for span in spans:
            self._ids.trace_id, self._ids.span_id = int(place.trace_id, 16), int(span.id, 16)
            context = Context()
            if span.parent_id is not None:
                context = set_span_in_context(NonRecordingSpan(_context(place, span.parent_id)), context)
            begun = self._tracer.start_span(
                span.name,
                context=context,
                kind=SpanKind.SERVER if span.parent_id == place.parent_id else SpanKind.INTERNAL,
                attributes=span.attributes,
                links=[Link(_context(place, link)) for link in span.links],
                start_time=_nanoseconds(span.began_at),
            )
            if span.failed:
                begun.set_status(StatusCode.ERROR)
            begun.end(_nanoseconds(span.ended_at))

    def close(self, within: float) -> None:
        """Send what waits, in so many seconds at most; from any thread but the event loop's."""
        # The SDK's own patience is half a minute, and cannot be changed.
        closing = threading.Thread(target=self._provider.shutdown, name="traces-closing", daemon=True)
        closing.start()
        closing.join(within)


class _Given(IdGenerator):
    """Gives a span the ids that were derived for it."""

    trace_id = 0
    span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id


def _resource(workspace_id: str) -> Resource:
    """Return what the SDK finds out, its variables included; they may name the service otherwise."""
    found = Resource.create({"service.version": __version__, "workspace.id": workspace_id})
    if str(found.attributes[SERVICE_NAME]).startswith("unknown_service"):
        found = found.merge(Resource({SERVICE_NAME: _SERVICE}))
    return found


def _context(place: Place, span_id: str) -> SpanContext:
    return SpanContext(
        trace_id=int(place.trace_id, 16),
        span_id=int(span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED if place.sampled else TraceFlags.DEFAULT),
    )


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1_000_000_000)
