/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * track.h - the effect of a packet on its connection: makes one, moves its state, ends it.
 *
 * Reached by the first packets of a connection, by TCP segments with SYN, FIN or RST,
 * when the entry is stale, and by packets of connections with one direction only. Clear before
 * fast.
 */
#ifndef XDPLB_TRACK_H
#define XDPLB_TRACK_H

#include "admit.h"
#include "connection.h"
#include "count.h"
#include "fragment.h"
#include "nat.h"
#include "replies.h"
#include "select.h"
#include "tcp.h"
#include "transport.h"
#include "unrecorded.h"
#include "work.h"

/* How many source ports `nat` tries when the client's own is taken towards that backend. */
#define NAT_TRIES      8
#define NAT_FIRST_PORT 1024
/* How often a CPU tries to change a connection's status while others change it. */
#define STATUS_TRIES 3

/* RFC 1624 deltas for a packet of `flow` that leaves with the 5-tuple in `c`. */
static __always_inline void compute_deltas(const struct flow6 *flow, struct conn6 *c)
{
	__u64 addresses = 0, ports;

	for (int i = 0; i < 4; i++)
		addresses += csum_delta32(flow->saddr[i], c->saddr[i]) +
			     csum_delta32(flow->daddr[i], c->daddr[i]);
	ports = csum_delta16(flow->sport, c->sport) + csum_delta16(flow->dport, c->dport);
	/* Folded apart: eight words and two halves would not fit the sum otherwise. */
	c->l3_delta = csum_fold((__u64)csum_fold(addresses) + CSUM_TTL_DECREMENT);
	c->l4_delta = csum_fold((__u64)csum_fold(addresses) + ports);
}

/* The entry of the other direction, and its key, from that of the packet's. */
static __always_inline void make_twin(const struct facts *f, const struct entry6 *e,
				      struct entry6 *twin, struct flow6 *key)
{
	reply_flow(&e->c, f->flow.protocol, key);
	twin->c.conn = e->c.conn;
	twin->c.conn.flags ^= CONN_REPLY;
	copy16(twin->c.saddr, f->flow.daddr);
	copy16(twin->c.daddr, f->flow.saddr);
	twin->c.sport = f->flow.dport;
	twin->c.dport = f->flow.sport;
	compute_deltas(key, &twin->c);
	twin->service = e->service;
	twin->sequence = 0;
	twin->fin = 0;
	twin->pad = 0;
	if (twin->c.conn.flags & CONN_REPLY)
		expect_replies(key);
}

/* An entry that a former connection has left in conntrack would be found before one in opening. */
static __noinline void clear_reply_flow(struct work *w)
{
	if (!table_remove(w->facts.family, 1, &w->other_flow))
		raise_epoch();
}

/*
 * nat keeps the client's port. Two connections of one client port, to two VIPs or ports of a
 * service, can meet at one backend: the second gets another port, or the backend and its replies
 * could not be told apart. That holds for one that is closed as well: late segments are to find
 * their way.
 */
static __noinline int find_source(struct work *w, __u32 hash)
{
	const struct facts *f = &w->facts;
	struct flow6 *client = &w->client;
	int i;

	for (i = 0; i <= NAT_TRIES; i++) {
		if (i)
			w->own.c.sport =
				bpf_htons(NAT_FIRST_PORT + (hash + i) % (65536 - NAT_FIRST_PORT));
		reply_flow(&w->own.c, f->flow.protocol, &w->other_flow);
		if (find_connection(f->family, &w->other_flow, &w->other) < 0)
			return GO_ON;
		reply_flow(&w->other.c, f->flow.protocol, client);
		if (same_flow(client, &f->flow))
			break;
		if (is_alive(f->family, &w->other_flow, f->now) ||
		    is_alive(f->family, client, f->now))
			continue;
		/* Not swept yet. Its client is not to take our backend's entry for its own. */
		if (remove_direction(f->family, client, &w->other_flow) &&
		    !is_over(w->other.c.conn.state))
			count_closed(&w->other.c.conn);
		raise_epoch();
		break;
	}
	if (i > NAT_TRIES)
		return REASON_NO_PORT;
	clear_reply_flow(w);
	return GO_ON;
}

