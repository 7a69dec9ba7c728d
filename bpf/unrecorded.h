/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * unrecorded.h - new flows without an entry: past the rate that the tables can take, a flow goes
 * where its hash says, packet by packet, until one of its packets finds room for an entry.
 *
 * Owns how many entries each CPU makes in a second, and `pending`: where the backend answers
 * through us, the answer has to find its way back. That takes a place that is overwritten by the
 * next flow which hashes there, rather than a list and a lock: a backend answers within a
 * millisecond.
 */
#ifndef XDPLB_UNRECORDED_H
#define XDPLB_UNRECORDED_H

#include "allowance.h"
#include "connection.h"
#include "maps.h"
#include "nat.h"
#include "packet.h"
#include "select.h"
#include "work.h"

#define PENDING_BITS 17

struct pending {
	struct flow6 flow; /* of the replies */
	struct entry6 e;   /* what their entry would be */
	struct bpf_spin_lock lock;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << PENDING_BITS);
	__type(key, __u32);
	__type(value, struct pending);
} pending SEC(".maps");

static __always_inline struct pending *pending_of(const struct flow6 *reply)
{
	const struct settings *s = array_at(settings, 0);

	return s ? array_at(pending,
			    hash_flow(reply, HASH_5_TUPLE, s->nat_secret) >> (64 - PENDING_BITS))
		 : NULL;
}

static __always_inline int opens_tcp(const struct facts *f)
{
	return f->flow.protocol == IPPROTO_TCP &&
	       (f->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN;
}

/* Kinds are counted apart: a flood of one does not take another's entries. */
static __always_inline __u32 kind_of(const struct facts *f)
{
	if (f->kind != WHOLE_PACKET)
		return FLOW_FRAGMENT;
	if (f->flow.protocol != IPPROTO_TCP)
		return FLOW_OTHER;
	return opens_tcp(f) ? FLOW_SYN : FLOW_TCP;
}

/* Whether the new flow of `scratch` would have an entry if it were let in. */
static __always_inline int may_record(const struct facts *f)
{
	const struct settings *s = array_at(settings, 0);

	return s && has_left(array_at(new_flows, kind_of(f)), s->new_flows);
}

/* Whether it has one, which counts. */
static __always_inline int record(const struct facts *f)
{
	const struct settings *s = array_at(settings, 0);

	return s && spend(array_at(new_flows, kind_of(f)), s->new_flows);
}

static __always_inline void count_unrecorded(__u32 backend)
{
	struct traffic *t = array_at(traffic, backend);

	if (t)
		t->unrecorded++;
}

/* Leaves in `pending` how replies to the flow in w->own.c go back: w->other.c, under w->other_flow.
 */
static __always_inline int expect_reply(struct work *w)
{
	struct pending *p = pending_of(&w->other_flow);

	if (!p)
		return REASON_TABLE_FULL;
	bpf_spin_lock(&p->lock);
	p->flow = w->other_flow;
	p->e = w->other;
	bpf_spin_unlock(&p->lock);
	return GO_ON;
}

/* A packet that belongs to nothing: it may be a reply to a flow without an entry. Its way back in
 * w->own.c. */
static __noinline int find_expected(struct work *w)
{
	const struct settings *s = array_at(settings, 0);
	const struct facts *f = &w->facts;
	struct pending *p;

	if (!s)
		return REASON_NOT_OURS;
	p = pending_of(&f->flow);
	if (!p)
		return REASON_NOT_OURS;
	bpf_spin_lock(&p->lock);
	w->other_flow = p->flow;
	w->own = p->e;
	bpf_spin_unlock(&p->lock);
	if (!same_flow(&w->other_flow, &f->flow) || idle_too_long(&w->own.c.conn, s, f->now))
		return REASON_NOT_OURS;
	return GO_ON;
}

#endif
