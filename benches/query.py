"""Asks a server the queries of the bench and prints what they cost. Used by query.sh; needs nothing but Python's library.

    query.py rare  OTLP_HTTP N                             send one span with the attribute bench.rare="N"
    query.py bench HTTP PID SPANS REPEAT TRUTH             ask everything
"""

import json
import os
import sys
import time
import urllib.parse
import urllib.request


def ask(url, body=None):
    headers = {"Content-Type": "application/json"} if body else {}
    with urllib.request.urlopen(urllib.request.Request(url, data=body, headers=headers), timeout=300) as answer:
        return json.loads(answer.read() or b"{}")


def rare(endpoint, number):
    now = time.time_ns()
    span = {
        "traceId": f"{0xBE0000 + int(number):032x}",
        "spanId": f"{1 + int(number):016x}",
        "name": "rare",
        "kind": 1,
        "startTimeUnixNano": str(now - 1_000_000),
        "endTimeUnixNano": str(now),
        "attributes": [{"key": "bench.rare", "value": {"stringValue": number}}],
    }
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "bench"}}]}
    request = {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [span]}]}]}
    ask(f"{endpoint}/v1/traces", json.dumps(request).encode())


def cpu(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def queries(service, trace):
    def search(query, **more):
        return "/api/search", {"q": query, "limit": 20, **more}

    def metrics(query):
        return "/api/metrics/query_range", {"q": query, "step": "15s"}

    return [
        ("trace by id", (f"/api/traces/{trace}", None)),
        ("{}", search("{}")),
        ("service && duration", search(f'{{ resource.service.name = "{service}" && duration > 100ms }}')),
        ("rare attribute", search('{ span.bench.rare = "0" }')),
        ("no match", search('{ span.bench.rare = "absent" }')),
        ("regex", search('{ name =~ ".*(cart|order).*" }')),
        ("structural >>", search("{ kind = server } >> { status = error }")),
        ("by | count", search("{ } | by(resource.service.name) | count() > 20")),
        ("tag values", ("/api/v2/search/tag/resource.service.name/values", {})),
        ("rate", metrics("{} | rate()")),
        ("rate by service", metrics("{} | rate() by (resource.service.name)")),
        ("rate by name", metrics("{} | rate() by (name)")),
        ("p90 by name", metrics("{} | quantile_over_time(duration, .9) by (name)")),
        ("histogram", metrics("{} | histogram_over_time(duration)")),
        ("compare", metrics("{} | compare({ status = error })")),
    ]


def bench(endpoint, pid, spans, repeat, truth):
    spans, repeat = int(spans), int(repeat)
    with open(truth) as file:
        traces = json.load(file)["traces"]
    trace = next(iter(traces)) if isinstance(traces, dict) else traces[0].get("traceId") or traces[0]["trace_id"]
    values = ask(f"{endpoint}/api/v2/search/tag/resource.service.name/values")["tagValues"]
    service = values[0]["value"]
    end = int(time.time()) + 60
    print(f"{'query':<22}{'cold ms':>10}{'p50 ms':>10}{'p99 ms':>10}{'CPU ms':>10}{'M spans/s/core':>16}{'MB read':>10}")
    for name, (path, parameters) in queries(service, trace):
        url = endpoint + path
        if parameters is not None:
            url += "?" + urllib.parse.urlencode({**parameters, "start": end - 7200, "end": end})
        times, before = [], 0
        try:
            for n in range(repeat + 1):
                if n == 1:
                    before = cpu(pid)
                began = time.perf_counter()
                answer = ask(url)
                times.append((time.perf_counter() - began) * 1000)
        except OSError as error:
            text = error.read().decode() if hasattr(error, "read") else error
            print(f"{name:<22}failed: {text}")
            continue
        used = (cpu(pid) - before) / repeat
        warm = sorted(times[1:])
        at = lambda share: warm[min(len(warm) - 1, int(share * len(warm)))]
        read = int(answer.get("metrics", {}).get("inspectedBytes", 0)) / 1e6
        rate = f"{spans / used / 1e6:.1f}" if used > 0 else "-"
        print(f"{name:<22}{times[0]:>10.1f}{at(0.5):>10.1f}{at(0.99):>10.1f}{used * 1000:>10.1f}{rate:>16}{read:>10.1f}")


if __name__ == "__main__":
    {"rare": rare, "bench": bench}[sys.argv[1]](*sys.argv[2:])
