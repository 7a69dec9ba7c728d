/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * send.h - the next hop's MAC addresses, and out: back through the same interface, or
 * through the devmap.
 */
#ifndef XDPLB_SEND_H
#define XDPLB_SEND_H

#include "count.h"
#include "maps.h"
#include "packet.h"

/* One load, so that address and interface belong together. */
static __always_inline struct hop read_hop(const struct hop *hop)
{
	__u64 word = READ_ONCE(*(const __u64 *)hop);
	struct hop copy;

	__builtin_memcpy(&copy, &word, sizeof(copy));
	return copy;
}

static __always_inline int send(struct packet *p, const struct conn *c, const struct backend *b)
{
	struct hop hop = read_hop(c->flags & CONN_REPLY ? &c->hop : &b->hop);
	struct interface *out = array_at(interfaces, hop.port);
	struct ethhdr *eth = p->data;

	if (!out || !out->ifindex)
		return finish(REASON_NO_INTERFACE);
	__builtin_memcpy(eth->h_dest, hop.mac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, out->mac, ETH_ALEN);
	count_forwarded(p, c);
	if (out->ifindex == p->ingress)
		return XDP_TX;
	return bpf_redirect_map(&tx_ports, hop.port, XDP_DROP);
}

#endif
