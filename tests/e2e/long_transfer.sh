#!/usr/bin/env bash
# A long transfer outlives what happens around it: reloads of every kind, timeouts far
# shorter than itself, and more connections of others than the table holds.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

begin --serve

CONNECTIONS=2048
TIMEOUTS='tcp_opening = "1s"
tcp_established = "3s"
tcp_closing = "1s"
udp = "1s"'
web_service b1 b2 b3 | write_config
start_or_end
# Ten seconds and more each.
start_transfer v4 "$VIP4" 1m
start_transfer v6 "$VIP6" 1m

churned=0
for round in 1 2 3; do
	# Reloads that move its slot, but leave its backend in place.
	{
		web_service "b1,weight=$round" b2,weight=7 "b3,weight=$((4 - round))"
		service other '"tcp"' "$((8080 + round))" 5-tuple 8080 b1
	} | write_config
	check "reload $round" reload_xdplb
	# More connections than the table has entries, in all.
	churned=$((churned + $(answers "$VIP4" 500 | wc -l) + $(answers "$VIP6" 500 | wc -l)))
done
check_equal "the others' connections were answered" "$churned" 3000
check "the transfers still run" kill -0 "${TRANSFERS[v4]}" "${TRANSFERS[v6]}"

CONNECTIONS=4096
web_service b1 b2 b3 | write_config
check_fails "a reload that would change the size of a table is refused" reload_xdplb
CONNECTIONS=2048
web_service b1 b2 b3 | write_config
check "and the next one that fits is not" reload_xdplb

check_transfer "the IPv4 transfer ends whole" v4
check_transfer "the IPv6 transfer ends whole" v6
nothing_left() {
	[ "$(look conns --json | jq length)" -eq 0 ]
}
check_soon "short timeouts empty the table" 20 nothing_left
end
