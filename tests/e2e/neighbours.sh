#!/usr/bin/env bash
# The network moves while xdplb runs, without a reload: a backend changes its MAC address,
# with and without telling; one moves behind another gateway; one vanishes and comes back.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

begin --serve

TIMEOUTS='tcp_opening = "5s"'
only() {
	web_service "$1" | write_config
	reload_xdplb
}
answered_by() {
	[ "$(get "$VIP4")" = "$1" ] && [ "$(get "$VIP6")" = "$1" ]
}

web_service b1 | write_config
start_or_end
check "b1 answers" answered_by b1

ns_sysctl b1 ipv4/conf/eth0/arp_notify 1
ns_sysctl b1 ipv6/conf/eth0/ndisc_notify 1
ip_ns b1 link set eth0 address 02:00:00:00:b1:01
check_soon "a MAC address that is announced is followed" 10 answered_by b1

ns_sysctl b1 ipv4/conf/eth0/arp_notify 0
ns_sysctl b1 ipv6/conf/eth0/ndisc_notify 0
ip_ns b1 link set eth0 address 02:00:00:00:b1:02
check_soon "one that is not is followed too" 60 answered_by b1

# b3 gets a second link, by way of r2, and the routes to it change.
check "reload to b3" only b3
check "b3 answers behind r" answered_by b3
EXTRA=r2
add_ns "$EXTRA"
make_router "$EXTRA"
plug sw "$EXTRA" "$EXTRA" eth0
add_link "$EXTRA" eth1 b3 eth1
add_addresses "$EXTRA" eth0 10.0.2.253/24 2001:db8:b2::fd/64
add_addresses "$EXTRA" eth1 10.0.4.1/24 2001:db8:b4::1/64
add_addresses b3 eth1 10.0.4.2/24 2001:db8:b4::2/64
ip_ns "$EXTRA" route add default via 10.0.2.1
ip_ns "$EXTRA" -6 route add default via 2001:db8:b2::1
ip_ns "$EXTRA" route add 10.0.3.2/32 via 10.0.4.2
ip_ns "$EXTRA" -6 route add 2001:db8:b3::2/128 via 2001:db8:b4::2
ip_ns b3 route replace default via 10.0.4.1
ip_ns b3 -6 route replace default via 2001:db8:b4::1
ip_ns r link set eth1 down
ip_ns lb route replace 10.0.3.0/24 via 10.0.2.253
ip_ns lb -6 route replace 2001:db8:b3::/64 via 2001:db8:b2::fd
check_soon "a backend behind another gateway is followed" 10 answered_by b3

# b3 moves to another interface of the balancer: b1 becomes its router.
make_router b1
add_link b1 eth1 b3 eth2
add_addresses b1 eth1 10.0.5.1/24 2001:db8:b5::1/64
add_addresses b3 eth2 10.0.5.2/24 2001:db8:b5::2/64
ip_ns b1 route add 10.0.3.2/32 via 10.0.5.2
ip_ns b1 -6 route add 2001:db8:b3::2/128 via 2001:db8:b5::2
ip_ns b3 route replace default via 10.0.5.1
ip_ns b3 -6 route replace default via 2001:db8:b5::1
ip_ns b1 route replace default via 10.0.1.1
ip_ns b1 -6 route replace default via 2001:db8:b1::1
ip_ns lb route replace 10.0.3.0/24 via 10.0.1.2
ip_ns lb -6 route replace 2001:db8:b3::/64 via 2001:db8:b1::2
check_soon "a backend behind another interface is followed" 10 answered_by b3

# One that cannot be resolved counts as down.
check "reload to all" eval 'web_service b1 b2 b3 | write_config; reload_xdplb'
check_equal "all answer" "$(who_answers "$VIP4" 60)" "b1 b2 b3"
ip_ns b2 link set eth0 down
others() {
	[ "$(who_answers "$VIP4" 30)" = "b1 b3" ]
}
check_soon "a backend that does not answer ARP is left out" 90 others
ip_ns b2 link set eth0 up
ip_ns b2 -6 address replace 2001:db8:b2::2/64 dev eth0 nodad
ip_ns b2 route replace default via 10.0.2.1
ip_ns b2 -6 route replace default via 2001:db8:b2::1
everyone() {
	[ "$(who_answers "$VIP4" 60)" = "b1 b2 b3" ]
}
check_soon "and taken in when it does again" 60 everyone
end
