/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * set.h - the connection table: sets of seven ways and their records, and what is outside of them.
 * Included once for each family; see family.h.
 *
 * Owns where a connection stands, and that no packet meets a half of one. A way's word says what
 * its record is: whoever takes or frees the way changes the word first, by compare-and-swap, and
 * the way belongs to nobody while WAY_BUSY is set. A reader copies the record and then looks at
 * the word again. Compare-and-swap and exchange order memory fully; the reader's second look has
 * an address that depends on all that it has read, which every CPU that Linux runs on keeps in
 * order.
 *
 * A field that is written beside the word is written while the way is busy, but for the sequence
 * numbers, which are a guess. So nobody writes to another connection's record.
 */
#ifndef XDPLB_SET_H
#define XDPLB_SET_H

#include "connection.h"
#include "count.h"
#include "maps.h"
#include "packet.h"
#include "parse.h"
#include "replies.h"
#include "work.h"
#include "xxhash.h"

#define WAY_BUSY_BIT	 (1ULL << WAY_BUSY)
#define WAY_PROVEN_BIT	 (1ULL << WAY_PROVEN)
#define WAY_TAG_MASK	 (((1ULL << WAY_TAG_BITS) - 1) << WAY_TAG)
#define WAY_VERSION_MASK ((1ULL << WAY_AGE) - (1ULL << WAY_VERSION))
/* A way in which these are the same is the same connection's. */
#define WAY_IDENTITY (WAY_TAG_MASK | WAY_VERSION_MASK | WAY_BUSY_BIT)

/* How often a new connection looks for a way while others take theirs. */
#define ENTER_TRIES 3
/* How often a packet waits for a way that another CPU writes: some ten nanoseconds each. */
#define BUSY_TRIES 8

/* From the one that gives way first. */
enum rank {
	RANK_FREE,
	RANK_IDLE,	/* for too long */
	RANK_HALF_OPEN, /* not proven */
	RANK_OVER,	/* late segments may still come */
	RANK_LIVE,	/* moves to conntrack */
	RANK_BUSY,	/* does not */
};

/* The end of a new connection's search for a way. */
enum entered {
	HAS_ENTERED,
	IS_FULL,   /* of live connections */
	IS_TAKEN,  /* another CPU is entering it */
	IS_OUTRUN, /* another CPU has taken the way */
};

/* The pointer, computed from a value so that no CPU reads there before it has the value. */
#define after(pointer, value)                                                                      \
	({                                                                                         \
		__u64 __zero = (value);                                                            \
		asm volatile("%0 &= 0" : "+r"(__zero));                                            \
		(typeof(pointer))((void *)(long)(pointer) + __zero);                               \
	})

static __always_inline __u32 way_state(__u64 word)
{
	return word & ((1 << WAY_STATE_BITS) - 1);
}

static __always_inline __u32 way_last_seen(__u64 word)
{
	return word >> WAY_AGE;
}

/* As in struct conn. */
static __always_inline __u32 way_status(__u64 word, __u32 forward, __u32 reply)
{
	__u32 flags = word >> WAY_FLAGS & 0xf, doubt = word >> WAY_DOUBT & 0xf;

	return make_status(way_state(word), flags << 1 | (reply ? CONN_REPLY : 0), forward, doubt);
}

/* The word with another status and age; what it is of stays. */
static __always_inline __u64 way_with(__u64 word, __u32 status, __u32 time)
{
	__u32 state = status & ((1 << WAY_STATE_BITS) - 1), flags = status >> 9 & 0xf;
	__u32 doubt = status >> 24 & 0xf;

	return (word & (WAY_TAG_MASK | WAY_VERSION_MASK | WAY_PROVEN_BIT)) |
	       (__u64)time << WAY_AGE | state | flags << WAY_FLAGS | doubt << WAY_DOUBT;
}

static __always_inline __u64 next_version(__u64 word)
{
	return (word + (1ULL << WAY_VERSION)) & WAY_VERSION_MASK;
}

static __always_inline __u64 hash_tag(__u64 hash)
{
	return (hash & ((1 << WAY_TAG_BITS) - 1)) << WAY_TAG;
}

