/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * recent.h - the flows that each CPU has had lately, in slots that are found by an addition where
 * the connection table wants a hash lookup: most packets belong to few flows.
 *
 * Owns copies of settled entries, one to a slot. A copy counts for settings.refresh at most: then
 * the table is asked again, whose entry learns by it that it is in use. What makes copies wrong
 * sooner raises `epoch`, which is a part of their key.
 */
#ifndef XDPLB_RECENT_H
#define XDPLB_RECENT_H

#include "connection.h"
#include "maps.h"
#include "packet.h"

/* What a per-CPU map's value can have: 32 KiB. */
#define RECENT4_BITS 9
#define RECENT6_BITS 8
/* Of the last word of a flow, above addresses, ports and protocol. */
#define EPOCH_SHIFT 40

struct recent4 {
	__u64 key[2];
	struct conn4 c;
};

struct recent6 {
	__u64 key[5];
	struct conn6 c;
	__u64 pad[2];
};

struct recent4_slots {
	struct recent4 slots[1 << RECENT4_BITS];
};

struct recent6_slots {
	struct recent6 slots[1 << RECENT6_BITS];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct recent4_slots);
} recent SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct recent6_slots);
} recent6 SEC(".maps");

static __always_inline __u64 current_epoch(void)
{
	const struct epoch *e = array_at(epoch, 0);

	return e ? (__u64)READ_ONCE(e->number) << EPOCH_SHIFT : 0;
}

/* The slot of a flow whose words these are, by the upper bits of a product. */
static __always_inline __u32 recent_slot(__u64 addresses, __u64 ports, int bits)
{
	return (addresses ^ ports * 0x9e3779b97f4a7c15ULL) * 0xc2b2ae3d27d4eb4fULL >> (64 - bits);
}

static __always_inline struct recent4 *recent_of4(const struct flow4 *flow)
{
	struct recent4_slots *r = array_at(recent, 0);
	const __u64 *words = (const __u64 *)flow;

	return r ? &r->slots[recent_slot(words[0], words[1], RECENT4_BITS)] : NULL;
}

static __always_inline struct recent6 *recent_of6(const struct flow6 *flow)
{
	struct recent6_slots *r = array_at(recent6, 0);
	const __u64 *words = (const __u64 *)flow;

	return r ? &r->slots[recent_slot(words[0] ^ words[1] ^ words[2] ^ words[3], words[4],
					 RECENT6_BITS)]
		 : NULL;
}

static __always_inline int is_recent(const struct conn *c)
{
	const struct settings *s = array_at(settings, 0);

	return s && (__u32)now() - c->last_seen < s->refresh;
}

/* The copy of the flow's entry in its slot, if it still counts. */
static __always_inline struct conn4 *find_recent4(struct recent4 *r, const struct flow4 *flow)
{
	const __u64 *words = (const __u64 *)flow;

	if (r && r->key[0] == words[0] && r->key[1] == (words[1] | current_epoch()) &&
	    is_recent(&r->c.conn))
		return &r->c;
	return NULL;
}

static __always_inline struct conn6 *find_recent6(struct recent6 *r, const struct flow6 *flow)
{
	const __u64 *words = (const __u64 *)flow;

	if (r && r->key[0] == words[0] && r->key[1] == words[1] && r->key[2] == words[2] &&
	    r->key[3] == words[3] && r->key[4] == (words[4] | current_epoch()) &&
	    is_recent(&r->c.conn))
		return &r->c;
	return NULL;
}

/* Whether the slot's copy counts, by its age and the epoch in its key's last word. */
static __always_inline int in_use(const struct conn *c, __u64 last_word, __u64 epoch)
{
	return is_recent(c) && !((last_word ^ epoch) >> EPOCH_SHIFT);
}

/* Puts a copy into the slot, unless another flow's there is in use. */
static __always_inline void keep_recent4(struct recent4 *r, const struct flow4 *flow,
					 const struct conn4 *c)
{
	const __u64 *words = (const __u64 *)flow;
	__u64 epoch = current_epoch();

	if (!r || in_use(&r->c.conn, r->key[1], epoch))
		return;
	r->c = *c;
	r->c.conn.last_seen = now();
	r->key[0] = words[0];
	r->key[1] = words[1] | epoch;
}

static __always_inline void keep_recent6(struct recent6 *r, const struct flow6 *flow,
					 const struct conn6 *c)
{
	const __u64 *words = (const __u64 *)flow;
	__u64 epoch = current_epoch();

	if (!r || in_use(&r->c.conn, r->key[4], epoch))
		return;
	r->c = *c;
	r->c.conn.last_seen = now();
	for (int i = 0; i < 4; i++)
		r->key[i] = words[i];
	r->key[4] = words[4] | epoch;
}

#endif
