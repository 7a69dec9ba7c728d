/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nat.h - full-nat: the source address and port that a new connection leaves with.
 *
 * Owns the order in which a flow tries the ports, and which of them it may claim. A flow that
 * opens, of which no more is known than a packet from an address that may be forged, claims in the
 * first half of the ports. The rest is spare: for flows that go on without a claim, and for those
 * that open where it is not half-open connections that fill the first half. So a flood of those
 * cannot use up the ports.
 */
#ifndef XDPLB_NAT_H
#define XDPLB_NAT_H

#include "claim.h"
#include "connection.h"
#include "csum.h"
#include "maps.h"
#include "packet.h"
#include "work.h"
#include "xxhash.h"

/*
 * How many ports are tried: few in the first half, some in the three eighths after it, the others
 * in the last eighth. Few tries fill a part to the last ports as long as another takes what they do
 * not place. So more than 98 % of the ports are taken before the first connection is refused, and a
 * connection needs many tries only where the last eighth is nearly full.
 */
#define PORT_TRIES    128
#define OPENING_TRIES 8	 /* in the first half */
#define SPARE_TRIES   16 /* after it */
/* How many spare ports a flow without a claim looks at, from where it would begin to claim. */
#define SPARE_LOOKS 32
/*
 * A flow that opens and has found none in the first half looks at this many spare ports, without
 * regard to which are free. If among all those it has met there are so many half-open connections,
 * it is they that fill the ports.
 */
#define SPARE_SAMPLES 16
#define CROWD	      1

/* claim_source: the flow is to go without a claim. */
#define IS_CROWDED (-4)

/* The source of a try, in w->own.c. Each try is a place of its own, whatever the others were: a
 * flow whose first place is taken does not crowd those of the flows beside it. */
static __noinline int set_source(struct work *w, __u32 attempt)
{
	const struct port_search *search = &w->search;
	const struct nat_address *source;
	__u64 spread = xxh64_avalanche((__u64)search->start << 32 | attempt);
	const struct port_range *part = &search->opening;
	__u32 place;

	if (attempt >= OPENING_TRIES + SPARE_TRIES)
		part = &search->last;
	else if (attempt >= OPENING_TRIES)
		part = &search->spare;
	place = (spread >> 32) * part->size * search->pool_size >> 32;
	/* pool_size is not 0, which a division by it would need to know. */
	source = array_at(nat_pool, search->pool + place % search->pool_size);
	if (!source)
		return -1;
	copy16(w->own.c.saddr, source->address);
	w->own.c.sport = bpf_htons(part->first + place / search->pool_size);
	reply_flow(&w->own.c, w->facts.flow.protocol, &w->other_flow);
	return 0;
}

static long try_port(__u64 index, void *unused __attribute__((unused)))
{
	struct work *w = array_at(scratch, 0);
	struct port_search *search;
	int error;

	if (!w || set_source(w, w->search.from + index))
		return 1;
	search = &w->search;
	error = claim(w);
	/* Only a port that another connection holds is worth another try. */
	if (error == -EEXIST)
		return 0;
	search->result = error ? REASON_TABLE_FULL : GO_ON;
	return 1;
}

/* Claims one of the sources of `tries` tries from `from` on. */
static __always_inline int claim_one(struct work *w, __u32 from, __u32 tries)
{
	w->search.from = from;
	w->search.result = REASON_NO_PORT;
	bpf_loop(tries, try_port, NULL, 0);
	return w->search.result;
}

static long look_at_port(__u64 index, void *unused __attribute__((unused)))
{
	struct work *w = array_at(scratch, 0);

	if (!w)
		return 1;
	w->search.attempt = w->search.from + index;
	if (set_source(w, w->search.attempt))
		return 1;
	w->search.result = holder();
	return w->search.result != HELD_BY_ANOTHER;
}

/* The first source from `from` on that no other connection holds, in w->own.c. Who holds it. */
static __always_inline int find_unheld(struct work *w, __u32 from, __u32 tries)
{
	w->search.from = from;
	w->search.result = HELD_BY_ANOTHER;
	bpf_loop(tries, look_at_port, NULL, 0);
	return w->search.result;
}

static long sample_port(__u64 index, void *unused __attribute__((unused)))
{
	struct work *w = array_at(scratch, 0);

	if (!w || set_source(w, w->search.from + index))
		return 1;
	holder();
	return 0;
}

/* Whether half-open connections fill the ports, after the tries in the first half. */
static __always_inline int is_crowded(struct work *w)
{
	w->search.from = OPENING_TRIES;
	bpf_loop(SPARE_SAMPLES, sample_port, NULL, 0);
	return w->search.half_open >= CROWD;
}

/* Where the flow's search for a source begins: -1 if there is nowhere. `opens`: see above. */
static __noinline int begin_search(struct work *w, const struct backend *b, int opens)
{
	const struct settings *s = array_at(settings, 0);
	struct port_search *search = &w->search;
	__u64 pool = READ_ONCE(b->nat_pool);
	__u32 first, ports, opening, spare;

	if (!s)
		return -1;
	/* One load, so that first and last belong together. */
	ports = READ_ONCE(*(const __u32 *)&s->nat_port_first);
	first = (__u16)ports;
	ports = (ports >> 16) - first + 1;
	search->pool = pool;
	search->pool_size = pool >> 32;
	search->opens = opens;
	search->half_open = 0;
	opening = ports - ports / 2;
	spare = ports / 2 - ports / 8;
	search->opening = (struct port_range){first, opening};
	search->spare = (struct port_range){first + opening, spare};
	search->last = (struct port_range){first + opening + spare, ports / 8};
	/* Where there are too few to be parted, all are tried. */
	if (!spare)
		search->spare = (struct port_range){first, ports};
	if (!search->last.size)
		search->last = (struct port_range){first, ports};
	return ports && search->pool_size ? 0 : -1;
}

/* One of our addresses and a port of ours, in w->own.c, after begin_search. */
static __noinline int claim_source(struct work *w)
{
	int reason;

	if (w->search.opens) {
		reason = claim_one(w, 0, OPENING_TRIES);
		if (reason != REASON_NO_PORT)
			return reason;
		if (is_crowded(w))
			return IS_CROWDED;
	}
	return claim_one(w, OPENING_TRIES, PORT_TRIES - OPENING_TRIES);
}

#endif
