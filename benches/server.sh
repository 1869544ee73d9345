# Sourced by the benches: starts the release binary `$binary` in `$folder`, a folder of its own that is removed at the end, on free ports, and
# defines how to ask it what it costs. Linux only: reads /proc. `$sync` is `rubato.wal.sync`, `$PROCESSORS` are those of the
# metrics-generator, `$compaction_disabled` keeps blocks as they are.

folder=$(mktemp -d "${TMPDIR:-/tmp}/rubato-bench-XXXXXX")
server=
finish() {
    local status=$?
    if [ -n "$server" ]; then
        kill -9 "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    if [ "$status" -ne 0 ] && [ -f "$folder/log" ]; then
        echo "---- last lines of the server's log ----" >&2
        tail -n 40 "$folder/log" >&2
    fi
    rm -rf "$folder"
    exit "$status"
}
trap finish EXIT

read -r http grpc otlp_grpc otlp_http < <(python3 -c '
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
print(*[each.getsockname()[1] for each in sockets])')
cat >"$folder/config.yaml" <<YAML
server:
  http_listen_address: 127.0.0.1
  http_listen_port: $http
  grpc_listen_address: 127.0.0.1
  grpc_listen_port: $grpc
distributor:
  receivers:
    otlp:
      protocols:
        grpc:
          endpoint: 127.0.0.1:$otlp_grpc
        http:
          endpoint: 127.0.0.1:$otlp_http
ingester:
  max_block_duration: 30s
overrides:
  defaults:
    ingestion:
      rate_limit_bytes: 2000000000
      burst_size_bytes: 2000000000
      max_traces_per_user: 10000000
    metrics_generator:
      processors: [${PROCESSORS:-}]
    compaction:
      compaction_disabled: ${compaction_disabled:-false}
storage:
  trace:
    backend: local
    local:
      path: $folder/blocks
    wal:
      path: $folder/wal
      sync: $sync
YAML

cd "$folder"

# Starts the server, also again on the same data, and waits until it is ready.
start_server() {
    "$binary" -config.file="$folder/config.yaml" >"$folder/log" 2>&1 </dev/null &
    server=$!
    for _ in $(seq 300); do
        curl --silent --fail --output /dev/null "http://127.0.0.1:$http/ready" && return
        kill -0 "$server" || { echo "the server ended before it was ready" >&2; exit 1; }
        sleep 0.1
    done
    echo "the server was not ready in 30 s" >&2
    exit 1
}
stop_server() {
    kill "$server"
    wait "$server" || true
    server=
}
# CPU time of the server in microseconds.
cpu() {
    local fields
    read -r -a fields < <(sed 's/^.*) //' "/proc/$server/stat")
    echo $(((fields[11] + fields[12]) * 1000000 / $(getconf CLK_TCK)))
}
# Sum of a metric over its series.
metric() {
    curl --silent "http://127.0.0.1:$http/metrics" | awk -v name="$1" 'index($1, name) == 1 && substr($1, length(name) + 1) ~ /^({|$)/ { sum += $NF } END { printf "%.0f\n", sum }'
}
# Traces in blocks.
in_blocks() {
    cat blocks/*/*/meta.json 2>/dev/null | python3 -c '
import json, sys
text, at, decoder, sum = sys.stdin.read().strip(), 0, json.JSONDecoder(), 0
while at < len(text):
    meta, at = decoder.raw_decode(text, at)
    sum += meta["totalObjects"]
    while at < len(text) and text[at].isspace(): at += 1
print(sum)'
}
# Waits until at least this many traces are in blocks.
wait_for_blocks() {
    for _ in $(seq 1200); do
        [ "$(in_blocks)" -ge "$1" ] && return
        sleep 0.1
    done
    echo "only $(in_blocks) of $1 traces are in blocks" >&2
    exit 1
}
