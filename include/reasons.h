/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * reasons.h - why a packet was not balanced: the one list of reasons.
 *
 * Owns the name, verdict and explanation of each reason. The datapath makes its
 * enum and its verdicts from this list, build.rs makes the texts that
 * `xdplb drops` prints. One entry a line: X(NAME, VERDICT, "sentence").
 * VERDICT is DROP or PASS (to the host's stack). New reasons go at the end:
 * the order is the index into the `counters` map.
 */
#ifndef XDPLB_REASONS_H
#define XDPLB_REASONS_H

/* clang-format off */
#define XDPLB_REASONS(X) \
	X(NOT_OURS, PASS, "neither for a VIP nor a reply from a backend; the host's stack has it") \
	X(NOT_IP, PASS, "not IPv4 or IPv6 (ARP, LLDP, more than two VLAN tags), or too short to tell") \
	X(OTHER_PROTOCOL, PASS, "for a VIP, but neither TCP nor UDP (ICMP, VRRP, GRE and the like)") \
	X(UNKNOWN_PORT_PASSED, PASS, "for a VIP, but no service has that protocol and port; unknown_port = \"pass\"") \
	X(UNKNOWN_PORT_DROPPED, DROP, "for a VIP, but no service has that protocol and port; unknown_port = \"drop\"") \
	X(TTL_EXPIRED, PASS, "TTL or hop limit 1 or 0; the host's stack answers with time exceeded") \
	X(BAD_HEADER, DROP, "for a VIP, with an IP, TCP or UDP header that contradicts itself or the frame's length") \
	X(BAD_EXTENSION, DROP, "for a VIP, with a chain of IPv6 extension headers that is too long or cut off") \
	X(FRAGMENT, DROP, "a fragment for a VIP; fragments are not balanced") \
	X(NO_BACKEND, DROP, "the service has no usable backend: all are down, draining, of weight 0 or unresolved") \
	X(NO_CONNECTION, DROP, "a TCP reset for a full-nat service that belongs to no connection") \
	X(NO_PORT, DROP, "full-nat found no free source port towards the backend; add to datapath.addresses") \
	X(TABLE_FULL, DROP, "the connection table refused an entry; raise limits.connections") \
	X(NO_INTERFACE, DROP, "the packet's next hop is not resolved, or its interface is not in datapath.interfaces") \
	X(SPLIT_HEADER, DROP, "for a VIP, with headers outside the part of the frame that XDP can reach")
/* clang-format on */

#endif
