#!/usr/bin/env bash
# A Ray of one machine in a network of its own, and a command run beside it with RAY_ADDRESS set; all of it ends with the
# command. To be started by `unshare --net --pid --fork --mount-proc` as root: Ray listens on every address that it finds.
#   ray.sh DIRECTORY COMMAND…
# `ray` is in PATH.
set -euo pipefail
directory=$1
shift
ip link set lo up
export RAY_DISABLE_IMPORT_WARNING=1 RAY_USAGE_STATS_ENABLED=0
ray start --head --node-ip-address=127.0.0.1 --port=6399 --dashboard-host=127.0.0.1 --dashboard-port=8265 \
    --num-cpus=2 --num-gpus="${GPUS:-0}" --temp-dir="$directory" --disable-usage-stats > /dev/null 2> "$directory.log" || {
    cat "$directory.log" >&2
    exit 99
}
export RAY_ADDRESS=http://127.0.0.1:8265
for _ in $(seq 200); do
    curl -fs -m 5 "$RAY_ADDRESS/api/version" > /dev/null && break
    sleep 0.2
done
"$@"
