/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * parse.h - from bytes to `struct packet` and the 5-tuple. Every length is checked here,
 * against the frame and against the other lengths; later stages trust these checks.
 *
 * Owns the address filter too, since most packets are not ours and go no further.
 */
#ifndef XDPLB_PARSE_H
#define XDPLB_PARSE_H

#include <linux/if_vlan.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>

#include "maps.h"
#include "packet.h"
#include "transport.h"

#define VLAN_TAGS 2
/* Of IPv6. Hosts send one or two; a long chain is an attack (RFC 9098). */
#define EXTENSION_HEADERS 6

#define IP_DONT_FRAGMENT    0x4000
#define IP_MORE_FRAGMENTS   0x2000
#define IP_FRAGMENT_OFFSET  0x1fff
#define IP6_FRAGMENT_HEADER 44

/* RFC 792, RFC 4443. <linux/icmp.h> wants the C library's headers. */
enum icmp_type {
	ICMP_ECHO_REPLY = 0,
	ICMP_UNREACHABLE = 3,
	ICMP_ECHO_REQUEST = 8,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETER_PROBLEM = 12,
	ICMPV6_UNREACHABLE = 1,
	ICMPV6_TOO_BIG = 2,
	ICMPV6_TIME_EXCEEDED = 3,
	ICMPV6_PARAMETER_PROBLEM = 4,
	ICMPV6_ECHO_REQUEST = 128,
	ICMPV6_ECHO_REPLY = 129,
	ICMPV6_ND_FIRST = 133, /* router solicitation; RFC 4861 */
	ICMPV6_ND_LAST = 137,  /* redirect */
};

enum icmp_code {
	ICMP_TTL_IN_TRANSIT = 0,
	ICMP_PORT_UNREACHABLE = 3,
	ICMP_FRAGMENTATION_NEEDED = 4,
	ICMPV6_HOP_LIMIT_IN_TRANSIT = 0,
	ICMPV6_PORT_UNREACHABLE = 4,
};

struct icmp_header {
	__u8 type;
	__u8 code;
	__be16 checksum;
	/* Of echo requests and replies. */
	__be16 id;
	__be16 sequence;
};

struct vlan_tag {
	__be16 control;
	__be16 ethertype;
};

/* Ethernet and VLAN tags (802.1Q, 802.1ad), which stay as they are. */
static __always_inline int parse_ethernet(struct xdp_md *ctx, struct packet *p)
{
	struct ethhdr *eth;

	p->data = (void *)(long)ctx->data;
	p->end = (void *)(long)ctx->data_end;
	p->ingress = ctx->ingress_ifindex;

	eth = p->data;
	if ((void *)(eth + 1) > p->end)
		return REASON_NOT_IP;
	p->l3 = eth + 1;
	p->ethernet = sizeof(*eth);
	/* struct ethhdr is packed: read through it, the two bytes would be loaded one by one. */
	p->ethertype = *(__be16 *)(p->data + 2 * ETH_ALEN);

	for (int i = 0; i < VLAN_TAGS; i++) {
		struct vlan_tag *tag = p->l3;

		if (likely(p->ethertype != bpf_htons(ETH_P_8021Q) &&
			   p->ethertype != bpf_htons(ETH_P_8021AD)))
			break;
		if ((void *)(tag + 1) > p->end)
			return REASON_NOT_IP;
		p->ethertype = tag->ethertype;
		p->l3 = tag + 1;
		p->ethernet += sizeof(*tag);
	}
	return GO_ON;
}

static __always_inline __u32 rotl32(__u32 x, int bits)
{
	return x << bits | x >> (32 - bits);
}

/* The user side sets the bits with the same function (src/state/filter.rs). */
static __always_inline int in_filter(__u32 word)
{
	struct filter *f = array_at(filter, 0);
	__u32 bit = word * 0x9E3779B1U >> 16;

	return f && f->words[bit >> 6] >> (bit & 63) & 1;
}

