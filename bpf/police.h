/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * police.h - how many packets a source may send: the [[dos]] policies.
 *
 * Owns `dos_sources` and the token buckets in it. A source is an IPv4 address, or an IPv6 /64:
 * a host with one address there can use them all. No locks: packets that two CPUs count for a
 * source at the same time may count as one, and a source that two CPUs enter at once may begin
 * again.
 */
#ifndef XDPLB_POLICE_H
#define XDPLB_POLICE_H

#include "maps.h"
#include "packet.h"

/* How often a packet tries to take its token while other CPUs take theirs. */
#define TOKEN_TRIES 4

/* The two bytes after dos_source.source. */
#define SOURCE_KIND(family, class) ((family) | (class) << 8)

static __always_inline __u64 source_of4(__be32 address)
{
	return address;
}

static __always_inline __u64 source_of6(const __be32 *address)
{
	return address[0] | (__u64)address[1] << 32;
}

static __always_inline __u64 source_of_ipv4(const struct flow4 *flow)
{
	return source_of4(flow->saddr);
}

static __always_inline __u64 source_of_ipv6(const struct flow6 *flow)
{
	return source_of6(flow->saddr);
}

/* Unforeseeable, or sources could be made to push each other out. */
static __always_inline struct dos_set *source_set(__u64 source, __u32 kind,
						  const struct settings *s)
{
	__u64 hash = (source ^ s->nat_secret) * 0x9e3779b97f4a7c15ULL;

	hash = (hash ^ hash >> 32 ^ kind) * 0xc2b2ae3d27d4eb4fULL;
	return array_at(dos_sources, (hash >> 32) * s->source_sets >> 32);
}

static __always_inline int is_source(const struct dos_source *way, __u64 source, __u32 kind)
{
	return *(const __u64 *)way->source == source && *(const __u16 *)&way->family == kind;
}

/* The gain of the source if it were forgotten: the end of its block, or when it last sent too
 * much if that is no longer ago than a second. */
static __always_inline __u64 penalty_end(const struct dos_source *way, __u64 time,
					 const struct settings *s)
{
	return way->blocked_until + s->hz > time ? way->blocked_until : 0;
}

/* Whether `way` rather makes room than `other`: one that is free before one in use, one that loses
 * nothing by it before one that is held, the one seen longest ago before the others. */
static __always_inline int is_older(const struct dos_source *way, const struct dos_source *other,
				    __u64 time, const struct settings *s)
{
	__u64 until = penalty_end(way, time, s), other_until = penalty_end(other, time, s);

	if (!way->family || !other->family)
		return !way->family;
	if (until != other_until)
		return until < other_until;
	return (__u32)time - way->last_seen > (__u32)time - other->last_seen;
}

/* Puts a source that has not been seen into the set, with all its buckets full. */
static __noinline struct dos_source *add_source(struct dos_set *set, __u64 source, __u32 kind)
{
	const struct settings *s = array_at(settings, 0);
	struct dos_source *way;
	__u64 time = bpf_jiffies64();
	__u32 oldest = 0;

	if (!set || !s)
		return NULL;
	for (__u32 i = 1; i < SOURCE_WAYS; i++)
		if (is_older(&set->ways[i], &set->ways[oldest & (SOURCE_WAYS - 1)], time, s))
			oldest = i;
	way = &set->ways[oldest & (SOURCE_WAYS - 1)];
	way->blocked_until = 0;
	for (int i = 0; i < POLICY_LIMIT; i++)
		way->due[i] = 0;
	way->last_seen = time;
	*(__u64 *)way->source = source;
	*(__u16 *)&way->family = kind;
	return way;
}

/* One packet's share: 0, or -1 if it is more than the policy allows. */
static __always_inline int take_token(__u64 *due, const struct dos_policy *policy, __u64 time)
{
	__u64 ticks = time << TICK_SHIFT;

	for (int i = 0; i < TOKEN_TRIES; i++) {
		__u64 was = READ_ONCE(*due);
		__u64 next = (was > ticks ? was : ticks) + policy->interval;

		if (next - ticks > policy->tolerance)
			return -1;
		if (__sync_val_compare_and_swap(due, was, next) == was)
			return 0;
	}
	return 0;
}

static __always_inline int over_limit(struct dos_source *way, __u32 index, __u32 slot, __u64 time)
{
	const struct dos_policy *policy = array_at(dos_policies, index);
	struct policy_hits *hits = array_at(dos_hits, index);

	if (!policy || !hits)
		return GO_ON;
	hits->dropped++;
	way->policy = slot;
	if (!policy->block_for) {
		if (way->blocked_until < time)
			way->blocked_until = time;
		return REASON_RATE_LIMITED;
	}
	way->due[slot & (POLICY_LIMIT - 1)] = 0;
	WRITE_ONCE(way->blocked_until, time + policy->block_for);
	hits->blocked++;
	return REASON_SOURCE_BLOCKED;
}

static __always_inline int still_blocked(const struct dos_source *way, __u32 class)
{
	struct policy_hits *hits = array_at(dos_hits, POLICY_LIMIT * class + way->policy);

	if (hits)
		hits->dropped++;
	return REASON_SOURCE_BLOCKED;
}

/*
 * Counts a packet of the source, whose `kind` is SOURCE_KIND(), against every policy of its
 * protocol. GO_ON, or the reason why it is too much. Not static: see track().
 */
__noinline int police(__u64 source, __u32 kind, __u32 tcp_flags)
{
	const struct settings *s = array_at(settings, 0);
	__u32 class = kind >> 8 & (NR_CLASSES - 1), policies;
	struct dos_source *way = NULL;
	struct dos_set *set;
	__u64 time;

	if (!s)
		return GO_ON;
	set = source_set(source, kind, s);
	if (!set)
		return GO_ON;
	time = bpf_jiffies64();
	for (int i = 0; i < SOURCE_WAYS; i++) {
		if (is_source(&set->ways[i], source, kind)) {
			way = &set->ways[i];
			break;
		}
	}
	if (likely(way)) {
		if (unlikely(time < READ_ONCE(way->blocked_until)))
			return still_blocked(way, class);
		if (way->last_seen != (__u32)time)
			way->last_seen = time;
	} else {
		way = add_source(set, source, kind);
		if (!way)
			return GO_ON;
	}
	policies = s->policies[class];
	for (__u32 i = 0; i < POLICY_LIMIT && policies >> i; i++) {
		__u32 index = POLICY_LIMIT * class + i;
		const struct dos_policy *policy = array_at(dos_policies, index);

		if (!policy || !(policies >> i & 1) ||
		    (tcp_flags & policy->flags_mask) != policy->flags)
			continue;
		if (unlikely(take_token(&way->due[i], policy, time)))
			return over_limit(way, index, i, time);
	}
	return GO_ON;
}

#endif