static __always_inline __u32 hash_slot(__u64 hash, __u32 slots)
{
	return (hash >> 32) * slots >> 32;
}

/* The bit of set4.spilled for a connection in conntrack, by its tag and the index in its key. */
static __always_inline __u32 spill_bit(__u64 tag, __u32 index)
{
	__u32 spread = ((tag >> WAY_TAG) + index * 1021) & ((1 << WAY_TAG_BITS) - 1);

	return spread * SPILL_BITS >> WAY_TAG_BITS;
}

/*
 * A way's place in the order in which ways make room: the rank, then the time that it has not been
 * idle. Not static: the verifier would follow each of its outcomes through seven ways.
 */
__noinline __u64 way_order(__u64 word, __u32 time)
{
	const struct settings *s = array_at(settings, 0);
	__u32 state = way_state(word), rank = RANK_LIVE;
	__s32 idle = time - way_last_seen(word);

	if (!s || word & WAY_BUSY_BIT)
		rank = RANK_BUSY;
	else if (state == CONN_FREE)
		rank = RANK_FREE;
	else if (idle > (__s32)s->timeout[state])
		rank = RANK_IDLE;
	else if (!(word & WAY_PROVEN_BIT))
		rank = RANK_HALF_OPEN;
	else if (is_over(state))
		rank = RANK_OVER;
	if (idle < 0)
		idle = 0;
	/* One that is free has no age. */
	if (rank == RANK_FREE)
		return 0;
	return (__u64)rank << 40 | (__u64)(0x7fffffff - idle) << 8;
}

/* Which way makes room, and the rank that it has, above it. */
static __always_inline __u32 choose_way(const __u64 *way, __u32 time)
{
	__s64 best = (__s64)RANK_BUSY << 41;

	/* The smallest, without a branch: the verifier would follow both. */
	for (__u32 i = 0; i < SET_WAYS; i++) {
		__s64 less = (way_order(READ_ONCE(way[i]), time) | i) - best;

		best += less & less >> 63;
	}
	return (best >> 40) << 8 | (best & 0xf);
}

/* A connection ends since another takes its way. */
static __always_inline void count_way_closed(__u64 word, const struct session *session)
{
	if (way_state(word) != CONN_FREE && !is_over(way_state(word)))
		count_closed(session->backend, session->generation);
}

/* What a packet changes of a connection's record, beside the word of its way. */
static __always_inline void write_session(struct session *session, const struct work *w)
{
	const struct conn *c = &w->own.c.conn;

	WRITE_ONCE(*(__u64 *)&session->hop, *(const __u64 *)&c->hop);
	session->admission = c->admission;
}

static __always_inline int swap_way(__u64 *way, struct session *session, const struct work *w,
				    __u64 next, int relinks)
{
	__u64 was = w->at.word;

	if (w->at.reply)
		session->number[1] = w->own.number;
	else
		session->number[0] = w->own.number;
	if (!relinks)
		return __sync_val_compare_and_swap(way, was, next) == was;
	if (__sync_val_compare_and_swap(way, was, was | WAY_BUSY_BIT) != was)
		return 0;
	write_session(session, w);
	__sync_lock_test_and_set(way, next);
	return 1;
}

#endif

#include "family.h"

static __always_inline __u64 NAME(hash_client)(const void *address, __be16 port, __u32 protocol,
					       __u64 secret)
{
#if FAMILY == 4
	__u64 word = *(const __be32 *)address | (__u64)port << 32 | (__u64)protocol << 48;

	return xxh64_avalanche(word ^ secret);
#else
	const __u64 *words = address;
	__u64 hash = xxh64_avalanche(words[0] ^ secret);

	hash = xxh64_avalanche(hash ^ words[1]);
	return xxh64_avalanche(hash ^ (port | protocol << 16));
#endif
}

/* By the client's end of a packet: its source, or that of the reply it is, its destination. */
static __always_inline __u64 NAME(hash_flow)(const FLOW *flow, __u32 reply,
					     const struct settings *s)
{
	if (reply)
		return NAME(hash_client)(&flow->daddr, flow->dport, flow->protocol, s->nat_secret);
	return NAME(hash_client)(&flow->saddr, flow->sport, flow->protocol, s->nat_secret);
}