static __always_inline __u32 filter_word6(const struct in6_addr *a)
{
	return a->s6_addr32[0] ^ rotl32(a->s6_addr32[1], 8) ^ rotl32(a->s6_addr32[2], 16) ^
	       rotl32(a->s6_addr32[3], 24);
}

/* False only if the packet's destination is neither a VIP nor a backend. */
static __always_inline int is_destination_known(const struct facts *f)
{
	return in_filter(f->family == 4 ? f->flow.daddr[3]
					: filter_word6((const struct in6_addr *)f->flow.daddr));
}

/* Notes it, as a value that the verifier does not tell from the other. */
static __always_inline int is_towards(struct packet *p, __u32 towards)
{
	__u32 noted = towards << 1;

	barrier_var(noted);
	p->is_towards = noted;
	return towards;
}

/* False only if neither address is a VIP's or a backend's. */
static __always_inline int maybe_ours4(const struct iphdr *ip, struct packet *p)
{
	return is_towards(p, in_filter(ip->daddr)) || in_filter(ip->saddr);
}

static __always_inline int maybe_ours6(const struct ipv6hdr *ip6, struct packet *p)
{
	return is_towards(p, in_filter(filter_word6(&ip6->daddr))) ||
	       in_filter(filter_word6(&ip6->saddr));
}

/*
 * The frame holds `length` bytes from its start. Beyond `end` there may be fragments of
 * a jumbo frame; only what seems short pays for asking.
 */
static __always_inline int frame_holds(struct xdp_md *ctx, const struct packet *p, __u64 length)
{
	return likely(length <= (__u64)(p->end - p->data)) || length <= bpf_xdp_get_buff_len(ctx);
}

static __always_inline int parse_ipv4(struct xdp_md *ctx, struct packet *p, struct flow4 *flow)
{
	struct iphdr *ip = p->l3;
	__u32 header, total;
	__be16 *ports;
	int reason;

	if ((void *)(ip + 1) > p->end)
		return REASON_NOT_IP;
	/* An ICMP error can be about one of ours without being from or for one. */
	if (likely(!maybe_ours4(ip, p) && ip->protocol != IPPROTO_ICMP))
		return REASON_NOT_OURS;

	flow->saddr = ip->saddr;
	flow->daddr = ip->daddr;
	header = ip->ihl * 4U;
	total = bpf_ntohs(ip->tot_len);
	p->length = p->ethernet + total;
	p->protocol = ip->protocol;
	p->ttl = ip->ttl;
	p->l4 = p->l3 + header;

	if (ip->version != 4 || header < sizeof(*ip) || total < header ||
	    !frame_holds(ctx, p, p->length))
		return REASON_BAD_HEADER;
	if (unlikely(ip->frag_off & bpf_htons(IP_MORE_FRAGMENTS | IP_FRAGMENT_OFFSET))) {
		p->fragment_id = ip->id;
		p->fragment_offset = (bpf_ntohs(ip->frag_off) & IP_FRAGMENT_OFFSET) * 8;
		p->kind = p->fragment_offset ? LATER_FRAGMENT : FIRST_FRAGMENT;
		if (p->kind == LATER_FRAGMENT)
			return may_be_balanced(p->protocol) ? IS_PORTLESS : REASON_OTHER_PROTOCOL;
	}
	reason = parse_transport(p, total - header);
	if (reason != GO_ON)
		return reason;

	if (has_ports(p->protocol)) {
		ports = p->l4;
		flow->sport = ports[0];
		flow->dport = ports[1];
	}
	flow->protocol = p->protocol;
	return GO_ON;
}

static __always_inline int is_extension(__u32 protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_DSTOPTS ||
	       protocol == IPPROTO_ROUTING;
}

/* A fragment header that skip_extensions came by. */
struct fragment_header {
	__be32 id;
	__u32 start;  /* from the frame's start: what follows it; 0: there was none */
	__u32 offset; /* bytes */
};

