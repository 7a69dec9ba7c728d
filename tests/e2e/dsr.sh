#!/usr/bin/env bash
# Direct return on one subnet, where answers go past the balancer: l2, ipip and gue, inner and outer
# header of either family, tunnels taken off by xdplb decap. HTTP, DNS, a large file, ping; a prefix
# as tunnel.source, another gue_port, and a reload that changes both under a transfer.
set -euo pipefail
TOPOLOGY=onearm
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

need dig bind9-dnsutils
need tcpdump tcpdump
need traceroute traceroute
need ping iputils-ping
begin --serve

SOURCES='"192.0.2.1", "2001:db8:2::1"'
GUE_PORT=6080
declare -A LAST=([l2]=101 [ipip-in-4]=102 [ipip-in-6]=103 [gue-in-4]=104 [gue-in-6]=105)

# direct NAME FORWARD OUTER...: a service on VIPs of its own. The ports are the servers' own:
# these modes leave them as they are.
direct() {
	local name="$1" FORWARD="$2" VIP4="192.0.2.${LAST[$1]}" VIP6="2001:db8:2::${LAST[$1]}"
	shift 2
	FAMILIES="$*" service "$name" '["tcp", "udp"]' '[53, 8080]' 5-tuple - b1 b2 b3
}

write_services() {
	{
		direct l2 l2 4 6
		direct ipip-in-4 ipip 4
		direct ipip-in-6 ipip 6
		direct gue-in-4 gue 4
		direct gue-in-6 gue 6
		printf '\n[tunnel]\nsource = [%s]\ngue_port = %s\n' "$SOURCES" "$GUE_PORT"
	} | write_config
}

for last in "${LAST[@]}"; do
	# On the balancer so that it answers ARP and neighbour discovery, as in onearm.sh.
	ip_ns lb address add "192.0.2.$last/32" dev eth0
	ip_ns lb -6 address add "2001:db8:2::$last/128" dev eth0 nodad preferred_lft 0
	for host in b1 b2 b3; do
		holds_vips "$host" "192.0.2.$last" "2001:db8:2::$last"
	done
done
# As strict as an administrator may have made it.
for host in b1 b2 b3; do
	ns_sysctl "$host" ipv4/conf/eth0/rp_filter 1
done

for XDP_MODE in native generic; do
	for host in b1 b2 b3; do
		decapsulate "$host" --xdp-mode "$XDP_MODE" --from "$LB4" --from "$LB6"
	done
	write_services
	start_or_end
	for name in "${!LAST[@]}"; do
		for vip in "192.0.2.${LAST[$name]}" "2001:db8:2::${LAST[$name]}"; do
			[[ "$vip" == *:* ]] && web="[$vip]:8080" sees="$CLIENT6" || web="$vip:8080" sees="$CLIENT4"
			what="$XDP_MODE $name $vip"
			check_equal "$what: every request is answered, by all backends" "$(who_answers "$web" 60)" "b1 b2 b3"
			check_equal "$what: backends see the client" "$(get "$web" client)" "$sees"
			get "$web" big >"$WORK/big" || true
			check_equal "$what: a large file comes whole" "$(sha256sum <"$WORK/big" | cut -d ' ' -f 1)" "$(big_sum)"
			check "$what: ping" client ping -c 1 -W 1 "$vip"
			# Routers on a tunnel's way are none of the client's.
			check_equal "$what: traceroute" "$(client traceroute -T -p 8080 -n -q 1 -w 1 -m 5 "$vip" 2>&1 |
				awk 'NR > 1 {print $2}' | xargs)" "$([[ "$vip" == *:* ]] && echo "$LB6" || echo "$LB4") $vip"
			for over in notcp tcp; do
				check_contains "$what: DNS +$over" \
					"$(client dig +short "+$over" +tries=1 +time=3 "@$vip" TXT whoami.test 2>&1)" '^"b[123]"$'
			done
		done
	done
	# Packets went to the backends through the balancer, and none came back through it.
	look list --json >"$WORK/list"
	for name in "${!LAST[@]}"; do
		check_equal "$XDP_MODE $name: to the backends, and not back" \
			"$(jq -r --arg s "$name" '[.[] | select(.name == $s) | .backends[]] |
				"\(map(.packets_in) | add > 200) \(map(.packets_out) | add)"' "$WORK/list")" "true 0"
	done
	for host in b1 b2 b3; do
		for kind in ipip gue; do
			for families in 4in4 6in4 4in6 6in6; do
				check "$XDP_MODE $host took ${kind}_$families" test "$(decapsulated "$host" "${kind}_$families")" -gt 20
			done
		done
	done
	if [ "$XDP_MODE" = native ]; then
		stop_xdplb TERM
		for host in b1 b2 b3; do
			stop_process "decap-$host"
		done
	fi
