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
	# The first of them: a table of a million connections is a gigabyte of text.
	dump="$(bpftool map dump pinned "$PIN_DIR/$1" 2>&1 | head -n 500)" || true
	check_contains "$1 shows $2" "$dump" "$2"
}
shows services '"name": *"web"|"web"'
shows services 'forward'
shows backends 'weight'
shows backends 'generation'
shows maglev 'backend'
shows connections 'way'
shows connections 'sport'
shows connections6 'saddr'
shows vips 'prefixlen'
shows interfaces 'ifindex'
shows settings 'hash_seed'
shows counters 'packets'
check "conntrack is an LRU hash" \
	eval "bpftool -j map show pinned '$PIN_DIR/conntrack' | jq -e '.type == \"lru_hash\"'"
check "tx_ports is a devmap" \
	eval "bpftool -j map show pinned '$PIN_DIR/tx_ports' | jq -e '.type | test(\"devmap\")'"
end
