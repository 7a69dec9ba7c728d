#!/usr/bin/env bash
# TTL and hop limit go down by exactly one, and a packet whose time is up is the host's to
# answer with time exceeded.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

begin --serve

# What is passed to the host meets its routing table before its TTL is looked at. A real
# router has a default route; here one towards a host that forwards nothing stands in for it.
ip_ns lb route add "$VIP4/32" via 10.0.1.2
ip_ns lb -6 route add "$VIP6/128" via 2001:db8:b1::2

web_service b3 | write_config
start_or_end
client_ttl() {
	ns_sysctl client ipv4/ip_default_ttl "$1"
	ns_sysctl client ipv6/conf/eth0/hop_limit "$1"
}

# client, lb, r, b3: three hops.
client_ttl 3
check_equal "TTL 3 reaches b3 behind two routers" "$(get "$VIP4")" b3
check_equal "hop limit 3 reaches b3 behind two routers" "$(get "$VIP6")" b3
client_ttl 2
check_fails "TTL 2 ends at the second router" get "$VIP4"
check_fails "hop limit 2 ends at the second router" get "$VIP6"

client_ttl 1
before="$(packets_counted ttl_expired)"
check_fails "TTL 1 ends here" get "$VIP4"
check_fails "hop limit 1 ends here" get "$VIP6"
check "both are counted" test "$(packets_counted ttl_expired)" -ge $((before + 2))
check_contains "time exceeded comes from the balancer, IPv4" \
	"$(client ping -4 -c 1 -W 2 -t 1 "$VIP4" 2>&1)" "from $LB4.*(exceeded|TTL)"
check_contains "time exceeded comes from the balancer, IPv6" \
	"$(client ping -6 -c 1 -W 2 -t 1 "$VIP6" 2>&1)" "from $LB6.*(exceeded|limit)"
end
