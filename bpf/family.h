/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * family.h - the names by which one text serves both address families.
 *
 * recent.h and balance.h are the established path. They are written once, and included twice: with
 * FAMILY 4 and with FAMILY 6. Here is what differs: the types of keys and entries, the maps, and
 * the suffix of functions. No guard, since it is read once for each family.
 */
#undef NAME
#undef FLOW
#undef CONN
#undef ENTRY
#undef FLOW_WORDS
#undef CONNTRACK
#undef OPENING
#undef RECENT
#undef RECENT_BITS
#undef RECENT_SLOT
#undef RECENT_SLOTS

#if FAMILY == 4
#define NAME(function) function##_ipv4
#define FLOW	       struct flow4
#define CONN	       struct conn4
#define ENTRY	       struct entry4
#define FLOW_WORDS     2
#define CONNTRACK      conntrack
#define OPENING	       opening
#define RECENT	       recent
#define RECENT_BITS    9
#define RECENT_SLOT    recent4
#define RECENT_SLOTS   recent4_slots
#elif FAMILY == 6
#define NAME(function) function##_ipv6
#define FLOW	       struct flow6
#define CONN	       struct conn6
#define ENTRY	       struct entry6
#define FLOW_WORDS     5
#define CONNTRACK      conntrack6
#define OPENING	       opening6
#define RECENT	       recent6
#define RECENT_BITS    8
#define RECENT_SLOT    recent6
#define RECENT_SLOTS   recent6_slots
#else
#error "define FAMILY as 4 or 6 before"
#endif
