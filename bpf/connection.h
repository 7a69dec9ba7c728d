/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * connection.h - the connection tables: finding, ageing, storing and forgetting
 * entries, in one shape for both families.
 *
 * Owns the two tables of each family (conntrack: both directions seen; opening: the rest)
 * and the pairing of a connection's two entries. What a packet does to a connection is in
 * track.h.
 */
#ifndef XDPLB_CONNECTION_H
#define XDPLB_CONNECTION_H

#include <linux/in.h>
#include <bpf/bpf_endian.h>

#include "maps.h"
#include "packet.h"

#define MAPPED_PREFIX bpf_htonl(0xffff) /* the third word of ::ffff:a.b.c.d */
/* How often an entry is copied that another flow takes over meanwhile. */
#define READ_TRIES 2

static __always_inline __u32 now(void)
{
	return bpf_jiffies64();
}

/* Signed, since another CPU may have written a later time. */
static __always_inline int idle_since(__u32 time, __u32 last_seen, __u32 limit)
{
	return (__s32)(time - last_seen) > (__s32)limit;
}

static __always_inline int idle_too_long(const struct conn *c, const struct settings *s, __u32 time)
{
	return idle_since(time, c->last_seen, s->timeout[c->state & (CONN_STATE_SLOTS - 1)]);
}

/* The word of state, flags, forward and doubt. */
static __always_inline __u32 *status_word(const struct conn *c)
{
	_Static_assert(__builtin_offsetof(struct conn, state) % sizeof(__u32) == 0, "one word");
	return (__u32 *)((void *)(long)c + __builtin_offsetof(struct conn, state));
}

/* The backend answers past us: the connection has no second entry. */
static __always_inline int is_direct(const struct conn *c)
{
	return c->forward >= FORWARD_L2;
}

/* Of a tunnel's connection, which has no use for deltas. */
#define entropy_of(c) ((c)->l3_delta | (__u32)(c)->l4_delta << 16)

static __always_inline void set_entropy(struct conn6 *c, __u32 entropy)
{
	c->l3_delta = entropy;
	c->l4_delta = entropy >> 16;
}

/* True if the rules in force have let the connection in. */
static __always_inline int is_admitted(const struct conn *c, const struct settings *s)
{
	return !((c->admission ^ s->admission) >> RULE_BITS);
}

static __always_inline int same_mac(__u64 a, __u64 b)
{
	return !((a ^ b) & MAC_BITS);
}

static __always_inline void map_address(__be32 wide[4], __be32 address)
{
	wide[0] = 0;
	wide[1] = 0;
	wide[2] = MAPPED_PREFIX;
	wide[3] = address;
}

static __always_inline void widen_flow_ipv4(const struct flow4 *flow, struct flow6 *wide)
{
	map_address(wide->saddr, flow->saddr);
	map_address(wide->daddr, flow->daddr);
	wide->sport = flow->sport;
	wide->dport = flow->dport;
	wide->protocol = flow->protocol;
	__builtin_memset(wide->pad, 0, sizeof(wide->pad));
}

static __always_inline void widen_flow_ipv6(const struct flow6 *flow, struct flow6 *wide)
{
	*wide = *flow;
}

static __always_inline void narrow_flow(const struct flow6 *wide, struct flow4 *flow)
{
	flow->saddr = wide->saddr[3];
	flow->daddr = wide->daddr[3];
	flow->sport = wide->sport;
	flow->dport = wide->dport;
	flow->protocol = wide->protocol;
	__builtin_memset(flow->pad, 0, sizeof(flow->pad));
}

static __always_inline void widen_conn(const struct conn4 *c, struct conn6 *wide)
{
	wide->conn = c->conn;
	map_address(wide->saddr, c->saddr);
	map_address(wide->daddr, c->daddr);
	wide->sport = c->sport;
	wide->dport = c->dport;
	wide->l3_delta = c->l3_delta;
	wide->l4_delta = c->l4_delta;
}

static __always_inline void widen_entry(const struct entry4 *e, struct entry6 *wide)
{
	widen_conn(&e->c, &wide->c);
	wide->service = e->service;
	wide->sequence = e->sequence;
	wide->fin = e->fin;
	wide->pad = 0;
}

static __always_inline void narrow_conn(const struct conn6 *wide, struct conn4 *c)
{
	c->conn = wide->conn;
	c->saddr = wide->saddr[3];
	c->daddr = wide->daddr[3];
	c->sport = wide->sport;
	c->dport = wide->dport;
	c->l3_delta = wide->l3_delta;
	c->l4_delta = wide->l4_delta;
}

/* The key of the other direction: the new 5-tuple, turned round. */
static __always_inline void reply_flow(const struct conn6 *c, __u8 protocol, struct flow6 *flow)
{
	copy16(flow->saddr, c->daddr);
	copy16(flow->daddr, c->saddr);
	flow->sport = c->dport;
	flow->dport = c->sport;
	flow->protocol = protocol;
	__builtin_memset(flow->pad, 0, sizeof(flow->pad));
}

