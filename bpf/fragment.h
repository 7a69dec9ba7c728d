/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fragment.h - later fragments follow their first one: only that has ports.
 *
 * Owns `fragments`. A first fragment that is balanced leaves its ports there, and a later one
 * takes them up as its own. Nothing is held back or put together: a later fragment that comes
 * before its first is dropped.
 */
#ifndef XDPLB_FRAGMENT_H
#define XDPLB_FRAGMENT_H

#include "connection.h"
#include "maps.h"
#include "packet.h"
#include "parse.h"

/* How long the receiver waits for the rest (Linux: ipfrag_time; RFC 8200: 60). */
#define FRAGMENT_SECONDS 30

static __always_inline void fragment_key(const struct flow6 *flow, __be32 id, __u32 protocol,
					 struct fragment_key *key)
{
	copy16(key->saddr, flow->saddr);
	copy16(key->daddr, flow->daddr);
	key->id = id;
	key->protocol = protocol;
}

/* The first fragment's entry, unless it is too old. */
static __always_inline struct fragment *find_fragment(const struct fragment_key *key)
{
	const struct settings *s = array_at(settings, 0);
	struct fragment *found = bpf_map_lookup_elem(&fragments, key);

	if (!found || !s || idle_since(now(), found->since, FRAGMENT_SECONDS * s->hz))
		return NULL;
	return found;
}

/*
 * Remembers the ports of a first fragment, whose headers end at `headers_end` (from where its
 * data begins). Another first fragment of the same packet that says other ports overlaps it:
 * what the receiver makes of the two is anybody's guess (RFC 5722).
 */
static __noinline int remember_fragment(const struct flow6 *flow, __be32 id, __u32 protocol,
					__u32 headers_end)
{
	struct fragment_key key;
	struct fragment value =
				{
					.sport = flow->sport,
					.dport = flow->dport,
					.since = now(),
					.protocol = flow->protocol,
					.headers_end = headers_end,
				},
			*known;

	fragment_key(flow, id, protocol, &key);
	known = find_fragment(&key);
	if (known && (known->sport != value.sport || known->dport != value.dport ||
		      known->protocol != value.protocol))
		return REASON_BAD_FRAGMENT;
	bpf_map_update_elem(&fragments, &key, &value, BPF_ANY);
	return GO_ON;
}

/* Completes the flow of a later fragment, which begins at `offset`, from its first one. */
static __noinline int follow_fragment(struct flow6 *flow, __be32 id, __u32 protocol, __u32 offset)
{
	struct fragment_key key;
	const struct fragment *first;

	fragment_key(flow, id, protocol, &key);
	first = find_fragment(&key);
	if (!first)
		return REASON_UNKNOWN_FRAGMENT;
	if (offset < first->headers_end)
		return REASON_BAD_FRAGMENT;
	flow->sport = first->sport;
	flow->dport = first->dport;
	flow->protocol = first->protocol;
	return GO_ON;
}

/* From the start of the fragment's data to the end of its TCP or UDP header. */
static __always_inline __u32 headers_end(const struct packet *p)
{
	const struct tcphdr *tcp = p->l4;

	return p->fragment_headers +
	       (p->protocol == IPPROTO_TCP ? tcp->doff * 4U : sizeof(struct udphdr));
}

/* A fragment of which parsing said `reason`. */
static __always_inline int fragment_ipv6(struct packet *p, struct flow6 *flow, int reason)
{
	if (reason == GO_ON)
		return remember_fragment(flow, p->fragment_id, 0, headers_end(p));
	if (reason != IS_LATER_FRAGMENT)
		return reason;
	reason = follow_fragment(flow, p->fragment_id, 0, p->fragment_offset);
	p->protocol = flow->protocol;
	return reason;
}

static __always_inline int fragment_ipv4(struct packet *p, struct flow4 *flow, int reason)
{
	struct flow6 wide;

	if (reason != GO_ON && reason != IS_LATER_FRAGMENT)
		return reason;
	widen_flow(flow, &wide);
	if (reason == GO_ON)
		return remember_fragment(&wide, p->fragment_id, p->protocol, headers_end(p));
	reason = follow_fragment(&wide, p->fragment_id, p->protocol, p->fragment_offset);
	flow->sport = wide.sport;
	flow->dport = wide.dport;
	flow->protocol = p->protocol;
	return reason;
}

#endif