/* Writes both entries of a new connection, the backend's direction first: its packets
 * can only come after the client's. */
static __noinline int store_connection(struct work *w)
{
	const struct facts *f = &w->facts;
	int full_nat = w->own.c.conn.forward == FORWARD_FULL_NAT;
	struct flow6 holder;
	int found;

	make_twin(f, &w->own, &w->other, &w->other_flow);
	if (full_nat)
		clear_reply_flow(w);
	if (table_store(f->family, 0, &w->other_flow, &w->other, BPF_ANY))
		return REASON_TABLE_FULL;
	if (!table_store(f->family, 0, &f->flow, &w->own, BPF_NOEXIST)) {
		count_opened(w->own.c.conn.backend);
		return GO_ON;
	}
	/* Another CPU was first: its entry holds, and with full-nat it can have another port. */
	found = !table_read(f->family, 0, &f->flow, &w->own);
	reply_flow(&w->own.c, f->flow.protocol, &holder);
	if (full_nat && !(found && same_flow(&holder, &w->other_flow))) {
		table_remove(f->family, 0, &w->other_flow);
		give_up_claim(w);
	}
	return found ? GO_ON : REASON_TABLE_FULL;
}

/* The only entry of a connection whose backend answers directly. */
static __noinline int store_direct(struct work *w)
{
	const struct facts *f = &w->facts;

	if (!table_store(f->family, 0, &f->flow, &w->own, BPF_NOEXIST)) {
		count_opened(w->own.c.conn.backend);
		return GO_ON;
	}
	/* Another CPU was first: its entry holds. */
	return table_read(f->family, 0, &f->flow, &w->own) ? REASON_TABLE_FULL : GO_ON;
}

/* One packet of a flow that gets no entry. */
static __noinline int go_unrecorded(struct work *w, const struct backend *b, __u32 hash)
{
	const struct facts *f = &w->facts;

	if (b->forward == FORWARD_FULL_NAT) {
		if (opens_tcp(f) && is_half_open(w))
			return GO_ON;
		if (!borrow_source(w, b, hash))
			return f->tcp_flags & TCP_RST ? REASON_NO_CONNECTION : REASON_FLOODED;
	}
	compute_deltas(&f->flow, &w->own.c);
	count_unrecorded(w->own.c.conn.backend);
	if (f->tcp_flags & TCP_RST)
		return GO_ON;
	make_twin(f, &w->own, &w->other, &w->other_flow);
	return expect_reply(w);
}

/*
 * A backend that is sent packets as they are, and does not hold the VIP, forwards them: they would
 * come back until their TTL is used up.
 */
static __always_inline int is_loop(const struct facts *f, const struct backend *b)
{
	__u64 hop = READ_ONCE(*(const __u64 *)&b->hop);
	const struct interface *out;

	if (b->forward < FORWARD_L2 || !b->on_link || !same_mac(hop, *(const __u64 *)&f->peer))
		return 0;
	out = array_at(interfaces, hop >> 48);
	return out && out->ifindex == f->ingress;
}

/*
 * The packet of `scratch`, without a connection or with one that is over (`stale`, in w->own).
 * Chooses before it forgets, so that a service that has lost all its backends for a moment loses no
 * connection. Not static: see track().
 */
