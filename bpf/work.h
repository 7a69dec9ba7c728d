/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * work.h - the data that the stages off the established path hand to each other: facts about the
 * packet, and the copies of records that they work on. Too much for BPF's stack of 512 bytes.
 */
#ifndef XDPLB_WORK_H
#define XDPLB_WORK_H

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

enum where {
	NOWHERE,
	IN_SET,
	IN_CONNTRACK,
	IN_PENDING,
};

/* Where a connection stands. */
struct place {
	__u64 word;  /* of its way, as it was read */
	__u32 where; /* enum where */
	__u32 set;   /* or the element of `pending` */
	__u32 way;   /* or the index in the key of `conntrack` */
	__u32 reply; /* 1: the packet is the backend's */
};

/* The packet's connection, as its direction sees it. */
struct known {
	struct conn6 c;
	__u32 number;	   /* of the packet's sender; see struct session */
	__u32 peer_number; /* of its receiver */
};

/* One a CPU: XDP programs do not nest. */
struct work {
	struct facts facts;
	struct known own;
	struct place at;      /* where it stands */
	struct record4 held4; /* as it stands there: for packets of IPv4 */
	struct record6 held6;
	struct place4 moved4; /* a record on its way to conntrack */
	struct place6 moved6;
	struct client4 key4; /* of that, and of what is looked up there */
	struct client6 key6;
	struct conn4 current4; /* what a packet goes by that is not in `recent` */
	struct conn6 current6;
	struct flow6 sought;	 /* the flow whose connection is looked for */
	struct flow6 other_flow; /* of the replies to the client's flow in hand */
	struct flow6 client;	 /* the owner of a claim */
	struct flow6 quoted;	 /* by an ICMP error, turned round */
	struct flow4 look4;	 /* what is looked up in a set */
	struct flow6 look6;
	struct flow4 asked4; /* a reply that is looked for by its claim */
	struct flow6 asked6;
	struct port_search search;
	struct claim6 claim;
	struct claim4 narrow_claim;
	struct flow4 narrow_flow;
	struct rule_match matched;
	__u32 service;	     /* the packet's, if it is for a VIP */
	__u32 admission;     /* as in struct session */
	__u32 mtu;	     /* for an ICMP error: what would have fitted */
	__u32 dont_fragment; /* DF is set */
	__u32 verdict;
	__u64 proven;	  /* WAY_PROVEN_BIT of a connection that is about to get a place, or 0 */
	__u64 tag;	  /* of the flow that has been looked up in a set */
	__u64 spilled;	  /* what that set says of conntrack */
	__u32 status;	  /* of a connection that is about to get a place */
	int moved;	  /* the index in conntrack of one that has moved there for it */
	__u32 recorded;	  /* 1: the new flow gets a place, if there is one */
	__u32 remembered; /* that of a flow without a place; 0: there was none */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct work);
} scratch SEC(".maps");

#endif
