/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * allowance.h - a limit of so many events a second, kept by each CPU for itself.
 */
#ifndef XDPLB_ALLOWANCE_H
#define XDPLB_ALLOWANCE_H

#include "maps.h"

/* Whether one of those of this second is left. */
static __always_inline int has_left(struct allowance *a, __u32 a_second)
{
	const struct settings *s = array_at(settings, 0);
	__u64 time = bpf_jiffies64();

	if (!a || !s)
		return 0;
	if (time - a->refilled >= s->hz) {
		a->refilled = time;
		a->tokens = a_second;
	}
	return !!a->tokens;
}

/* Takes it. */
static __always_inline int spend(struct allowance *a, __u32 a_second)
{
	if (!has_left(a, a_second))
		return 0;
	a->tokens--;
	return 1;
}

#endif
