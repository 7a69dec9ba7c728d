/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * reasons.h - why a packet was not balanced: the one list of reasons.
 *
 * Owns the name, verdict and explanation of each reason. The datapath makes its
 * enum and its verdicts from this list, build.rs makes the texts that
 * `xdplb drops` prints. One entry a line: X(NAME, VERDICT, "sentence").
 * VERDICT is DROP, PASS (to the host's stack) or TX (answered: what goes back is an
 * ICMP message or a TCP reset). New reasons go at the end: the order is the index into
 * the `counters` map.
 */
#ifndef XDPLB_REASONS_H
#define XDPLB_REASONS_H

/* clang-format off */
#define XDPLB_REASONS(X) \
	X(NOT_OURS, PASS, "neither for a VIP nor a reply from a backend; passed to the host's stack") \
	X(NOT_IP, PASS, "not IPv4 or IPv6 (ARP, LLDP, more than two VLAN tags), or too short to tell") \
	X(OTHER_PROTOCOL, PASS, "for a VIP, but neither TCP nor UDP (VRRP, GRE, ICMP other than ping and errors)") \
	X(UNKNOWN_PORT_PASSED, PASS, "for a VIP, but no service has that protocol and port; unknown_port = \"pass\"") \
	X(UNKNOWN_PORT_DROPPED, DROP, "for a VIP, but no service has that protocol and port; unknown_port = \"drop\"") \
	X(TTL_EXPIRED, TX, "TTL or hop limit 1 or 0 on the way to a backend or back; answered with time exceeded") \
	X(BAD_HEADER, DROP, "for a VIP, with an IP, TCP or UDP header that contradicts itself or the frame's length") \
	X(BAD_EXTENSION, DROP, "for a VIP, with a chain of IPv6 extension headers that is too long or cut off") \
	X(UNKNOWN_FRAGMENT, DROP, "a fragment for a VIP that came before the first fragment of its packet, or long after it") \
	X(NO_BACKEND, DROP, "the service has no usable backend: all are down, draining, of weight 0 or unresolved") \
	X(NO_CONNECTION, DROP, "a TCP reset for a full-nat service that belongs to no connection, and no source port of ours was free for it") \
	X(NO_PORT, DROP, "full-nat found no free source port towards the backend; add to datapath.addresses") \
	X(TABLE_FULL, DROP, "the connection table refused an entry; raise limits.connections") \
	X(NO_INTERFACE, DROP, "the interface that the packet came by or would leave by is not in datapath.interfaces") \
	X(SPLIT_HEADER, DROP, "for a VIP, with headers outside the part of the frame that XDP can reach") \
	X(BAD_FRAGMENT, DROP, "for a VIP, a first fragment too short for its TCP or UDP header, or one that overlaps it") \
	X(UNKNOWN_PORT_REJECTED, TX, "for a VIP, but no service has that protocol and port; unknown_port = \"reject\": reset or port unreachable") \
	X(NO_BACKEND_PASSED, PASS, "the service has no usable backend; no_backend = \"pass\"") \
	X(NO_BACKEND_REJECTED, TX, "the service has no usable backend; no_backend = \"reject\": reset or port unreachable") \
	X(ECHO_ANSWERED, TX, "ping for a VIP, answered; icmp_echo = true") \
	X(ECHO_DROPPED, DROP, "ping for a VIP that has no usable backend") \
	X(ICMP_UNRELATED, PASS, "an ICMP error for a VIP that quotes no packet of a connection or service") \
	X(TOO_BIG, TX, "larger than the MTU towards its receiver allows; answered with the MTU that fits") \
	X(TOO_BIG_DROPPED, DROP, "larger than the MTU towards its receiver allows, and IPv4 without DF, which XDP cannot fragment") \
	X(UNANSWERABLE, DROP, "an ICMP error or reset was due, but none may answer such a packet (a reset, an ICMP error, a later fragment)") \
	X(ANSWERS_LIMITED, DROP, "an ICMP error or reset was due, but this CPU had sent as many in the last second as the limit allows") \
	X(LOOP, DROP, "for a VIP, but it would go round in circles: it comes from the backend that would get it, or the host would send it back") \
	X(NO_HEADROOM, DROP, "no room for a tunnel header in front of the packet; the driver leaves too little") \
	X(FIREWALL, DROP, "denied by a [[firewall.rule]], or by firewall.default = \"deny\"") \
	X(BLOCKLISTED, DROP, "from a source in one of firewall.blocklists") \
	X(NOT_ALLOWED, DROP, "from a source that is not in the service's allow") \
	X(RATE_LIMITED, DROP, "above the limit that a [[dos]] policy sets for each source") \
	X(SOURCE_BLOCKED, DROP, "from a source that a [[dos]] policy with action = \"block\" has blocked for this protocol") \
	X(FLOODED, DROP, "the first packet of a new full-nat flow during a flood: it gets no entry, and no source port was free for it") \
	X(UNRESOLVED, DROP, "for an established connection whose backend's next hop is not resolved at present; the log says why")
/* clang-format on */

#endif
