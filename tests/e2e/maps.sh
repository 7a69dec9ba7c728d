#!/usr/bin/env bash
# The pinned maps are readable by anybody's bpftool, with the names of their fields.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

need bpftool bpftool
begin --serve

{
	web_service b1 b2 b3
	service dns '["tcp", "udp"]' 53 5-tuple - b1 b2 b3
} | write_config
start_or_end
answers "$VIP4" 10 >/dev/null
answers "$VIP6" 10 >/dev/null

# shows MAP REGEX
shows() {
	local dump
	dump="$(bpftool map dump pinned "$PIN_DIR/$1" 2>&1)" || true
	check_contains "$1 shows $2" "$dump" "$2"
}
shows services '"name": *"web"|"web"'
shows services 'forward'
shows backends 'weight'
shows backends 'generation'
shows maglev 'backend'
shows conntrack 'sport'
shows conntrack 'last_seen'
shows conntrack6 'saddr'
shows vips 'prefixlen'
shows interfaces 'ifindex'
shows settings 'hash_seed'
shows counters 'packets'
check "tx_ports is a devmap" \
	eval "bpftool -j map show pinned '$PIN_DIR/tx_ports' | jq -e '.type | test(\"devmap\")'"
end