done
check_contains "list names the modes" "$(look list)" '192\.0\.2\.11:\* +b1 +ipip '
check_equal "conns shows direct connections" "$(look conns --service gue-in-6 --json | jq -c --arg client "$CLIENT4:" '
	[.[] | select(.protocol == "tcp" and .vip == "192.0.2.105:8080") |
		(.client | startswith($client)) and .source == null and (.backend | test("^b[123]-v6$")) and
		(.backend_address | test("^\\[2001:db8:2::1[123]\\]:8080$"))] | unique')" "[true]"
for host in b1 b2 b3; do
	stop_process "decap-$host"
done

# A prefix varies the outer source with the flow; transfers go on over the change.
for host in b1 b2 b3; do
	decapsulate "$host" --gue-port 7070 --from 192.0.2.0/24 --from 2001:db8:2::/64
done
GUE_PORT=7070
write_services
check "reload: another gue_port" reload_xdplb
for name in ipip-in-4 ipip-in-6 gue-in-4 gue-in-6; do
	start_transfer "$name" "192.0.2.${LAST[$name]}:8080" 3m
done
sleep 1
SOURCES='"192.0.2.128/26", "2001:db8:2::1:0/112"'
write_services
check "reload: a prefix as tunnel.source" reload_xdplb
watch_packets sw b1 'ip proto 4 or udp port 7070 or ip6 proto 4'
for name in ipip-in-4 ipip-in-6 gue-in-4 gue-in-6; do
	check_equal "$name: a prefix as source: all are answered" \
		"$(who_answers "192.0.2.${LAST[$name]}:8080" 60)" "b1 b2 b3"
done
packets_seen >"$WORK/outer"
# outer_sources PATTERN: how many there were.
outer_sources() {
	grep -oE "$1" "$WORK/outer" | sort -u | wc -l
}
check "ipip: IPv4 sources vary" test "$(outer_sources 'IP 192\.0\.2\.(12[89]|1[3-8][0-9]|19[01]) ')" -gt 5
check "gue: IPv4 sources vary" test "$(outer_sources 'IP 192\.0\.2\.(12[89]|1[3-8][0-9]|19[01])\.')" -gt 5
check "ipip: IPv6 sources vary" test "$(outer_sources 'IP6 2001:db8:2::1:[0-9a-f]+ ')" -gt 5
check "gue: IPv6 sources vary" test "$(outer_sources 'IP6 2001:db8:2::1:[0-9a-f]+\.')" -gt 5
check "gue: source ports vary" test "$(outer_sources '\.(49[1-9]|5|6)[0-9]+ > 192\.0\.2\.11\.7070')" -gt 5
for name in ipip-in-4 ipip-in-6 gue-in-4 gue-in-6; do
	check_transfer "$name: a transfer goes on over a change of tunnel.source" "$name"
done
for host in b1 b2 b3; do
	check "$host: decap counts" test "$(decapsulated "$host")" -gt 100
done

# A service whose mode changes: every connection finds a backend in the new one.
for mode in l2 gue ipip; do
	{
		direct gue-in-6 "$mode" 6
		printf '\n[tunnel]\nsource = [%s]\ngue_port = %s\n' "$SOURCES" "$GUE_PORT"
	} | write_config
	check "reload: from one mode to $mode" reload_xdplb
	check_equal "$mode after another mode: all are answered" \
		"$(who_answers "[2001:db8:2::${LAST[gue-in-6]}]:8080" 60)" "b1 b2 b3"
	check_equal "$mode after another mode: list" \
		"$(look list --json | jq -r '.[] | select(.name == "gue-in-6") | .forward')" "$mode"
done
end
