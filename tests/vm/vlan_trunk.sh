#!/usr/bin/env bash
# A balancer behind a VLAN trunk: clients, balancer and backends have VLAN devices, XDP is on
# the device below, and what it sends keeps the tag that it came with.
set -euo pipefail
# shellcheck disable=SC2034 # for lib.sh
TOPOLOGY=onearm
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/../e2e/lib.sh"
# shellcheck source=tests/vm/tunnels.sh
. "$(dirname "$0")/tunnels.sh"

need sysctl procps
begin --serve

# tagged HOST ADDRESS...: moves the host onto VLAN 10 of its link. The tag has to be in the
# frame, as on a wire: beside it, where virtual devices like to carry it, XDP does not see it.
tagged() {
	local host="$1"
	shift
	in_ns "$host" ethtool -K eth0 txvlan off rxvlan off >/dev/null
	ip_ns "$host" address flush dev eth0
	ip_ns "$host" link add link eth0 name eth0.10 type vlan id 10
	ip_ns "$host" link set eth0.10 up
	add_addresses "$host" eth0.10 "$@"
}

L2=192.0.2.101 IPIP=192.0.2.102
tagged lb "$LB4/24" "$LB6/64" "$VIP4/32" "$L2/32" "$IPIP/32"
tagged client "$CLIENT4/24" "$CLIENT6/64"
for host in b1 b2; do
	tagged "$host" "${V4[$host]}/24" "${V6[$host]}/64"
	check "$host holds the VIP of l2" backend "$host" holds_vips "$L2" 2001:db8:2::101
	check "$host holds the VIP of ipip" backend "$host" holds_vips "$IPIP" 2001:db8:2::102
	check "$host takes IPv4 in IPv4" backend "$host" takes_4in4
done

# The neighbours are on eth0.10 and XDP is on eth0: both are said, not resolved.
trunk_service() {
	local name="$1" vip="$2" forward="$3" port="$4" host
	cat <<-TOML

		[[service]]
		name = "$name"
		vip = "$vip"
		protocol = "tcp"
		port = $port
		forward = "$forward"
	TOML
	for host in b1 b2; do
		cat <<-TOML

			[[service.backend]]
			name = "$host"
			address = "${V4[$host]}"
			interface = "eth0"
			mac = "$(ip_ns "$host" -j link show eth0 | jq -r '.[0].address')"
		TOML
	done
}

{
	trunk_service full-nat "$VIP4" full-nat 8080
	trunk_service l2 "$L2" l2 8080
	trunk_service ipip "$IPIP" ipip 8080
} | write_config
start_or_end
for vip in "$VIP4" "$L2" "$IPIP"; do
	check_equal "$vip: every request is answered, by both backends" "$(who_answers "$vip:8080" 20)" "b1 b2"
	get "$vip:8080" big >"$WORK/big" || true
	check_equal "$vip: a large file comes whole" "$(sha256sum <"$WORK/big" | cut -d ' ' -f 1)" "$(big_sum)"
done
check "the client's VLAN device took the replies, so their tag was there" test \
	"$(ip_ns client -s -j link show eth0.10 | jq '.[0].stats64.rx.packets')" -gt 1000
end
