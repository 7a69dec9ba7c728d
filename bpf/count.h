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

static __always_inline int finish(int reason)
{
	struct counter *counter = array_at(counters, reason);

	if (counter)
		counter->packets++;
	return dropping_reasons >> reason & 1 ? XDP_DROP : XDP_PASS;
}

static __always_inline void count_forwarded(const struct packet *p, const struct conn *c)
{
	struct traffic *t = array_at(traffic, c->backend);

	if (!t)
		return;
	if (c->flags & CONN_REPLY) {
		t->packets_out++;
		t->bytes_out += p->length;
	} else {
		t->packets_in++;
		t->bytes_in += p->length;
	}
}

static __always_inline void count_connection(__u32 backend)
{
	struct traffic *t = array_at(traffic, backend);

	if (t)
		t->connections++;
}

#endif
