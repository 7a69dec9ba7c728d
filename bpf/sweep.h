/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * sweep.h - programs that the user side's sweep runs to delete what it cannot reach through memory:
 * a connection in conntrack, a claim.
 *
 * Own the last look before a deletion. The sweep has read the tables a while ago, packets may have
 * changed them since, and a map deletes by key, whatever lies there by then. So what is to go is
 * marked first, by compare-and-swap: a connection's way as busy, a claim as released. Nothing here
 * uses `scratch`, which a packet may write at any moment.
 */
#ifndef XDPLB_SWEEP_H
#define XDPLB_SWEEP_H

#include "claim.h"
#include "connection.h"
#include "maps.h"
#include "table.h"

/* Takes out a connection whose word is as the sweep saw it. */
SEC("syscall")
int remove_spilled(struct spilled_removal *r)
{
	struct client4 narrow = {};
	struct client6 client = {};
	struct place4 *place4;
	struct place6 *place6;
	__u64 was = r->way;

	copy16(client.address, r->client.address);
	client.port = r->client.port;
	client.protocol = r->client.protocol;
	client.index = r->client.index;
	if (r->family == 4) {
		narrow.address = client.address[3];
		narrow.port = client.port;
		narrow.protocol = client.protocol;
		narrow.index = client.index;
		place4 = bpf_map_lookup_elem(&conntrack, &narrow);
		if (!place4 ||
		    __sync_val_compare_and_swap(&place4->way, was, was | WAY_BUSY_BIT) != was)
			return 0;
		r->removed = !bpf_map_delete_elem(&conntrack, &narrow);
		return 0;
	}
	place6 = bpf_map_lookup_elem(&conntrack6, &client);
	if (!place6 || __sync_val_compare_and_swap(&place6->way, was, was | WAY_BUSY_BIT) != was)
		return 0;
	r->removed = !bpf_map_delete_elem(&conntrack6, &client);
	return 0;
}

/* Takes out a claim that is as the sweep saw it: a client that has come back since has renewed it.
 */
SEC("syscall")
int remove_claim(struct claim_removal *r)
{
	struct flow6 reply;
	__u8 family = r->family;
	__u64 *status;

	copy16(reply.saddr, r->reply.saddr);
	copy16(reply.daddr, r->reply.daddr);
	*(__u64 *)&reply.sport = *(__u64 *)&r->reply.sport;
	status = find_claim(family, &reply);
	if (!status || READ_ONCE(*status) != r->status)
		return 0;
	r->removed = !release_claim(family, &reply, status, r->status);
	return 0;
}

#endif
