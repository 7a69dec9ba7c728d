/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * work.h - the data that the stages off the established path hand to each other: facts about the
 * packet, and the copies of entries that they work on. Too much for BPF's stack of 512 bytes.
 */
#ifndef XDPLB_WORK_H
#define XDPLB_WORK_H

#include "connection.h"
#include "maps.h"
#include "packet.h"

struct port_range {
	__u32 first; /* host order */
	__u32 size;
};

/* How full-nat looks for a source; see nat.h. */
struct port_search {
	__u32 start; /* from the flow's hash: what its tries depend on */
	__u32 pool;  /* slice of nat_pool: offset and size */
	__u32 pool_size;
	struct port_range opening, spare, last; /* the parts of the ports */
	__u32 from;				/* the first try in hand */
	__u32 attempt;				/* the last one */
	__u32 opens;				/* 1: the flow opens; 0: it goes on */
	__u32 half_open;			/* holders met that are half-open */
	int result;				/* GO_ON, or why there is none; or enum holder */
};

/* The search for the firewall's rule; see firewall.h. */
struct rule_match {
	__u32 key; /* protocol << 16 | destination port */
	__u32 sport;
	__u32 level;	/* where to look next */
	__u32 position; /* of the rule that has been found */
	__u32 rule;	/* as in fw_step; NO_RULE: none yet */
	__u32 at;	/* the step in hand, the start of its interval, the level's first */
	__u32 start;
	__u32 first;
};

/* One a CPU: XDP programs do not nest. */
struct work {
	struct facts facts;
	struct entry6 own;   /* the packet's own entry */
	struct entry6 other; /* the other direction's */
	struct flow6 other_flow;
	struct flow6 client; /* of a connection that is in the way */
	struct flow6 quoted; /* by an ICMP error, turned round */
	struct conn4 narrow;
	struct entry4 narrow_entry;
	struct port_search search;
	struct claim6 claim;
	struct claim4 narrow_claim;
	struct flow4 narrow_flow;
	struct rule_match matched;
	__u32 service;	     /* the packet's, if it is for a VIP */
	__u32 admission;     /* as in struct conn */
	__u32 mtu;	     /* for an ICMP error: what would have fitted */
	__u32 dont_fragment; /* DF is set */
	__u32 verdict;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct work);
} scratch SEC(".maps");

/* The packet's own entry, as the established path has it. */
static __always_inline struct conn4 *narrow_own_ipv4(struct work *w)
{
	narrow_conn(&w->own.c, &w->narrow);
	return &w->narrow;
}

static __always_inline struct conn6 *narrow_own_ipv6(struct work *w)
{
	return &w->own.c;
}

/* Writes an entry. What an IPv4 one is made of stands in `scratch`: it would be the deepest frame
 * of all, and Linux 6.1 counts 512 bytes by frames rounded up. */
static __noinline long table_store(__u8 family, int established, const struct flow6 *flow,
				   const struct entry6 *e, __u64 flags)
{
	struct work *w = array_at(scratch, 0);
	struct entry4 *value;
	struct flow4 narrow;

	if (!w)
		return -1;
	if (family != 4)
		return established ? bpf_map_update_elem(&conntrack6, flow, e, flags)
				   : bpf_map_update_elem(&opening6, flow, e, flags);
	value = &w->narrow_entry;
	narrow_flow(flow, &narrow);
	narrow_conn(&e->c, &value->c);
	value->service = e->service;
	value->sequence = e->sequence;
	value->fin = e->fin;
	value->pad = 0;
	return established ? bpf_map_update_elem(&conntrack, &narrow, value, flags)
			   : bpf_map_update_elem(&opening, &narrow, value, flags);
}

#endif
