#!/usr/bin/env bash
# Direct server return to backends that take the packets in with the kernel's own tunnel
# devices, set up as tunnels.sh says: l2, ipip and gue, inner and outer header of either family.
set -euo pipefail
# shellcheck disable=SC2034 # for lib.sh
TOPOLOGY=onearm
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/../e2e/lib.sh"
# shellcheck source=tests/vm/tunnels.sh
. "$(dirname "$0")/tunnels.sh"

GUE_PORT=6080

need dig bind9-dnsutils
need sysctl procps
need modprobe kmod
begin --serve

# dsr NAME FORWARD LAST OUTER...: a service on 192.0.2.LAST and 2001:db8:2::LAST, whose backends
# are b1 and b2 by their addresses of the families in OUTER; the port is the servers' own, which
# these modes leave as it is.
VIPS=()
dsr() {
	local name="$1" forward="$2" last="$3" host outer
	shift 3
	VIPS+=("$name $last")
	cat <<-TOML

		[[service]]
		name = "$name"
		vip = ["192.0.2.$last", "2001:db8:2::$last"]
		protocol = ["tcp", "udp"]
		port = [53, 8080]
		forward = "$forward"
	TOML
	for host in b1 b2; do
		for outer in "$@"; do
			printf '\n[[service.backend]]\nname = "%s-v%s"\naddress = "%s"\n' "$host" "$outer" \
				"$([ "$outer" = 4 ] && echo "${V4[$host]}" || echo "${V6[$host]}")"
		done
	done
}

# Not in a pipe: VIPS would stay behind in its subshell.
{
	dsr l2 l2 101 4 6
	dsr ipip-in-4 ipip 102 4
	dsr ipip-in-6 ipip 103 6
	dsr gue-in-4 gue 104 4
	dsr gue-in-6 gue 105 6
	printf '\n[tunnel]\ngue_port = %s\n' "$GUE_PORT"
} >"$WORK/services"
write_config <"$WORK/services"

for entry in "${VIPS[@]}"; do
	last="${entry#* }"
	# On the balancer so that it answers ARP and neighbour discovery, as in onearm.sh.
	ip_ns lb address add "192.0.2.$last/32" dev eth0
	ip_ns lb -6 address add "2001:db8:2::$last/128" dev eth0 nodad preferred_lft 0
done
for host in b1 b2; do
	# As strict as an administrator may have made it: what the commands set has to be enough.
	for interface in all default eth0; do
		ns_sysctl "$host" "ipv4/conf/$interface/rp_filter" 1
	done
	for entry in "${VIPS[@]}"; do
		last="${entry#* }"
		check "$host holds the VIPs of ${entry% *}" backend "$host" holds_vips "192.0.2.$last" "2001:db8:2::$last"
	done
	check "$host takes IPv4 in IPv4" backend "$host" takes_4in4
	check "$host takes IPv6 in IPv4" backend "$host" takes_6in4
	check "$host takes either in IPv6" backend "$host" takes_any_in6
	check "$host takes GUE" backend "$host" takes_gue "$GUE_PORT"
done

start_or_end
for entry in "${VIPS[@]}"; do
	read -r name last <<<"$entry"
	for family in 4 6; do
		if [ "$family" = 4 ]; then
			vip="192.0.2.$last" authority="192.0.2.$last:8080" address="$CLIENT4"
		else
			vip="2001:db8:2::$last" authority="[2001:db8:2::$last]:8080" address="$CLIENT6"
		fi
		what="$name, an IPv$family client"
		check_equal "$what: every request is answered, by both backends" "$(who_answers "$authority" 20)" "b1 b2"
		check_equal "$what: the backend sees its address" "$(get "$authority" client)" "$address"
		get "$authority" big >"$WORK/big" || true
		check_equal "$what: a large file comes whole" "$(sha256sum <"$WORK/big" | cut -d ' ' -f 1)" "$(big_sum)"
		check_contains "$what: UDP, a DNS query" \
			"$(client dig +short +notcp +tries=1 +time=5 "@$vip" TXT whoami.test 2>&1 || true)" '^"b[12]"$'
	done
done

# Packets went to the backends by the balancer, and none came back by it.
look list --json >"$WORK/list"
for entry in "${VIPS[@]}"; do
	check_equal "${entry% *}: to the backends through the balancer, back past it" \
		"$(jq -r --arg s "${entry% *}" '[.[] | select(.name == $s) | .backends[]] |
			"\(map(.packets_in) | add > 0) \(map(.packets_out) | add)"' "$WORK/list")" "true 0"
done
# Each tunnel device took its share, so nothing came by another way.
for host in b1 b2; do
	for device in tunl0 sit0 ip6tnl0; do
		check "$host: $device took packets" test \
			"$(ip_ns "$host" -s -j link show "$device" | jq '.[0].stats64.rx.packets')" -gt 20
	done
done
end
