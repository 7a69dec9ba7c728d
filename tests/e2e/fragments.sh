#!/usr/bin/env bash
# Datagrams of 8 kB come whole through every mode, there and back: in fragments of the kernel's,
# and in fragments whose order is ours. Later fragments before their first are dropped and counted.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

need python3 python3
begin --serve

MODES=(nat full-nat l2 ipip gue)
declare -A LAST=([nat]=21 [full-nat]=22 [l2]=23 [ipip]=24 [gue]=25)
ECHO_AT=("${V4[b1]}" "${V6[b1]}")

# vip FAMILY MODE
vip() {
	[ "$1" = 4 ] && echo "203.0.113.${LAST[$2]}" || echo "2001:db8:1::${LAST[$2]}"
}

for mode in "${MODES[@]}"; do
	# A service that hashes by source alone has to look for ports as well.
	[ "$mode" = l2 ] && hash=source-ip || hash=5-tuple
	FORWARD="$mode" VIP4="$(vip 4 "$mode")" VIP6="$(vip 6 "$mode")" \
		service "$mode" '"udp"' 7 "$hash" - b1
done >"$WORK/services"
write_config <"$WORK/services"
for mode in l2 ipip gue; do
	holds_vips b1 "$(vip 4 "$mode")" "$(vip 6 "$mode")"
	ECHO_AT+=("$(vip 4 "$mode")" "$(vip 6 "$mode")")
done
# Direct answers go back by lb's stack here, from an address that its routes know nothing of.
for key in all eth0 eth1; do
	ns_sysctl lb "ipv4/conf/$key/rp_filter" 0
done
# Room for the tunnels' headers; IPv4 fragments cannot be made smaller on the way. Answers stay as
# large as the rest of the way allows.
ip_ns lb link set eth1 mtu 1600
ip_ns b1 link set eth0 mtu 1600
ip_ns b1 route change default via 10.0.1.1 mtu 1500
ip_ns b1 route change 10.0.1.0/24 dev eth0 proto kernel scope link src 10.0.1.2 mtu 1500
ip_ns b1 -6 route change default via 2001:db8:b1::1 mtu 1500
decapsulate b1 --from 10.0.1.1 --from 2001:db8:b1::1
start_process b1 echo python3 "$HERE/udp.py" echo 7 "${ECHO_AT[@]}"
wait_for 10 grep -q ready "$STATE/logs/echo" || {
	fail "echo server" "$(cat "$STATE/logs/echo")"
	end
}
start_or_end

for mode in "${MODES[@]}"; do
	for family in 4 6; do
		vip="$(vip "$family" "$mode")"
		[ "$family" = 4 ] && from="$CLIENT4" || from="$CLIENT6"
		check "$mode, IPv$family: 8 kB there and back" client python3 "$HERE/udp.py" ask "$vip" 7 8192
		check "$mode, IPv$family: fragments in order" \
			client python3 "$HERE/udp.py" fragments "$from" "$vip" 7 8000 0 1 2 3 4 5
		check "$mode, IPv$family: the first, then the others in any order" \
			client python3 "$HERE/udp.py" fragments "$from" "$vip" 7 8000 0 2 1 5 3 4
		before="$(packets_counted unknown_fragment)"
		check_equal "$mode, IPv$family: fragments before their first" \
			"$(client python3 "$HERE/udp.py" fragments "$from" "$vip" 7 8000 2 1 0 3 4 5)" "no answer"
		check_equal "$mode, IPv$family: are dropped and counted" "$(packets_counted unknown_fragment)" $((before + 2))
	done
done
for mode in "${MODES[@]}"; do
	check "$mode: fragments are counted with their connections" \
		test "$(look list --json | jq --arg s "$mode" '[.[] | select(.name == $s) | .backends[].packets_in] | add')" -gt 40
done
end