/* Whether the record is that of the flow, from its client or from its backend. */
static __always_inline int NAME(is_of)(const RECORD *r, const FLOW *flow, __u32 reply)
{
	const __u64 *words = (const __u64 *)flow;
	const __u64 *of = (const __u64 *)(reply ? (const void *)&r->backend : &r->flow);
	__u64 difference = 0;

	for (int i = 0; i < FLOW_WORDS - 1; i++)
		difference |= of[i] ^ words[i];
	if (!reply)
		return !(difference | (of[FLOW_WORDS - 1] ^ words[FLOW_WORDS - 1]));
	return !(difference | ((__u32)of[FLOW_WORDS - 1] ^ (__u32)words[FLOW_WORDS - 1]) |
		 (r->flow.protocol ^ flow->protocol));
}

/* Copies the record of a way out, if it is that of the flow in w->KEY and direction in w->at: into
 * w->HELD, and its word as it is now into w->at. */
static __always_inline int NAME(take)(struct work *w, const __u64 *way, const RECORD *r, __u64 word)
{
	const __u64 *from = (const __u64 *)r;
	__u64 *to = (__u64 *)&w->HELD;
	__u64 seen = 0, again;

	for (int i = 0; i < RECORD_WORDS; i++) {
		to[i] = READ_ONCE(from[i]);
		seen |= to[i];
	}
	again = READ_ONCE(*after(way, seen));
	if ((again ^ word) & WAY_IDENTITY || way_state(again) == CONN_FREE ||
	    !NAME(is_of)(&w->HELD, &w->KEY, w->at.reply))
		return 0;
	w->at.word = again;
	return 1;
}

/* The key in conntrack of the connection in w->HELD or of a flow's client. */
static __always_inline CLIENT *NAME(client_key)(struct work *w, const void *address, __be16 port,
						__u8 protocol, __u8 index)
{
#if FAMILY == 4
	CLIENT *key = &w->key4;

	key->address = *(const __be32 *)address;
#else
	CLIENT *key = &w->key6;

	copy16(key->address, address);
#endif
	key->port = port;
	key->protocol = protocol;
	key->index = index;
	return key;
}

/* Looks among the connections in conntrack that the set's bits promise. Not static: see track(). */
__noinline int NAME(look_in_conntrack)(void)
{
	struct work *w = array_at(scratch, 0);

	if (!w)
		return 0;
	for (__u32 i = 0; i < SPILL_INDICES; i++) {
		const FLOW *flow = &w->KEY;
		const CLIENT *key;
		const PLACE *place;
		__u64 word;

		if (!(w->spilled >> spill_bit(w->tag, i) & 1))
			continue;
		key = w->at.reply
			      ? NAME(client_key)(w, &flow->daddr, flow->dport, flow->protocol, i)
			      : NAME(client_key)(w, &flow->saddr, flow->sport, flow->protocol, i);
		place = bpf_map_lookup_elem(&CONNTRACK, key);
		if (!place)
			continue;
		word = READ_ONCE(place->way);
		if (word & WAY_BUSY_BIT || !NAME(take)(w, &place->way, &place->record, word))
			continue;
		/* The LRU gives an element to another at once, without a word. */
		if (bpf_map_lookup_elem(&CONNTRACK, key) != place)
			continue;
		w->at.where = IN_CONNTRACK;
		w->at.way = i;
		return 1;
	}
	return 0;
}

/* Looks in the set, and says in w->tag and w->spilled what it says of conntrack. Not static: see
 * track(). */
