/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * firewall.h - whether a source may send to a VIP: blocklists, then the first rule in file order
 * that matches.
 *
 * Owns the lookup in what src/state/firewall.rs compiles: one of the source's longest prefix, then
 * a binary search in the rules of that prefix and of each shorter one that has any. Asked for the
 * first packet of a flow, for those without one, and once more when the rules have changed.
 */
#ifndef XDPLB_FIREWALL_H
#define XDPLB_FIREWALL_H

#include "count.h"
#include "maps.h"
#include "packet.h"
#include "transport.h"
#include "work.h"

#define RULE_MASK (RULE_LIMIT - 1)
/* A level has at most 2^22 steps. */
#define SEARCH_STEPS 22

static __always_inline void count_hit(__u32 rule, __u32 length)
{
	struct hits *h = array_at(fw_hits, rule & RULE_MASK);

	if (!h)
		return;
	h->packets++;
	h->bytes += length;
}

/* The step at m->at, unless its interval is another; the first that matches ends the walk. */
static long try_step(__u64 index __attribute__((unused)), void *unused __attribute__((unused)))
{
	struct work *w = array_at(scratch, 0);
	const struct fw_step *step;
	struct rule_match *m;

	if (!w)
		return 1;
	m = &w->matched;
	step = array_at(fw_steps, m->at);
	if (!step || step->start != m->start || step->rule == NO_RULE)
		return 1;
	if (m->sport >= step->source_first && m->sport <= step->source_last) {
		if (step->position < m->position || m->rule == NO_RULE) {
			m->position = step->position;
			m->rule = step->rule;
		}
		return 1;
	}
	m->at--;
	return m->at < m->first;
}

/* The last of the level's steps that does not start behind the key: of those of its interval the
 * first in the file. -1 if there is none. */
static __always_inline int find_step(struct rule_match *m, const struct fw_level *level)
{
	__u32 low = level->first, left = level->count;
	const struct fw_step *step;

	for (int i = 0; i < SEARCH_STEPS && left; i++) {
		__u32 half = left / 2;

		step = array_at(fw_steps, low + half);
		if (step && step->start <= m->key) {
			low += half + 1;
			left -= half + 1;
		} else {
			left = half;
		}
	}
	if (low == level->first)
		return -1;
	step = array_at(fw_steps, low - 1);
	if (!step)
		return -1;
	m->at = low - 1;
	m->start = step->start;
	m->first = level->first;
	return 0;
}

static long try_level(__u64 index __attribute__((unused)), void *unused __attribute__((unused)))
{
	struct work *w = array_at(scratch, 0);
	const struct fw_level *level;
	struct rule_match *m;

	if (!w)
		return 1;
	m = &w->matched;
	level = array_at(fw_levels, m->level);
	/* From here on all rules stand behind the one that has been found. */
	if (!level || (m->rule != NO_RULE && level->position > m->position))
		return 1;
	m->level = level->parent;
	if (!find_step(m, level))
		bpf_loop(level->count, try_step, NULL, 0);
	return m->level == NO_LEVEL;
}

/*
 * The rule for the packet of `scratch`, put into w->admission, which says already of which rules.
 * GO_ON, or the reason why the packet is not let in. Not static: see track().
 */
__noinline int find_verdict(void)
{
	struct work *w = array_at(scratch, 0);
	struct fw_prefix_key key = {.prefixlen = 128};
	const struct fw_prefix *prefix;
	const struct facts *f;
	struct rule_match *m;
	__u32 rule;

	if (!w)
		return REASON_TABLE_FULL;
	f = &w->facts;
	m = &w->matched;
	__builtin_memcpy(key.address, f->flow.saddr, sizeof(key.address));
	m->rule = DEFAULT_RULE;
	prefix = bpf_map_lookup_elem(&fw_prefixes, &key);
	if (prefix && prefix->level == NO_LEVEL) {
		count_hit(prefix->blocklist, f->length);
		m->rule = prefix->blocklist;
		return REASON_BLOCKLISTED;
	}
	if (prefix) {
		m->rule = NO_RULE;
		m->position = ~0U;
		m->level = prefix->level;
		m->key = f->flow.protocol << 16;
		m->sport = 0;
		if (has_ports(f->flow.protocol)) {
			m->key |= bpf_ntohs(f->flow.dport);
			m->sport = bpf_ntohs(f->flow.sport);
		}
		bpf_loop(LEVEL_LIMIT, try_level, NULL, 0);
		if (m->rule == NO_RULE)
			m->rule = DEFAULT_RULE;
	}
	rule = m->rule;
	/* A default of "deny" is not meant for packets that connections depend on. */
	if (f->spared && rule == (DEFAULT_RULE | RULE_DENIES))
		return GO_ON;
	count_hit(rule, f->length);
	w->admission = (w->admission & ~RULE_MASK) | (rule & RULE_MASK);
	return rule & RULE_DENIES ? REASON_FIREWALL : GO_ON;
}

/* Whether the source in `scratch` may reach the service. */
static __noinline int is_allowed(const struct work *w)
{
	struct allowed_key key = {.prefixlen = 32 + 128, .service = w->service};
	const struct service *s = array_at(services, w->service);

	if (!s || !s->restricted)
		return 1;
	__builtin_memcpy(key.address, w->facts.flow.saddr, sizeof(key.address));
	return !!bpf_map_lookup_elem(&allowed_sources, &key);
}

#endif
