/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * relay.h - a router between us and a backend says that a tunnel packet is too big for its next
 * link: the client whose packet it was is told (RFC 2003, section 4; RFC 2473, section 8.1).
 *
 * Owns reading what such an error quotes: our outer header, and as much of the client's packet
 * as the router gave. Without the client's ports in it, the client is not known. Where several
 * instances share the outer source's addresses, the error need not reach the one that has the
 * connection: any of them knows the backend by the flow's hash, as the one that sent it did.
 */
#ifndef XDPLB_RELAY_H
#define XDPLB_RELAY_H

#include "answer.h"
#include "encap.h"
#include "icmp.h"
#include "route.h"
#include "send.h"
#include "track.h"

/* No IPv4 link has less (RFC 791, section 3.2). */
#define LEAST_MTU 68
/* A struct hop that leads nowhere. */
#define NO_HOP ((__u64)NO_SLOT << 48)

/* The outer addresses that an error quotes. */
struct outer {
	__be32 source[4];
	__be32 backend[4];
} __attribute__((aligned(8)));

/* The end of our outer header, from the frame's start; 0 if it is none of ours. */
static __always_inline __u32 behind_outer(const struct facts *f, void *data, void *end,
					  struct outer *outer)
{
	__u32 start = (f->l4 & (QUOTE_REACH - 1)) + sizeof(struct icmp_header), next;
	const struct settings *s = array_at(settings, 0);
	struct udphdr *udp;

	if (f->family == 4) {
		struct iphdr *ip = data + start;

		if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl != 5)
			return 0;
		map_address(outer->source, ip->saddr);
		map_address(outer->backend, ip->daddr);
		next = ip->protocol;
		start += sizeof(*ip);
	} else {
		struct ipv6hdr *ip6 = data + start;

		if ((void *)(ip6 + 1) > end || ip6->version != 6)
			return 0;
		copy16(outer->source, &ip6->saddr);
		copy16(outer->backend, &ip6->daddr);
		next = ip6->nexthdr;
		start += sizeof(*ip6);
	}
	/* It comes back to where the packet came from. */
	if (!same_address(outer->source, f->flow.daddr))
		return 0;
	if (next == IPPROTO_IPIP || next == IPPROTO_IPV6)
		return start;
	udp = data + start;
	if (next != IPPROTO_UDP || (void *)(udp + 1) > end || !s || udp->dest != s->gue_port)
		return 0;
	return start + sizeof(*udp);
}

/* The flow of the client's packet, which begins at `start`, to f->flow and f->family. */
static __always_inline int parse_inner(struct facts *f, void *data, void *end, __u32 start)
{
	struct iphdr *ip = data + start;
	struct ipv6hdr *ip6 = data + start;
	__be16 *ports;

	if ((void *)(ip + 1) > end)
		return -1;
	if (ip->version == 4 && ip->ihl >= 5 && !(ip->frag_off & bpf_htons(IP_FRAGMENT_OFFSET))) {
		map_address(f->flow.saddr, ip->saddr);
		map_address(f->flow.daddr, ip->daddr);
		f->flow.protocol = ip->protocol;
		f->family = 4;
		ports = (void *)ip + ip->ihl * 4;
	} else if (ip->version == 6 && (void *)(ip6 + 1) <= end) {
		copy16(f->flow.saddr, &ip6->saddr);
		copy16(f->flow.daddr, &ip6->daddr);
		f->flow.protocol = ip6->nexthdr;
		f->family = 6;
		ports = (void *)(ip6 + 1);
	} else {
		return -1;
	}
	f->flow.sport = 0;
	f->flow.dport = 0;
	if (has_ports(f->flow.protocol)) {
		if ((void *)(ports + 2) > end)
			return -1;
		f->flow.sport = ports[0];
		f->flow.dport = ports[1];
	}
	return may_be_balanced(f->flow.protocol) ? 0 : -1;
}

/* Takes off the headers in front of the quoted packet, but for Ethernet's and its VLAN tags. */
static __always_inline int expose_quoted(struct xdp_md *ctx, struct facts *f, __u32 start)
{
	__u32 tagged = (f->l3 - ETH_HLEN) & 15, before = start - f->l3;
	void *data = (void *)(long)ctx->data, *quoted = data + (start & (2 * QUOTE_REACH - 1));
	__u64 tags, first;
	__be16 *type;

	/* The new header ends where the packet begins, and is written in words that reach into it.
	 */
	if (quoted + sizeof(first) > (void *)(long)ctx->data_end ||
	    data + 2 * ETH_ALEN + sizeof(tags) > (void *)(long)ctx->data_end)
		return -1;
	tags = *(__u64 *)(data + 2 * ETH_ALEN);
	first = *(__u64 *)quoted;
	if (bpf_xdp_adjust_head(ctx, before))
		return -1;
	data = (void *)(long)ctx->data;
	if (data + 2 * ETH_ALEN + sizeof(tags) > (void *)(long)ctx->data_end)
		return -1;
	*(__u64 *)(data + 2 * ETH_ALEN) = tags;
	type = data + tagged + 2 * ETH_ALEN;
	if ((void *)(type + 1) + sizeof(first) > (void *)(long)ctx->data_end)
		return -1;
	*type = bpf_htons(f->family == 4 ? ETH_P_IP : ETH_P_IPV6);
	*(__u64 *)(type + 1) = first;
	f->length -= before;
	f->kind = WHOLE_PACKET;
	return 0;
}

