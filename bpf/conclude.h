/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * conclude.h - the end of a packet that is not balanced: an answer to its sender, the host's stack,
 * or nothing.
 *
 * Owns which packets may be left to the stack: none that the stack would send back the way they
 * came.
 */
#ifndef XDPLB_CONCLUDE_H
#define XDPLB_CONCLUDE_H

#include "answer.h"
#include "count.h"
#include "packet.h"
#include "route.h"
#include "track.h"

/* Packets for a VIP that the stack gets. */
static const __u64 leaving_reasons = 1ULL << REASON_UNKNOWN_PORT_PASSED |
				     1ULL << REASON_NO_BACKEND_PASSED |
				     1ULL << REASON_OTHER_PROTOCOL | 1ULL << REASON_ICMP_UNRELATED;

/*
 * A host that does not hold the VIP forwards the packet, and where its route is the one that the
 * packet came by it would be here again at once, until its TTL is used up.
 */
static __noinline int pass_to_host(struct xdp_md *ctx, int reason)
{
	struct work *w = array_at(scratch, 0);
	struct bpf_fib_lookup route = {};
	const struct facts *f;
	long found;

	if (!w)
		return reason;
	f = &w->facts;
	found = find_route(ctx, f->family, f->flow.protocol, f->flow.saddr, f->flow.daddr, &route);
	if ((found == BPF_FIB_LKUP_RET_SUCCESS || found == BPF_FIB_LKUP_RET_NO_NEIGH) &&
	    route.ifindex == f->ingress)
		return REASON_LOOP;
	return reason;
}

/* The packet of `scratch` ends here, for `reason`. Gives back the verdict. Not static: see track().
 */
__noinline int conclude(struct xdp_md *ctx, int reason)
{
	if (reason < 0 || reason >= NR_REASONS)
		return XDP_ABORTED;
	if (is_answer(reason) && reason != REASON_ECHO_ANSWERED)
		reason = make_answer(ctx, reason);
	else if (leaving_reasons >> reason & 1)
		reason = pass_to_host(ctx, reason);
	return finish(ctx->ingress_ifindex, reason);
}

/* Parsing has refused the packet: if it is for a VIP that stands, else it is the stack's. */
__noinline int refuse_packet(struct xdp_md *ctx, int reason)
{
	struct work *w = array_at(scratch, 0);

	return w ? conclude(ctx, refuse(w, reason)) : XDP_ABORTED;
}

#endif
