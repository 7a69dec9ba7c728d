/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * xdp_lb.bpf.c - the entry programs. A packet's way reads from top to bottom here; each
 * stage has a header of its own.
 *
 *   parse       Ethernet, VLAN, IP, TCP, UDP; most packets are not ours and end here
 *   portless    later fragments go with their first one, ICMP errors with what they quote
 *   recent      the CPU's own copy of what the connection table says
 *   connection  one lookup under the 5-tuple as it arrives, either direction
 *   admit       to a VIP: the firewall, which a connection remembers, and its source's limits
 *   track       new connections and packets that change one: service, backend, state
 *   rewrite     nat: the connection's new 5-tuple, TTL, checksums
 *   encap       tunnels: an outer header
 *   send        the next hop's MAC address, and out
 *   conclude    for the rest: an answer, the host's stack, or nothing
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#include "admit.h"
#include "conclude.h"
#include "connection.h"
#include "count.h"
#include "encap.h"
#include "fragment.h"
#include "packet.h"
#include "parse.h"
#include "portless.h"
#include "recent.h"
#include "rewrite.h"
#include "send.h"
#include "track.h"

/* The connection of an IPv4 packet and its backend; the packet may have made or changed it. */
static __always_inline int connect_ipv4(struct packet *p, const struct flow4 *flow,
					struct conn4 **c, const struct backend **b)
{
	struct recent4 *r = recent_of4(flow);
	struct entry4 *e;
	int reason, missed = 0;

	/* A first fragment leaves its ports for the others. */
	if (unlikely(p->kind != WHOLE_PACKET))
		goto track;
	*c = find_recent4(r, flow);
	*b = *c ? array_at(backends, (*c)->conn.backend) : NULL;
	if (likely(*b && settled(p, &(*c)->conn, *b)))
		return meter_ipv4(p, flow, &(*c)->conn);
	e = bpf_map_lookup_elem(&conntrack, flow);
	*c = e ? &e->c : NULL;
	*b = *c ? array_at(backends, (*c)->conn.backend) : NULL;
	if (likely(*b && settled(p, &(*c)->conn, *b))) {
		keep_recent4(r, flow, *c);
		return meter_ipv4(p, flow, &(*c)->conn);
	}
	missed = !*c;
track:
	reason = track_ipv4(p, flow, c, missed);
	if (reason == GO_ON)
		*b = array_at(backends, (*c)->conn.backend);
	return reason;
}

static __always_inline int balance_ipv4(struct xdp_md *ctx, struct packet *p)
{
	struct flow4 flow = {};
	struct conn4 *c = NULL;
	const struct interface *out;
	const struct backend *b = NULL;
	__u64 hop;
	int reason;

	reason = parse_ipv4(ctx, p, &flow);
	if (reason == REASON_NOT_OURS || reason == REASON_NOT_IP)
		return finish(p->ingress, reason);
	if (unlikely(reason != GO_ON || p->kind != WHOLE_PACKET)) {
		describe_ipv4(p, &flow);
		if (reason == IS_PORTLESS)
			return balance_portless(ctx);
		if (reason != GO_ON)
			return refuse_packet(ctx, reason);
	}
	reason = connect_ipv4(p, &flow, &c, &b);
	if (unlikely(reason != GO_ON))
		return conclude_ipv4(ctx, p, &flow, reason);
	if (unlikely(!b))
		return finish(p->ingress, REASON_NO_BACKEND);

	out = next_hop(&c->conn, b, &hop);
	if (unlikely(!out))
		return finish(p->ingress, REASON_NO_INTERFACE);
	if (unlikely(p->ttl <= 1))
		return conclude_ipv4(ctx, p, &flow, REASON_TTL_EXPIRED);
	if (unlikely(!fits(p, &c->conn, b, out)))
		return conclude_ipv4(ctx, p, &flow, REASON_TOO_BIG);

	if (likely(c->conn.forward < FORWARD_L2)) {
		rewrite_ipv4(p, c);
	} else if (c->conn.forward == FORWARD_L2) {
		lower_ttl_ipv4(p);
	} else {
		reason = encapsulate(ctx, p, b, &c->conn, entropy_of(c));
		if (unlikely(reason != GO_ON))
			return finish(p->ingress, reason);
	}
	return transmit(p, &c->conn, out, hop);
}

/* The connection of an IPv6 packet and its backend; the packet may have made or changed it. */
static __always_inline int connect_ipv6(struct packet *p, const struct flow6 *flow,
					struct conn6 **c, const struct backend **b)
{
	struct recent6 *r = recent_of6(flow);
	struct entry6 *e;
	int reason, missed = 0;

