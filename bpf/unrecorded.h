/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * unrecorded.h - new flows without a place in the table: past the rate that it can take, and where
 * their set is full of live connections. Such a flow goes where its hash says, packet by packet,
 * until one of its packets finds room.
 *
 * Owns how many new flows each CPU records in a second, and which source full-nat gives those that
 * are not. `pending` remembers a flow for as long as it takes a backend to answer.
 */
#ifndef XDPLB_UNRECORDED_H
#define XDPLB_UNRECORDED_H

#include "allowance.h"
#include "connection.h"
#include "maps.h"
#include "nat.h"
#include "packet.h"
#include "table.h"
#include "work.h"

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

/* full-nat: whether the flow in hand has lately gone by the source in w->own.c, without a claim.
 * What is known of it then is in w->remembered. */
static __noinline int is_remembered(struct work *w)
{
	const struct settings *s = array_at(settings, 0);
	__u32 state;

	if (!s || !look_pending(w, &w->other_flow, 1))
		return 0;
	show_client(w);
	state = way_state(w->at.word);
	if (!same_flow(&w->client, &w->facts.flow) ||
	    idle_since(w->facts.now, way_last_seen(w->at.word), s->timeout[state]))
		return 0;
	w->remembered = way_status(w->at.word, 0, 0);
	return 1;
}

/*
 * full-nat: a source without a claim for a flow that goes on: its own, be it a spare one that it
 * has claimed or that `pending` remembers, or one in the first half, of a connection that had to
 * make room; of those it looks at `tries`. Else the first spare one that is free, where the flow
 * would have gone without a claim. 0 if there is none.
 */
static __noinline int find_own_source(struct work *w, __u32 tries, int *is_own)
{
	__u32 attempt;
	int held;

	held = find_unheld(w, OPENING_TRIES, SPARE_LOOKS);
	attempt = w->search.attempt;
	*is_own = (held != HELD_BY_ANOTHER && is_remembered(w)) || held == HELD_BY_ITSELF;
	if (*is_own)
		return 1;
	*is_own = find_unheld(w, 0, tries) == HELD_BY_ITSELF;
	if (*is_own) {
		is_remembered(w);
		return 1;
	}
	return held != HELD_BY_ANOTHER && !set_source(w, attempt);
}

/* full-nat: claims a source for a flow that gets a place, in w->own.c. IS_CROWDED: it is to go
 * without. */
static __noinline int claim_some_source(struct work *w, const struct backend *b)
{
	const struct facts *f = &w->facts;
	int opens = opens_tcp(f), is_own;

	/* A datagram may be the first one or another: it opens, if it does not go on. */
	if (begin_search(w, b, opens || f->flow.protocol != IPPROTO_TCP))
		return REASON_NO_PORT;
	if (!opens && find_own_source(w, OPENING_TRIES, &is_own) && is_own && !claim(w))
		return GO_ON;
	w->search.half_open = 0;
	w->remembered = 0;
	return claim_source(w);
}

/* full-nat: a source for a flow that gets no place, in w->own.c, without a claim: the one that it
 * will claim when it goes on, unless another has by then. */
static __noinline int borrow_source(struct work *w, const struct backend *b)
{
	int opens = opens_tcp(&w->facts), is_own, found = 0;

	if (!begin_search(w, b, opens))
		found = opens ? find_unheld(w, OPENING_TRIES, SPARE_LOOKS) != HELD_BY_ANOTHER
			      : find_own_source(w, 1, &is_own);
	if (found)
		return GO_ON;
	return w->facts.tcp_flags & TCP_RST ? REASON_NO_CONNECTION : REASON_FLOODED;
}

#endif