__noinline int open_connection(int stale)
{
	struct work *w = array_at(scratch, 0);
	const struct settings *s = array_at(settings, 0);
	const struct backend *b;
	const struct facts *f;
	struct conn6 *c;
	__u32 id, hash, *slot;
	int reason, recorded;

	if (!w || !s)
		return REASON_TABLE_FULL;
	f = &w->facts;
	c = &w->own.c;
	if (w->service == NO_SERVICE)
		return unknown_port();
	b = select_backend(w->service, &f->flow, &id);
	if (!b)
		return no_backend(w->service);
	if (f->ttl <= 1)
		return REASON_TTL_EXPIRED;
	if (is_loop(f, b))
		return REASON_LOOP;
	slot = bpf_map_lookup_elem(&interface_slots, &f->ingress);
	if (!slot)
		return REASON_NO_INTERFACE;
	if (stale) {
		if (!is_over(c->conn.state))
			count_closed(&c->conn);
		reply_flow(c, f->flow.protocol, &w->other_flow);
		forget(f->family, &f->flow, &w->other_flow, c->conn.forward);
		if (c->conn.forward == FORWARD_FULL_NAT)
			end_claim(w);
	}
	/* A reset without a connection goes by hash alone: it makes none. */
	recorded = !(f->tcp_flags & TCP_RST) && record(f);

	__builtin_memset(&w->own, 0, sizeof(w->own));
	w->own.service = w->service;
	w->own.sequence = f->sequence;
	c->conn.backend = id;
	c->conn.generation = b->generation;
	c->conn.last_seen = f->now;
	c->conn.ingress = f->ingress;
	c->conn.hop = f->peer;
	c->conn.hop.slot = *slot;
	c->conn.forward = b->forward;
	c->conn.admission = w->admission;
	c->conn.state = first_state(f->flow.protocol);
	if (f->tcp_flags & TCP_FIN) {
		if (is_direct(&c->conn))
			c->conn.flags = CONN_FIN_CLIENT;
		else
			c->conn.doubt = DOUBT_FIN_CLIENT;
		w->own.fin = f->sequence + f->payload;
	}
	__builtin_memcpy(c->saddr, f->flow.saddr, sizeof(c->saddr));
	c->sport = f->flow.sport;
	if (is_direct(&c->conn)) {
		__builtin_memcpy(c->daddr, f->flow.daddr, sizeof(c->daddr));
		c->dport = f->flow.dport;
		set_entropy(c, flow_entropy(&f->flow));
		if (recorded)
			return store_direct(w);
		count_unrecorded(id);
		return GO_ON;
	}
	__builtin_memcpy(c->daddr, b->address, sizeof(c->daddr));
	c->dport = b->port ?: f->flow.dport;

	/* The flow's own place, so that one whose entries the LRU took comes back to its port. */
	hash = hash_flow(&f->flow, HASH_5_TUPLE, s->nat_secret) >> 32;
	if (!recorded)
		return go_unrecorded(w, b, hash);
	reason = b->forward == FORWARD_FULL_NAT ? obtain_source(w, b, hash) : find_source(w, hash);
	if (reason == IS_CROWDED)
		return go_unrecorded(w, b, hash);
	if (reason != GO_ON)
		return reason;
	compute_deltas(&f->flow, c);
	return store_connection(w);
}

/*
 * True once both directions have been seen: a UDP reply, or the client's ACK after one. Where the
 * backend answers directly it takes the client's word: an ACK, or a second datagram.
 */
static __always_inline int proven(const struct conn *c, const struct facts *f)
{
	if (!(c->flags & CONN_REPLIED) && !is_direct(c))
		return 0;
	/* Of a datagram that has been seen. */
	if (f->kind == LATER_FRAGMENT)
		return 0;
	if (f->flow.protocol == IPPROTO_UDP)
		return 1;
	return !(c->flags & CONN_REPLY) && f->tcp_flags & TCP_ACK &&
	       !(f->tcp_flags & (TCP_SYN | TCP_RST));
}

/* What another CPU has changed in the old entry while the connection moved. */
static __always_inline void carry_status(struct work *w)
{
	const struct facts *f = &w->facts;
	const struct flow6 *client = w->own.c.conn.flags & CONN_REPLY ? &w->other_flow : &f->flow;
	struct entry *from = table_find(f->family, 0, client);
	struct entry *to = table_find(f->family, 1, client);

	if (from && to && *status_word(&from->conn) != *status_word(&w->own.c.conn))
		WRITE_ONCE(*status_word(&to->conn), READ_ONCE(*status_word(&from->conn)));
}

/*
 * Moves both entries of the connection of `scratch` to conntrack: there first, so that a packet on
 * another CPU finds them in one table or the other. Not static: see track().
 */
