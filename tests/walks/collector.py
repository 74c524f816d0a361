"""A collector of traces: a server that takes OTLP over HTTP, or takes it and never answers."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    """What was sent to it."""

    def __init__(self, *, answers: bool) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        self.asked = threading.Event()
        self.answering = threading.Event()
        if answers:
            self.answering.set()
        self.endpoint = ""

    def take(self, body: bytes) -> None:
        sent = ExportTraceServiceRequest.FromString(body)
        for resource_spans in sent.resource_spans:
            self.resources.append(values(resource_spans.resource))
            for scope_spans in resource_spans.scope_spans:
                self.spans += scope_spans.spans

    def named(self, name: str) -> list[Span]:
        """The spans of a name, in the order they began."""
        return sorted((s for s in self.spans if s.name == name), key=lambda s: s.start_time_unix_nano)


def values(of: object) -> dict[str, str]:
    """The attributes of a span or a resource, as text."""
    return {
        attribute.key: str(getattr(attribute.value, attribute.value.WhichOneof("value")))
        for attribute in of.attributes  # type: ignore[attr-defined]
    }


@contextmanager
def collector(*, answers: bool = True) -> Iterator[Collector]:
    """Hold a collector; one that does not answer does so at the end."""
    made = Collector(answers=answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            made.take(gzip.decompress(body) if self.headers["content-encoding"] == "gzip" else body)
            made.asked.set()
            made.answering.wait()
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    made.endpoint = f"http://127.0.0.1:{server.server_port}/v1/traces"
    try:
        yield made
    finally:
        made.answering.set()
        server.shutdown()
        serving.join()
        server.server_close()
