/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * encap.h - tunnels to the backend: an IP header (IPIP) or an IP and a UDP header (GUE) in front
 * of a packet that stays as it is but for its TTL.
 *
 * Owns the outer headers: RFC 2003, 2473 and 4213 for IP in IP, GUE variant 1 (direct IP,
 * draft-ietf-intarea-gue) for UDP; DSCP and ECN by RFC 6040.
 */
#ifndef XDPLB_ENCAP_H
#define XDPLB_ENCAP_H

#include "csum.h"
#include "maps.h"
#include "packet.h"
#include "parse.h"
#include "rewrite.h"
#include "track.h"
#include "transport.h"

#define OUTER_TTL 64
/* GUE's source ports: the dynamic ones (RFC 6335), by the upper bits of the flow's hash. */
#define GUE_FIRST_PORT 0xc000
#define GUE_PORT_SHIFT 18

/* The fields of the outer headers that come from the inner packet. */
struct inner {
	__u32 protocol; /* IPPROTO_IPIP or IPPROTO_IPV6 */
	__u32 tos;	/* DSCP and ECN */
	__u32 length;	/* bytes of the IP packet */
	__u32 sum;	/* of all of it, RFC 1071; 0: not known */
};

/* Those that come from the backend and the flow. */
struct tunnel {
	const struct backend *backend;
	__be32 saddr_last; /* the outer source's last word */
	__u32 protocol;	   /* what follows the outer IP header */
	__u32 payload;	   /* bytes of it */
	__be16 sport;	   /* of GUE */
	__be16 dport;
};

/* By forward mode and the family of the outer header. */
static __always_inline __u32 tunnel_overhead(__u32 forward, __u32 family)
{
	return (family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)) +
	       (forward == FORWARD_GUE ? sizeof(struct udphdr) : 0);
}

static __always_inline int is_tunnel(const struct conn *c)
{
	return c->forward > FORWARD_L2;
}

static __always_inline __u32 overhead_of(const struct conn *c, const struct backend *b)
{
	return is_tunnel(c) ? tunnel_overhead(c->forward, b->family) : 0;
}

/* Whether the packet, with its new header if it gets one, is not larger than the MTU; if it is,
 * what would have been goes to `scratch`. */
static __always_inline int fits(const struct packet *p, const struct conn *c,
				const struct backend *b, const struct interface *out)
{
	__u32 overhead = overhead_of(c, b), length = p->length - p->ethernet;
	struct work *w;

	if (likely(length + overhead <= out->mtu))
		return 1;
	w = array_at(scratch, 0);
	if (w) {
		w->mtu = out->mtu - overhead;
		w->dont_fragment =
			p->ethertype == bpf_htons(ETH_P_IPV6) ||
			((const struct iphdr *)p->l3)->frag_off & bpf_htons(IP_DONT_FRAGMENT);
	}
	return 0;
}

/*
 * The sum over a packet without reading it: with its pseudo-header, a segment whose checksum is
 * right sums to zero, and so does an IPv4 header by itself. If the checksum is wrong, so is the
 * outer one, and the backend drops the packet as it would have done anyway.
 */
static __always_inline void describe_inner_ipv4(struct packet *p, struct inner *inner, int with_sum)
{
	struct iphdr *ip = p->l3;
	__u32 l4_length = inner->length - ip->ihl * 4U;

	lower_ttl_ipv4(p);
	inner->protocol = IPPROTO_IPIP;
	inner->tos = ip->tos;
	inner->sum = 0;
	/* 0xffff is 0 too, and is known. */
	if (with_sum && is_summed(p, l4_length))
		inner->sum = (__u16)~csum_fold((__u64)ip->saddr + ip->daddr +
					       bpf_htons(p->protocol) + bpf_htons(l4_length))
				     ?: 0xffff;
}

static __always_inline void describe_inner_ipv6(struct packet *p, struct inner *inner, int with_sum)
{
	struct ipv6hdr *ip6 = p->l3;
	const __u32 *words = p->l3;
	__u32 l4_length = inner->length - sizeof(*ip6);

	lower_ttl_ipv6(p);
	inner->protocol = IPPROTO_IPV6;
	inner->tos = bpf_ntohs(*(__be16 *)p->l3) >> 4 & 0xff;
	inner->sum = 0;
	/* Extension headers would have to be summed.
	 * The addresses stand in the header and in the pseudo-header, and cancel each other. */
	if (with_sum && ip6->nexthdr == p->protocol && is_summed(p, l4_length)) {
		__u16 segment = ~csum_fold((__u64)bpf_htons(p->protocol) + bpf_htons(l4_length));

		inner->sum = csum_fold((__u64)words[0] + words[1] + segment);
	}
}

/*
 * RFC 6935 and 6936: a tunnel over IPv6 may leave the checksum out. It is there where it can be had
 * without reading the packet.
 */
static __always_inline __u16 udp_check_ipv6(const struct inner *inner, const __u32 *outer,
					    __be16 sport, __be16 dport, __be16 length)
{
	__u64 sum = inner->sum;
	__u16 check;

	if (!sum)
		return 0;
	for (int i = 2; i < 10; i++)
		sum += outer[i];
	/* The length stands in the pseudo-header and in the header. */
	sum += (__u64)sport + dport + bpf_htons(IPPROTO_UDP) + length + length;
	check = ~csum_fold(sum);
	return check ? check : 0xffff;
}

