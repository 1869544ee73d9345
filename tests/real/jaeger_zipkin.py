"""Sends spans by the clients that still speak Jaeger's Thrift and Zipkin, and reads them back.

    python jaeger_zipkin.py path/to/rubato

`jaeger-client` sends datagrams as a program beside an agent does; the same spans also go to the collector's HTTP port, in the encoding
that the client has for it. `py_zipkin` sends every encoding that it has. Last, the server is its own collector.
"""

import base64
import logging
import sys
import time
import urllib.request

import jaeger_client
import opentracing
from jaeger_client.constants import JAEGER_IP_TAG_KEY
from jaeger_client.thrift import make_tags
from jaeger_client.thrift_gen.jaeger import ttypes as jaeger_thrift
from opentracing.ext import tags
from py_zipkin import Encoding, Kind
from py_zipkin.zipkin import zipkin_client_span, zipkin_span
from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.transport.TTransport import TMemoryBuffer

from rubato import Rubato, eventually

SERVER, CLIENT = "SPAN_KIND_SERVER", "SPAN_KIND_CLIENT"


def attributes(of):
    return {each["key"]: next(iter(each["value"].values()), None) for each in of.get("attributes", [])}


def hexadecimal(text):
    return base64.b64decode(text).hex()


def post(url, content_type, body):
    request = urllib.request.Request(url, data=body, headers={"Content-Type": content_type}, method="POST")
    with urllib.request.urlopen(request, timeout=30) as response:
        return response.status


def whole_trace(server, trace_id, spans):
    def complete():
        found = server.trace(trace_id)
        return found if found and len(found) >= spans else None

    return eventually(f"trace {trace_id:032x} with {spans} spans", complete)


def record(tracer):
    """A request with a query in it that fails, as a program instrumented with OpenTracing has it."""
    with tracer.start_active_span("POST /orders", tags={tags.SPAN_KIND: tags.SPAN_KIND_RPC_SERVER, "order": 7, "express": True}) as root:
        with tracer.start_active_span("INSERT", tags={tags.SPAN_KIND: tags.SPAN_KIND_RPC_CLIENT, "weight": 1.5}) as insert:
            insert.span.log_kv({"event": "lock", "wait": 3})
            insert.span.set_tag(tags.ERROR, True)
        follower = tracer.start_span("mail", references=[opentracing.follows_from(root.span.context)], ignore_active_span=True)
        follower.finish()
    return root.span


def check_jaeger(found, service):
    spans = {span["name"]: span for span, _, _ in found}
    assert sorted(spans) == ["INSERT", "POST /orders", "mail"], spans.keys()
    root, insert, mail = spans["POST /orders"], spans["INSERT"], spans["mail"]
    for _, resource, _ in found:
        resource = attributes({"attributes": resource})
        assert resource["service.name"] == service, resource
        assert resource["opencensus.exporterversion"].startswith("Jaeger-Python"), resource
        assert "host.name" in resource and "hostname" not in resource, resource
    assert root["kind"] == SERVER and insert["kind"] == CLIENT, (root, insert)
    assert attributes(root) | {"order": "7", "express": True} == attributes(root), root
    assert attributes(insert)["weight"] == 1.5 and "error" not in attributes(insert), insert
    assert insert["parentSpanId"] == root["spanId"] and insert["status"]["code"] == "STATUS_CODE_ERROR", insert
    event, = insert["events"]
    assert event["name"] == "lock" and attributes(event) == {"wait": "3"}, event
    assert mail["parentSpanId"] == root["spanId"], mail
    link, = mail["links"]
    assert attributes(link) == {"opentracing.ref_type": "follows_from"} and link["spanId"] == root["spanId"], link


def jaeger_over_udp(server):
    config = jaeger_client.Config(
        config={
            "sampler": {"type": "const", "param": 1},
            "local_agent": {"reporting_host": "127.0.0.1", "reporting_port": server.jaeger_compact},
            "generate_128bit_trace_id": True,
            "reporter_flush_interval": 0.1,
        },
        service_name="jaeger-udp",
        validate=True,
    )
    tracer = config.new_tracer()
    span = record(tracer)
    check_jaeger(whole_trace(server, span.trace_id, 3), "jaeger-udp")
    tracer.close()


class Collecting(jaeger_client.reporter.NullReporter):
    def __init__(self):
        self.spans = []

    def report_span(self, span):
        self.spans.append(span)


