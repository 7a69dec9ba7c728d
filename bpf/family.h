/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * family.h - the names by which one text serves both address families.
 *
 * table.h is the connection table, recent.h and balance.h are the established path. They are
 * written once, and included twice: with FAMILY 4 and with FAMILY 6. Here is what differs: the
 * types of keys and entries, the maps, and the suffix of functions. No guard, since it is read once
 * for each family.
 */
#undef NAME
#undef FLOW
#undef CONN
#undef SET
#undef RECORD
#undef PLACE
#undef CLIENT
#undef FLOW_WORDS
#undef RECORD_WORDS
#undef CONNECTIONS
#undef CONNTRACK
#undef PENDING
#undef CLAIMS
#undef CLAIM
#undef HELD
#undef CURRENT
#undef KEY
#undef ASKED
#undef SETS
#undef RECENT
#undef RECENT_BITS
#undef RECENT_SLOT
#undef RECENT_SLOTS

#if FAMILY == 4
#define NAME(function) function##_ipv4
#define FLOW	       struct flow4
#define CONN	       struct conn4
#define SET	       struct set4
#define RECORD	       struct record4
#define PLACE	       struct place4
#define CLIENT	       struct client4
#define FLOW_WORDS     2
#define RECORD_WORDS   8
#define CONNECTIONS    connections
#define CONNTRACK      conntrack
#define PENDING	       pending
#define CLAIMS	       nat_ports
#define CLAIM	       struct claim4
#define HELD	       held4
#define CURRENT	       current4
#define KEY	       look4
#define ASKED	       asked4
#define SETS	       sets4
#define RECENT	       recent
#define RECENT_BITS    9
#define RECENT_SLOT    recent4
#define RECENT_SLOTS   recent4_slots
#elif FAMILY == 6
#define NAME(function) function##_ipv6
#define FLOW	       struct flow6
#define CONN	       struct conn6
#define SET	       struct set6
#define RECORD	       struct record6
#define PLACE	       struct place6
#define CLIENT	       struct client6
#define FLOW_WORDS     5
#define RECORD_WORDS   14 /* but for the padding */
#define CONNECTIONS    connections6
#define CONNTRACK      conntrack6
#define PENDING	       pending6
#define CLAIMS	       nat_ports6
#define CLAIM	       struct claim6
#define HELD	       held6
#define CURRENT	       current6
#define KEY	       look6
#define ASKED	       asked6
#define SETS	       sets6
#define RECENT	       recent6
#define RECENT_BITS    8
#define RECENT_SLOT    recent6
#define RECENT_SLOTS   recent6_slots
#else
#error "define FAMILY as 4 or 6 before"
#endif