__noinline int promote(void)
{
	struct work *w = array_at(scratch, 0);
	const struct facts *f;

	if (!w)
		return 0;
	f = &w->facts;
	if (is_direct(&w->own.c.conn)) {
		if (!table_store(f->family, 1, &f->flow, &w->own, BPF_ANY))
			table_remove(f->family, 0, &f->flow);
		return 0;
	}
	if (table_read(f->family, 0, &w->other_flow, &w->other))
		return 0;
	w->other.c.conn.last_seen = f->now;
	if (table_store(f->family, 1, &w->other_flow, &w->other, BPF_ANY) ||
	    table_store(f->family, 1, &f->flow, &w->own, BPF_ANY))
		return 0;
	carry_status(w);
	if (w->own.c.conn.forward == FORWARD_FULL_NAT)
		settle_claim(w, is_over(w->own.c.conn.state) ? CLAIM_CLOSED : CLAIM_ESTABLISHED);
	table_remove(f->family, 0, &w->other_flow);
	table_remove(f->family, 0, &f->flow);
	return 0;
}

/* The client is answered by the way its packets come. 1 if that has changed, 0, or a reason,
 * negated and less one. */
static __always_inline int follow_client(const struct facts *f, struct conn *c)
{
	const struct backend *b = array_at(backends, c->backend);
	__u32 *slot;

	if (c->ingress == f->ingress && same_mac(*(const __u64 *)&f->peer, *(const __u64 *)&c->hop))
		return 0;
	slot = bpf_map_lookup_elem(&interface_slots, &f->ingress);
	if (b && is_loop(f, b))
		return -1 - REASON_LOOP;
	if (!slot)
		return -1 - REASON_NO_INTERFACE;
	c->ingress = f->ingress;
	c->hop = f->peer;
	c->hop.slot = *slot;
	raise_epoch();
	return 1;
}

/*
 * Moves the status of the connection on, where it is at home: in the client's entry. Its end is
 * counted by the CPU that made the change. The new status.
 */
static __noinline __u32 move_status(struct conn *home, __u32 event)
{
	__u32 *word = status_word(home), was = READ_ONCE(*word), next = was;
	int moved = 0;

	for (int i = 0; i < STATUS_TRIES && !moved; i++) {
		__u32 found;

		next = next_status(was, event);
		if (next == was)
			return next;
		found = __sync_val_compare_and_swap(word, was, next);
		moved = found == was;
		if (!moved)
			was = found;
	}
	if (!moved)
		return was;
	if (is_over(next & 0xff) && !is_over(was & 0xff))
		count_closed(home);
	if (!is_over(next & 0xff) && is_over(was & 0xff))
		count_reopened(home);
	return next;
}

/* The backend's entry says the same, whichever of several CPUs is the last to write it. */
static __noinline void copy_status(const struct conn *home, struct conn *reply)
{
	const __u32 *word = status_word(home);
	__u32 status = READ_ONCE(*word), was;

	for (int i = 0; i < STATUS_TRIES; i++) {
		was = status;
		WRITE_ONCE(*status_word(reply), was | CONN_REPLY << 8);
		status = READ_ONCE(*word);
		if (status == was)
			break;
	}
}

/* Writes to the entry what a packet of either direction can change, beside the status. */
static __always_inline void touch(struct conn *c, const struct conn *from)
{
	c->last_seen = from->last_seen;
	c->ingress = from->ingress;
	if (!(from->flags & CONN_REPLY))
		c->admission = from->admission;
	WRITE_ONCE(*(__u64 *)&c->hop, *(const __u64 *)&from->hop);
}

/* Makes the entry of the other direction anew, which the LRU has taken. Not static: see track(). */
__noinline int restore_twin(void)
{
	struct work *w = array_at(scratch, 0);
	const struct facts *f;

	if (!w)
		return 0;
	f = &w->facts;
	make_twin(f, &w->own, &w->other, &w->other_flow);
	table_store(f->family, f->established, &w->other_flow, &w->other, BPF_NOEXIST);
	return 0;
}

