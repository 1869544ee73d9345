#!/usr/bin/env bash
# Queries on a large data set: stores SPANS spans by `rubato load` in blocks, a rare span for each million, starts the server anew, and asks each
# query of `benches/query.py` once cold and REPEAT times warm. Linux only: reads /proc; empties the page cache where it may.
#
#   SPANS=10000000 REPEAT=20 benches/query.sh [path/to/rubato]
set -euo pipefail
cd "$(dirname "$0")/.."
here=$PWD/benches
binary=$(realpath "${1:-target/release/rubato}")
spans=${SPANS:-10000000}
sync=never
# What is measured are queries, on the same blocks from the first to the last.
compaction_disabled=true

. benches/server.sh
start_server

sent=0
traces=0
million=0
while [ "$sent" -lt "$spans" ]; do
    part=$((spans - sent < 1000000 ? spans - sent : 1000000))
    "$binary" load --endpoint "http://127.0.0.1:$otlp_grpc" --rate 0 --spans "$part" --seed "$million" --truth "$folder/truth.json" >/dev/null 2>&1
    read -r acknowledged of_them < <(python3 -c '
import json
truth = json.load(open("truth.json"))
print(truth["acknowledged"]["spans"], len(truth["traces"]))')
    python3 "$here/query.py" rare "http://127.0.0.1:$otlp_http" "$million"
    sent=$((sent + acknowledged + 1))
    traces=$((traces + of_them + 1))
    million=$((million + 1))
done
wait_for_blocks "$traces"
stop_server
{ sync && echo 3 >/proc/sys/vm/drop_caches; } 2>/dev/null || echo "the page cache cannot be emptied: cold means a new process only"
start_server
echo "$sent spans in $traces traces, $(ls -d blocks/*/*/ | wc -l) blocks, $(($(cat blocks/*/*/data.parquet | wc -c) >> 20)) MiB"
python3 "$here/query.py" bench "http://127.0.0.1:$http" "$server" "$sent" "${REPEAT:-20}" "$folder/truth.json"
