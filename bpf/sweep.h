/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * sweep.h - programs that the user side's sweep runs to delete an entry or a claim.
 *
 * Own the last look before a deletion. The sweep has read the tables a while ago, packets may have
 * changed them since, and a map deletes by key, whatever lies there by then.
 *
 * A claim cannot change between the look and its deletion: it is marked as released first. An entry
 * can, for some ten nanoseconds. In these, another CPU would have to store a new connection of the
 * same 5-tuple, since nothing else renews an entry that is too old in both directions. That
 * connection then lacks one of its two entries, as after an eviction, until its client's next
 * packet.
 */
#ifndef XDPLB_SWEEP_H
#define XDPLB_SWEEP_H

#include "claim.h"
#include "connection.h"
#include "maps.h"

/* Whether the connection's other direction is in use, which has this one live on. */
static __noinline int other_is_alive(__u8 family, __u8 protocol, const struct conn6 *c, __u32 time)
{
	struct flow6 other;

	if (is_direct(&c->conn))
		return 0;
	reply_flow(c, protocol, &other);
	return is_alive(family, &other, time);
}

/* Takes out an entry that is too old, or that is still of the backend which the sweep saw there. */
SEC("syscall")
int remove_entry(struct entry_removal *r)
{
	const struct settings *s = array_at(settings, 0);
	__u8 family = r->family, established = !!r->established;
	__u32 time = now();
	struct flow6 flow;
	struct entry6 e;

	copy16(flow.saddr, r->flow.saddr);
	copy16(flow.daddr, r->flow.daddr);
	*(__u64 *)&flow.sport = *(__u64 *)&r->flow.sport;
	if (!s || table_read(family, established, &flow, &e))
		return 0;
	if (r->unbound) {
		if (e.c.conn.backend != r->conn.backend ||
		    e.c.conn.generation != r->conn.generation)
			return 0;
	} else if (!idle_too_long(&e.c.conn, s, time) ||
		   other_is_alive(family, flow.protocol, &e.c, time)) {
		return 0;
	}
	if (table_remove(family, established, &flow))
		return 0;
	r->conn = e.c.conn;
	r->removed = 1;
	return 0;
}

/* Whether the connection has an entry under this key, whose replies are `reply`. */
static __noinline int has_entry(__u8 family, const struct flow6 *key, const struct flow6 *reply)
{
	struct flow6 other;
	struct entry6 e;

	if (find_connection(family, key, &e) < 0)
		return 0;
	if (e.c.conn.flags & CONN_REPLY)
		return same_flow(key, reply);
	reply_flow(&e.c, key->protocol, &other);
	return same_flow(&other, reply);
}

/* The client's flow that holds the claim. -1 if there is none. */
static __noinline int owner_of(__u8 family, const struct flow6 *reply, struct flow6 *owner)
{
	struct flow4 narrow;
	const struct claim4 *held4;
	const struct claim6 *held;

	if (family == 4) {
		narrow_flow(reply, &narrow);
		held4 = bpf_map_lookup_elem(&nat_ports, &narrow);
		if (!held4)
			return -1;
		widen_flow_ipv4(&held4->owner, owner);
		return 0;
	}
	held = bpf_map_lookup_elem(&nat_ports6, reply);
	if (!held)
		return -1;
	*owner = held->owner;
	return 0;
}

/* Takes out a claim that is as the sweep saw it, and whose connection has no entry. */
SEC("syscall")
int remove_claim(struct claim_removal *r)
{
	struct flow6 reply, owner;
	__u8 family = r->family;
	__u64 *status;

	copy16(reply.saddr, r->reply.saddr);
	copy16(reply.daddr, r->reply.daddr);
	*(__u64 *)&reply.sport = *(__u64 *)&r->reply.sport;
	status = find_claim(family, &reply);
	if (!status || READ_ONCE(*status) != r->status || owner_of(family, &reply, &owner) ||
	    has_entry(family, &reply, &reply) || has_entry(family, &owner, &reply))
		return 0;
	r->removed = !release_claim(family, &reply, status, r->status);
	return 0;
}

#endif
