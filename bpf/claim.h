/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * claim.h - who holds a full-nat source address and port towards a backend.
 *
 * Owns `nat_ports` and `nat_ports6`. A claim stays until its connection is gone, and by it a
 * reply finds its client's connection. Not even that of one which had to make room is given away
 * at once, under a connection that still runs: its client gets it back. After a close it stays for
 * PORT_HOLD_SECONDS.
 *
 * A claim changes in one word, by compare-and-swap: two that want it at once cannot both have it.
 * One that is to go is marked as released first, which nobody takes back, and then deleted.
 */
#ifndef XDPLB_CLAIM_H
#define XDPLB_CLAIM_H

#include "connection.h"
#include "maps.h"
#include "packet.h"
#include "table.h"
#include "work.h"

#define EEXIST 17

static __always_inline int same_flow4(const struct flow4 *a, const struct flow4 *b)
{
	return !((a->saddr ^ b->saddr) | (a->daddr ^ b->daddr) | (a->sport ^ b->sport) |
		 (a->dport ^ b->dport) | (a->protocol ^ b->protocol));
}

static __always_inline __u32 claim_state(__u64 status)
{
	return status & ((1 << CLAIM_STATE_BITS) - 1);
}

/* As of now. */
static __always_inline __u64 claim_status(__u32 state)
{
	return bpf_jiffies64() << CLAIM_STATE_BITS | state;
}

/* Changes the claim from `seen` to `state`. False if it has been released. */
static __always_inline int change_claim(__u64 *status, __u64 seen, __u32 state)
{
	__u64 was;

	if (claim_state(seen) == CLAIM_RELEASED)
		return 0;
	was = __sync_val_compare_and_swap(status, seen, claim_status(state));
	/* Another CPU may have renewed it: that serves as well. */
	return was == seen || claim_state(was) != CLAIM_RELEASED;
}

/* Renews a claim for its own connection, or sees that it is another's. 0, or -EEXIST. */
static __always_inline int renew_claim(struct work *w, __u64 *status, int is_own)
{
	__u64 seen = READ_ONCE(*status);

	if (is_own &&
	    change_claim(status, seen, w->search.opens ? CLAIM_OPENING : claim_state(seen)))
		return 0;
	w->search.half_open += claim_state(seen) == CLAIM_OPENING;
	return -EEXIST;
}

/*
 * An error is an int: before Linux 6.4 a map's functions return one, and what BPF reads as the
 * upper half of a long says nothing of its sign.
 */
static __noinline int claim_ipv4(struct work *w)
{
	struct claim4 *value = &w->narrow_claim, *held;
	int error;

	narrow_flow(&w->facts.flow, &value->owner);
	narrow_flow(&w->other_flow, &w->narrow_flow);
	value->status = claim_status(CLAIM_OPENING);
	error = bpf_map_update_elem(&nat_ports, &w->narrow_flow, value, BPF_NOEXIST);
	if (!error)
		return 0;
	held = bpf_map_lookup_elem(&nat_ports, &w->narrow_flow);
	if (!held)
		return error;
	return renew_claim(w, &held->status, same_flow4(&held->owner, &value->owner));
}

static __noinline int claim_ipv6(struct work *w)
{
	struct claim6 *value = &w->claim, *held;
	int error;

	value->owner = w->facts.flow;
	value->status = claim_status(CLAIM_OPENING);
	error = bpf_map_update_elem(&nat_ports6, &w->other_flow, value, BPF_NOEXIST);
	if (!error)
		return 0;
	held = bpf_map_lookup_elem(&nat_ports6, &w->other_flow);
	if (!held)
		return error;
	return renew_claim(w, &held->status, same_flow(&held->owner, &w->facts.flow));
}

/* Claims the source in w->own.c for the flow in hand. 0; -EEXIST if another connection holds it;
 * else there is no room. */
static __always_inline int claim(struct work *w)
{
	return w->facts.family == 4 ? claim_ipv4(w) : claim_ipv6(w);
}

