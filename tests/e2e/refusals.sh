#!/usr/bin/env bash
# Packets for a VIP that cannot be balanced: unknown_port and no_backend refuse them, drop them or leave
# them to the host, and no packet goes round in circles through the balancer.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

need python3 python3
need tcpdump tcpdump
begin --serve

# refused_at_once NAME URL: within a second, not after connect's timeout.
refused_at_once() {
	local status=0
	client curl -sS --max-time 1 "$2" >"$WORK/refused" 2>&1 || status=$?
	# curl: 7, "failed to connect"; 28 would be the time that is up.
	check_equal "$1" "$status" 7
}

udp() {
	client python3 "$HERE/udp.py" ask "$1" "$2" 100
}

# ---- reject
UNKNOWN_PORT=reject
NO_BACKEND=reject
empty_service() {
	service empty '["tcp", "udp"]' 82 5-tuple 8080 b1,state=down
}
{
	web_service b1
	empty_service
} | write_config
start_or_end
for vip in "$VIP4" "$VIP6"; do
	[[ "$vip" == *:* ]] && authority="[$vip]" || authority="$vip"
	refused_at_once "unknown_port = \"reject\": TCP to $vip" "http://$authority:99/"
	check_equal "unknown_port = \"reject\": UDP to $vip" "$(udp "$vip" 99)" refused
	refused_at_once "no_backend = \"reject\": TCP to $vip" "http://$authority:82/"
	check_equal "no_backend = \"reject\": UDP to $vip" "$(udp "$vip" 82)" refused
	check_equal "the service beside them is balanced at $vip" "$(get "$vip")" b1
done
check_equal "unknown_port = \"reject\" is counted" "$(packets_counted unknown_port_rejected)" 4
check_equal "no_backend = \"reject\" is counted" "$(packets_counted no_backend_rejected)" 4

# ---- drop
UNKNOWN_PORT=drop
NO_BACKEND=drop
{
	web_service b1
	empty_service
} | write_config
check "reload: drop" reload_xdplb
for port in 82 99; do
	check_fails "drop: TCP to port $port" client curl -sS --max-time 1 "http://$VIP4:$port/"
	check_equal "drop: UDP to port $port" "$(udp "$VIP6" "$port")" "no answer"
done
check "no_backend = \"drop\" is counted" test "$(packets_counted no_backend)" -gt 1

# ---- pass, to a host that holds the VIP
UNKNOWN_PORT=pass
NO_BACKEND=pass
{
	web_service b1
	empty_service
} | write_config
check "reload: pass" reload_xdplb
serve_http lb 82
ip_ns lb address add "$VIP4/32" dev lo
ip_ns lb -6 address add "$VIP6/128" dev lo nodad
for authority in "$VIP4:82" "[$VIP6]:82"; do
	check_equal "no_backend = \"pass\": the host answers at $authority" "$(get "$authority" 2>&1)" lb
done
check "no_backend = \"pass\" is counted" test "$(packets_counted no_backend_passed)" -gt 1
ip_ns lb address del "$VIP4/32" dev lo
ip_ns lb -6 address del "$VIP6/128" dev lo

# ---- pass, to a host that would send it back where it came from
ip_ns lb route add default via "$CLIENT4"
ip_ns lb -6 route add default via "$CLIENT6"
before="$(packets_counted loop)"
watch_packets client eth0 -Q in "host $VIP4 or host $VIP6"
for vip in "$VIP4" "$VIP6"; do
	check_equal "no loop: UDP to $vip, a port that no service has" "$(udp "$vip" 99)" "no answer"
	check_equal "no loop: UDP to $vip, a service without a backend" "$(udp "$vip" 82)" "no answer"
done
check_equal "no loop: none came back" "$(packets_seen | wc -l)" 0
check_equal "no loop: counted" "$(packets_counted loop)" $((before + 8))
ip_ns lb route del default via "$CLIENT4"
ip_ns lb -6 route del default via "$CLIENT6"

# ---- l2: a backend behind a router, and one that does not hold the VIP, and forwards
make_router b1
FORWARD=l2 service l2 '"udp"' 83 5-tuple - b1 b3 | write_config
check "reload: l2" reload_xdplb
for backend in b3 b3-v6; do
	check_equal "l2: $backend cannot be reached past its router" "$(backend_value l2 "$backend" health)" unresolved
done
for vip in "$VIP4" "$VIP6"; do
	before="$(packets_counted loop)"
	watch_packets b1 eth0 -Q in udp port 83
	check_equal "l2 without the VIP at $vip" "$(udp "$vip" 83)" "no answer"
	check_equal "l2 without the VIP at $vip: the backend had each datagram once" "$(packets_seen | wc -l)" 2
	check_equal "l2 without the VIP at $vip: counted when it came back" "$(packets_counted loop)" $((before + 2))
done
end
