/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nat.h - the 5-tuple that a new connection leaves with: which source address and port
 * make its replies come back under a key that no other live connection has.
 */
#ifndef XDPLB_NAT_H
#define XDPLB_NAT_H

#include "connection.h"
#include "csum.h"
#include "maps.h"
#include "packet.h"

/*
 * How many source ports are tried. 128 find a free one nearly always (98 %) while a thirtieth
 * of the range is free; a longer search would cost most when there is least to find.
 */
#define PORT_TRIES 128

struct port_search {
	const struct facts *facts;
	struct conn6 *forward;
	__u32 start;   /* from the flow's hash: where the search begins */
	__u32 sources; /* slice of nat_sources: offset and size */
	__u32 source_count;
	__u32 first; /* of the range of ports */
	__u32 size;
	int found;
};

static __always_inline int same_flow(const struct flow6 *a, const struct flow6 *b)
{
	const __u32 *x = (const __u32 *)a, *y = (const __u32 *)b;
	__u32 difference = 0;

	for (__u32 i = 0; i < sizeof(*a) / sizeof(*x); i++)
		difference |= x[i] ^ y[i];
	return !difference;
}

/*
 * A claim stays until both entries of its connection are gone, so that even one whose entry the
 * LRU took is not given away under a connection that still runs. That connection gets it back.
 */
static __noinline long claim(const struct facts *f, const struct flow6 *reply)
{
	long error;

	if (f->family == 4) {
		struct claim4 value = {.since = f->now}, *held;
		struct flow4 narrow;
		struct flow6 owner;

		narrow_flow(reply, &narrow);
		narrow_flow(&f->flow, &value.owner);
		error = bpf_map_update_elem(&nat_ports, &narrow, &value, BPF_NOEXIST);
		if (!error)
			return 0;
		held = bpf_map_lookup_elem(&nat_ports, &narrow);
		if (!held)
			return error;
		widen_flow(&held->owner, &owner);
		if (!same_flow(&owner, &f->flow))
			return error;
		held->since = f->now;
		return 0;
	}
	struct claim6 value = {.owner = f->flow, .since = f->now}, *held;

	error = bpf_map_update_elem(&nat_ports6, reply, &value, BPF_NOEXIST);
	if (!error)
		return 0;
	held = bpf_map_lookup_elem(&nat_ports6, reply);
	if (!held || !same_flow(&held->owner, &f->flow))
		return error;
	held->since = f->now;
	return 0;
}

/* From one try to the next another address, and with each round of them another port. */
static long try_port(__u64 index, struct port_search *search)
{
	__u32 step = index;
	const struct nat_source *source;
	struct flow6 reply;

	if (!search->size || !search->source_count)
		return 1;
	source = array_at(nat_sources,
			  search->sources + ((search->start >> 16) + step) % search->source_count);
	if (!source)
		return 1;
	copy16(search->forward->saddr, source->address);
	search->forward->sport = bpf_htons(
		search->first + (search->start + step / search->source_count) % search->size);
	reply_flow(search->forward, search->facts->flow.protocol, &reply);
	if (claim(search->facts, &reply))
		return 0;
	search->found = 1;
	return 1;
}

/* full-nat: one of our addresses and a port of ours. */
static __noinline int claim_source(const struct facts *f, const struct backend *b, __u32 hash,
				   struct conn6 *forward)
{
	const struct settings *s = array_at(settings, 0);
	__u64 sources = READ_ONCE(b->sources);
	struct port_search search = {
		.facts = f,
		.forward = forward,
		.start = hash,
		.sources = sources,
		.source_count = sources >> 32,
	};

	if (!s)
		return REASON_NO_PORT;
	search.first = s->nat_port_first;
	search.size = s->nat_port_last - s->nat_port_first + 1;
	bpf_loop(PORT_TRIES, try_port, &search, 0);
	return search.found ? GO_ON : REASON_NO_PORT;
}

#endif
