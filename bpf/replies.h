/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * replies.h - whose packets can be replies: the addresses and ports that connections have been sent
 * to. Whatever else backends send through here, to update themselves or to ask for a name, is told
 * from that by one bit.
 *
 * Owns `reply_sources`. A bit is set before the first packet of a connection leaves, and stays:
 * like `filter`, the map may be wrong in the safe direction only.
 */
#ifndef XDPLB_REPLIES_H
#define XDPLB_REPLIES_H

#include "maps.h"
#include "packet.h"
#include "parse.h"

/* One bit for each hashed address, port and protocol. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct filter);
} reply_sources SEC(".maps");

/* By a hash each of the source's address and of its port and protocol. */
static __always_inline __u32 reply_source_bit(__u32 address, __be16 port, __u32 protocol)
{
	return (address * 0x9E3779B1U ^ (port | protocol << 16) * 0x85EBCA6BU) >> 16;
}

/* An address as one word: an IPv4 address stands for itself, as in the address filter. */
static __always_inline __u32 reply_word(const __be32 *address)
{
	if (address[0] | address[1] || address[2] != bpf_htonl(0xffff))
		return filter_word6((const struct in6_addr *)address);
	return address[3];
}

/* False only if no connection has been sent to where the packet comes from. */
static __always_inline int may_reply(__u32 address, __be16 port, __u32 protocol)
{
	const struct filter *f = array_at(reply_sources, 0);
	__u32 bit = reply_source_bit(address, port, protocol);

	return !f || READ_ONCE(f->words[bit >> 6]) >> (bit & 63) & 1;
}

static __always_inline int can_be_reply(const struct flow6 *flow)
{
	return may_reply(reply_word(flow->saddr), flow->sport, flow->protocol);
}

/* From now on, packets from the source of `reply` can be replies. */
static __always_inline void expect_replies(const struct flow6 *reply)
{
	struct filter *f = array_at(reply_sources, 0);
	__u32 bit = reply_source_bit(reply_word(reply->saddr), reply->sport, reply->protocol);
	__u64 mask = 1ULL << (bit & 63);

	/* Written once: all CPUs read it. */
	if (f && !(READ_ONCE(f->words[bit >> 6]) & mask))
		__sync_fetch_and_or(&f->words[bit >> 6], mask);
}

#endif
