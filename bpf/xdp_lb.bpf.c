/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * xdp_lb.bpf.c - the entry programs. A packet's way reads from top to bottom here; each
 * stage has a header of its own.
 *
 *   parse       Ethernet, VLAN, IP, TCP, UDP; most packets are not ours and end here
 *   connection  one lookup under the 5-tuple as it arrives, either direction
 *   track       new connections and packets that change one: service, backend, state
 *   rewrite     the connection's new 5-tuple, TTL, checksums
 *   send        the next hop's MAC address, and out
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#include "connection.h"
#include "count.h"
#include "packet.h"
#include "parse.h"
#include "rewrite.h"
#include "send.h"
#include "track.h"

static __always_inline int balance_ipv4(struct xdp_md *ctx, struct packet *p)
{
	struct flow4 flow = {};
	struct conn4 *c;
	const struct backend *b;
	int reason;

	reason = parse_ipv4(ctx, p, &flow);
	if (reason != GO_ON)
		return finish(refused_ipv4(&flow, reason));

	c = bpf_map_lookup_elem(&conntrack, &flow);
	b = c ? array_at(backends, c->conn.backend) : NULL;
	if (unlikely(!b || !settled(p, &c->conn, b))) {
		reason = track_ipv4(p, &flow, &c);
		if (reason != GO_ON)
			return finish(reason);
		b = array_at(backends, c->conn.backend);
		if (!b)
			return finish(REASON_NO_BACKEND);
	}
	if (unlikely(p->ttl <= 1))
		return finish(REASON_TTL_EXPIRED);
	rewrite_ipv4(p, c);
	return send(p, &c->conn, b);
}

static __always_inline int balance_ipv6(struct xdp_md *ctx, struct packet *p)
{
	struct flow6 flow = {};
	struct conn6 *c;
	const struct backend *b;
	int reason;

	reason = parse_ipv6(ctx, p, &flow);
	if (reason != GO_ON)
		return finish(refused_ipv6(&flow, reason));

	c = bpf_map_lookup_elem(&conntrack6, &flow);
	b = c ? array_at(backends, c->conn.backend) : NULL;
	if (unlikely(!b || !settled(p, &c->conn, b))) {
		reason = track_ipv6(p, &flow, &c);
		if (reason != GO_ON)
			return finish(reason);
		b = array_at(backends, c->conn.backend);
		if (!b)
			return finish(REASON_NO_BACKEND);
	}
	if (unlikely(p->ttl <= 1))
		return finish(REASON_TTL_EXPIRED);
	rewrite_ipv6(p, c);
	return send(p, &c->conn, b);
}

static __always_inline int balance(struct xdp_md *ctx)
{
	struct packet p = {};
	int reason = parse_ethernet(ctx, &p);

	if (reason != GO_ON)
		return finish(reason);
	switch (p.ethertype) {
	case bpf_htons(ETH_P_IP):
		return balance_ipv4(ctx, &p);
	case bpf_htons(ETH_P_IPV6):
		return balance_ipv6(ctx, &p);
	default:
		return finish(REASON_NOT_IP);
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
