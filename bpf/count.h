/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * count.h - every packet is counted once: with its backend when it is forwarded, with
 * the reason when it is not. The one place where a reason becomes a verdict.
 */
#ifndef XDPLB_COUNT_H
#define XDPLB_COUNT_H

#include "maps.h"
#include "packet.h"

#define X(name, verdict, text) | (__u64)(XDP_##verdict == XDP_DROP) << REASON_##name
static const __u64 dropping_reasons = 0 XDPLB_REASONS(X);
#undef X

#define X(name, verdict, text) | (__u64)(XDP_##verdict == XDP_TX) << REASON_##name
static const __u64 answering_reasons = 0 XDPLB_REASONS(X);
#undef X

/* The packet has become an answer to its sender, or is to. */
static __always_inline int is_answer(int reason)
{
	return answering_reasons >> reason & 1;
}

/*
 * An answer leaves by the devmap even though it leaves as the packet came: a veth takes redirected
 * frames where it would not take those of XDP_TX.
 */
static __always_inline int send_back(__u32 ingress)
{
	__u32 *slot = bpf_map_lookup_elem(&interface_slots, &ingress);

	return slot ? bpf_redirect_map(&tx_ports, *slot, XDP_TX) : XDP_TX;
}

static __always_inline void count_reason(int reason)
{
	struct counter *counter = array_at(counters, reason);

	if (counter)
		counter->packets++;
}

/* `ingress` is the ifindex that the packet came by. */
static __always_inline int finish(__u32 ingress, int reason)
{
	count_reason(reason);
	if (unlikely(is_answer(reason)))
		return send_back(ingress);
	return dropping_reasons >> reason & 1 ? XDP_DROP : XDP_PASS;
}

static __always_inline void count_forwarded(const struct packet *p, const struct conn *c)
{
	struct traffic *t = array_at(traffic, c->backend);
	struct exchange *e;

	if (!t)
		return;
	e = &t->by[protocol_class(p->protocol)];
	if (c->flags & CONN_REPLY) {
		e->packets_out++;
		e->bytes_out += p->length;
	} else {
		e->packets_in++;
		e->bytes_in += p->length;
	}
}

/* A connection that had an entry has come to its end. Those of a backend that is gone have been
 * counted with it, and its id can be another's. */
static __always_inline void count_closed(__u32 backend, __u32 generation)
{
	const struct backend *b = array_at(backends, backend);
	struct traffic *t = array_at(traffic, backend);

	if (b && t && b->incarnation == generation)
		t->closed++;
}

/* It was not the end. Sums wrap, so that one CPU may take back what another has counted. */
static __always_inline void count_reopened(const struct conn *c)
{
	const struct backend *b = array_at(backends, c->backend);
	struct traffic *t = array_at(traffic, c->backend);

	if (b && t && b->incarnation == c->generation)
		t->closed--;
}

static __always_inline void count_opened(__u32 backend)
{
	struct traffic *t = array_at(traffic, backend);

	if (t)
		t->opened++;
}

#endif