__noinline int NAME(look_in_set)(__u32 reply)
{
	/* One key for both: the frame is one of the deepest. */
	__u32 first = 0;
	const struct settings *s = bpf_map_lookup_elem(&settings, &first);
	struct work *w = bpf_map_lookup_elem(&scratch, &first);
	__u64 hash;
	SET *set;

	if (!s || !w)
		return 0;
	hash = NAME(hash_flow)(&w->KEY, reply, s);
	w->tag = hash_tag(hash);
	w->at.set = hash_slot(hash, s->SETS);
	w->at.reply = reply;
	w->spilled = 0;
	set = array_at(CONNECTIONS, w->at.set);
	if (!set)
		return 0;
	for (__u32 i = 0; i < SET_WAYS; i++) {
		__u64 word = READ_ONCE(set->way[i]);

		w->spilled |= word;
		if ((word ^ w->tag) & WAY_TAG_MASK)
			continue;
		/* Another CPU is just writing what may be it. */
		for (int j = 0; j < BUSY_TRIES && word & WAY_BUSY_BIT; j++)
			word = READ_ONCE(set->way[i]);
		if (!(word & WAY_BUSY_BIT) && way_state(word) != CONN_FREE &&
		    NAME(take)(w, &set->way[i], &set->record[i], word)) {
			w->at.where = IN_SET;
			w->at.way = i;
			return 1;
		}
	}
	/* After the ways: what has left one for conntrack has said so before. */
	w->spilled = READ_ONCE(*after(&set->spilled, w->spilled)) << (64 - SPILL_BITS) >>
		     (64 - SPILL_BITS);
	return 0;
}

/*
 * The connection of a packet of the flow in w->KEY, which comes from its client, or is a reply that
 * goes to the client's own address and port: in w->HELD and w->at. 0 if there is none.
 */
static __always_inline int NAME(look)(struct work *w, __u32 reply)
{
	int found = NAME(look_in_set)(reply);

	return !found && unlikely(w->spilled) ? NAME(look_in_conntrack)() : found;
}

/* The connection in w->HELD as the direction in w->at sees it. */
static __always_inline void NAME(show)(const struct work *w, CONN *c)
{
	const RECORD *r = &w->HELD;
	const struct session *session = &r->session;
	const struct interface *in = array_at(interfaces, session->hop.slot);

	c->conn.backend = session->backend;
	c->conn.generation = session->generation;
	c->conn.last_seen = way_last_seen(w->at.word);
	c->conn.ingress = in ? in->ifindex : 0;
	*(__u64 *)&c->conn.hop = *(const __u64 *)&session->hop;
	c->conn.admission = session->admission;
	*status_word(&c->conn) = way_status(w->at.word, session->forward, w->at.reply);
	if (w->at.reply) {
		__builtin_memcpy(&c->saddr, &r->flow.daddr, sizeof(c->saddr));
		__builtin_memcpy(&c->daddr, &r->flow.saddr, sizeof(c->daddr));
		c->sport = r->flow.dport;
		c->dport = r->flow.sport;
		c->l3_delta = reply_l3_delta(r->l3_delta);
		c->l4_delta = reply_l4_delta(r->l4_delta);
		return;
	}
	__builtin_memcpy(&c->saddr, &r->source, sizeof(c->saddr));
	__builtin_memcpy(&c->daddr, &r->backend, sizeof(c->daddr));
	c->sport = r->source_port;
	c->dport = r->backend_port;
	c->l3_delta = r->l3_delta;
	c->l4_delta = r->l4_delta;
}

static __always_inline __u32 NAME(filter_word)(const void *address)
{
#if FAMILY == 4
	return *(const __be32 *)address;
#else
	return filter_word6(address);
#endif
}

/* The client's flow that holds the claim of the source that the reply in w->KEY goes to. */
static __always_inline int NAME(find_owner)(struct work *w, FLOW *owner)
{
	const CLAIM *held = bpf_map_lookup_elem(&CLAIMS, &w->KEY);

	if (!held)
		return 0;
	*owner = held->owner;
	return 1;
}

/* The connection of the reply in w->KEY by the claim of the source that it goes to, as look(). */
static __always_inline int NAME(look_by_claim)(struct work *w)
{
	w->ASKED = w->KEY;
	if (!NAME(find_owner)(w, &w->KEY) || !NAME(look)(w, 0))
		return 0;
	w->at.reply = 1;
	return NAME(is_of)(&w->HELD, &w->ASKED, 1);
}

/*
 * The connection of a packet of the flow in w->KEY, as it goes by it: in w->CURRENT, w->HELD and
 * w->at. 0 if there is none. `is_towards`: the flow's destination may be a VIP. Looks in the set of
 * its source, where it may be for us; of its destination, where it may be from a backend; and then
 * in that of the client which has claimed its destination. Not static: see track().
 */
