/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * balance.h - a packet's way through the stages, from its IP header on. Included once for each
 * family; see family.h.
 *
 * Owns the order of the stages, and what the established path asks before it takes a packet along:
 * whatever it cannot tell goes the long way through track.h, in one shape for both families.
 */
#ifndef XDPLB_BALANCE_H
#define XDPLB_BALANCE_H

#include "admit.h"
#include "conclude.h"
#include "connection.h"
#include "encap.h"
#include "packet.h"
#include "parse.h"
#include "portless.h"
#include "rewrite.h"
#include "send.h"
#include "tcp.h"
#include "track.h"

/* What is the same in every packet that changes nothing, unlike these. */
#define TCP_CONTROL (TCP_SYN | TCP_FIN | TCP_RST)
/* The bits of a status that say that an end has been seen, which the connection may survive. */
#define STATUS_ENDING ((CONN_FINS | CONN_RESET) << 8 | 0xffU << 24)
/*
 * True if the packet goes on with its connection as it stands, with no other change than
 * the entry's age. The backend's direction does not ask whether the backend may still be
 * chosen: what it has to say is said.
 */
static __always_inline int settled(const struct packet *p, const struct conn *c,
				   const struct backend *b)
{
	const struct settings *s = array_at(settings, 0);

	if (!s || idle_too_long(c, s, now()))
		return 0;
	if (unlikely(*status_word(c) & STATUS_ENDING) && may_settle_end(p, c))
		return 0;
	if (!(c->flags & CONN_REPLY)) {
		/* The six bytes after the frame's destination address, and two more. */
		__u64 peer = *(const __u64 *)(p->data + ETH_ALEN);

		if (c->generation != b->generation || c->ingress != p->ingress ||
		    !same_mac(peer, *(const __u64 *)&c->hop) || !is_admitted(c, s))
			return 0;
	}
	return 1;
}

/* Packets of a connection whose backend is not usable may have to choose anew. */
static __always_inline int must_rehash(const struct packet *p, const struct conn *c,
				       const struct backend *b)
{
	return !b->usable && !(c->flags & CONN_REPLY) &&
	       b->rehash >> protocol_class(p->protocol) & 1;
}

