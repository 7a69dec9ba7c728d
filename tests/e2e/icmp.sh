#!/usr/bin/env bash
# ping, traceroute and tracepath to a VIP and through it, and the errors of backends and of routers
# behind the balancer: they reach the client as if the VIP had sent them.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

need ping iputils-ping
need traceroute traceroute
need tracepath iputils-tracepath
need python3 python3
begin --serve

# Neither an answer to ping nor a time exceeded is the host's: it forwards nothing.
ns_sysctl lb ipv4/ip_forward 0
ns_sysctl lb ipv6/conf/all/forwarding 0

# only_web STATE
only_web() {
	web_service "b1,state=$1" "b3,state=$1" | write_config
}

echo_refused() {
	check_fails "$1: no ping to $VIP4" client ping -c 1 -W 1 "$VIP4"
	check_fails "$1: no ping to $VIP6" client ping -c 1 -W 1 "$VIP6"
}

# b3 stands behind one more router. Nobody listens at the ports of what is closed.
{
	web_service b1 b3
	service far '"tcp"' 81 5-tuple 8080 b3
	service dns '"udp"' 53 5-tuple - b3
	service closed '["tcp", "udp"]' '"9-50"' 5-tuple - b1
	FORWARD=full-nat service closed-full '["tcp", "udp"]' 7 5-tuple - b1
} | write_config
start_or_end

# ---- ping
for vip in "$VIP4" "$VIP6"; do
	for size in 0 1 56 1400; do
		check "ping to $vip, $size bytes" client ping -c 2 -i 0.2 -W 1 -s "$size" "$vip"
	done
done
check "ping is counted" test "$(packets_counted echo_answered)" -eq 16
check "ping to an address of the host's, IPv4" client ping -c 1 -W 1 "$LB4"
check "ping to an address of the host's, IPv6" client ping -c 1 -W 1 "$LB6"
check_equal "is not ours to answer" "$(packets_counted echo_answered)" 16

# ---- traceroute and tracepath
# hops FAMILY OPTIONS...: the addresses, one for each hop, on one line.
hops() {
	client traceroute "-$1" -n -q 1 -w 1 -m 6 "${@:2}" 2>&1 | awk 'NR > 1 {print $2}' | xargs
}
# The router behind the balancer is seen as the VIP: the client knows of nothing else there.
check_equal "traceroute -T through the VIP, IPv4" "$(hops 4 -T -p 81 "$VIP4")" "$LB4 $VIP4 $VIP4"
check_equal "traceroute -T through the VIP, IPv6" "$(hops 6 -T -p 81 "$VIP6")" "$LB6 $VIP6 $VIP6"
check_equal "traceroute -U through the VIP, IPv4" "$(hops 4 -U -p 9 "$VIP4")" "$LB4 $VIP4"
check_equal "traceroute -U through the VIP, IPv6" "$(hops 6 -U -p 9 "$VIP6")" "$LB6 $VIP6"
check_equal "traceroute -I to the VIP, IPv4" "$(hops 4 -I "$VIP4")" "$VIP4"
check_equal "traceroute -I to the VIP, IPv6" "$(hops 6 -I "$VIP6")" "$VIP6"
# It counts ports up, as traceroute does.
for vip in "$VIP4" "$VIP6"; do
	[[ "$vip" == *:* ]] && first="$LB6" || first="$LB4"
	check_equal "tracepath through the VIP, $vip" \
		"$(client tracepath -n -p 9 -m 8 "$vip" 2>&1 | sed -nE 's/^ *[0-9]+: +(.*[^ ]) +[0-9.]+ms.*reached.*/\1 reached/p; s/^ *1: +([^ ]+) +[0-9.]+ms *$/\1/p' | uniq | xargs)" \
		"$first $vip reached"
done
check "time exceeded is counted" test "$(packets_counted ttl_expired)" -ge 4

# ---- errors of backends
for vip in "$VIP4" "$VIP6"; do
	[[ "$vip" == *:* ]] && authority="[$vip]" || authority="$vip"
	for port in 9 7; do
		[ "$port" = 9 ] && mode=nat || mode=full-nat
		check_equal "$mode: UDP to a port that the backend does not serve, $vip" \
			"$(client python3 "$HERE/udp.py" ask "$vip" "$port" 100)" refused
		status=0
		client curl -sS --max-time 2 "$(url "$authority:$port")" >/dev/null 2>&1 || status=$?
		check_equal "$mode: TCP to it, $vip" "$status" 7
	done
done

# ---- who may be pinged
only_web down
check "reload: no backend is up" reload_xdplb
echo_refused "no backend is up"
check "that is counted" test "$(packets_counted echo_dropped)" -ge 2
only_web drain
check "reload: all backends drain" reload_xdplb
echo_refused "all backends drain"
only_web up
check "reload: they are up" reload_xdplb
check "ping is answered again" client ping -c 1 -W 1 "$VIP4"

ICMP_ECHO=false
only_web up
check "reload: icmp_echo = false" reload_xdplb
before="$(packets_counted echo_answered)"
echo_refused "icmp_echo = false, and the host does not hold the VIP"
ip_ns lb address add "$VIP4/32" dev lo
ip_ns lb -6 address add "$VIP6/128" dev lo nodad
check "icmp_echo = false: a host that holds the VIP answers, IPv4" client ping -c 1 -W 1 "$VIP4"
check "icmp_echo = false: a host that holds the VIP answers, IPv6" client ping -c 1 -W 1 "$VIP6"
check_equal "icmp_echo = false: none was answered by XDP" "$(packets_counted echo_answered)" "$before"
end