__noinline int NAME(find)(__u32 is_towards)
{
	struct work *w = array_at(scratch, 0);
	int found = 0;

	if (!w)
		return 0;
	if (is_towards)
		found = NAME(look)(w, 0);
	if (!found && (!is_towards || in_filter(NAME(filter_word)(&w->KEY.saddr)))) {
		found = NAME(look)(w, 1);
		if (!found &&
		    may_reply(NAME(filter_word)(&w->KEY.saddr), w->KEY.sport, w->KEY.protocol))
			found = NAME(look_by_claim)(w);
	}
	if (found)
		NAME(show)(w, &w->CURRENT);
	return found;
}

static __always_inline PLACE *NAME(place_in_conntrack)(struct work *w)
{
	const RECORD *r = &w->HELD;

	return bpf_map_lookup_elem(&CONNTRACK, NAME(client_key)(w, &r->flow.saddr, r->flow.sport,
								r->flow.protocol, w->at.way));
}

/* Changes the word of the way in w->at to `next`, and if it `relinks` what the client's packets
 * say of its next hop and admission. 0: it has been changed since it was read. */
static __noinline int NAME(change)(struct work *w, __u64 next, int relinks)
{
	PLACE *place;
	SET *set;
	__u32 i;

	if (w->at.where == IN_SET) {
		set = array_at(CONNECTIONS, w->at.set);
		i = w->at.way;
		if (!set || i >= SET_WAYS)
			return 0;
		return swap_way(&set->way[i], &set->record[i].session, w, next, relinks);
	}
	place = w->at.where == IN_CONNTRACK ? NAME(place_in_conntrack)(w)
					    : array_at(PENDING, w->at.set);
	if (!place)
		return 0;
	return swap_way(&place->way, &place->record.session, w, next, relinks);
}

/* Takes out the connection in w->HELD and w->at. 0: it has been changed since it was read. */
static __noinline int NAME(remove)(struct work *w)
{
	__u64 was = w->at.word, free = next_version(was);
	PLACE *place;
	SET *set;
	__u32 i;

	if (w->at.where == IN_SET) {
		set = array_at(CONNECTIONS, w->at.set);
		i = w->at.way;
		if (!set || i >= SET_WAYS)
			return 0;
		return __sync_val_compare_and_swap(&set->way[i], was, free) == was;
	}
	if (w->at.where == IN_PENDING) {
		place = array_at(PENDING, w->at.set);
		return place && __sync_val_compare_and_swap(&place->way, was, free) == was;
	}
	place = NAME(place_in_conntrack)(w);
	if (!place || __sync_val_compare_and_swap(&place->way, was, was | WAY_BUSY_BIT) != was)
		return 0;
	return !bpf_map_delete_elem(&CONNTRACK,
				    NAME(client_key)(w, &w->HELD.flow.saddr, w->HELD.flow.sport,
						     w->HELD.flow.protocol, w->at.way));
}

/* Copies the record of a way, whose word was `word`, to conntrack, and has the set say so. The
 * key's index, or -1. */
static __noinline int NAME(spill)(struct work *w, SET *set, __u32 way, __u64 word)
{
	PLACE *moved;
	__u64 *to;
	const __u64 *from;

	if (!w || !set || way >= SET_WAYS)
		return -1;
#if FAMILY == 4
	moved = &w->moved4;
#else
	moved = &w->moved6;
#endif
	from = (const __u64 *)&set->record[way];
	to = (__u64 *)&moved->record;
	for (int i = 0; i < RECORD_WORDS; i++)
		to[i] = READ_ONCE(from[i]);
	moved->way = word;
	for (__u32 i = 0; i < SPILL_INDICES; i++) {
		const FLOW *flow = &moved->record.flow;
		const CLIENT *key =
			NAME(client_key)(w, &flow->saddr, flow->sport, flow->protocol, i);

		if (bpf_map_update_elem(&CONNTRACK, key, moved, BPF_NOEXIST))
			continue;
		/* In this order: who clears bits looks at the number before and after. */
		__sync_fetch_and_add(&set->spilled, 1ULL << SPILL_BITS);
		__sync_fetch_and_or(&set->spilled, 1ULL << spill_bit(word & WAY_TAG_MASK, i));
		return i;
	}
	return -1;
}

