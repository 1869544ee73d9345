"""Sends spans by the OpenTelemetry SDK for Python, by gRPC and by HTTP, and reads them back by id and by search.

    python otel_sdk.py path/to/rubato

First while they are in memory and in the write-ahead log; then, after the blocks are cut, by a server that has only the blocks.
"""

import base64
import shutil
import sys

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from rubato import Rubato, eventually

TRACES = 40


def record(service, exporter):
    """Makes traces as an instrumented program does, exports them, and returns the spans by trace id."""
    kept = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": service, "k8s.pod.name": f"{service}-0", "replicas": 3}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = provider.get_tracer("real-parts", "1.2.3")
    before = None
    for number in range(TRACES):
        links = [trace.Link(before, {"why": "previous"})] if before else []
        with tracer.start_as_current_span("POST /orders", kind=trace.SpanKind.SERVER, links=links) as root:
            before = root.get_span_context()
            root.set_attributes({
                "http.response.status_code": 500 if number % 4 == 0 else 201,
                "order.number": number,
                "order.total": number / 4,
                "order.express": number % 2 == 0,
                "order.skus": ["a", "b"],
                "customer": "Jörg 🚲",
            })
            try:
                with tracer.start_as_current_span("INSERT orders", kind=trace.SpanKind.CLIENT) as insert:
                    insert.add_event("lock acquired", {"wait.ms": 3})
                    if number % 4 == 0:
                        raise ValueError("deadlock detected")
            except ValueError:
                root.set_status(trace.Status(trace.StatusCode.ERROR, "could not store"))
            with tracer.start_as_current_span("render"):
                pass
    assert provider.force_flush(20_000), "the exporter does not flush"
    provider.shutdown()
    traces = {}
    for span in kept.get_finished_spans():
        traces.setdefault(span.context.trace_id, []).append(span)
    assert len(traces) == TRACES and all(len(spans) == 3 for spans in traces.values())
    return traces


def plain(attribute):
    (kind, value), = attribute["value"].items()
    match kind:
        case "intValue":
            value = int(value)
        case "arrayValue":
            value = tuple(plain({"key": "", "value": each})[1] for each in value["values"])
    return attribute["key"], value


def plain_attributes(attributes):
    return dict(plain(attribute) for attribute in attributes)


def hexadecimal(text):
    return base64.b64decode(text).hex()


def same(sent, found, resource, scope):
    """Compares one span with the JSON of the query API, field by field."""
    assert hexadecimal(found["spanId"]) == f"{sent.context.span_id:016x}"
    assert found["name"] == sent.name
    assert found["kind"] == f"SPAN_KIND_{sent.kind.name}"
    assert int(found["startTimeUnixNano"]) == sent.start_time
    assert int(found["endTimeUnixNano"]) == sent.end_time
    parent = f"{sent.parent.span_id:016x}" if sent.parent else ""
    assert hexadecimal(found.get("parentSpanId", "")) == parent
    assert plain_attributes(found.get("attributes", [])) == dict(sent.attributes or {})
    assert plain_attributes(resource) == dict(sent.resource.attributes)
    assert scope == {"name": "real-parts", "version": "1.2.3"}, scope
    code = {"UNSET": None, "OK": "STATUS_CODE_OK", "ERROR": "STATUS_CODE_ERROR"}[sent.status.status_code.name]
    assert found["status"].get("code") == code and found["status"].get("message") == sent.status.description, found["status"]
    events = [(each["name"], int(each["timeUnixNano"]), plain_attributes(each.get("attributes", []))) for each in found.get("events", [])]
    assert events == [(each.name, each.timestamp, dict(each.attributes)) for each in sent.events]
    links = [(hexadecimal(each["traceId"]), hexadecimal(each["spanId"]), plain_attributes(each["attributes"])) for each in found.get("links", [])]
    assert links == [(f"{each.context.trace_id:032x}", f"{each.context.span_id:016x}", dict(each.attributes)) for each in sent.links]


def check(server, service, traces):
    for trace_id, sent in traces.items():
        found = eventually(f"trace {trace_id:032x}", lambda: (found := server.trace(trace_id)) and len(found) >= 3 and found)
        found = {hexadecimal(span["spanId"]): (span, resource, scope) for span, resource, scope in found}
        assert len(found) == 3, found
        for span in sent:
            same(span, *found[f"{span.context.span_id:016x}"])

    def ids(selected):
        return {f"{trace_id:x}" for trace_id, spans in traces.items() if any(selected(span) for span in spans)}

    for q, selected in [
        (f'{{ resource.service.name = "{service}" }}', lambda span: True),
        (f'{{ resource.service.name = "{service}" && span.http.response.status_code >= 500 }}',
         lambda span: (span.attributes or {}).get("http.response.status_code") == 500),
        (f'{{ resource.k8s.pod.name = "{service}-0" && status = error && name = "INSERT orders" }}',
         lambda span: span.name == "INSERT orders" and not span.status.is_ok),
        (f'{{ resource.service.name = "{service}" && span.order.express = true && span.order.total > 5.0 }}',
         lambda span: (span.attributes or {}).get("order.express") is True and span.attributes["order.total"] > 5),
        (f'{{ resource.service.name = "{service}" && (span.order.number = 7 || span.order.number = 8) }}',
         lambda span: (span.attributes or {}).get("order.number") in (7, 8)),
        (f'{{ resource.service.name = "{service}" && span.customer = "Nobody" }}', lambda span: False),
    ]:
        expected = ids(selected)
        found = eventually(q, lambda: (traces := server.search(q, 1000), len(traces) >= len(expected))[1] and (traces,))[0]
        assert {each["traceID"] for each in found} == expected, q
        for each in found:
            assert each["rootServiceName"] == service and each["rootTraceName"] == "POST /orders", each


def main(binary):
    with Rubato(binary) as server:
        sent = {
            "python-grpc": record("python-grpc", GrpcExporter(f"http://127.0.0.1:{server.otlp_grpc}", insecure=True)),
            "python-http": record(
                "python-http", HttpExporter(f"http://127.0.0.1:{server.otlp_http}/v1/traces", compression=Compression.Gzip)
            ),
        }
        for service, traces in sent.items():
            check(server, service, traces)
            print(f"{service}: {len(traces)} traces come back by id and by search")

        eventually("all traces are in blocks", lambda: server.traces_in_blocks() >= 2 * TRACES)
        status = server.terminate()
        assert status == 0, f"SIGTERM ends with {status}"
        shutil.rmtree(server.folder / "wal")
        server.start()
        for service, traces in sent.items():
            check(server, service, traces)
            print(f"{service}: {len(traces)} traces come back from the blocks alone")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