/*
 * DF is always set, and the identification 0. All clients of a backend share the outer addresses:
 * an identification that tells fragments apart would have to be one that none of their packets has
 * had for two minutes (RFC 6864, sections 4.2 and 4.3), and 65,536 of them last for a fraction of a
 * second. RFC 2003, section 3.1, allows DF over a packet without it. A router with a smaller MTU
 * drops the packet then and says so, which relay.h passes on to the client.
 */
static __always_inline void write_outer_ipv4(__u32 *outer, const struct inner *inner,
					     const struct tunnel *t)
{
	__u32 length = sizeof(struct iphdr) + t->payload;
	__u32 first = 0x45 | inner->tos << 8 | (__u32)bpf_htons(length) << 16;
	__u32 second = (__u32)bpf_htons(IP_DONT_FRAGMENT) << 16;
	__u32 third = OUTER_TTL | t->protocol << 8;
	__be32 daddr = t->backend->address[3];
	__u16 sum = csum_fold((__u64)first + second + third + t->saddr_last + daddr);

	outer[0] = first;
	outer[1] = second;
	outer[2] = third | (__u32)(__u16)~sum << 16;
	outer[3] = t->saddr_last;
	outer[4] = daddr;
	if (t->protocol == IPPROTO_UDP) {
		/* Over IPv4 no checksum is needed (RFC 768), and none is cheapest. */
		outer[5] = t->sport | (__u32)t->dport << 16;
		outer[6] = bpf_htons(t->payload);
	}
}

static __always_inline void write_outer_ipv6(__u32 *outer, const struct inner *inner,
					     const struct tunnel *t)
{
	__be16 length = bpf_htons(t->payload);

	outer[0] = bpf_htonl(6U << 28 | inner->tos << 20);
	outer[1] = length | t->protocol << 16 | (__u32)OUTER_TTL << 24;
	for (int i = 0; i < 3; i++)
		outer[2 + i] = t->backend->outer_source[i];
	outer[5] = t->saddr_last;
	for (int i = 0; i < 4; i++)
		outer[6 + i] = t->backend->address[i];
	if (t->protocol == IPPROTO_UDP) {
		__u16 check = udp_check_ipv6(inner, outer, t->sport, t->dport, length);

		outer[10] = t->sport | (__u32)t->dport << 16;
		outer[11] = length | (__u32)check << 16;
	}
}

/*
 * Puts the headers in front of the packet, and Ethernet's type and VLAN tags in front of them; the
 * MAC addresses are left to be written. Packet pointers are others afterwards.
 */
static __always_inline int encapsulate(struct xdp_md *ctx, struct packet *p,
				       const struct backend *b, const struct conn *c, __u32 entropy)
{
	const struct settings *s = array_at(settings, 0);
	__u32 tags = (p->ethernet - ETH_HLEN) & 15;
	__u32 overhead = tunnel_overhead(c->forward, b->family);
	struct inner inner = {.length = p->length - p->ethernet};
	int with_sum = c->forward == FORWARD_GUE && b->family == 6;
	struct tunnel t = {
		.backend = b,
		.saddr_last = b->outer_source[3] | (entropy & b->outer_mask),
		.sport = bpf_htons(GUE_FIRST_PORT + (entropy >> GUE_PORT_SHIFT)),
	};
	__be16 ethertype;
	void *outer;

	if (!s)
		return REASON_NO_BACKEND;
	if (p->ethertype == bpf_htons(ETH_P_IP))
		describe_inner_ipv4(p, &inner, with_sum);
	else
		describe_inner_ipv6(p, &inner, with_sum);
	t.dport = s->gue_port;
	t.protocol = c->forward == FORWARD_GUE ? IPPROTO_UDP : inner.protocol;
	t.payload = inner.length + (c->forward == FORWARD_GUE ? sizeof(struct udphdr) : 0);

	if (bpf_xdp_adjust_head(ctx, -(int)overhead))
		return REASON_NO_HEADROOM;
	p->data = (void *)(long)ctx->data;
	p->end = (void *)(long)ctx->data_end;
	outer = p->data + tags + ETH_HLEN;
	if (unlikely(tags)) {
		void *moved = p->data + overhead + 2 * ETH_ALEN;

		if (moved + sizeof(__u64) > p->end)
			return REASON_BAD_HEADER;
		*(__u64 *)(p->data + 2 * ETH_ALEN) = *(__u64 *)moved;
	}
	/* The inner header is long enough for the bytes that are checked beyond the outer one. */
	if (b->family == 4) {
		if (outer + sizeof(struct iphdr) + sizeof(struct udphdr) > p->end)
			return REASON_BAD_HEADER;
		write_outer_ipv4(outer, &inner, &t);
		ethertype = bpf_htons(ETH_P_IP);
	} else {
		if (outer + sizeof(struct ipv6hdr) + sizeof(struct udphdr) > p->end)
			return REASON_BAD_HEADER;
		write_outer_ipv6(outer, &inner, &t);
		ethertype = bpf_htons(ETH_P_IPV6);
	}
	*(__be16 *)(outer - sizeof(ethertype)) = ethertype;
	return GO_ON;
}

#endif