enum holder {
	HELD_BY_NOBODY,
	HELD_BY_ITSELF, /* the flow in hand */
	HELD_BY_ANOTHER,
};

/* The holder of the source in w->own.c of `scratch`: enum holder. Not static: see track(). */
__noinline int holder(void)
{
	struct work *w = array_at(scratch, 0);
	const struct claim4 *held4;
	const struct claim6 *held;
	__u64 status;
	int is_own;

	if (!w)
		return HELD_BY_ANOTHER;
	if (w->facts.family == 4) {
		narrow_flow(&w->facts.flow, &w->narrow_claim.owner);
		narrow_flow(&w->other_flow, &w->narrow_flow);
		held4 = bpf_map_lookup_elem(&nat_ports, &w->narrow_flow);
		if (!held4)
			return HELD_BY_NOBODY;
		is_own = same_flow4(&held4->owner, &w->narrow_claim.owner);
		status = READ_ONCE(held4->status);
	} else {
		held = bpf_map_lookup_elem(&nat_ports6, &w->other_flow);
		if (!held)
			return HELD_BY_NOBODY;
		is_own = same_flow(&held->owner, &w->facts.flow);
		status = READ_ONCE(held->status);
	}
	if (is_own)
		return HELD_BY_ITSELF;
	w->search.half_open += claim_state(status) == CLAIM_OPENING;
	return HELD_BY_ANOTHER;
}

/* The claim's word, of the connection whose replies are `reply`; NULL if there is none. */
static __always_inline __u64 *find_claim(__u8 family, const struct flow6 *reply)
{
	struct flow4 narrow;
	struct claim4 *held4;
	struct claim6 *held;

	if (family == 4) {
		narrow_flow(reply, &narrow);
		held4 = bpf_map_lookup_elem(&nat_ports, &narrow);
		if (!held4)
			return NULL;
		/* The verifier wants the field's address taken after the check. */
		barrier_var(held4);
		return &held4->status;
	}
	held = bpf_map_lookup_elem(&nat_ports6, reply);
	if (!held)
		return NULL;
	barrier_var(held);
	return &held->status;
}

/* The connection in w->own.c, whose packet is in hand and whose other direction is w->other_flow,
 * has come to be established, or to its close. */
static __noinline void settle_claim(struct work *w, __u32 state)
{
	const struct flow6 *reply =
		w->own.c.conn.flags & CONN_REPLY ? &w->facts.flow : &w->other_flow;
	__u64 *status = find_claim(w->facts.family, reply);

	if (status)
		change_claim(status, READ_ONCE(*status), state);
}

/* Deletes a claim that is as it was `seen`. 0 if it was. */
static __always_inline int release_claim(__u8 family, const struct flow6 *reply, __u64 *status,
					 __u64 seen)
{
	if (claim_state(seen) == CLAIM_RELEASED ||
	    __sync_val_compare_and_swap(status, seen, claim_status(CLAIM_RELEASED)) != seen)
		return -1;
	if (family == 4) {
		struct flow4 narrow;

		narrow_flow(reply, &narrow);
		return bpf_map_delete_elem(&nat_ports, &narrow);
	}
	return bpf_map_delete_elem(&nat_ports6, reply);
}

/* The client's flow in hand gives up its claim of the source whose replies are w->other_flow. */
static __noinline void give_up_claim(struct work *w)
{
	__u64 *status;

	if (holder() != HELD_BY_ITSELF)
		return;
	status = find_claim(w->facts.family, &w->other_flow);
	if (status)
		release_claim(w->facts.family, &w->other_flow, status, READ_ONCE(*status));
}

/*
 * The client's connection in w->own.c is over and forgotten. Where the backend may know it still,
 * the port is held as after any close; the client itself may have it again.
 */
static __noinline void end_claim(struct work *w)
{
	reply_flow(&w->own.c, w->facts.flow.protocol, &w->other_flow);
	if (w->facts.flow.protocol == IPPROTO_TCP && w->own.c.conn.state != CONN_OPENING)
		settle_claim(w, CLAIM_CLOSED);
	else
		give_up_claim(w);
}

#endif
