#!/usr/bin/env bash
# The balancer on one arm: a single interface, on the subnet that the client and the
# backends are on too, IPv4 and IPv6. What forward = "full-nat" is for: the backends
# know nothing of the balancer and have no route through it.
#
#   client       lb           b1            b2            b3
#   eth0         eth0         eth0          eth0          eth0
#     |            |            |             |             |
#     +------------+--------- switch ---------+-------------+
#   192.0.2.2    192.0.2.1    192.0.2.11    192.0.2.12    192.0.2.13
#   2001:db8:2:: ::2   ::1          ::11          ::12          ::13
#
# The VIPs 192.0.2.100 and 2001:db8:2::100 are on the subnet, so somebody has to answer
# ARP and neighbour discovery for them: lb holds them as a /32 and a /128 on eth0, and
# its stack answers. Its own connections never start from them. onearm.toml is the
# configuration for it.
set -euo pipefail
TOPOLOGY=onearm
# shellcheck source=topology/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# shellcheck disable=SC2034 # lib.sh reads these
{
	HOSTS=(client lb sw b1 b2 b3)
	BACKENDS=(b1 b2 b3)
	VIP=192.0.2.100
}

wire() {
	add_ns client lb b1 b2 b3
	add_switch sw
	local host
	for host in client lb b1 b2 b3; do
		plug sw "$host" "$host" eth0
	done
	# Everything leaves lb where it came in: by XDP_TX.
	receives_xdp_tx sw lb

	add_addresses lb eth0 192.0.2.1/24 2001:db8:2::1/64
	ip_ns lb address add 192.0.2.100/32 dev eth0
	# Deprecated, so that source address selection leaves it alone.
	ip_ns lb -6 address add 2001:db8:2::100/128 dev eth0 nodad preferred_lft 0
	add_addresses client eth0 192.0.2.2/24 2001:db8:2::2/64
	add_addresses b1 eth0 192.0.2.11/24 2001:db8:2::11/64
	add_addresses b2 eth0 192.0.2.12/24 2001:db8:2::12/64
	add_addresses b3 eth0 192.0.2.13/24 2001:db8:2::13/64
}

topology_main "$@"