/*
 * Walks the extension headers from `offset` (from the frame's start), whose type is
 * `next`. Returns the offset of what follows in the low 16 bits and its protocol above
 * them, or a reason, negated and less one. Of a later fragment that is what follows the
 * fragment header. A function of its own: hardly any packet has them.
 */
static __noinline int skip_extensions(struct xdp_md *ctx, __u32 offset, __u32 next,
				      struct fragment_header *fragment)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;

	/* Once more than there may be: what follows the last has to be seen. */
	for (int i = 0; i <= EXTENSION_HEADERS; i++) {
		__u8 *header = data + (offset & 0x7fff);

		switch (next) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_DSTOPTS:
		case IPPROTO_ROUTING:
			if ((void *)(header + 8) > end)
				return -1 - REASON_BAD_EXTENSION;
			/* Segments left: the destination is only the next stop (RFC 8200, 4.4). */
			if (next == IPPROTO_ROUTING && header[3])
				return -1 - REASON_OTHER_PROTOCOL;
			next = header[0];
			offset += (header[1] + 1) * 8;
			break;
		case IP6_FRAGMENT_HEADER:
			if ((void *)(header + 8) > end)
				return -1 - REASON_BAD_EXTENSION;
			next = header[0];
			offset += 8;
			/* An atomic fragment is whole (RFC 6946). */
			if (!header[2] && !(header[3] & ~6))
				break;
			if (fragment->start)
				return -1 - REASON_BAD_EXTENSION;
			fragment->id = *(__be32 *)(header + 4);
			fragment->start = offset & 0x7fff;
			fragment->offset = bpf_ntohs(*(__be16 *)(header + 2)) & ~7U;
			if (fragment->offset)
				return (offset & 0x7fff) | next << 16;
			break;
		default:
			return (offset & 0x7fff) | next << 16;
		}
	}
	return -1 - REASON_BAD_EXTENSION;
}

static __always_inline int parse_ipv6(struct xdp_md *ctx, struct packet *p, struct flow6 *flow)
{
	struct ipv6hdr *ip6 = p->l3;
	__u32 start, l4_start, total;
	__be16 *ports;
	int reason;

	if ((void *)(ip6 + 1) > p->end)
		return REASON_NOT_IP;
	if (likely(!maybe_ours6(ip6, p) && ip6->nexthdr != IPPROTO_ICMPV6))
		return REASON_NOT_OURS;

	copy16(flow->saddr, &ip6->saddr);
	copy16(flow->daddr, &ip6->daddr);
	start = p->ethernet;
	l4_start = start + sizeof(*ip6);
	total = l4_start + bpf_ntohs(ip6->payload_len);
	p->length = total;
	p->protocol = ip6->nexthdr;
	p->ttl = ip6->hop_limit;
	p->l4 = ip6 + 1;

	if (ip6->version != 6 || !frame_holds(ctx, p, total))
		return REASON_BAD_HEADER;
	if (unlikely(!may_be_balanced(p->protocol))) {
		struct fragment_header fragment = {};
		int found = skip_extensions(ctx, l4_start, p->protocol, &fragment);

		if (found < 0)
			return -1 - found;
		l4_start = found & 0x7fff;
		p->protocol = found >> 16;
		p->l4 = p->data + l4_start;
		if (l4_start > total)
			return REASON_BAD_EXTENSION;
		if (fragment.start) {
			p->fragment_id = fragment.id;
			p->headers_end = l4_start - fragment.start;
			p->fragment_offset = fragment.offset;
			p->kind = fragment.offset ? LATER_FRAGMENT : FIRST_FRAGMENT;
		}
		/* The Next Header of a later fragment does not count, only that of the first
		 * (RFC 8200, section 4.5). */
		if (p->kind == LATER_FRAGMENT)
			return IS_PORTLESS;
	}
	reason = parse_transport(p, total - l4_start);
	if (reason != GO_ON)
		return reason;

	if (has_ports(p->protocol)) {
		ports = p->l4;
		flow->sport = ports[0];
		flow->dport = ports[1];
	}
	flow->protocol = p->protocol;
	return GO_ON;
}

#endif
