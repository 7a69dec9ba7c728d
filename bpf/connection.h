/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * connection.h - what a connection is to the stages: its age, its status, its flows in the one
 * shape for both families. Where connections stand is in set.h and table.h; what a packet does to
 * one is in track.h.
 */
#ifndef XDPLB_CONNECTION_H
#define XDPLB_CONNECTION_H

#include <linux/in.h>
#include <bpf/bpf_endian.h>

#include "csum.h"
#include "maps.h"
#include "packet.h"

#define MAPPED_PREFIX bpf_htonl(0xffff) /* the third word of ::ffff:a.b.c.d */

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

static __always_inline __u32 make_status(__u32 state, __u32 flags, __u32 forward, __u32 doubt)
{
	return state | flags << 8 | forward << 16 | doubt << 24;
}

/* The word of state, flags, forward and doubt. */
static __always_inline __u32 *status_word(const struct conn *c)
{
	_Static_assert(__builtin_offsetof(struct conn, state) % sizeof(__u32) == 0, "one word");
	return (__u32 *)((void *)(long)c + __builtin_offsetof(struct conn, state));
}

/* The connection has ended, as far as one can see: late segments still find their way. */
static __always_inline int is_over(__u32 state)
{
	return state == CONN_CLOSING || state == CONN_CLOSED;
}

/* The backend answers past us: nothing is seen of the replies. */
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

static __always_inline int same_flow(const struct flow6 *a, const struct flow6 *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;
	__u64 difference = 0;

	for (__u32 i = 0; i < sizeof(*a) / sizeof(*x); i++)
		difference |= x[i] ^ y[i];
	return !difference;
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

static __always_inline void widen_conn_ipv4(const struct conn4 *c, struct conn6 *wide)
{
	wide->conn = c->conn;
	map_address(wide->saddr, c->saddr);
	map_address(wide->daddr, c->daddr);
	wide->sport = c->sport;
	wide->dport = c->dport;
	wide->l3_delta = c->l3_delta;
	wide->l4_delta = c->l4_delta;
}

static __always_inline void widen_conn_ipv6(const struct conn6 *c, struct conn6 *wide)
{
	*wide = *c;
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

/* The flow of the replies: the new 5-tuple, turned round. */
static __always_inline void reply_flow(const struct conn6 *c, __u8 protocol, struct flow6 *flow)
{
	copy16(flow->saddr, c->daddr);
	copy16(flow->daddr, c->saddr);
	flow->sport = c->dport;
	flow->dport = c->sport;
	flow->protocol = protocol;
	__builtin_memset(flow->pad, 0, sizeof(flow->pad));
}

/* RFC 1624 deltas for a packet of `flow` that leaves with the 5-tuple in `c`. */
static __always_inline void compute_deltas(const struct flow6 *flow, struct conn6 *c)
{
	__u64 addresses = 0, ports;

	for (int i = 0; i < 4; i++)
		addresses += csum_delta32(flow->saddr[i], c->saddr[i]) +
			     csum_delta32(flow->daddr[i], c->daddr[i]);
	ports = csum_delta16(flow->sport, c->sport) + csum_delta16(flow->dport, c->dport);
	/* Folded apart: eight words and two halves would not fit the sum otherwise. */
	c->l3_delta = csum_fold((__u64)csum_fold(addresses) + CSUM_TTL_DECREMENT);
	c->l4_delta = csum_fold((__u64)csum_fold(addresses) + ports);
}

/* The deltas of the other direction take back what those of the client's add; the TTL goes down in
 * both. */
static __always_inline __u16 reply_l3_delta(__u16 delta)
{
	return csum_fold((__u64)(__u16)~delta + 2 * (__u64)CSUM_TTL_DECREMENT);
}

static __always_inline __u16 reply_l4_delta(__u16 delta)
{
	return ~delta;
}

/* Makes every CPU look into the tables again. Two at once may count as one: the number is another.
 */
static __always_inline void raise_epoch(void)
{
	struct epoch *e = array_at(epoch, 0);

	if (e)
		WRITE_ONCE(e->number, e->number + 1);
}

#endif
