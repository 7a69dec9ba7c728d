/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * icmp.h - ICMP and ICMPv6 for a VIP, or about a packet of one of its connections: ping is
 * answered, errors go with the connection that they quote.
 *
 * Owns the translation of quoted headers: an error is of use only to the end that sent the
 * quoted packet, with the addresses that this end knows.
 */
#ifndef XDPLB_ICMP_H
#define XDPLB_ICMP_H

#include "answer.h"
#include "csum.h"
#include "parse.h"
#include "track.h"
#include "transport.h"

/* Headers further in than that are not looked for. */
#define QUOTE_REACH 512
/* Every router has to quote this much of what follows the IP header (RFC 792). */
#define QUOTED_L4 8
/* Not from another link (RFC 4861, section 11.2). */
#define ND_HOP_LIMIT 255

/* Where things are, from the frame's start. */
struct quoted {
	__u32 icmp;
	__u32 l3; /* the quoted packet's headers */
	__u32 l4;
	__u32 protocol;
};

static __always_inline int is_echo_request(const struct icmp_header *icmp, __u8 family)
{
	return icmp->type == (family == 4 ? ICMP_ECHO_REQUEST : ICMPV6_ECHO_REQUEST);
}

static __always_inline int same_address(const __be32 *a, const __be32 *b)
{
	return !((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]));
}

static __always_inline int is_error(const struct icmp_header *icmp, __u8 family)
{
	if (family == 4)
		return icmp->type == ICMP_UNREACHABLE || icmp->type == ICMP_TIME_EXCEEDED ||
		       icmp->type == ICMP_PARAMETER_PROBLEM;
	return icmp->type >= ICMPV6_UNREACHABLE && icmp->type <= ICMPV6_PARAMETER_PROBLEM;
}

/* From a neighbour that asks whether a VIP is still there: IPv4 has ARP for it, which passes as
 * well. */
static __always_inline int is_neighbour_discovery(const struct icmp_header *icmp,
						  const struct facts *f)
{
	return f->family == 6 && f->ttl == ND_HOP_LIMIT && icmp->type >= ICMPV6_ND_FIRST &&
	       icmp->type <= ICMPV6_ND_LAST;
}

/* Turns an echo request round. Everything but type, TTL and the order of addresses stays. */
static __noinline int send_echo_reply(struct xdp_md *ctx, const struct facts *f)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct icmp_header *icmp = data + (f->l4 & (QUOTE_REACH - 1));
	__u32 start = f->l3 & 31;
	__u16 check;

	if (!may_be_answered(ctx, f) || (void *)(icmp + 1) > end)
		return REASON_UNANSWERABLE;
	check = icmp->checksum;
	if (f->family == 4) {
		struct iphdr *ip = data + start;
		__u64 ttl;

		if ((void *)(ip + 1) > end)
			return REASON_UNANSWERABLE;
		ttl = csum_delta16(ip->ttl, ANSWER_TTL);
		ip->ttl = ANSWER_TTL;
		ip->check = csum_apply(ip->check, csum_fold(ttl));
		ip->saddr = f->flow.daddr[3];
		ip->daddr = f->flow.saddr[3];
		icmp->type = ICMP_ECHO_REPLY;
		check = csum_apply(check,
				   csum_fold(csum_delta16(ICMP_ECHO_REQUEST, ICMP_ECHO_REPLY)));
		/* All of it may be zero now: then its sum is 0, and not 0xffff. */
		if (!check && !icmp->id && !icmp->sequence)
			check = 0xffff;
	} else {
		struct ipv6hdr *ip6 = data + start;

		if ((void *)(ip6 + 1) > end)
			return REASON_UNANSWERABLE;
		ip6->hop_limit = ANSWER_TTL;
		copy16(&ip6->saddr, f->flow.daddr);
		copy16(&ip6->daddr, f->flow.saddr);
		icmp->type = ICMPV6_ECHO_REPLY;
		check = csum_apply(check,
				   csum_fold(csum_delta16(ICMPV6_ECHO_REQUEST, ICMPV6_ECHO_REPLY)));
	}
	icmp->checksum = check;
	swap_macs(ctx);
	return REASON_ECHO_ANSWERED;
}

static __noinline int handle_echo(struct xdp_md *ctx, struct work *w)
{
	const struct facts *f = &w->facts;
	const struct vip *vip = find_vip(&f->flow);
	int reason;

	if (!vip)
		return REASON_NOT_OURS;
	reason = admit_stray(w);
	if (reason != GO_ON)
		return reason;
	if (vip->echo == ECHO_DROP)
		return REASON_ECHO_DROPPED;
	return vip->echo == ECHO_ANSWER ? send_echo_reply(ctx, f) : REASON_OTHER_PROTOCOL;
}

/*
 * The 5-tuple of the quoted packet, turned round: the key of the packets that its receiver would
 * have answered with. GO_ON, or a reason if it is of no protocol that is balanced.
 */
