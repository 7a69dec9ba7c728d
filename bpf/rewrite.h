/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * rewrite.h - puts a connection's new 5-tuple into the packet: addresses, ports, TTL and
 * checksums. Nothing here decides anything.
 */
#ifndef XDPLB_REWRITE_H
#define XDPLB_REWRITE_H

#include "csum.h"
#include "packet.h"
#include "parse.h"

static __always_inline void rewrite_l4(struct packet *p, const struct conn *c, __be16 sport,
				       __be16 dport)
{
	__be16 *ports = p->l4;

	ports[0] = sport;
	ports[1] = dport;
	if (p->protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = p->l4;

		tcp->check = csum_apply(tcp->check, c->l4_delta);
	} else {
		struct udphdr *udp = p->l4;

		udp->check = csum_apply_udp(udp->check, c->l4_delta);
	}
}

static __always_inline void lower_ttl_ipv4(struct packet *p)
{
	struct iphdr *ip = p->l3;

	ip->ttl--;
	ip->check = csum_apply(ip->check, CSUM_TTL_DECREMENT);
}

static __always_inline void lower_ttl_ipv6(struct packet *p)
{
	struct ipv6hdr *ip6 = p->l3;

	ip6->hop_limit--;
}

static __always_inline void rewrite_ipv4(struct packet *p, const struct conn4 *c)
{
	struct iphdr *ip = p->l3;

	/* Done already: its own flow is not the connection's. */
	if (unlikely(p->kind == ICMP_ERROR))
		return;
	ip->ttl--;
	ip->check = csum_apply(ip->check, c->conn.l3_delta);
	ip->saddr = c->saddr;
	ip->daddr = c->daddr;
	if (likely(p->kind != LATER_FRAGMENT))
		rewrite_l4(p, &c->conn, c->sport, c->dport);
}

static __always_inline void rewrite_ipv6(struct packet *p, const struct conn6 *c)
{
	struct ipv6hdr *ip6 = p->l3;

	if (unlikely(p->kind == ICMP_ERROR))
		return;
	ip6->hop_limit--;
	copy16(&ip6->saddr, c->saddr);
	copy16(&ip6->daddr, c->daddr);
	if (likely(p->kind != LATER_FRAGMENT))
		rewrite_l4(p, &c->conn, c->sport, c->dport);
}

#endif