/*
 * The functions below are not inlined: they are off the established path, and each has
 * its own stack frame for the IPv4 copies of what it is given.
 */

/* The entry, of either family, in one of the tables. */
static __always_inline struct entry *table_find(__u8 family, int established,
						const struct flow6 *flow)
{
	if (family == 4) {
		struct flow4 narrow;

		narrow_flow(flow, &narrow);
		return established ? bpf_map_lookup_elem(&conntrack, &narrow)
				   : bpf_map_lookup_elem(&opening, &narrow);
	}
	return established ? bpf_map_lookup_elem(&conntrack6, flow)
			   : bpf_map_lookup_elem(&opening6, flow);
}

/* 0 if there was one. */
static __noinline long table_remove(__u8 family, int established, const struct flow6 *flow)
{
	if (family == 4) {
		struct flow4 narrow;

		narrow_flow(flow, &narrow);
		return established ? bpf_map_delete_elem(&conntrack, &narrow)
				   : bpf_map_delete_elem(&opening, &narrow);
	}
	return established ? bpf_map_delete_elem(&conntrack6, flow)
			   : bpf_map_delete_elem(&opening6, flow);
}

/*
 * Copies the entry out. 0, or -1 if there is none. The LRU gives an element to another flow at
 * once, so the entry is found again after it was copied.
 */
static __noinline int table_read(__u8 family, int established, const struct flow6 *flow,
				 struct entry6 *e)
{
	for (int i = 0; i < READ_TRIES; i++) {
		struct entry *found = table_find(family, established, flow);

		if (!found)
			return -1;
		if (family == 4)
			widen_entry((struct entry4 *)found, e);
		else
			*e = *(struct entry6 *)found;
		if (table_find(family, established, flow) == found)
			return 0;
	}
	return -1;
}

/*
 * Which table the entry was in, its copy in `e`; -1 if in neither. `opening` first: another CPU may
 * move the entry meanwhile, and puts it into `conntrack` before it takes it out of `opening`.
 */
static __always_inline int find_connection(__u8 family, const struct flow6 *flow, struct entry6 *e)
{
	for (int established = 0; established <= 1; established++)
		if (!table_read(family, established, flow, e))
			return established;
	return -1;
}

/* The entry itself, in whichever table: first in that where the connection was found, which is the
 * right one unless another CPU has moved it. */
static __noinline struct entry *find_entry(__u8 family, int established, const struct flow6 *flow)
{
	struct entry *found = table_find(family, established, flow);

	if (!found)
		found = table_find(family, 0, flow);
	return found ? found : table_find(family, 1, flow);
}

/* Whether there is an entry that is not too old. In the order of find_connection. */
static __noinline int is_alive(__u8 family, const struct flow6 *flow, __u32 time)
{
	const struct settings *s = array_at(settings, 0);

	/* Before the loop: Linux 6.1 refuses the arithmetic that clang takes out of it. */
	if (!s)
		return 0;
	for (int established = 0; established <= 1; established++) {
		const struct entry *found = table_find(family, established, flow);

		if (found && !idle_too_long(&found->conn, s, time))
			return 1;
	}
	return 0;
}

/* Whether an entry is one direction of the connection that has `other` as the key of its other
 * direction: a key that was computed may meanwhile be another connection's. */
static __noinline int is_twin_of(__u8 family, const struct entry *e, const struct flow6 *other)
{
	const struct conn6 *wide = &((const struct entry6 *)e)->c;
	const struct conn4 *narrow = &((const struct entry4 *)e)->c;
	__u32 difference = 0;

	if (family == 4)
		return !((narrow->saddr ^ other->daddr[3]) | (narrow->daddr ^ other->saddr[3]) |
			 (narrow->sport ^ other->dport) | (narrow->dport ^ other->sport));
	for (int i = 0; i < 4; i++)
		difference |=
			(wide->saddr[i] ^ other->daddr[i]) | (wide->daddr[i] ^ other->saddr[i]);
	return !(difference | (wide->sport ^ other->dport) | (wide->dport ^ other->sport));
}

/* Takes the entry under `flow` out of both tables, if its other direction is that of `other`. How
 * many there were. */
static __noinline int remove_direction(__u8 family, const struct flow6 *flow,
				       const struct flow6 *other)
{
	int removed = 0;

	for (int established = 0; established <= 1; established++) {
		const struct entry *found = table_find(family, established, flow);

		if (found && is_twin_of(family, found, other))
			removed += !table_remove(family, established, flow);
	}
	return removed;
}

/* Makes every CPU look into the tables again. Two at once may count as one: the number is another.
 */
static __always_inline void raise_epoch(void)
{
	struct epoch *e = array_at(epoch, 0);

	if (e)
		WRITE_ONCE(e->number, e->number + 1);
}

/* Takes a connection out of both tables, both directions. */
static __noinline void forget(__u8 family, const struct flow6 *client, const struct flow6 *reply,
			      __u32 forward)
{
	remove_direction(family, client, reply);
	if (forward < FORWARD_L2)
		remove_direction(family, reply, client);
	raise_epoch();
}

#endif
