#!/usr/bin/env bash
# End to end, from socket to block on disk: starts the release binary in a folder of its own, sends RATE spans a second for
# SECONDS_OF_LOAD seconds by `rubato load`, waits until all of it is in blocks, and prints what it cost the server.
# Fails if an acknowledged span cannot be read back. Linux only: reads /proc.
#
#   RATE=10000 SECONDS_OF_LOAD=60 COMPRESSION=none SYNC=always PROCESSORS='service-graphs, span-metrics' benches/e2e.sh [path/to/rubato]
set -euo pipefail
cd "$(dirname "$0")/.."
binary=$(realpath "${1:-target/release/rubato}")
rate=${RATE:-10000}
seconds=${SECONDS_OF_LOAD:-60}
compression=${COMPRESSION:-none}
sync=${SYNC:-always}

. benches/server.sh
start_server

before=$(cpu)
"$binary" load --endpoint "http://127.0.0.1:$otlp_grpc" --rate "$rate" --duration "${seconds}s" --compression "$compression" \
    --truth "$folder/truth.json"
sent=$(cpu)
read -r spans traces < <(python3 -c '
import json
truth = json.load(open("truth.json"))
print(truth["acknowledged"]["spans"], len(truth["traces"]))')
wait_for_blocks "$traces"
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
