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
#include "work.h"

/* How long the receiver waits for the rest (Linux: ipfrag_time; RFC 8200: 60). */
#define FRAGMENT_SECONDS 30

static __always_inline void fragment_key(const struct facts *f, struct fragment_key *key)
{
	copy16(key->saddr, f->flow.saddr);
	copy16(key->daddr, f->flow.daddr);
	key->id = f->fragment_id;
	key->protocol = f->family == 4 ? f->flow.protocol : 0;
}

/* The first fragment's entry, unless it is too old. */
static __always_inline struct fragment *find_fragment(const struct fragment_key *key, __u64 time)
{
	const struct settings *s = array_at(settings, 0);
	struct fragment *found = bpf_map_lookup_elem(&fragments, key);

	/* Signed, since another CPU may have written a later time. */
	if (!found || !s || (__s64)(time - found->since) > FRAGMENT_SECONDS * (__s64)s->hz)
		return NULL;
	return found;
}

/*
 * Remembers the ports of a first fragment. Another first fragment of the same packet that says
 * other ports overlaps it: what the receiver makes of the two is anybody's guess (RFC 5722).
 */
static __noinline int remember_fragment(const struct facts *f)
{
	struct fragment_key key;
	struct fragment value = {};
	const struct fragment *known;

	value.sport = f->flow.sport;
	value.dport = f->flow.dport;
	value.since = bpf_jiffies64();
	value.protocol = f->flow.protocol;
	value.headers_end = f->headers_end;
	fragment_key(f, &key);
	known = find_fragment(&key, value.since);
	if (known && (known->sport != value.sport || known->dport != value.dport ||
		      known->protocol != value.protocol))
		return REASON_BAD_FRAGMENT;
	bpf_map_update_elem(&fragments, &key, &value, BPF_ANY);
	return GO_ON;
}

/*
 * Completes the flow of a later fragment from its first one. While that is not known, all there is
 * to go by is what the fragment itself says of its protocol, which in IPv6 may be an extension
 * header's number.
 */
static __noinline int follow_fragment(struct facts *f)
{
	struct fragment_key key;
	const struct fragment *first;
	__u32 protocol = f->flow.protocol;

	fragment_key(f, &key);
	first = find_fragment(&key, bpf_jiffies64());
	if (!first)
		return may_be_balanced(protocol) || (f->family == 6 && is_extension(protocol))
			       ? REASON_UNKNOWN_FRAGMENT
			       : REASON_OTHER_PROTOCOL;
	if (f->fragment_offset < first->headers_end)
		return REASON_BAD_FRAGMENT;
	f->flow.sport = first->sport;
	f->flow.dport = first->dport;
	f->flow.protocol = first->protocol;
	return GO_ON;
}

#endif
