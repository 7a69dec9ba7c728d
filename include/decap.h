/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * decap.h - shared by `xdplb decap` and its XDP program: the list of reasons under which
 * packets are counted, and the keys and values of its maps. The balancer uses none of it.
 *
 * Fields named __be are in network byte order, all others in the host's. An address is
 * four __be32; IPv4 is held as the IPv4-mapped ::ffff:a.b.c.d, and the family beside it
 * keeps a prefix of one family from covering the other.
 */
#ifndef XDPLB_DECAP_H
#define XDPLB_DECAP_H

#include <linux/types.h>

/* Rust reads and writes these structs as bytes: whatever is between two fields has a name. */
#pragma clang diagnostic push
#pragma clang diagnostic error "-Wpadded"

/*
 * The reasons under which packets are counted, one entry a line, as in reasons.h: X(NAME, VERDICT,
 * "sentence"). Every packet is counted under exactly one. First the kinds that lose their header,
 * in the order that decap_kind() in bpf/xdp_decap.bpf.c counts in; new ones go at the end.
 */
/* clang-format off */
#define XDPLB_DECAP_REASONS(X) \
	X(IPIP_4IN4, PASS, "decapsulated: IPv4 in IPv4, protocol 4; to the host's stack without the outer header") \
	X(IPIP_6IN4, PASS, "decapsulated: IPv6 in IPv4, protocol 41") \
	X(IPIP_4IN6, PASS, "decapsulated: IPv4 in IPv6, next header 4") \
	X(IPIP_6IN6, PASS, "decapsulated: IPv6 in IPv6, next header 41") \
	X(GUE_4IN4, PASS, "decapsulated: IPv4 in GUE over IPv4") \
	X(GUE_6IN4, PASS, "decapsulated: IPv6 in GUE over IPv4") \
	X(GUE_4IN6, PASS, "decapsulated: IPv4 in GUE over IPv6") \
	X(GUE_6IN6, PASS, "decapsulated: IPv6 in GUE over IPv6") \
	X(NO_TUNNEL, PASS, "not a tunnel packet, or one behind an IPv6 extension header; left alone") \
	X(NOT_LOCAL, PASS, "a tunnel packet for an address that is not this host's (forwarded, multicast); left alone") \
	X(OTHER_SOURCE, PASS, "a tunnel packet from a source that no --from covers; left alone") \
	X(FRAGMENTED, PASS, "a tunnel packet in fragments; left alone: raise the MTU between the balancer and here") \
	X(OTHER_GUE, PASS, "UDP to the GUE port with other contents than an IP packet (GUE variant 0, empty); left alone") \
	X(SPLIT_HEADERS, PASS, "a tunnel packet with headers outside the part of the frame that XDP can reach; left alone") \
	X(BAD_OUTER, DROP, "a tunnel packet whose outer header contradicts itself, its checksum or the frame's length") \
	X(BAD_INNER, DROP, "a tunnel packet without a whole IP packet of the right version inside") \
	X(BAD_ECN, DROP, "the outer header marks congestion, but the sender of the inner packet does not use ECN (RFC 6040)")
/* clang-format on */

/* Indices into `decap_counters`. */
enum decap_reason {
#define X(name, verdict, text) DECAP_##name,
	XDPLB_DECAP_REASONS(X)
#undef X
		NR_DECAP_REASONS,
};

enum decap_limit {
	DECAP_KINDS = DECAP_NO_TUNNEL, /* reasons below this are decapsulated */
	DECAP_PREFIX_LIMIT = 4096,     /* prefixes of sources */
	DECAP_ADDRESS_LIMIT = 65536,   /* addresses of this host */
};

/* `decap_local`: the host's own addresses. The value is unused. */
struct decap_address {
	__u32 family; /* 4 or 6 */
	__be32 address[4];
};

/* `decap_sources`, an LPM trie: the balancers, from which tunnel packets are accepted. The value is
 * unused. */
struct decap_prefix {
	__u32 length; /* bits of `address` from its start, family included: 32 to 160 */
	struct decap_address address;
};

/* `decap_counters`, per CPU, by enum decap_reason. */
struct decap_counter {
	__u64 packets;
	__u64 bytes; /* of inner packets, from their IP header on; of decapsulated packets only */
};

#pragma clang diagnostic pop

#endif
