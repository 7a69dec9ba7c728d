#!/usr/bin/env bash
# Path MTU in every mode: downloads whose path becomes narrower on the way, beyond the balancer and
# at it, and uploads through tunnels on a link that leaves no room for their headers.
#
# Between client and lb stands one more host, far, whose router is the client:
#
#   far eth0 ---- eth1 client eth0 ---- lb ...
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

need tracepath iputils-tracepath
begin --serve

add_ns far
add_link client eth1 far eth0
make_router client
add_addresses client eth1 198.18.0.1/24 2001:db8:f::1/64
ip_ns lb route add 198.18.0.0/24 via "$CLIENT4"
ip_ns lb -6 route add 2001:db8:f::/64 via "$CLIENT6"

MODES=(nat full-nat l2 ipip gue)
# A VIP and a client's address for each: what one transfer learns about a path is not to help another.
declare -A LAST=([nat]=21 [full-nat]=22 [l2]=23 [ipip]=24 [gue]=25)
for mode in "${MODES[@]}"; do
	add_addresses far eth0 "198.18.0.${LAST[$mode]}/24" "2001:db8:f::${LAST[$mode]}/64"
done
ip_ns far route add default via 198.18.0.1
ip_ns far -6 route add default via 2001:db8:f::1

# vip FAMILY MODE
vip() {
	[ "$1" = 4 ] && echo "203.0.113.${LAST[$2]}" || echo "2001:db8:1::${LAST[$2]}"
}

# l2 needs the backend on the balancer's own network: b1 is, and all modes make do with it.
declare -A OUTER=([nat]='4 6' [full-nat]='4 6' [l2]='4 6' [ipip]=4 [gue]=6)
{
	for mode in "${MODES[@]}"; do
		FORWARD="$mode" VIP4="$(vip 4 "$mode")" VIP6="$(vip 6 "$mode")" FAMILIES="${OUTER[$mode]}" \
			service "$mode" '"tcp"' 8080 5-tuple - b1
	done
} | write_config
for mode in l2 ipip gue; do
	holds_vips b1 "$(vip 4 "$mode")" "$(vip 6 "$mode")"
done
# Direct answers go back by lb's stack here, from an address that its routes know nothing of.
for key in all eth0 eth1; do
	ns_sysctl lb "ipv4/conf/$key/rp_filter" 0
done
decapsulate b1 --from 10.0.1.1 --from 2001:db8:b1::1
start_or_end

# download LABEL FAMILY MODE: about four seconds.
download() {
	local web source
	[ "$2" = 4 ] && web="$(vip 4 "$3"):8080" source="198.18.0.${LAST[$3]}" ||
		web="[$(vip 6 "$3")]:8080" source="2001:db8:f::${LAST[$3]}"
	in_ns far curl -sS --fail --interface "$source" --connect-timeout 3 --max-time 60 \
		-o "$WORK/transfer-$1" "$(url "$web" "big?rate=2500k")" 2>"$WORK/transfer-$1.error" &
	TRANSFERS[$1]=$!
}

# downloads WHAT MODE...
downloads() {
	local what="$1" mode family
	shift
	for mode in "$@"; do
		for family in 4 6; do
			download "$mode-$family" "$family" "$mode"
		done
	done
	sleep 1
	check "$what: all downloads still run" kill -0 "${TRANSFERS[@]}"
}

# end_downloads WHAT MODE...
end_downloads() {
	local what="$1" mode family
	shift
	for mode in "$@"; do
		for family in 4 6; do
			check_transfer "$what: an IPv$family download, $mode, comes whole" "$mode-$family"
		done
	done
}

# mtu_of ADDRESS: what b1 has learnt about the path there.
mtu_of() {
	ip_ns b1 route get "$1" | grep -oE 'mtu [0-9]+' | cut -d ' ' -f 2
}

downloads "a link narrows beyond the balancer" "${MODES[@]}"
ip_ns client link set eth1 mtu 1400
end_downloads "a link narrows beyond the balancer" "${MODES[@]}"
for mode in nat l2 ipip gue; do
	check_equal "$mode: the backend has learnt the MTU, IPv4" "$(mtu_of "198.18.0.${LAST[$mode]}")" 1400
	check_equal "$mode: the backend has learnt the MTU, IPv6" "$(mtu_of "2001:db8:f::${LAST[$mode]}")" 1400
done
check_equal "full-nat: the backend has learnt the MTU, IPv4" "$(mtu_of 10.0.1.1)" 1400
check_equal "full-nat: the backend has learnt the MTU, IPv6" "$(mtu_of 2001:db8:b1::1)" 1400

# What answers directly does not pass it.
before="$(packets_counted too_big)"
downloads "the balancer's own link narrows" nat full-nat
ip_ns lb link set eth0 mtu 1300
end_downloads "the balancer's own link narrows" nat full-nat
check "and it has said so" test "$(packets_counted too_big)" -gt "$before"
ip_ns lb link set eth0 mtu 1500
ip_ns client link set eth1 mtu 1500

# What b1 knows of narrow paths it would tell clients in its MSS.
ip_ns b1 route flush cache
ip_ns b1 -6 route flush cache

# Full segments; with a tunnel's header they are larger than lb's link to b1.
for mode in "${MODES[@]}"; do
	for family in 4 6; do
		[ "$family" = 4 ] && web="$(vip 4 "$mode"):8080" source="198.18.0.${LAST[$mode]}" ||
			web="[$(vip 6 "$mode")]:8080" source="2001:db8:f::${LAST[$mode]}"
		before="$(packets_counted too_big)"
		check "an IPv$family upload, $mode: sent" in_ns far curl -sS --fail --interface "$source" --max-time 20 \
			-T "$STATE/www/big" "$(url "$web" "upload/$mode-$family")"
		check "an IPv$family upload, $mode: comes whole" cmp "$STATE/www/big" "$STATE/upload/$mode-$family"
		case "$mode" in
		ipip | gue) check "an IPv$family upload, $mode: the balancer said what fits" test "$(packets_counted too_big)" -gt "$before" ;;
		*) check_equal "an IPv$family upload, $mode: everything fitted" "$(packets_counted too_big)" "$before" ;;
		esac
	done
done
check_contains "far has learnt what fits through ipip" "$(ip_ns far route get "$(vip 4 ipip)" from "198.18.0.${LAST[ipip]}")" 'mtu 1480'
check_contains "and through gue" "$(ip_ns far route get "$(vip 6 gue)" from "2001:db8:f::${LAST[gue]}")" 'mtu 1452'
end
