#!/usr/bin/env bash
# Mpps of a bare XDP redirect, of xdplb with nat and of nftables DNAT, with live frames
# through topology/router.sh, in one run. Puts the topology up, builds and runs live.rs,
# which measures, and takes everything away again on every way out. Needs root.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
ROOT="$(cd "$HERE/../.." && pwd)"
export XDPLB_PREFIX="${XDPLB_PREFIX:-xdplb-live}"
TOPOLOGY=router
# shellcheck source=topology/lib.sh
. "$ROOT/topology/lib.sh"

MEASUREMENT=

finish() {
	local status=$?
	trap - EXIT
	set +e
	if [ -n "$MEASUREMENT" ]; then
		kill -s TERM "$MEASUREMENT" 2>/dev/null
		wait "$MEASUREMENT"
		# xdplb gets SIGTERM when the measurement ends, and takes its pins with it.
		wait_for 5 test ! -e "/sys/fs/bpf/$PREFIX"
	fi
	"$ROOT/topology/router.sh" down
	rm -rf "/sys/fs/bpf/$PREFIX"
	exit "$status"
}

need_root "$@"
need cargo cargo
need jq jq
need nft nftables
need setpriv util-linux

# Built before anything is up, and run without cargo: what is stopped is the measurement itself.
executable="$(cd "$ROOT" && cargo bench --no-run --bench live --message-format=json-render-diagnostics |
	jq -r 'select(.reason == "compiler-artifact" and .target.name == "live") | .executable')"

trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
# What a run that was killed has left.
"$ROOT/topology/router.sh" down
rm -rf "/sys/fs/bpf/$PREFIX"
"$ROOT/topology/router.sh" up

# One queue for each CPU, as network cards have: with a single one the CPUs meet at its lock and
# half the throughput goes. And receivers that take redirected frames with no XDP program of
# their own, which nftables is.
queues="$(nproc)"
for device in client/eth0 lb/eth0 lb/eth1 b1/eth0; do
	in_ns "${device%/*}" ethtool -L "${device#*/}" rx "$queues" tx "$queues"
	receives_redirects "${device%/*}" "${device#*/}"
done

"$executable" --prefix="$PREFIX" &
MEASUREMENT=$!
status=0
wait "$MEASUREMENT" || status=$?
MEASUREMENT=
exit "$status"