/* The entry of the other direction of the packet's connection. */
static __noinline struct entry *find_twin(struct work *w)
{
	const struct facts *f = &w->facts;
	struct entry *twin;

	reply_flow(&w->own.c, f->flow.protocol, &w->other_flow);
	twin = find_entry(f->family, f->established, &w->other_flow);
	if (twin)
		return twin;
	restore_twin();
	return find_entry(f->family, f->established, &w->other_flow);
}

/* A packet of the connection in w->own, of `scratch`. Not static: see track(). */
__noinline int advance(void)
{
	struct work *w = array_at(scratch, 0);
	const struct settings *s = array_at(settings, 0);
	struct entry *mine, *twin = NULL, *home;
	int changed = 0, is_reply, closes;
	__u32 event, status;
	struct facts *f;
	struct conn *c;

	if (!w || !s)
		return REASON_TABLE_FULL;
	f = &w->facts;
	c = &w->own.c.conn;
	is_reply = c->flags & CONN_REPLY;
	event = is_reply ? EVENT_BACKEND : 0;
	if (!is_reply) {
		changed = follow_client(f, c);
		if (changed < 0)
			return -1 - changed;
		if (c->admission != w->admission) {
			c->admission = w->admission;
			changed = 1;
		}
	}
	/* A later fragment has no TCP header. */
	if (f->flow.protocol == IPPROTO_TCP && f->kind != LATER_FRAGMENT) {
		int judged = judge_segment();

		if (judged < 0)
			return GO_ON;
		event = judged;
	}
	if (!is_direct(c))
		twin = find_twin(w);
	if (twin && event & EVENT_ACK && f->acknowledged == twin->fin + 1)
		event |= EVENT_HEARD;
	mine = find_entry(f->family, f->established, &f->flow);
	home = is_reply ? twin : mine;
	if (!home || !mine)
		return GO_ON;
	status = move_status(&home->conn, event);
	/* Both ends have closed at once: copies would not look for the acknowledgements. */
	if ((status >> 24 & DOUBT_FINS) == DOUBT_FINS)
		raise_epoch();
	if (twin)
		copy_status(&home->conn, is_reply ? &mine->conn : &twin->conn);
	if (is_reply)
		status |= CONN_REPLY << 8;
	changed |= status ^ *status_word(c);
	closes = is_over(status & 0xff) && !is_over(c->state) && c->state != CONN_OPENING;
	*status_word(c) = status;
	if (closes && c->forward == FORWARD_FULL_NAT)
		settle_claim(w, CLAIM_CLOSED);
	if (changed || idle_since(f->now, c->last_seen, s->refresh)) {
		c->last_seen = f->now;
		touch(&mine->conn, c);
	}
	mine->sequence = w->own.sequence;
	mine->fin = w->own.fin;
	if (changed && twin)
		touch(&twin->conn, c);
	if (!f->established && proven(c, f))
		promote();
	return GO_ON;
}

