#!/usr/bin/env bash
# Firewall, a blocklist, limits of sources and what is counted, on this kernel: batches of tries,
# loops in the program and the clock are the kernel's own.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/../e2e/lib.sh"

need python3 python3
begin --serve

DENIED=198.51.100.66 LISTED=2001:db8:c:66::1 NOISY=198.51.100.20
client_addresses "$DENIED" "$LISTED" "$NOISY"
{
	for n in $(seq 5000); do
		printf '2001:db8:c:66:%x::/80\n' "$n"
	done
	echo "$LISTED"
} >"$WORK/listed.txt"

# config RULE_SOURCE
config() {
	{
		web_service b1 b2
		cat <<-TOML

			[firewall]
			blocklists = ["listed.txt"]

			[[firewall.rule]]
			name = "denied"
			action = "deny"
			source = "$1"
			protocol = "tcp"
			source_port = "1024-65535"
			port = "70-90"

			[[firewall.rule]]
			name = "all"
			action = "allow"

			[[dos]]
			name = "syn"
			protocol = "tcp"
			tcp_flags = "syn"
			limit = 10
			burst = 40
			action = "block"
			block_for = "1h"
		TOML
	} | write_config
}

config 198.51.100.64/28
start_or_end
check_fails "a rule denies" get_from "$DENIED" "$VIP4" '' --connect-timeout 1
check_fails "a blocklist denies" get_from "$LISTED" "$VIP6" '' --connect-timeout 1
check_equal "who is let in: IPv4" "$(who_answers "$VIP4" 10)" "b1 b2"
check_equal "who is let in: IPv6" "$(who_answers "$VIP6" 10)" "b1 b2"
check "rule and blocklist count it" test "$(rule_hits denied)" -ge 1 -a "$(rule_hits listed.txt)" -ge 1 -a "$(rule_hits all)" -ge 20
check_equal "stats: 20 connections were opened" \
	"$(look stats --json | jq '[.services[] | .opened] | add')" 20
check "stats: packets both ways" \
	test "$(look stats --json | jq '[.protocols[] | select(.protocol == "tcp") | [.packets_in, .packets_out] | min] | add')" -ge 80
# An emulated machine that has little CPU time may not send too many at the first try.
noisy_is_blocked() {
	send connect "$NOISY" "$VIP4" 80 0 2
	[ "$(dos_blocked "$NOISY")" = tcp ]
}
check_soon "too many SYNs block their source" 60 noisy_is_blocked
check_fails "which is dropped" get_from "$NOISY" "$VIP4" '' --connect-timeout 1
check "until it is let go" look dos unblock "$NOISY"
check_equal "and can connect" "$(get_from "$NOISY" "$VIP4" 2>&1 | tr -d 12)" b
: >"$WORK/listed.txt"
config 10.0.0.0/8
check "reload: other rules" reload_xdplb
check_equal "the rule is for others now" "$(get_from "$DENIED" "$VIP4" 2>&1 | tr -d 12)" b
check_equal "the blocklist is empty" "$(get_from "$LISTED" "$VIP6" 2>&1 | tr -d 12)" b
end
