#!/usr/bin/env bash
# The balancer as a router between a client and three backends, IPv4 and IPv6.
#
#   client            lb                                       backends
#   eth0 ------- eth0    eth1 ------------------------------- eth0  b1
#   198.51.100.2      .1      10.0.1.1               10.0.1.2
#   2001:db8:c::2    ::1      2001:db8:b1::1   2001:db8:b1::2
#
#                        eth2 ------- switch --------------- eth0  b2
#                             10.0.2.1    |          10.0.2.2
#                             2001:db8:b2::1   2001:db8:b2::2
#                                         |
#                                         +-- eth0  r  eth1 - eth0  b3
#                                        10.0.2.254   10.0.3.1   10.0.3.2
#                                  2001:db8:b2::fe    2001:db8:b3::1, ::2
#
# The client reaches the VIPs 203.0.113.11 and 2001:db8:1::11 through lb, the backends
# reach the client through lb (b3 by way of r): what forward = "nat" needs. Nothing but
# xdplb answers for the VIPs. router.toml is the configuration for it.
set -euo pipefail
TOPOLOGY=router
# shellcheck source=topology/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# shellcheck disable=SC2034 # lib.sh reads these
{
	HOSTS=(client lb sw r b1 b2 b3)
	BACKENDS=(b1 b2 b3)
	VIP=203.0.113.11
}

wire() {
	add_ns client lb r b1 b2 b3
	add_switch sw
	make_router lb r

	add_link lb eth0 client eth0
	add_link lb eth1 b1 eth0
	plug sw lb lb eth2
	plug sw b2 b2 eth0
	plug sw r r eth0
	add_link r eth1 b3 eth0
	receives_redirects client eth0
	receives_redirects b1 eth0
	receives_redirects sw lb

	add_addresses lb eth0 198.51.100.1/24 2001:db8:c::1/64
	add_addresses lb eth1 10.0.1.1/24 2001:db8:b1::1/64
	add_addresses lb eth2 10.0.2.1/24 2001:db8:b2::1/64
	add_addresses client eth0 198.51.100.2/24 2001:db8:c::2/64
	add_addresses b1 eth0 10.0.1.2/24 2001:db8:b1::2/64
	add_addresses b2 eth0 10.0.2.2/24 2001:db8:b2::2/64
	add_addresses r eth0 10.0.2.254/24 2001:db8:b2::fe/64
	add_addresses r eth1 10.0.3.1/24 2001:db8:b3::1/64
	add_addresses b3 eth0 10.0.3.2/24 2001:db8:b3::2/64

	default_routes client 198.51.100.1 2001:db8:c::1
	default_routes b1 10.0.1.1 2001:db8:b1::1
	default_routes b2 10.0.2.1 2001:db8:b2::1
	default_routes r 10.0.2.1 2001:db8:b2::1
	default_routes b3 10.0.3.1 2001:db8:b3::1
	ip_ns lb route add 10.0.3.0/24 via 10.0.2.254
	ip_ns lb -6 route add 2001:db8:b3::/64 via 2001:db8:b2::fe
}

# default_routes HOST IPV4 IPV6
default_routes() {
	ip_ns "$1" route add default via "$2"
	ip_ns "$1" -6 route add default via "$3"
}

topology_main "$@"
