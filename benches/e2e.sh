#!/usr/bin/env bash
# End to end, from socket to block on disk: starts the release binary in a folder of its own, sends RATE spans a second for
# SECONDS_OF_LOAD seconds by `rubato load`, waits until all of it is in blocks, and prints what it cost the server.
# Fails if an acknowledged span cannot be read back. Linux only: reads /proc.
#
#   RATE=10000 SECONDS_OF_LOAD=60 COMPRESSION=none SYNC=always benches/e2e.sh [path/to/rubato]
set -euo pipefail
cd "$(dirname "$0")/.."
binary=$(realpath "${1:-target/release/rubato}")
rate=${RATE:-10000}
seconds=${SECONDS_OF_LOAD:-60}
compression=${COMPRESSION:-none}
sync=${SYNC:-always}

folder=$(mktemp -d "${TMPDIR:-/tmp}/rubato-e2e-XXXXXX")
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
"$binary" -config.file="$folder/config.yaml" >"$folder/log" 2>&1 </dev/null &
server=$!
for _ in $(seq 300); do
    curl --silent --fail --output /dev/null "http://127.0.0.1:$http/ready" && break
    kill -0 "$server" || { echo "the server ended before it was ready" >&2; exit 1; }
    sleep 0.1
done

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

before=$(cpu)
"$binary" load --endpoint "http://127.0.0.1:$otlp_grpc" --rate "$rate" --duration "${seconds}s" --compression "$compression" \
    --truth "$folder/truth.json"
sent=$(cpu)
read -r spans traces < <(python3 -c '
import json
truth = json.load(open("truth.json"))
print(truth["acknowledged"]["spans"], len(truth["traces"]))')
for _ in $(seq 1200); do
    [ "$(in_blocks)" -ge "$traces" ] && break
    sleep 0.1
done
[ "$(in_blocks)" -ge "$traces" ] || { echo "only $(in_blocks) of $traces traces are in blocks" >&2; exit 1; }
after=$(cpu)
peak=$(awk '/^VmHWM:/ { print $2 }' "/proc/$server/status")
stored=$(cat blocks/*/*/data.parquet | wc -c)
count=$(ls -d blocks/*/*/ | wc -l)
wal=$(metric rubato_wal_appended_bytes_total)

per_span() { awk -v sum="$1" -v spans="$spans" 'BEGIN { printf "%.2f", sum / spans }'; }
echo "server cpu     $(per_span $((after - before))) us per span until all is in blocks ($(per_span $((sent - before))) until the last was acknowledged)"
echo "server memory  $((peak / 1024)) MiB peak resident"
echo "stored         $(per_span "$stored") bytes per span in $count blocks"
[ "$wal" -eq 0 ] || echo "wal            $(per_span "$wal") bytes per span"

# Only now, so that it costs the measured time nothing: the traces come back.
"$binary" load --endpoint "http://127.0.0.1:$otlp_grpc" --spans 20000 --rate 0 --verify "http://127.0.0.1:$http" --verify-traces 200 >"$folder/verified"
grep '^verified' "$folder/verified"
