/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nat.h - the 5-tuple that a new connection leaves with: a source address and port whose replies
 * come back under a key that no other live connection has.
 */
#ifndef XDPLB_NAT_H
#define XDPLB_NAT_H

#include "connection.h"
#include "csum.h"
#include "maps.h"
#include "packet.h"
#include "work.h"

/*
 * How many source ports are tried. 128 find a free one nearly always (98 %) while a thirtieth
 * of the range is free; a longer search would cost most when there is least to find.
 */
#define PORT_TRIES 128

#define EEXIST 17

static __always_inline int same_flow(const struct flow6 *a, const struct flow6 *b)
{
	const __u32 *x = (const __u32 *)a, *y = (const __u32 *)b;
	__u32 difference = 0;

	for (__u32 i = 0; i < sizeof(*a) / sizeof(*x); i++)
		difference |= x[i] ^ y[i];
	return !difference;
}

static __always_inline int same_flow4(const struct flow4 *a, const struct flow4 *b)
{
	return !((a->saddr ^ b->saddr) | (a->daddr ^ b->daddr) | (a->sport ^ b->sport) |
		 (a->dport ^ b->dport) | (a->protocol ^ b->protocol));
}

/*
 * A claim stays until both entries of its connection are gone, so that even one whose entry the
 * LRU took is not given away under a connection that still runs. That connection gets it back.
 *
 * An error is an int: before Linux 6.4 a map's functions return one, and what BPF reads as the
 * upper half of a long says nothing of its sign.
 */
static __noinline int claim_ipv4(struct work *w)
{
	struct claim4 *value = &w->narrow_claim, *held;
	int error;

	narrow_flow(&w->facts.flow, &value->owner);
	narrow_flow(&w->other_flow, &w->narrow_flow);
	value->since = w->facts.now;
	value->pad = 0;
	error = bpf_map_update_elem(&nat_ports, &w->narrow_flow, value, BPF_NOEXIST);
	if (!error)
		return 0;
	held = bpf_map_lookup_elem(&nat_ports, &w->narrow_flow);
	if (!held || !same_flow4(&held->owner, &value->owner))
		return error;
	held->since = w->facts.now;
	return 0;
}

static __noinline int claim_ipv6(struct work *w)
{
	struct claim6 *value = &w->claim, *held;
	int error;

	value->owner = w->facts.flow;
	value->since = w->facts.now;
	value->pad = 0;
	error = bpf_map_update_elem(&nat_ports6, &w->other_flow, value, BPF_NOEXIST);
	if (!error)
		return 0;
	held = bpf_map_lookup_elem(&nat_ports6, &w->other_flow);
	if (!held || !same_flow(&held->owner, &value->owner))
		return error;
	held->since = w->facts.now;
	return 0;
}

/* Whether another connection holds the source in `scratch`. Not static: see track(). */
__noinline int is_taken(void)
{
	struct work *w = array_at(scratch, 0);
	const struct claim4 *held4;
	const struct claim6 *held;

	if (!w)
		return 1;
	if (w->facts.family == 4) {
		narrow_flow(&w->facts.flow, &w->narrow_claim.owner);
		narrow_flow(&w->other_flow, &w->narrow_flow);
		held4 = bpf_map_lookup_elem(&nat_ports, &w->narrow_flow);
		return held4 && !same_flow4(&held4->owner, &w->narrow_claim.owner);
	}
	held = bpf_map_lookup_elem(&nat_ports6, &w->other_flow);
	return held && !same_flow(&held->owner, &w->facts.flow);
}

/* From one try to the next another address, and with each round of them another port. */
static __always_inline int set_source(struct work *w, __u32 step)
{
	const struct port_search *search = &w->search;
	const struct nat_address *source;

	/* Neither is 0, which a division by it would need to know. */
	source = array_at(nat_pool,
			  search->pool + ((search->start >> 16) + step) % search->pool_size);
	if (!source)
		return -1;
	copy16(w->own.c.saddr, source->address);
	w->own.c.sport = bpf_htons(search->first +
				   (search->start + step / search->pool_size) % search->size);
	reply_flow(&w->own.c, w->facts.flow.protocol, &w->other_flow);
	return 0;
}

static long try_port(__u64 index, void *unused __attribute__((unused)))
{
	struct work *w = array_at(scratch, 0);
	struct port_search *search;
	int error;

	if (!w || set_source(w, index))
		return 1;
	search = &w->search;
	error = w->facts.family == 4 ? claim_ipv4(w) : claim_ipv6(w);
	/* Only a port that another connection holds is worth another try. */
	if (error == -EEXIST)
		return 0;
	search->result = error ? REASON_TABLE_FULL : GO_ON;
	return 1;
}

/* Where the flow's search for a source begins: -1 if there is nowhere. */
static __always_inline int begin_search(struct work *w, const struct backend *b, __u32 hash)
{
	const struct settings *s = array_at(settings, 0);
	struct port_search *search = &w->search;
	__u64 sources = READ_ONCE(b->nat_pool);
	__u32 ports;

	if (!s)
		return -1;
	/* One load, so that first and last belong together. */
	ports = READ_ONCE(*(const __u32 *)&s->nat_port_first);
	search->start = hash;
	search->pool = sources;
	search->pool_size = sources >> 32;
	search->first = (__u16)ports;
	search->size = (ports >> 16) - search->first + 1;
	search->result = REASON_NO_PORT;
	return search->size && search->pool_size ? 0 : -1;
}

/* full-nat: one of our addresses and a port of ours, in w->own.c. */
static __noinline int claim_source(struct work *w, const struct backend *b, __u32 hash)
{
	if (begin_search(w, b, hash))
		return REASON_NO_PORT;
	bpf_loop(PORT_TRIES, try_port, NULL, 0);
	return w->search.result;
}

/* Likewise, without a claim: the place where the search for one will begin. 0 if it is taken. */
static __noinline int first_source(struct work *w, const struct backend *b, __u32 hash)
{
	if (begin_search(w, b, hash) || set_source(w, 0))
		return 0;
	return !is_taken();
}

#endif
