/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * table.h - the connection tables of both families in one shape, for the stages off the established
 * path: finding, entering, changing and forgetting the connection of `scratch`.
 *
 * Owns nothing but the choice between the two: what is done is in set.h.
 */
#ifndef XDPLB_TABLE_H
#define XDPLB_TABLE_H

#define FAMILY 4
#include "set.h"
#undef FAMILY

#define FAMILY 6
#include "set.h"
#undef FAMILY

static __always_inline void set_key(struct work *w, const struct flow6 *flow)
{
	if (w->facts.family == 4)
		narrow_flow(flow, &w->look4);
	else
		w->look6 = *flow;
}

static __always_inline int look(struct work *w, const struct flow6 *flow, __u32 reply)
{
	set_key(w, flow);
	return w->facts.family == 4 ? look_ipv4(w, reply) : look_ipv6(w, reply);
}

static __always_inline int look_pending(struct work *w, const struct flow6 *flow, __u32 reply)
{
	set_key(w, flow);
	return w->facts.family == 4 ? look_pending_ipv4(w, reply) : look_pending_ipv6(w, reply);
}

/* The client's flow of the record in hand, in w->client. */
static __always_inline void show_client(struct work *w)
{
	if (w->facts.family == 4)
		widen_flow_ipv4(&w->held4.flow, &w->client);
	else
		w->client = w->held6.flow;
}

/* The owner, in w->client, of the claim of a source that replies go to. 0 if there is none. */
static __noinline int find_owner(struct work *w, const struct flow6 *reply)
{
	set_key(w, reply);
	if (w->facts.family != 4)
		return find_owner_ipv6(w, &w->client);
	if (!find_owner_ipv4(w, &w->narrow_claim.owner))
		return 0;
	widen_flow_ipv4(&w->narrow_claim.owner, &w->client);
	return 1;
}

/* The connection in hand, in the direction of w->at, in w->own. */
static __noinline void show(struct work *w)
{
	const struct session *session =
		w->facts.family == 4 ? &w->held4.session : &w->held6.session;

	if (w->facts.family == 4) {
		show_ipv4(w, &w->current4);
		widen_conn_ipv4(&w->current4, &w->own.c);
	} else {
		show_ipv6(w, &w->own.c);
	}
	w->own.number = session->number[w->at.reply & 1];
	w->own.peer_number = session->number[~w->at.reply & 1];
}

/*
 * The connection in the tables that the flow in w->sought belongs to, in whichever direction: in
 * w->own and w->at. 0 if there is none. Not static: see track().
 */
__noinline int find_connection(void)
{
	struct work *w = array_at(scratch, 0);
	int found;

	if (!w)
		return 0;
	set_key(w, &w->sought);
	if (w->facts.family == 4)
		found = find_ipv4(in_filter(w->look4.daddr));
	else
		found = find_ipv6(in_filter(filter_word6((void *)w->look6.daddr)));
	if (found)
		show(w);
	return found;
}

/* Likewise among the flows without a place. Not static: see track(). */
__noinline int find_pending(void)
{
	struct work *w = array_at(scratch, 0);

	if (!w || (!look_pending(w, &w->sought, 0) && !look_pending(w, &w->sought, 1)))
		return 0;
	show(w);
	return 1;
}

static __always_inline int find_flow(struct work *w, const struct flow6 *flow)
{
	w->sought = *flow;
	return find_connection();
}

/* The record of the packet's connection as w->own has it, whose replies can come from now on. */
static __noinline void build(struct work *w)
{
	if (w->facts.family == 4)
		build_ipv4(w);
	else
		build_ipv6(w);
	if (is_direct(&w->own.c.conn))
		return;
	reply_flow(&w->own.c, w->facts.flow.protocol, &w->other_flow);
	expect_replies(&w->other_flow);
}

/* Gives the record in hand a way: enum entered. `live`: it is proven. */
static __always_inline int enter(struct work *w, int live)
{
	int entered = IS_OUTRUN;

	w->status = *status_word(&w->own.c.conn);
	w->proven = live ? WAY_PROVEN_BIT : 0;
	for (int i = 0; i < ENTER_TRIES && entered == IS_OUTRUN; i++)
		entered = w->facts.family == 4 ? enter_ipv4() : enter_ipv6();
	return entered;
}

static __noinline void remember(struct work *w)
{
	if (w->facts.family == 4)
		remember_ipv4(w);
	else
		remember_ipv6(w);
}

static __noinline int change(struct work *w, __u64 next, int relinks)
{
	return w->facts.family == 4 ? change_ipv4(w, next, relinks) : change_ipv6(w, next, relinks);
}

/* Takes out the connection in w->own, as it was when it was found, and has all CPUs forget it. 0 if
 * it has changed since. */
static __noinline int forget(struct work *w)
{
	int removed = w->facts.family == 4 ? remove_ipv4(w) : remove_ipv6(w);

	raise_epoch();
	return removed;
}

#endif
