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
#include "transport.h"

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

	ip->ttl--;
	ip->check = csum_apply(ip->check, c->l3_delta);
	ip->saddr = c->saddr;
	ip->daddr = c->daddr;
	rewrite_transport(p, c->l4_delta, c->sport, c->dport);
}

static __always_inline void rewrite_ipv6(struct packet *p, const struct conn6 *c)
{
	struct ipv6hdr *ip6 = p->l3;

	ip6->hop_limit--;
	copy16(&ip6->saddr, c->saddr);
	copy16(&ip6->daddr, c->daddr);
	rewrite_transport(p, c->l4_delta, c->sport, c->dport);
}

/* A packet without the connection's ports: an error that is translated already, a later fragment.
 */
static __always_inline void rewrite_portless(struct packet *p, const struct conn6 *c)
{
	struct ipv6hdr *ip6 = p->l3;
	struct iphdr *ip = p->l3;
	int changes = c->conn.forward < FORWARD_L2;

	if (changes && p->kind == ICMP_ERROR)
		return;
	if (p->ethertype == bpf_htons(ETH_P_IP)) {
		lower_ttl_ipv4(p);
		if (changes) {
			__u64 delta = csum_delta32(ip->saddr, c->saddr[3]) +
				      csum_delta32(ip->daddr, c->daddr[3]);

			ip->check = csum_apply(ip->check, csum_fold(delta));
			ip->saddr = c->saddr[3];
			ip->daddr = c->daddr[3];
		}
		return;
	}
	lower_ttl_ipv6(p);
	if (changes && (void *)(ip6 + 1) <= p->end) {
		copy16(&ip6->saddr, c->saddr);
		copy16(&ip6->daddr, c->daddr);
	}
}

#endif