/* True if the connection in w->own, whose packet this is, cannot go on. */
static __always_inline int is_stale(struct work *w)
{
	const struct settings *s = array_at(settings, 0);
	const struct facts *f = &w->facts;
	const struct conn *c = &w->own.c.conn;
	const struct backend *b;
	int again;

	if (!s)
		return 1;
	if (idle_too_long(c, s, f->now)) {
		/* One direction may be silent for longer than a timeout while the other is not. */
		reply_flow(&w->own.c, f->flow.protocol, &w->other_flow);
		if (!is_alive(f->family, &w->other_flow, f->now))
			return 1;
	}
	if (c->flags & CONN_REPLY)
		return 0;
	/* The client takes its port for a new connection. What a backend that answers directly has
	 * still to say is not seen: the client's own FIN has to do. */
	again = is_sent_again(f, &w->own);
	if (!again && (is_over(c->state) || (c->state == CONN_HALF_CLOSED && is_direct(c))) &&
	    (f->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
		return 1;
	b = array_at(backends, c->backend);
	if (!b || b->generation != c->generation)
		return 1;
	/* Nobody has answered, and nobody will. */
	return !READ_ONCE(b->usable) &&
	       (again || b->rehash >> protocol_class(f->flow.protocol) & 1 ||
		(c->state == CONN_OPENING && !(c->flags & CONN_REPLIED)));
}

/*
 * A backend that opens a connection to what was the client of an ended one: the client has called
 * it past the VIP, from the same port, and what it says is not for us to translate.
 */
static __always_inline int is_direct_call(const struct work *w)
{
	const struct conn *c = &w->own.c.conn;

	return c->flags & CONN_REPLY && c->flags & CONN_REPLIED && c->forward == FORWARD_NAT &&
	       is_over(c->state) &&
	       (w->facts.tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK);
}

static __noinline int forget_for_direct_call(struct work *w)
{
	const struct facts *f = &w->facts;

	reply_flow(&w->own.c, f->flow.protocol, &w->other_flow);
	forget(f->family, &w->other_flow, &f->flow, FORWARD_NAT);
	return REASON_NOT_OURS;
}

/*
 * Not static, and without arguments: the verifier then looks at it once, by itself, rather than on
 * each of the many ways that a packet can come here by.
 */
__noinline int track(void)
{
	struct work *w = array_at(scratch, 0);
	int crowded, found, goes_on, reason = GO_ON;
	const struct vip *vip = NULL;
	struct facts *f;

	if (!w)
		return REASON_TABLE_FULL;
	f = &w->facts;
	/* No reply, and for no VIP: backends are a router's clients, too. */
	if (f->missed && !can_be_reply(&f->flow)) {
		if (is_destination_known(f))
			vip = find_vip(&f->flow);
		if (!vip)
			return REASON_NOT_OURS;
	}
	/* Too many at once are not looked up among the half-open ones, of which one may be a
	 * retransmission: by hash it goes where its entry would say. */
	crowded = f->missed && opens_tcp(f) && !may_record(f);
	found = crowded ? -1 : find_connection(f->family, &f->flow, &w->own);
	f->established = found > 0;
	if (found >= 0 && is_direct_call(w))
		return forget_for_direct_call(w);
	goes_on = found >= 0 && !is_stale(w);
	if (goes_on)
		vip = NULL;
	else if (!vip)
		vip = find_vip(&f->flow);
	if (vip || (goes_on && !(w->own.c.conn.flags & CONN_REPLY))) {
		w->service = vip ? vip->service : w->own.service;
		/* What let a connection in that is over says nothing of the next one: its port may
		 * be another service's by now. */
		reason = admit(w, goes_on);
	} else if (!goes_on) {
		reason = find_expected(w);
	}
	if (reason == GO_ON && f->kind == FIRST_FRAGMENT)
		reason = remember_fragment(f);
	if (reason != GO_ON)
		return reason;
	if (goes_on)
		return advance();
	return vip ? open_connection(found >= 0 && !(w->own.c.conn.flags & CONN_REPLY)) : GO_ON;
}

static __always_inline void gather_facts(const struct packet *p, __u8 family, struct facts *f)
{
	const struct ethhdr *eth = p->data;

	__builtin_memcpy(f->peer.mac, eth->h_source, ETH_ALEN);
	f->peer.slot = 0;
	f->ingress = p->ingress;
	f->now = now();
	f->l3 = p->ethernet;
	f->l4 = p->l4 - p->data;
	f->length = p->length;
	f->family = family;
	f->tcp_flags = p->tcp_flags;
	f->ttl = p->ttl;
	f->established = 0;
	f->kind = p->kind;
	f->missed = 0;
	f->spared = 0;
	f->fragment_id = p->fragment_id;
	f->fragment_offset = p->fragment_offset;
	f->headers_end = p->headers_end;
	f->sequence = 0;
	f->acknowledged = 0;
	f->payload = 0;
	if (p->protocol == IPPROTO_TCP && p->kind != LATER_FRAGMENT) {
		const struct tcphdr *tcp = p->l4;

		/* Parsing has looked, but Linux 6.1's verifier does not remember. */
		if ((const void *)(tcp + 1) > p->end)
			return;
		f->sequence = bpf_ntohl(tcp->seq);
		f->acknowledged = bpf_ntohl(tcp->ack_seq);
		f->payload = f->length - f->l4 - tcp->doff * 4;
	}
}

#endif
