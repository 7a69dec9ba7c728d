/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * send.h - the next hop, whether the packet fits there, its MAC addresses, and out: back through
 * the same interface, or through the devmap.
 */
#ifndef XDPLB_SEND_H
#define XDPLB_SEND_H

#include "connection.h"
#include "count.h"
#include "maps.h"
#include "packet.h"

/* Destination and source address in twelve bytes: an eight-byte and a four-byte store. */
static __always_inline void write_macs(void *frame, __u64 destination, __u64 source)
{
	*(__u64 *)frame = (destination & MAC_BITS) | source << 48;
	*(__u32 *)(frame + 8) = source >> 16;
}

/* The interface that the packet leaves by, NULL if there is none, and its next hop in *hop. */
static __always_inline const struct interface *next_hop(const struct conn *c,
							const struct backend *b, __u64 *hop)
{
	const struct interface *out;

	/* One load, so that address and interface belong together. */
	*hop = READ_ONCE(*(const __u64 *)(c->flags & CONN_REPLY ? &c->hop : &b->hop));
	out = array_at(interfaces, *hop >> 48);
	return out && out->ifindex ? out : NULL;
}

/* Why there is none. */
static __always_inline int no_next_hop(__u64 hop)
{
	return hop >> 48 == NO_SLOT ? REASON_UNRESOLVED : REASON_NO_INTERFACE;
}

static __always_inline int transmit(struct packet *p, const struct conn *c,
				    const struct interface *out, __u64 hop)
{
	write_macs(p->data, hop, READ_ONCE(*(const __u64 *)out->mac));
	if (out->ifindex != p->ingress) {
		/* The kernel takes an interface out of the map when it goes, sooner than we do. */
		if (unlikely(bpf_redirect_map(&tx_ports, hop >> 48, XDP_DROP) != XDP_REDIRECT))
			return finish(p->ingress, REASON_NO_INTERFACE);
		count_forwarded(p, c);
		return XDP_REDIRECT;
	}
	count_forwarded(p, c);
	return XDP_TX;
}

#endif
