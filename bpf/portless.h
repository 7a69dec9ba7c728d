/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * portless.h - packets that have no 5-tuple of their own and go with that of another: later
 * fragments with their first one's, ICMP errors with the one that they quote.
 *
 * Owns their way from there on, in one shape for both families: only addresses change, or nothing.
 */
#ifndef XDPLB_PORTLESS_H
#define XDPLB_PORTLESS_H

#include "conclude.h"
#include "encap.h"
#include "fragment.h"
#include "icmp.h"
#include "relay.h"
#include "rewrite.h"
#include "send.h"
#include "track.h"

/* The facts that the later stages need, from `scratch`. */
static __always_inline void recall_packet(struct xdp_md *ctx, const struct facts *f,
					  struct packet *p)
{
	p->data = (void *)(long)ctx->data;
	p->end = (void *)(long)ctx->data_end;
	p->ethernet = f->l3 & 31;
	p->l3 = p->data + p->ethernet;
	p->l4 = p->end;
	p->ethertype = bpf_htons(f->family == 4 ? ETH_P_IP : ETH_P_IPV6);
	p->length = f->length;
	p->protocol = f->flow.protocol;
	p->ingress = f->ingress;
	p->kind = f->kind;
}

/* The packet goes with the connection in w->own.c. IS_SENT, or a reason. */
static __noinline int send_portless(struct xdp_md *ctx, struct work *w)
{
	const struct conn6 *c = &w->own.c;
	const struct backend *b = array_at(backends, c->conn.backend);
	const struct interface *out;
	struct packet p = {};
	__u64 hop;
	int reason;

	if (!b)
		return REASON_NO_BACKEND;
	out = next_hop(&c->conn, b, &hop);
	if (!out)
		return no_next_hop(hop);
	if (w->facts.ttl <= 1)
		return REASON_TTL_EXPIRED;
	recall_packet(ctx, &w->facts, &p);
	if (p.data + ETH_HLEN > p.end || p.l3 + sizeof(struct iphdr) > p.end)
		return REASON_BAD_HEADER;
	if (!fits(&p, &c->conn, b, out))
		return REASON_TOO_BIG;
	if (is_tunnel(&c->conn)) {
		reason = encapsulate(ctx, &p, b, &c->conn, entropy_of(c));
		if (reason != GO_ON)
			return reason;
	} else {
		rewrite_portless(&p, c);
	}
	w->verdict = transmit(&p, &c->conn, out, hop);
	return IS_SENT;
}

/* A packet that is described in `scratch`. Gives back the verdict. Not static: see track(). */
__noinline int balance_portless(struct xdp_md *ctx)
{
	struct work *w = array_at(scratch, 0);
	struct facts *f;
	int reason;

	if (!w)
		return XDP_ABORTED;
	f = &w->facts;
	if (f->kind == LATER_FRAGMENT) {
		reason = follow_fragment(f);
		reason = reason == GO_ON ? track() : refuse(w, reason);
	} else {
		reason = handle_icmp(ctx, w);
		if (f->kind == ICMP_ERROR &&
		    (reason == REASON_NOT_OURS || reason == REASON_ICMP_UNRELATED))
			reason = relay_too_big(ctx, w, reason);
	}
	if (reason == GO_ON)
		reason = send_portless(ctx, w);
	return reason == IS_SENT ? (int)w->verdict : conclude(ctx, reason);
}

#endif