/* Whether a way other than `way` is of the connection in w->HELD, or of another that has its
 * replies, or is about to be. */
static __noinline int NAME(is_taken)(const struct work *w, const SET *set, __u32 way, __u64 tag)
{
	const RECORD *own = &w->HELD;

	if (!set)
		return 1;
	for (__u32 i = 0; i < SET_WAYS; i++) {
		const RECORD *r = &set->record[i];
		__u64 word = READ_ONCE(set->way[i]);

		if (i == way || (word ^ tag) & WAY_TAG_MASK || way_state(word) == CONN_FREE)
			continue;
		if (word & WAY_BUSY_BIT || NAME(is_of)(r, &own->flow, 0))
			return 1;
		if (own->backend_port && r->backend_port == own->backend_port &&
		    r->source_port == own->source_port &&
		    !__builtin_memcmp(&r->backend, &own->backend, sizeof(r->backend)) &&
		    !__builtin_memcmp(&r->source, &own->source, sizeof(r->source)) &&
		    r->flow.protocol == own->flow.protocol)
			return 1;
	}
	return 0;
}

/* The connection stayed in its set. */
static __noinline void NAME(unspill)(struct work *w, __u32 index)
{
#if FAMILY == 4
	const FLOW *flow = &w->moved4.record.flow;
#else
	const FLOW *flow = &w->moved6.record.flow;
#endif

	bpf_map_delete_elem(&CONNTRACK,
			    NAME(client_key)(w, &flow->saddr, flow->sport, flow->protocol, index));
}

/* The way in the set at w->at becomes that of the connection in w->HELD, with w->status: its word
 * was `word`. */
static __always_inline int NAME(occupy)(struct work *w, SET *set, __u32 i, __u64 word, __u64 tag)
{
	__u64 busy = next_version(word) | tag | WAY_BUSY_BIT | CONN_OTHER, *to;
	const __u64 *from = (const __u64 *)&w->HELD;

	if (__sync_val_compare_and_swap(&set->way[i], word, busy) != word)
		return IS_OUTRUN;
	/* One that is live has moved to conntrack. */
	if (way_order(word, w->facts.now) >> 40 != RANK_LIVE)
		count_way_closed(word, &set->record[i].session);
	/* Another CPU that has begun before sees this way busy, or is seen. */
	if (NAME(is_taken)(w, set, i, tag)) {
		__sync_lock_test_and_set(&set->way[i], next_version(busy));
		return IS_TAKEN;
	}
	to = (__u64 *)&set->record[i];
	for (int j = 0; j < RECORD_WORDS; j++)
		WRITE_ONCE(to[j], from[j]);
	w->at.where = IN_SET;
	w->at.way = i;
	w->at.reply = 0;
	w->at.word = way_with(busy, w->status, w->facts.now) | w->proven;
	__sync_lock_test_and_set(&set->way[i], w->at.word);
	return HAS_ENTERED;
}

/* Gives the connection in w->HELD a way, with w->status: enum entered. If it is proven, in
 * w->proven, others that are live too move to conntrack for it. Not static: see track(). */
__noinline int NAME(enter)(void)
{
	const struct settings *s = array_at(settings, 0);
	struct work *w = array_at(scratch, 0);
	__u32 i, rank;
	__u64 hash, tag, word;
	int entered;
	SET *set;

	if (!s || !w)
		return IS_FULL;
	hash = NAME(hash_flow)(&w->HELD.flow, 0, s);
	w->at.set = hash_slot(hash, s->SETS);
	tag = hash_tag(hash);
	set = array_at(CONNECTIONS, w->at.set);
	if (!set)
		return IS_FULL;
	i = choose_way(set->way, w->facts.now);
	rank = i >> 8;
	i &= 0xf;
	barrier_var(i);
	if (i >= SET_WAYS || rank > (w->proven ? RANK_LIVE : RANK_OVER))
		return IS_FULL;
	word = READ_ONCE(set->way[i]);
	if (word & WAY_BUSY_BIT)
		return IS_OUTRUN;
	/* Its own way, which another CPU has given it: unless that changes before it is taken. */
	if (rank != RANK_FREE && !((word ^ tag) & WAY_TAG_MASK) &&
	    NAME(is_of)(&set->record[i], &w->HELD.flow, 0))
		return IS_TAKEN;
	w->moved = rank == RANK_LIVE ? NAME(spill)(w, set, i, word) : SPILL_INDICES;
	if (w->moved < 0)
		return IS_FULL;
	entered = NAME(occupy)(w, set, i, word, tag);
	if (entered == IS_OUTRUN && w->moved < SPILL_INDICES)
		NAME(unspill)(w, w->moved);
	return entered;
}

