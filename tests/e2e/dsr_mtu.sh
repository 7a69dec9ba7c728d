#!/usr/bin/env bash
# Path MTU in every mode: downloads whose path becomes narrower on the way, beyond the balancer and
# at it, and uploads through tunnels on links that leave no room for their headers, at the balancer
# and at a router behind it.
#
# Between client and lb stands one more host, far, whose router is the client:
#
#   far eth0 ---- eth1 client eth0 ---- lb ...
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

begin --serve

add_ns far
add_link client eth1 far eth0
make_router client
add_addresses client eth1 198.18.0.1/24 2001:db8:f::1/64
ip_ns lb route add 198.18.0.0/24 via "$CLIENT4"
ip_ns lb -6 route add 2001:db8:f::/64 via "$CLIENT6"

MODES=(nat full-nat l2 ipip gue)
# A VIP and a client's address for each: what one transfer learns about a path is not to help another.
declare -A LAST=([nat]=21 [full-nat]=22 [l2]=23 [ipip]=24 [gue]=25 [ipip-b3]=26 [gue-b3]=27)
for mode in "${!LAST[@]}"; do
	add_addresses far eth0 "198.18.0.${LAST[$mode]}/24" "2001:db8:f::${LAST[$mode]}/64"
done
ip_ns far route add default via 198.18.0.1
ip_ns far -6 route add default via 2001:db8:f::1

# vip FAMILY MODE
vip() {
	[ "$1" = 4 ] && echo "203.0.113.${LAST[$2]}" || echo "2001:db8:1::${LAST[$2]}"
}

# far_address FAMILY MODE
far_address() {
	[ "$1" = 4 ] && echo "198.18.0.${LAST[$2]}" || echo "2001:db8:f::${LAST[$2]}"
}

# l2 needs the backend on the balancer's own network: b1 is, and all modes make do with it.
declare -A OUTER=([nat]='4 6' [full-nat]='4 6' [l2]='4 6' [ipip]=4 [gue]=6)
{
	for mode in "${MODES[@]}"; do
		FORWARD="$mode" VIP4="$(vip 4 "$mode")" VIP6="$(vip 6 "$mode")" FAMILIES="${OUTER[$mode]}" \
			service "$mode" '"tcp"' 8080 5-tuple - b1
	done
	# Behind one more router.
	for mode in ipip gue; do
		FORWARD="$mode" VIP4="$(vip 4 "$mode-b3")" VIP6="$(vip 6 "$mode-b3")" FAMILIES="${OUTER[$mode]}" \
			service "$mode-b3" '"tcp"' 8080 5-tuple - b3
	done
} | write_config
for mode in l2 ipip gue; do
	holds_vips b1 "$(vip 4 "$mode")" "$(vip 6 "$mode")"
done
# Direct answers go back by lb's stack here, from an address that its routes know nothing of.
for key in all eth0 eth1 eth2; do
	ns_sysctl lb "ipv4/conf/$key/rp_filter" 0
done
holds_vips b3 "$(vip 4 ipip-b3)" "$(vip 6 ipip-b3)" "$(vip 4 gue-b3)" "$(vip 6 gue-b3)"
decapsulate b1 --from 10.0.1.1 --from 2001:db8:b1::1
decapsulate b3 --from 10.0.2.1 --from 2001:db8:b2::1
start_or_end

# download LABEL FAMILY MODE: about four seconds.
download() {
	local web
	[ "$2" = 4 ] && web="$(vip 4 "$3"):8080" || web="[$(vip 6 "$3")]:8080"
	in_ns far curl -sS --fail --interface "$(far_address "$2" "$3")" --connect-timeout 3 --max-time 60 \
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

# learnt FAMILY MODE: what far has learnt about the path to the VIP.
learnt() {
	ip_ns far route get "$(vip "$1" "$2")" from "$(far_address "$1" "$2")" | grep -oE 'mtu [0-9]+'
}

# upload FAMILY MODE: with full segments. SAID is what the balancer has said about it.
upload() {
	local web before
	[ "$1" = 4 ] && web="$(vip 4 "$2"):8080" || web="[$(vip 6 "$2")]:8080"
	before="$(packets_counted too_big)"
	check "an IPv$1 upload, $2: sent" in_ns far curl -sS --fail --interface "$(far_address "$1" "$2")" --max-time 20 \
		-T "$STATE/www/big" "$(url "$web" "upload/$2-$1")"
	check "an IPv$1 upload, $2: comes whole" cmp "$STATE/www/big" "$STATE/upload/$2-$1"
	SAID=$(($(packets_counted too_big) - before))
}

for family in 4 6; do
	for mode in nat full-nat l2; do
		upload "$family" "$mode"
		check_equal "an IPv$family upload, $mode: everything fitted" "$SAID" 0
	done
	for mode in ipip gue; do
		upload "$family" "$mode"
		check "an IPv$family upload, $mode: the balancer said what fits" test "$SAID" -gt 0
	done
done
check_equal "far has learnt what fits through ipip" "$(learnt 4 ipip)" "mtu 1480"
check_equal "and through gue" "$(learnt 6 gue)" "mtu 1452"

# Smaller segments from the start, as xdplb check advises.
ip_ns b1 route change default via 10.0.1.1 advmss 1392
ip_ns b1 -6 route change default via 2001:db8:b1::1 advmss 1392
ip_ns far route flush cache
ip_ns far -6 route flush cache
for family in 4 6; do
	upload "$family" gue
	check_equal "an IPv$family upload, gue: everything fits with a smaller MSS" "$SAID" 0
done

# A router behind the balancer finds the tunnel's packets too big, and tells the balancer.
ip_ns r link set eth1 mtu 1400
for family in 4 6; do
	for mode in ipip gue; do
		upload "$family" "$mode-b3"
		[ "$mode" = ipip ] && fits=1380 || fits=1352
		check_equal "an IPv$family upload, $mode, over a narrow router: far has learnt what fits" \
			"$(learnt "$family" "$mode-b3")" "mtu $fits"
	done
done
end