static __always_inline int opens_connection(const struct packet *p)
{
	return (p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN;
}

/* The next hop of a packet that may go there. */
static __always_inline int find_way(const struct packet *p, const struct conn *c,
				    const struct backend *b, const struct interface **out,
				    __u64 *hop)
{
	if (unlikely(!b))
		return REASON_NO_BACKEND;
	*out = next_hop(c, b, hop);
	if (unlikely(!*out))
		return no_next_hop(*hop);
	if (unlikely(p->ttl <= 1))
		return REASON_TTL_EXPIRED;
	return likely(fits(p, c, b, *out)) ? GO_ON : REASON_TOO_BIG;
}

#endif

#include "family.h"

/*
 * The connection of a settled packet learns that it is in use, and where its sender is, some times
 * a second at most. False if there is more to see to: the backend is not usable any more and the
 * service does not wait for it.
 */
static __noinline int NAME(renew)(struct work *w, const struct packet *p, const struct backend *b)
{
	const CONN *c = &w->CURRENT;
	const struct session *session = &w->HELD.session;
	const struct tcphdr *tcp = p->l4;

	if (!b || must_rehash(p, &c->conn, b))
		return 0;
	w->own.number = session->number[w->at.reply & 1];
	/* Parsing has looked, but Linux 6.1's verifier does not remember. */
	if (p->protocol == IPPROTO_TCP && !has_fin(&c->conn) && (const void *)(tcp + 1) <= p->end)
		w->own.number = bpf_ntohl(tcp->seq);
	/* Where another CPU is faster, it is in use as well. */
	NAME(change)(w, way_with(w->at.word, *status_word(&c->conn), now()), 0);
	return 1;
}

/* The packet for the stages off the established path. */
static __always_inline struct work *NAME(describe)(const struct packet *p, const FLOW *flow)
{
	struct work *w = array_at(scratch, 0);

	if (!w)
		return NULL;
	gather_facts(p, FAMILY, &w->facts);
	NAME(widen_flow)(flow, &w->facts.flow);
	w->facts.flow.protocol = p->protocol;
	return w;
}

static __always_inline int NAME(conclude)(struct xdp_md *ctx, const struct packet *p,
					  const FLOW *flow, int reason)
{
	/* The stack's own, as it came: nothing has to be known of it. */
	if (reason == REASON_NOT_OURS)
		return finish(p->ingress, reason);
	return NAME(describe)(p, flow) ? conclude(ctx, reason) : XDP_ABORTED;
}

static __always_inline int NAME(meter)(const struct packet *p, const FLOW *flow,
				       const struct conn *c)
{
	if (!is_metered(c))
		return GO_ON;
	return meter(NAME(source_of)(flow), SOURCE_KIND(FAMILY, protocol_class(p->protocol)),
		     p->tcp_flags, c->admission, p->length);
}

/* The connection of the packet, which it may have made or changed, in *c. `missed`: it is in no
 * set. */
static __always_inline int NAME(track)(const struct packet *p, const FLOW *flow, CONN **c,
				       int missed)
{
	struct work *w = NAME(describe)(p, flow);
	int reason;

	if (!w)
		return REASON_TABLE_FULL;
	w->facts.missed = missed;
	reason = track();
#if FAMILY == 4
	narrow_conn(&w->own.c, &w->CURRENT);
	*c = &w->CURRENT;
#else
	*c = &w->own.c;
#endif
	return reason;
}

/* The packet's connection and its backend. */
static __always_inline int NAME(connect)(struct packet *p, const FLOW *flow, CONN **c,
					 const struct backend **b)
{
	const struct settings *s = array_at(settings, 0);
	struct RECENT_SLOT *r = NAME(recent_of)(flow);
	struct work *w = array_at(scratch, 0);
	/* The first segment of a connection is in no set, as a rule. */
	int reason, missed = opens_connection(p);
	__u64 epoch;

	/* A first fragment leaves its ports for the others; SYN, FIN and RST change something. */
	if (unlikely(!s || !w || p->kind != WHOLE_PACKET || p->tcp_flags & TCP_CONTROL))
		goto track;
	epoch = current_epoch();
	*c = NAME(find_recent)(r, flow, epoch);
	*b = *c ? array_at(backends, (*c)->conn.backend) : NULL;
	if (likely(*b && settled(p, &(*c)->conn, *b)))
		return NAME(meter)(p, flow, &(*c)->conn);
	w->KEY = *flow;
	missed = !NAME(find)(p->is_towards);
	/* Nearly every packet of one that is half-open changes it. */
	if (missed || !(w->at.word & WAY_PROVEN_BIT))
		goto track;
	*c = &w->CURRENT;
	*b = array_at(backends, (*c)->conn.backend);
	if (likely(*b && settled(p, &(*c)->conn, *b)) &&
	    (likely(!idle_since(now(), (*c)->conn.last_seen, s->refresh)) ||
	     NAME(renew)(w, p, *b))) {
		NAME(keep_recent)(r, flow, *c, epoch);
		return NAME(meter)(p, flow, &(*c)->conn);
	}
track:
	reason = NAME(track)(p, flow, c, missed);
	if (reason == GO_ON)
		*b = array_at(backends, (*c)->conn.backend);
	return reason;
}

static __always_inline int NAME(balance)(struct xdp_md *ctx, struct packet *p)
{
	FLOW flow = {};
	CONN *c = NULL;
	const struct interface *out = NULL;
	const struct backend *b = NULL;
	__u64 hop = 0;
	int reason;

	reason = NAME(parse)(ctx, p, &flow);
	if (reason == REASON_NOT_OURS || reason == REASON_NOT_IP)
		return finish(p->ingress, reason);
	if (unlikely(reason != GO_ON || p->kind != WHOLE_PACKET)) {
		NAME(describe)(p, &flow);
		if (reason == IS_PORTLESS)
			return balance_portless(ctx);
		if (reason != GO_ON)
			return refuse_packet(ctx, reason);
	}
	reason = NAME(connect)(p, &flow, &c, &b);
	if (likely(reason == GO_ON))
		reason = find_way(p, &c->conn, b, &out, &hop);
	if (unlikely(reason != GO_ON))
		return NAME(conclude)(ctx, p, &flow, reason);

	if (likely(c->conn.forward < FORWARD_L2)) {
		NAME(rewrite)(p, c);
	} else if (c->conn.forward == FORWARD_L2) {
		NAME(lower_ttl)(p);
	} else {
		reason = encapsulate(ctx, p, b, &c->conn, entropy_of(c));
		if (unlikely(reason != GO_ON))
			return finish(p->ingress, reason);
	}
	return transmit(p, &c->conn, out, hop);
}
