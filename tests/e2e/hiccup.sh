#!/usr/bin/env bash
# A backend that no neighbour answers for, for some seconds, as a virtual machine that migrates: its transfers
# wait and go on, none is broken. New connections go to the others meanwhile.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
need nft nftables

# silence HOST: it answers neither ARP nor neighbour solicitations. All else goes on.
silence() {
	in_ns "$1" nft -f - <<-NFT
		table arp xdplb {
			chain input { type filter hook input priority 0; arp operation request drop; }
		}
		table ip6 xdplb {
			chain input { type filter hook input priority 0; icmpv6 type nd-neighbor-solicit drop; }
		}
	NFT
}

health_is() {
	[ "$(backend_value web b1 health)" = "$1" ] && [ "$(backend_value web b1-v6 health)" = "$1" ]
}

begin --serve

web_service b1 b2 b3 | write_config
start_or_end
for number in 1 2 3 4 5 6 7 8 9 10; do
	start_transfer "4-$number" "$VIP4" 1m
	start_transfer "6-$number" "$VIP6" 1m
done
begun() {
	[ "$(look conns --json | jq '[.[] | select(.state == "established")] | length')" -ge 20 ]
}
check_soon "the transfers have begun" 5 begun
at_b1="$(connections_to b1 established)"
check "some of them are b1's ($at_b1)" test "$at_b1" -gt 0

silence b1
check_soon "b1 counts as unresolved" 15 health_is unresolved
check_equal "new connections go to the others, IPv4" "$(who_answers "$VIP4" 40)" "b2 b3"
check_equal "new connections go to the others, IPv6" "$(who_answers "$VIP6" 40)" "b2 b3"
sleep 4
check_equal "b1's connections are still its own" "$(connections_to b1 established)" "$at_b1"
check "their packets are counted as unresolved" test "$(packets_counted unresolved)" -gt 0

in_ns b1 nft delete table arp xdplb
in_ns b1 nft delete table ip6 xdplb
check_soon "b1 is back" 10 health_is up
check_equal "and gets new connections" "$(who_answers "$VIP4" 60)" "b1 b2 b3"
for number in 1 2 3 4 5 6 7 8 9 10; do
	check_transfer "transfer $number ends whole, IPv4" "4-$number"
	check_transfer "transfer $number ends whole, IPv6" "6-$number"
done
end
