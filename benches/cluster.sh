#!/usr/bin/env bash
# What a cluster costs, on one machine: starts processes of the release binary on loopback addresses, sends RATE spans a second for
# SECONDS_OF_LOAD seconds by `rubato load`, waits until all of it is in blocks, and prints as a table the CPU of each role and the bytes
# between processes per span; then kills an ingester under load, and prints how long the dataflow and the senders waited.
# CPU time, not wall time: it means something on a machine that has much else to do. Linux only: reads /proc.
#
#   RATE=5000 SECONDS_OF_LOAD=15 benches/cluster.sh [path/to/rubato]
set -euo pipefail
cd "$(dirname "$0")/.."
exec python3 benches/cluster.py "$(realpath "${1:-target/release/rubato}")" "${RATE:-5000}" "${SECONDS_OF_LOAD:-15}"