static __noinline int parse_quote(struct xdp_md *ctx, const struct facts *f, struct quoted *q,
				  struct flow6 *key)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 next;
	__be16 *ports;

	q->icmp = f->l4 & (QUOTE_REACH - 1);
	q->l3 = q->icmp + sizeof(struct icmp_header);
	__builtin_memset(key, 0, sizeof(*key));
	if (f->family == 4) {
		struct iphdr *ip = data + (q->l3 & (2 * QUOTE_REACH - 1));

		if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5 ||
		    ip->frag_off & bpf_htons(IP_FRAGMENT_OFFSET))
			return REASON_ICMP_UNRELATED;
		map_address(key->saddr, ip->daddr);
		map_address(key->daddr, ip->saddr);
		next = ip->protocol;
		q->l4 = q->l3 + ip->ihl * 4;
	} else {
		struct ipv6hdr *ip6 = data + (q->l3 & (2 * QUOTE_REACH - 1));
		struct fragment_header fragment = {};
		int found;

		if ((void *)(ip6 + 1) > end || ip6->version != 6)
			return REASON_ICMP_UNRELATED;
		copy16(key->saddr, &ip6->daddr);
		copy16(key->daddr, &ip6->saddr);
		found = skip_extensions(ctx, q->l3 + sizeof(*ip6), ip6->nexthdr, &fragment);
		if (found < 0 || fragment.offset)
			return REASON_ICMP_UNRELATED;
		next = found >> 16;
		q->l4 = found & 0x7fff;
	}
	if (!may_be_balanced(next) || q->l4 > QUOTE_REACH || q->l4 + QUOTED_L4 > f->length)
		return REASON_ICMP_UNRELATED;
	ports = data + (q->l4 & (2 * QUOTE_REACH - 1));
	if ((void *)ports + QUOTED_L4 > end || !same_address(key->daddr, f->flow.daddr))
		return REASON_ICMP_UNRELATED;
	if (has_ports(next)) {
		key->sport = ports[1];
		key->dport = ports[0];
	}
	key->protocol = next;
	q->protocol = next;
	return GO_ON;
}

/* The connection in w->own.c as it would be, of a flow to a backend that answers directly. */
static __noinline int choose_direct(struct work *w, const struct flow6 *flow)
{
	const struct vip *vip = find_vip(flow);
	const struct service *s;
	const struct backend *b;
	__u32 id;

	if (!vip || vip->service == NO_SERVICE)
		return REASON_ICMP_UNRELATED;
	s = array_at(services, vip->service);
	if (!s || s->forward < FORWARD_L2)
		return REASON_ICMP_UNRELATED;
	b = select_backend(vip->service, flow, &id);
	if (!b)
		return REASON_NO_BACKEND;
	__builtin_memset(&w->own, 0, sizeof(w->own));
	w->own.c.conn.backend = id;
	w->own.c.conn.forward = b->forward;
	set_entropy(&w->own.c, flow_entropy(flow));
	return GO_ON;
}

/*
 * The connection in w->own.c for an error that quotes `key`, turned round. Backends that answer
 * directly have connections that we know nothing of: the hash says whose they are.
 */
static __noinline int find_quoted(struct work *w, const struct flow6 *key)
{
	const struct backend *b;

	if (find_flow(w, key)) {
		b = array_at(backends, w->own.c.conn.backend);
		if (w->own.c.conn.flags & CONN_REPLY ||
		    (b && b->generation == w->own.c.conn.generation))
			return GO_ON;
	}
	return choose_direct(w, key);
}

/* A change of the quoted addresses is a change of the quoted checksums, and all are changes of the
 * ICMP checksum. */
struct translation {
	__u64 addresses; /* delta of the quoted addresses */
	__u64 message;	 /* of everything that the ICMP checksum covers */
};

static __always_inline void translate_check(__be16 *check, __u64 delta, struct translation *t)
{
	__u16 before = *check;

	*check = csum_apply(before, csum_fold(delta));
	t->message += csum_delta16(before, *check);
}

/* Ports, and the checksum behind them as far as it is quoted. */
static __noinline int translate_l4(struct xdp_md *ctx, struct work *w, const struct quoted *q,
				   struct translation *t)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	void *header = data + (q->l4 & (2 * QUOTE_REACH - 1));
	const struct conn6 *c = &w->own.c;

	if (header + QUOTED_L4 > end)
		return REASON_ICMP_UNRELATED;
	t->message += rewrite_quoted(header, end, w->facts.length - q->l4, q->protocol,
				     csum_fold(t->addresses), c->dport, c->sport);
	return GO_ON;
}

/*
 * An error about a packet that we had translated: its headers, and those of the quoted packet,
 * become what the other side knows. The outer source stays a router's own only where the receiver
 * knows its clients' addresses (nat, towards the backend).
 */
