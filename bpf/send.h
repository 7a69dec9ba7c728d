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

/* Destination and source address in twelve bytes: an eight-byte and a four-byte store. */
static __always_inline void write_macs(void *frame, __u64 destination, __u64 source)
{
	*(__u64 *)frame = (destination & MAC_BITS) | source << 48;
	*(__u32 *)(frame + 8) = source >> 16;
}

static __always_inline int send(struct packet *p, const struct conn *c, const struct backend *b)
{
	/* One load, so that address and interface belong together. */
	const struct hop *hop = c->flags & CONN_REPLY ? &c->hop : &b->hop;
	__u64 word = READ_ONCE(*(const __u64 *)hop);
	__u32 port = word >> 48;
	struct interface *out = array_at(interfaces, port);

	if (!out || !out->ifindex)
		return finish(REASON_NO_INTERFACE);
	write_macs(p->data, word, READ_ONCE(*(const __u64 *)out->mac));
	if (out->ifindex != p->ingress) {
		/* The kernel takes an interface out of the map when it goes, sooner than we do. */
		if (unlikely(bpf_redirect_map(&tx_ports, port, XDP_DROP) != XDP_REDIRECT))
			return finish(REASON_NO_INTERFACE);
		count_forwarded(p, c);
		return XDP_REDIRECT;
	}
	count_forwarded(p, c);
	return XDP_TX;
}

#endif
