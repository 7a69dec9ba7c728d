# shellcheck shell=bash
# What a backend behind forward = "l2", "ipip" and "gue" needs of its kernel: the commands
# that an administrator types there, as root. Sourced; backend() runs them in a backend of a
# topology.
#
# The IPv4 packets that a tunnel device hands on come from clients, and the way to those is by
# another interface: rp_filter has to be 0 there. Loose (2, what systemd gives each new
# device) does not do, since an interface without an address of its own fails it too; and the
# kernel takes the larger one of "all" and the device's own. Where "all" was what kept
# eth0 strict, eth0's own has to do it from now on. IPv6 has no such filter.

# backend HOST FUNCTION [ARGUMENT...]: one of the functions below, in that host.
backend() {
	local host="$1"
	shift
	in_ns "$host" bash -euo pipefail -c "$(declare -f "$1"); \"\$@\"" bash "$@"
}

# holds_vips IPV4 IPV6: for every mode. The addresses are on lo, where nobody asks for them by
# ARP: IPv4 would answer for them on any interface, IPv6 does not.
holds_vips() {
	ip address add "$1/32" dev lo
	ip -6 address add "$2/128" dev lo preferred_lft 0
	sysctl -q -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2
}

# Outer IPv4, inner IPv4: IP protocol 4.
takes_4in4() {
	modprobe ipip
	ip link set tunl0 up
	sysctl -q -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.tunl0.rp_filter=0
}

# Outer IPv4, inner IPv6: IP protocol 41.
takes_6in4() {
	modprobe sit
	ip link set sit0 up
}

# Outer IPv6, inner IPv4 and IPv6: next header 4 and 41. By itself the device takes 41 only.
# "ip link set ip6tnl0 type ip6tnl mode any" is not the same before Linux 6.17.
takes_any_in6() {
	modprobe ip6_tunnel
	ip -6 tunnel change ip6tnl0 mode any
	ip link set ip6tnl0 up
	sysctl -q -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.ip6tnl0.rp_filter=0
}

# takes_gue PORT: GUE, direct IP included (variant 1), on both outer families. It only takes
# the UDP header off: what is inside goes on as protocol 4 or 41, to the devices above.
takes_gue() {
	modprobe fou
	ip fou add port "$1" gue
	ip -6 fou add port "$1" gue
}
