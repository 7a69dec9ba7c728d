/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * route.h - how the host's stack would forward a packet, by its own routes and neighbours. Off the
 * established path: connections have their next hops in their entries.
 */
#ifndef XDPLB_ROUTE_H
#define XDPLB_ROUTE_H

#include "packet.h"

#define AF_INET	 2
#define AF_INET6 10

/* For a packet that came in by the one in hand's interface. Gives back a BPF_FIB_LKUP_RET code, or
 * a negative error. */
static __always_inline long find_route(struct xdp_md *ctx, __u8 family, __u8 protocol,
				       const __be32 *saddr, const __be32 *daddr,
				       struct bpf_fib_lookup *route)
{
	route->ifindex = ctx->ingress_ifindex;
	route->l4_protocol = protocol;
	if (family == 4) {
		route->family = AF_INET;
		route->ipv4_src = saddr[3];
		route->ipv4_dst = daddr[3];
	} else {
		route->family = AF_INET6;
		__builtin_memcpy(route->ipv6_src, saddr, sizeof(route->ipv6_src));
		__builtin_memcpy(route->ipv6_dst, daddr, sizeof(route->ipv6_dst));
	}
	return bpf_fib_lookup(ctx, route, sizeof(*route), 0);
}

#endif
