#!/usr/bin/env bash
# state = "drain": established transfers go on to their end, no new connection comes.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

begin --serve

web_service b1 b2 b3 | write_config
start_or_end
# Twelve of ten seconds each: that none of them meets b2 has a chance of (2/3)^12.
for n in $(seq 6); do
	start_transfer "4-$n" "$VIP4" 1m
	start_transfer "6-$n" "$VIP6" 1m
done
all_begun() {
	[ "$(look conns --json | jq '[.[] | select(.state | ascii_downcase == "established")] | length')" -ge 12 ]
}
check_soon "the transfers have begun" 8 all_begun
before="$(connections_to b2 established)"
check "b2 has some of them: $before" test "$before" -gt 0

web_service b1 b2,state=drain b3 | write_config
check "reload" reload_xdplb
check_equal "list says that b2 drains" "$(backend_value web b2 state)" drain
check_equal "new connections leave b2 out, IPv4" "$(who_answers "$VIP4" 60)" "b1 b3"
check_equal "new connections leave b2 out, IPv6" "$(who_answers "$VIP6" 60)" "b1 b3"
check_equal "b2 keeps what it had" "$(connections_to b2 established)" "$before"
for n in $(seq 6); do
	check_transfer "transfer $n over IPv4 ends whole" "4-$n"
	check_transfer "transfer $n over IPv6 ends whole" "6-$n"
done
b2_is_empty() {
	[ "$(connections_to b2 established)" -eq 0 ]
}
check_soon "b2's connections go to zero" 5 b2_is_empty

web_service b1 b2 b3 | write_config
check "reload" reload_xdplb
check_equal "taken back, b2 gets new connections" "$(who_answers "$VIP4" 60)" "b1 b2 b3"
end