def jaeger_over_http(server):
    reporter = Collecting()
    tracer = jaeger_client.Tracer(
        service_name="jaeger-http", reporter=reporter, sampler=jaeger_client.ConstSampler(True), generate_128bit_trace_id=True
    )
    span = record(tracer)
    process_tags = {"jaeger.version": "Python-4.8.0", "hostname": "h", JAEGER_IP_TAG_KEY: "127.0.0.1"}
    batch = jaeger_client.thrift.make_jaeger_batch(
        spans=reporter.spans, process=jaeger_thrift.Process(serviceName="jaeger-http", tags=make_tags(process_tags, 1024, 4096))
    )
    buffer = TMemoryBuffer()
    batch.write(TBinaryProtocol(buffer))
    url = f"http://127.0.0.1:{server.jaeger_http}/api/traces?format=jaeger.thrift"
    assert post(url, "application/x-thrift", buffer.getvalue()) == 202
    check_jaeger(whole_trace(server, span.trace_id, 3), "jaeger-http")


def zipkin(server, encoding, path, content_type):
    service = f"zipkin-{encoding.value.lower().replace('_', '-')}"
    url = f"http://127.0.0.1:{server.zipkin}{path}"
    sent = []

    def transport(body):
        body = body if isinstance(body, bytes) else body.encode()
        assert post(url, content_type, body) == 202
        sent.append(body)

    with zipkin_span(
        service_name=service, span_name="GET /", transport_handler=transport, port=8080, host="10.1.2.3", sample_rate=100.0,
        encoding=encoding, kind=Kind.SERVER, use_128bit_trace_id=True, binary_annotations={"http.path": "/"},
    ) as root:
        trace_id = int(root.zipkin_attrs.trace_id, 16)
        with zipkin_client_span(service_name=service, span_name="SELECT") as select:
            select.add_annotation("row", time.time())
            select.update_binary_annotations({"error": "deadlock"})
    assert sent
    found = whole_trace(server, trace_id, 2)
    spans = {span["name"]: span for span, _, _ in found}
    root, select = spans["GET /"], spans["SELECT"]
    assert root["kind"] == SERVER and select["kind"] == CLIENT, spans
    assert select["parentSpanId"] == root["spanId"] and select["status"]["code"] == "STATUS_CODE_ERROR", select
    assert attributes(root)["http.path"] == "/" and attributes(select)["error"] == "deadlock", spans
    assert [event["name"] for event in select["events"]] == ["row"], select
    assert {attributes({"attributes": resource})["service.name"] for _, resource, _ in found} == {service}, found
    assert server.search(f'{{ resource.service.name = "{service}" && status = error }}')[0]["traceID"].zfill(32) == f"{trace_id:032x}"


def dropped(server):
    _, text = server.get("/metrics")
    lines = [line for line in text.decode().splitlines() if line.startswith("rubato_own_traces_dropped_spans_total{")]
    return sum(float(line.split()[-1]) for line in lines)


def own_traces(server):
    """A request that is part of a trace: the server's span is a child in it."""
    trace_id, parent = 0x5EED_0000_0000_0000_0000_0000_0000_0001, "00f067aa0ba902b7"
    status, _ = server.get("/api/search/tags", headers={"traceparent": f"00-{trace_id:032x}-{parent}-01"})
    assert status == 200
    (span, resource, _), = whole_trace(server, trace_id, 1)
    assert span["name"] == "GET /api/search/tags" and span["kind"] == SERVER, span
    assert hexadecimal(span["parentSpanId"]) == parent, span
    assert attributes(span)["http.response.status_code"] == "200", span
    resource = attributes({"attributes": resource})
    assert resource["service.name"] == "tempo-all" and resource["site"] == "here", resource
    # Not sampled, not sent.
    server.get("/api/echo", headers={"traceparent": f"00-{trace_id + 1:032x}-{parent}-00"})
    assert dropped(server) == 0


def collector_away(binary):
    with Rubato(binary, JAEGER_ENDPOINT="http://127.0.0.1:{grpc}/api/traces") as server:
        server.get("/api/echo")
        eventually("a lost span is counted", lambda: dropped(server) >= 1)
        assert server.terminate() == 0


def main():
    logging.getLogger("jaeger_tracing").setLevel(logging.ERROR)
    with Rubato(sys.argv[1], JAEGER_ENDPOINT="http://127.0.0.1:{jaeger_http}/api/traces", JAEGER_TAGS="site=here") as server:
        jaeger_over_udp(server)
        jaeger_over_http(server)
        zipkin(server, Encoding.V1_JSON, "/api/v1/spans", "application/json")
        zipkin(server, Encoding.V2_JSON, "/api/v2/spans", "application/json")
        zipkin(server, Encoding.V2_PROTO3, "/api/v2/spans", "application/x-protobuf")
        own_traces(server)
        assert server.terminate() == 0
    collector_away(sys.argv[1])
    print("jaeger_zipkin: 7 passed, 0 failed")


main()