	/* A first fragment leaves its ports for the others. */
	if (unlikely(p->kind != WHOLE_PACKET))
		goto track;
	*c = find_recent6(r, flow);
	*b = *c ? array_at(backends, (*c)->conn.backend) : NULL;
	if (likely(*b && settled(p, &(*c)->conn, *b)))
		return meter_ipv6(p, flow, &(*c)->conn);
	e = bpf_map_lookup_elem(&conntrack6, flow);
	*c = e ? &e->c : NULL;
	*b = *c ? array_at(backends, (*c)->conn.backend) : NULL;
	if (likely(*b && settled(p, &(*c)->conn, *b))) {
		keep_recent6(r, flow, *c);
		return meter_ipv6(p, flow, &(*c)->conn);
	}
	missed = !*c;
track:
	reason = track_ipv6(p, flow, c, missed);
	if (reason == GO_ON)
		*b = array_at(backends, (*c)->conn.backend);
	return reason;
}

static __always_inline int balance_ipv6(struct xdp_md *ctx, struct packet *p)
{
	struct flow6 flow = {};
	struct conn6 *c = NULL;
	const struct interface *out;
	const struct backend *b = NULL;
	__u64 hop;
	int reason;

	reason = parse_ipv6(ctx, p, &flow);
	if (reason == REASON_NOT_OURS || reason == REASON_NOT_IP)
		return finish(p->ingress, reason);
	if (unlikely(reason != GO_ON || p->kind != WHOLE_PACKET)) {
		describe_ipv6(p, &flow);
		if (reason == IS_PORTLESS)
			return balance_portless(ctx);
		if (reason != GO_ON)
			return refuse_packet(ctx, reason);
	}
	reason = connect_ipv6(p, &flow, &c, &b);
	if (unlikely(reason != GO_ON))
		return conclude_ipv6(ctx, p, &flow, reason);
	if (unlikely(!b))
		return finish(p->ingress, REASON_NO_BACKEND);

	out = next_hop(&c->conn, b, &hop);
	if (unlikely(!out))
		return finish(p->ingress, REASON_NO_INTERFACE);
	if (unlikely(p->ttl <= 1))
		return conclude_ipv6(ctx, p, &flow, REASON_TTL_EXPIRED);
	if (unlikely(!fits(p, &c->conn, b, out)))
		return conclude_ipv6(ctx, p, &flow, REASON_TOO_BIG);

	if (likely(c->conn.forward < FORWARD_L2)) {
		rewrite_ipv6(p, c);
	} else if (c->conn.forward == FORWARD_L2) {
		lower_ttl_ipv6(p);
	} else {
		reason = encapsulate(ctx, p, b, &c->conn, entropy_of(c));
		if (unlikely(reason != GO_ON))
			return finish(p->ingress, reason);
	}
	return transmit(p, &c->conn, out, hop);
}

static __always_inline int balance(struct xdp_md *ctx)
{
	struct packet p = {};
	int reason = parse_ethernet(ctx, &p);

	if (reason != GO_ON)
		return finish(p.ingress, reason);
	switch (p.ethertype) {
	case bpf_htons(ETH_P_IP):
		return balance_ipv4(ctx, &p);
	case bpf_htons(ETH_P_IPV6):
		return balance_ipv6(ctx, &p);
	default:
		return finish(p.ingress, REASON_NOT_IP);
	}
}

SEC("xdp.frags")
int xdp_lb(struct xdp_md *ctx)
{
	return balance(ctx);
}

/* The skeleton has the types that BTF has, and BTF those that code uses. */
struct shared_enums {
	enum xdplb_limit limit;
	enum reason reason;
	enum conn_state conn_state;
	enum conn_flag conn_flag;
	enum forward_mode forward_mode;
	enum hash_by hash_by;
	enum refusal refusal;
	enum protocol_class protocol_class;
	enum rule_kind rule_kind;
	enum rule_action rule_action;
	enum rule_protocol rule_protocol;
	enum echo echo;
	enum backend_state backend_state;
	enum backend_health backend_health;
};

/* Jiffies are the datapath's clock; this tells the user side what they mean. */
SEC("syscall")
int clock(struct clock_reading *reading)
{
	volatile __u32 used = bpf_core_type_id_local(struct shared_enums);

	(void)used;
	reading->jiffies = bpf_jiffies64();
	reading->monotonic = bpf_ktime_get_ns();
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