static __noinline int translate_error(struct xdp_md *ctx, struct work *w, const struct quoted *q)
{
	const struct facts *f = &w->facts;
	const struct conn6 *c = &w->own.c;
	int keep_source = c->conn.forward == FORWARD_NAT && !(c->conn.flags & CONN_REPLY);
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct translation t = {};
	struct icmp_header *icmp;
	__be32 saddr[4] __attribute__((aligned(8)));
	__u64 outer;

	copy16(saddr, keep_source ? f->flow.saddr : c->saddr);
	if (f->family == 4) {
		struct iphdr *ip = data + (f->l3 & 31);
		struct iphdr *inner = data + (q->l3 & (2 * QUOTE_REACH - 1));

		if ((void *)(ip + 1) > end || (void *)(inner + 1) > end)
			return REASON_ICMP_UNRELATED;
		outer = csum_delta32(ip->saddr, saddr[3]) + csum_delta32(ip->daddr, c->daddr[3]);
		ip->ttl--;
		ip->check = csum_apply(ip->check,
				       csum_fold((__u64)csum_fold(outer) + CSUM_TTL_DECREMENT));
		ip->saddr = saddr[3];
		ip->daddr = c->daddr[3];

		t.addresses = csum_delta32(inner->saddr, c->daddr[3]) +
			      csum_delta32(inner->daddr, c->saddr[3]);
		t.message = t.addresses;
		inner->saddr = c->daddr[3];
		inner->daddr = c->saddr[3];
		translate_check(&inner->check, t.addresses, &t);
	} else {
		struct ipv6hdr *ip6 = data + (f->l3 & 31);
		struct ipv6hdr *inner = data + (q->l3 & (2 * QUOTE_REACH - 1));

		if ((void *)(ip6 + 1) > end || (void *)(inner + 1) > end)
			return REASON_ICMP_UNRELATED;
		outer = 0;
		for (int i = 0; i < 4; i++) {
			outer += csum_delta32(ip6->saddr.s6_addr32[i], saddr[i]) +
				 csum_delta32(ip6->daddr.s6_addr32[i], c->daddr[i]);
			t.addresses += csum_delta32(inner->saddr.s6_addr32[i], c->daddr[i]) +
				       csum_delta32(inner->daddr.s6_addr32[i], c->saddr[i]);
		}
		ip6->hop_limit--;
		copy16(&ip6->saddr, saddr);
		copy16(&ip6->daddr, c->daddr);
		copy16(&inner->saddr, c->daddr);
		copy16(&inner->daddr, c->saddr);
		/* The pseudo-header counts too (RFC 4443, section 2.3). */
		t.message = (__u64)csum_fold(t.addresses) + csum_fold(outer);
	}
	if (translate_l4(ctx, w, q, &t) != GO_ON)
		return REASON_ICMP_UNRELATED;

	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	icmp = data + (q->icmp & (QUOTE_REACH - 1));
	if ((void *)(icmp + 1) > end)
		return REASON_ICMP_UNRELATED;
	icmp->checksum = csum_apply(icmp->checksum, csum_fold(t.message));
	return GO_ON;
}

static __noinline int handle_error(struct xdp_md *ctx, struct work *w)
{
	struct facts *f = &w->facts;
	struct quoted q = {};
	const struct backend *b;
	int reason = parse_quote(ctx, f, &q, &w->quoted);

	if (reason == GO_ON)
		reason = find_quoted(w, &w->quoted);
	if (reason != GO_ON)
		/* Left to the host's stack, which may have sent the quoted packet as the VIP. */
		return refuse(w, reason);
	/* A backend's error is for its client, or for an address of ours. Path MTU discovery has to
	 * work behind default = "deny". */
	if (find_vip(&f->flow)) {
		f->spared = 1;
		reason = admit_stray(w);
		if (reason != GO_ON)
			return reason;
	}
	b = array_at(backends, w->own.c.conn.backend);
	if (b && is_loop(f, b))
		return REASON_LOOP;
	if (f->ttl <= 1)
		return REASON_UNANSWERABLE;
	return w->own.c.conn.forward < FORWARD_L2 ? translate_error(ctx, w, &q) : GO_ON;
}

/*
 * A whole ICMP packet. GO_ON: it goes with the connection in w->own.c, and is translated where that
 * connection is.
 */
static __always_inline int handle_icmp(struct xdp_md *ctx, struct work *w)
{
	struct facts *f = &w->facts;
	struct icmp_header *header;

	/* The other family's, which means nothing here. */
	if (f->flow.protocol != (f->family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6))
		return refuse(w, REASON_OTHER_PROTOCOL);
	if (f->l4 >= QUOTE_REACH)
		return refuse(w, REASON_BAD_EXTENSION);
	if (f->l4 + sizeof(*header) > f->length)
		return refuse(w, REASON_BAD_HEADER);
	header = (void *)(long)ctx->data + (f->l4 & (QUOTE_REACH - 1));
	if ((void *)(header + 1) > (void *)(long)ctx->data_end)
		return refuse(w, REASON_SPLIT_HEADER);
	if (is_echo_request(header, f->family))
		return handle_echo(ctx, w);
	if (is_error(header, f->family)) {
		f->kind = ICMP_ERROR;
		return handle_error(ctx, w);
	}
	f->spared = is_neighbour_discovery(header, f);
	return refuse(w, REASON_OTHER_PROTOCOL);
}

#endif
