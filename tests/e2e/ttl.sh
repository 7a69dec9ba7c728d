#!/usr/bin/env bash
# TTL and hop limit go down by exactly one, and a packet whose time is up is answered with time
# exceeded, whether or not the host forwards anything.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

need traceroute traceroute
begin --serve

# The host neither forwards nor answers: it has no route to the VIPs.
ns_sysctl lb ipv4/ip_forward 0
ns_sysctl lb ipv6/conf/all/forwarding 0

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
# first_hop VIP
first_hop() {
	client traceroute -n -T -p 80 -q 1 -m 1 -w 2 "$1" 2>&1 | awk '$1 == 1 {print $2}'
}
check_equal "time exceeded comes from the balancer, IPv4" "$(first_hop "$VIP4")" "$LB4"
check_equal "time exceeded comes from the balancer, IPv6" "$(first_hop "$VIP6")" "$LB6"
end
