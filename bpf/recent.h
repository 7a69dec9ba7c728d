/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * recent.h - the flows that each CPU has had lately, in slots that are found by a multiplication
 * where the connection table wants a hash lookup: most packets belong to few flows. Included once
 * for each family; see family.h.
 *
 * Owns copies of settled entries, one to a slot. A copy counts for settings.refresh at most: then
 * the table is asked again, whose entry learns by it that it is in use. `epoch` is a part of the
 * copies' keys, and is raised by all that makes them wrong sooner.
 */
#ifndef XDPLB_RECENT_H
#define XDPLB_RECENT_H

#include "connection.h"
#include "maps.h"
#include "packet.h"

/* Of the last word of a flow, above ports and protocol. */
#define EPOCH_SHIFT 40

static __always_inline __u64 current_epoch(void)
{
	const struct epoch *e = array_at(epoch, 0);

	return e ? (__u64)READ_ONCE(e->number) << EPOCH_SHIFT : 0;
}

static __always_inline int is_recent(const struct conn *c)
{
	const struct settings *s = array_at(settings, 0);

	return s && (__u32)now() - c->last_seen < s->refresh;
}

#endif

#include "family.h"

struct RECENT_SLOT {
	__u64 key[FLOW_WORDS];
	CONN c;
#if FAMILY == 6
	__u64 pad[2]; /* two cache lines */
#endif
};

/* A per-CPU map's value can have 32 KiB. */
struct RECENT_SLOTS {
	struct RECENT_SLOT slots[1 << RECENT_BITS];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct RECENT_SLOTS);
} RECENT SEC(".maps");

/* The slot of a flow, by the upper bits of a product of its words. */
static __always_inline struct RECENT_SLOT *NAME(recent_of)(const FLOW *flow)
{
	const __u64 *words = (const __u64 *)flow;
	struct RECENT_SLOTS *r = array_at(RECENT, 0);
	__u64 addresses = words[0];

	for (int i = 1; i < FLOW_WORDS - 1; i++)
		addresses ^= words[i];
	addresses ^= words[FLOW_WORDS - 1] * 0x9e3779b97f4a7c15ULL;
	return r ? &r->slots[addresses * 0xc2b2ae3d27d4eb4fULL >> (64 - RECENT_BITS)] : NULL;
}

/* The copy of the flow's entry in its slot, if it still counts. */
static __always_inline CONN *NAME(find_recent)(struct RECENT_SLOT *r, const FLOW *flow, __u64 epoch)
{
	const __u64 *words = (const __u64 *)flow;

	if (!r)
		return NULL;
	for (int i = 0; i < FLOW_WORDS - 1; i++)
		if (r->key[i] != words[i])
			return NULL;
	if (r->key[FLOW_WORDS - 1] != (words[FLOW_WORDS - 1] | epoch) || !is_recent(&r->c.conn))
		return NULL;
	return &r->c;
}

/*
 * Puts a copy of the flow's entry into the slot, unless another flow's copy there is in use.
 * `epoch` was read before the entry was found, so that whatever has been raised for it since
 * counts.
 */
static __always_inline void NAME(keep_recent)(struct RECENT_SLOT *r, const FLOW *flow,
					      const CONN *c, __u64 epoch)
{
	const __u64 *words = (const __u64 *)flow;

	if (!r || (is_recent(&r->c.conn) && !((r->key[FLOW_WORDS - 1] ^ epoch) >> EPOCH_SHIFT)))
		return;
	/* No flow has protocol 0: the slot is nobody's until all of it is written. */
	r->key[FLOW_WORDS - 1] = 0;
	r->c = *c;
	r->c.conn.last_seen = now();
	for (int i = 0; i < FLOW_WORDS - 1; i++)
		r->key[i] = words[i];
	r->key[FLOW_WORDS - 1] = words[FLOW_WORDS - 1] | epoch;
}