/* Where in `pending` the flow would be whose replies go to this address and port. */
static __always_inline PLACE *NAME(pending_at)(struct work *w, const void *address, __be16 port,
					       __u32 protocol)
{
	const struct settings *s = array_at(settings, 0);

	if (!s)
		return NULL;
	w->at.set =
		hash_slot(NAME(hash_client)(address, port, protocol, s->nat_secret), PENDING_LIMIT);
	return array_at(PENDING, w->at.set);
}

/* The flow in w->KEY among those without a place: one that has its own source, or of which the flow
 * is a reply. */
static __noinline int NAME(look_pending)(struct work *w, __u32 reply)
{
	const FLOW *flow = &w->KEY;
	PLACE *place = reply ? NAME(pending_at)(w, &flow->daddr, flow->dport, flow->protocol)
			     : NAME(pending_at)(w, &flow->saddr, flow->sport, flow->protocol);
	__u64 word;

	if (!place)
		return 0;
	w->at.reply = reply;
	word = READ_ONCE(place->way);
	if (word & WAY_BUSY_BIT || !NAME(take)(w, &place->way, &place->record, word))
		return 0;
	w->at.where = IN_PENDING;
	return 1;
}

/* Leaves the flow in w->HELD in `pending`, with w->status. */
static __noinline void NAME(remember)(struct work *w)
{
	const RECORD *r = &w->HELD;
	const __u64 *from = (const __u64 *)r;
	PLACE *place =
		r->backend_port
			? NAME(pending_at)(w, &r->source, r->source_port, r->flow.protocol)
			: NAME(pending_at)(w, &r->flow.saddr, r->flow.sport, r->flow.protocol);
	__u64 word, busy, *to;

	if (!place)
		return;
	word = READ_ONCE(place->way);
	busy = next_version(word) | WAY_BUSY_BIT;
	/* Another CPU writes it: so much for this one. */
	if (word & WAY_BUSY_BIT || __sync_val_compare_and_swap(&place->way, word, busy) != word)
		return;
	to = (__u64 *)&place->record;
	for (int i = 0; i < RECORD_WORDS; i++)
		WRITE_ONCE(to[i], from[i]);
	__sync_lock_test_and_set(&place->way, way_with(busy, w->status, now()));
}

/* The record of the packet's connection, as w->facts and w->own have it. */
static __noinline void NAME(build)(struct work *w)
{
	const struct conn6 *c = &w->own.c;
	RECORD *r = &w->HELD;
	struct session *session = &r->session;

#if FAMILY == 4
	narrow_flow(&w->facts.flow, &r->flow);
	r->backend = is_direct(&c->conn) ? 0 : c->daddr[3];
	r->source = is_direct(&c->conn) ? 0 : c->saddr[3];
#else
	r->flow = w->facts.flow;
	__builtin_memset(r->backend, 0, sizeof(r->backend) + sizeof(r->source));
	if (!is_direct(&c->conn)) {
		copy16(r->backend, c->daddr);
		copy16(r->source, c->saddr);
	}
#endif
	r->backend_port = is_direct(&c->conn) ? 0 : c->dport;
	r->source_port = is_direct(&c->conn) ? 0 : c->sport;
	r->l3_delta = c->l3_delta;
	r->l4_delta = c->l4_delta;
	*(__u64 *)&session->hop = *(const __u64 *)&c->conn.hop;
	session->backend = c->conn.backend;
	session->generation = c->conn.generation;
	session->admission = c->conn.admission;
	session->number[0] = w->own.number;
	session->number[1] = 0;
	session->forward = c->conn.forward;
	__builtin_memset(session->pad, 0, sizeof(session->pad));
}