/*
 * Whether f->flow went to that backend in a tunnel of ours; w->own.c is its connection then, or
 * what that would be, and *hop the client's next hop, if it is known.
 */
static __always_inline int find_tunnelled(struct work *w, const struct outer *outer, __u64 *hop)
{
	const struct facts *f = &w->facts;
	int known = find_flow(w, &f->flow);
	const struct backend *b;
	__be32 last;

	if (!known && choose_direct(w, &f->flow) != GO_ON)
		return 0;
	b = array_at(backends, w->own.c.conn.backend);
	if (!b || !is_tunnel(&w->own.c.conn) || !same_address(b->address, outer->backend))
		return 0;
	*hop = *(const __u64 *)&w->own.c.conn.hop;
	if (known)
		return 1;
	*hop = NO_HOP;
	/* Anybody can name a client, a VIP and a backend: it has to be a packet as we send it. */
	last = b->outer_source[3] | (entropy_of(&w->own.c) & b->outer_mask);
	return !((outer->source[0] ^ b->outer_source[0]) | (outer->source[1] ^ b->outer_source[1]) |
		 (outer->source[2] ^ b->outer_source[2]) | (outer->source[3] ^ last));
}

/*
 * The next hop towards the client of f->flow, of whom there is no entry: by the host's routes.
 * Where they do not lead there (forwarding is off, the neighbour is not known, XDP is not attached
 * to the interface), it is the router that the error came from, which forwards packets, too.
 */
static __noinline __u64 route_to_client(struct xdp_md *ctx, const struct facts *f)
{
	struct bpf_fib_lookup route = {};
	__u64 mac = *(const __u64 *)&f->peer;
	__u32 *slot = NULL;

	/* The VLAN tags of a frame stay on it, and the routes do not know of them. */
	if (f->l3 == ETH_HLEN &&
	    find_route(ctx, f->family, f->family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6,
		       f->flow.daddr, f->flow.saddr, &route) == BPF_FIB_LKUP_RET_SUCCESS)
		slot = bpf_map_lookup_elem(&interface_slots, &route.ifindex);
	if (slot)
		__builtin_memcpy(&mac, route.dmac, ETH_ALEN);
	else
		slot = bpf_map_lookup_elem(&interface_slots, &f->ingress);
	return slot ? (mac & MAC_BITS) | (__u64)*slot << 48 : NO_HOP;
}

/* An ICMP error that is for no connection as it stands. IS_SENT if it is on its way to a client,
 * `otherwise` if it is about no tunnel packet of ours. */
static __noinline int relay_too_big(struct xdp_md *ctx, struct work *w, int otherwise)
{
	struct facts *f = &w->facts;
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct icmp_header *icmp = data + (f->l4 & (QUOTE_REACH - 1));
	const struct backend *b;
	const struct interface *out;
	__u32 start, mtu, v4 = f->family == 4;
	struct outer outer;
	__u64 hop;

	if ((void *)(icmp + 1) > end ||
	    (v4 ? icmp->type != ICMP_UNREACHABLE || icmp->code != ICMP_FRAGMENTATION_NEEDED
		: icmp->type != ICMPV6_TOO_BIG))
		return otherwise;
	mtu = bpf_ntohs(icmp->sequence);
	if (!v4 && icmp->id)
		return otherwise;
	start = behind_outer(f, data, end, &outer);
	if (!start || parse_inner(f, data, end, start))
		return otherwise;
	if (!find_tunnelled(w, &outer, &hop))
		return otherwise;
	b = array_at(backends, w->own.c.conn.backend);
	if (!b)
		return otherwise;
	if (mtu < LEAST_MTU + tunnel_overhead(w->own.c.conn.forward, b->family))
		return REASON_UNANSWERABLE;
	w->mtu = mtu - tunnel_overhead(w->own.c.conn.forward, b->family);
	if (hop == NO_HOP)
		hop = route_to_client(ctx, f);
	out = array_at(interfaces, hop >> 48);
	if (!out || !out->ifindex)
		return REASON_NO_INTERFACE;
	if (!may_answer())
		return REASON_ANSWERS_LIMITED;
	if (expose_quoted(ctx, f, start) || send_too_big(ctx, w) != GO_ON)
		return REASON_UNANSWERABLE;
	data = (void *)(long)ctx->data;
	if (data + ETH_HLEN > (void *)(long)ctx->data_end)
		return REASON_UNANSWERABLE;
	write_macs(data, hop, READ_ONCE(*(const __u64 *)out->mac));
	count_reason(REASON_TOO_BIG);
	w->verdict = bpf_redirect_map(&tx_ports, hop >> 48, XDP_DROP);
	return IS_SENT;
}

#endif
