#!/usr/bin/env bash
# Packets that are not for a VIP are not the balancer's business: its own addresses with a
# service's port on them, routed traffic to the backends themselves, and ARP, ND and ping.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

begin --serve
serve_http lb 80

web_service b1 b2 b3 | write_config
start_or_end
for address in "$LB4" "$LB6"; do
	check_equal "the host's own port 80 at $address is the host's" "$(who_answers "$address" 20)" lb
	check "ping to $address" client ping -c 1 -W 2 "$address"
done
for backend in b1 b2 b3; do
	for address in "${V4[$backend]}:8080" "[${V6[$backend]}]:8080"; do
		check_equal "a client that goes to $address itself is answered by it" \
			"$(client curl -sS --max-time 5 "http://$address/client" 2>&1)" \
			"$([[ "$address" == \[* ]] && echo "$CLIENT6" || echo "$CLIENT4")"
	done
done
check_equal "the host's own connections to a backend work" \
	"$(in_ns lb curl -sS --max-time 5 "http://${V4[b1]}:8080/" 2>&1)" b1
check_equal "none of these became a connection of a service" "$(look conns --json | jq length)" 0
# The link's neighbours are learnt anew, past XDP.
ip_ns client neighbour flush all
ip_ns lb neighbour flush all
check_equal "neighbours are found through an interface with XDP" "$(who_answers "$VIP4" 60)" "b1 b2 b3"
check_equal "and over IPv6" "$(who_answers "$VIP6" 60)" "b1 b2 b3"
end
