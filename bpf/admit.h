/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * admit.h - the checks that a packet to a VIP has to pass first: the firewall, the service's own
 * prefixes, its source's limits.
 *
 * Owns when each of them is asked. A connection remembers the rules that let it in, and is judged
 * again only when they have changed; limits count every packet.
 */
#ifndef XDPLB_ADMIT_H
#define XDPLB_ADMIT_H

#include "connection.h"
#include "firewall.h"
#include "police.h"
#include "maps.h"
#include "packet.h"
#include "select.h"
#include "work.h"

/* A packet of a connection that the rules in force have let in: counted for its rule, and against
 * its source's limits. Not static: see track(). */
__noinline int meter(__u64 source, __u32 kind, __u32 tcp_flags, __u32 admission, __u32 length)
{
	const struct settings *s = array_at(settings, 0);

	if (!s)
		return GO_ON;
	if (s->firewall)
		count_hit(admission, length);
	return s->policies[kind >> 8 & (NR_CLASSES - 1)] ? police(source, kind, tcp_flags) : GO_ON;
}

/* Whether packets of connections have to be metered at all. */
static __always_inline int is_metered(const struct conn *c)
{
	const struct settings *s = array_at(settings, 0);

	return unlikely(s && s->metered) && !(c->flags & CONN_REPLY);
}

static __always_inline int meter_facts(const struct facts *f)
{
	const struct settings *s = array_at(settings, 0);
	__u32 class = protocol_class(f->flow.protocol);

	if (!s || !s->policies[class])
		return GO_ON;
	return police(f->family == 4 ? source_of4(f->flow.saddr[3]) : source_of6(f->flow.saddr),
		      SOURCE_KIND(f->family, class), f->tcp_flags);
}

/*
 * The packet of `scratch`, for a VIP and the service in w->service; `known`: of the connection in
 * w->own.c. What lets it in is in w->admission afterwards.
 */
static __noinline int admit(struct work *w, int known)
{
	const struct settings *s = array_at(settings, 0);
	const struct facts *f = &w->facts;
	__u64 stamp;
	int reason;

	if (!s)
		return REASON_TABLE_FULL;
	if (known && is_admitted(&w->own.c.conn, s)) {
		w->admission = w->own.c.conn.admission;
		if (s->firewall)
			count_hit(w->admission, f->length);
		return meter_facts(f);
	}
	/* Before the rules are asked: the stamp is theirs, or that of older ones, which has the
	 * connection judged again. One load, so that nothing bears the stamp of rules that it was
	 * not asked for: the low half is the stamp, the high half whether there are any. */
	stamp = READ_ONCE(*(const __u64 *)&s->admission);
	w->admission = stamp;
	if (stamp >> 32) {
		reason = find_verdict();
		if (reason != GO_ON)
			return reason;
	}
	if (!is_allowed(w))
		return REASON_NOT_ALLOWED;
	return meter_facts(f);
}

/* The same for a packet that belongs to no service. */
static __always_inline int admit_stray(struct work *w)
{
	w->service = NO_SERVICE;
	return admit(w, 0);
}

/*
 * A packet that is not balanced, for `reason`. If it is for a VIP that stands, unless it would go
 * to the stack and is not let in; else it is the stack's own.
 */
static __noinline int refuse(struct work *w, int reason)
{
	int denied;

	if (!find_vip(&w->facts.flow))
		return REASON_NOT_OURS;
	if (dropping_reasons >> reason & 1)
		return reason;
	denied = admit_stray(w);
	return denied == GO_ON ? reason : denied;
}

#endif
