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
#include "xxhash.h"

#define PENDING_BITS 17

struct pending {
	struct flow6 flow; /* of the replies */
	struct entry6 e;   /* what their entry would be */
	struct bpf_spin_lock lock;
	__u32 pad;
	__u64 since; /* jiffies, all of them: nothing comes by to take out what is old */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << PENDING_BITS);
	__type(key, __u32);
	__type(value, struct pending);
} pending SEC(".maps");

/* Step by step: hash_flow holds more at once than is left of the stack here. */
static __always_inline __u32 pending_slot(const struct flow6 *reply, __u64 secret)
{
	const __u64 *words = (const __u64 *)reply;
	__u64 hash = secret;

	for (__u32 i = 0; i < sizeof(*reply) / sizeof(*words); i++)
		hash = xxh64_avalanche(hash ^ words[i]);
	return hash >> (64 - PENDING_BITS);
}

static __always_inline struct pending *pending_of(const struct flow6 *reply)
{
	const struct settings *s = array_at(settings, 0);

	return s ? array_at(pending, pending_slot(reply, s->nat_secret)) : NULL;
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

/* Leaves in `pending` how replies to the flow in w->own.c go back: w->other, under w->other_flow.
 */
static __noinline int expect_reply(struct work *w)
{
	struct pending *p = pending_of(&w->other_flow);
	__u64 time = bpf_jiffies64();

	if (!p)
		return REASON_TABLE_FULL;
	bpf_spin_lock(&p->lock);
	p->flow = w->other_flow;
	p->e = w->other;
	p->since = time;
	bpf_spin_unlock(&p->lock);
	return GO_ON;
}

/* Takes into w->other how the replies of the flow in w->other_flow go back, if that is known, not
 * too old, and their backend is still the one that the flow was sent to. */
static __noinline int recall(struct work *w)
{
	const struct settings *s = array_at(settings, 0);
	struct pending *p = pending_of(&w->other_flow);
	const struct backend *b;
	__u64 since;

	if (!s || !p)
		return 0;
	bpf_spin_lock(&p->lock);
	w->client = p->flow;
	w->other = p->e;
	since = p->since;
	bpf_spin_unlock(&p->lock);
	if (!same_flow(&w->client, &w->other_flow) ||
	    (__s64)(bpf_jiffies64() - since) >
		    s->timeout[w->other.c.conn.state & (CONN_STATE_SLOTS - 1)])
		return 0;
	b = array_at(backends, w->other.c.conn.backend);
	return b && b->incarnation == w->other.c.conn.generation;
}

/* A packet that belongs to nothing: it may be a reply to a flow without an entry. Its way back in
 * w->own.c. */
static __noinline int find_expected(struct work *w)
{
	w->other_flow = w->facts.flow;
	if (!recall(w))
		return REASON_NOT_OURS;
	w->own = w->other;
	return GO_ON;
}

/* full-nat: whether the flow in hand has lately gone by the source in w->own.c, without a claim. */
static __always_inline int is_remembered(struct work *w)
{
	const struct flow6 *flow = &w->facts.flow;
	const struct conn6 *reply = &w->other.c;
	__u32 difference;

	if (!recall(w))
		return 0;
	difference = reply->sport ^ flow->dport;
	difference |= reply->dport ^ flow->sport;
	for (int i = 0; i < 4; i++) {
		difference |= reply->saddr[i] ^ flow->daddr[i];
		difference |= reply->daddr[i] ^ flow->saddr[i];
	}
	return !difference;
}

/*
 * full-nat: a source without a claim for a flow that goes on: its own, be it a spare one that it
 * has claimed or that `pending` remembers, or one in the first half, of a connection whose entries
 * the LRU took; of those it looks at `tries`. Else the first spare one that is free, where the flow
 * would have gone without a claim. 0 if there is none.
 */
static __noinline int find_own_source(struct work *w, __u32 tries, int *is_own)
{
	__u32 attempt;
	int held;

	held = find_unheld(w, OPENING_TRIES, SPARE_LOOKS);
	attempt = w->search.attempt;
	*is_own = held == HELD_BY_ITSELF || (held == HELD_BY_NOBODY && is_remembered(w));
	if (*is_own)
		return 1;
	*is_own = find_unheld(w, 0, tries) == HELD_BY_ITSELF;
	if (*is_own)
		return 1;
	return held != HELD_BY_ANOTHER && !set_source(w, attempt);
}

/* full-nat: claims a source for a flow that gets an entry, in w->own.c. IS_CROWDED: it is to go
 * without. */
static __noinline int obtain_source(struct work *w, const struct backend *b, __u32 hash)
{
	const struct facts *f = &w->facts;
	int opens = opens_tcp(f), is_own;

	/* A datagram may be the first one or another: it opens, if it does not go on. */
	if (begin_search(w, b, hash, opens || f->flow.protocol != IPPROTO_TCP))
		return REASON_NO_PORT;
	if (!opens && find_own_source(w, OPENING_TRIES, &is_own) && is_own && !claim(w))
		return GO_ON;
	w->search.half_open = 0;
	return claim_source(w);
}

/* full-nat: a source for a flow that gets no entry, in w->own.c, without a claim: the one that it
 * will claim when it goes on, unless another has by then. 0 if there is none. */
static __always_inline int borrow_source(struct work *w, const struct backend *b, __u32 hash)
{
	int opens = opens_tcp(&w->facts), is_own;

	if (begin_search(w, b, hash, opens))
		return 0;
	if (opens)
		return find_unheld(w, OPENING_TRIES, SPARE_LOOKS) != HELD_BY_ANOTHER;
	return find_own_source(w, 1, &is_own);
}

/* full-nat: a SYN that was not looked up among the half-open connections. One that is sent again
 * goes by its entry, which is in w->own.c then: it has another port than a flow without one. */
static __noinline int is_half_open(struct work *w)
{
	const struct settings *s = array_at(settings, 0);
	const struct facts *f = &w->facts;
	const struct backend *b;

	if (!s || table_read(f->family, 0, &f->flow, &w->other) ||
	    idle_too_long(&w->other.c.conn, s, f->now))
		return 0;
	b = array_at(backends, w->other.c.conn.backend);
	if (!b || b->generation != w->other.c.conn.generation || !READ_ONCE(b->usable) ||
	    w->other.c.conn.flags & CONN_REPLY)
		return 0;
	w->own = w->other;
	return 1;
}

#endif
