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
#include "table.h"
#include "tcp.h"
#include "transport.h"
#include "unrecorded.h"
#include "work.h"

/* How many source ports `nat` tries when the client's own is taken towards that backend. */
#define NAT_TRIES      8
#define NAT_FIRST_PORT 1024
/* How often a CPU tries to enter a connection while others enter theirs. */
#define OPEN_TRIES 2
#define IS_RACING  (-5)
/* How often a CPU tries to change a connection's status while others change it. */
#define STATUS_TRIES 3

/* Whether replies to the source in w->own.c would be another connection's. One that is too old
 * makes way. */
static __noinline int is_source_taken(struct work *w)
{
	const struct settings *s = array_at(settings, 0);
	const struct facts *f = &w->facts;
	const struct session *session;
	__u64 word;

	if (!s || (!look(w, &w->other_flow, 1) && !look_pending(w, &w->other_flow, 1)))
		return 0;
	/* Another CPU has just entered it. */
	show_client(w);
	if (same_flow(&w->client, &f->flow))
		return 0;
	word = w->at.word;
	session = f->family == 4 ? &w->held4.session : &w->held6.session;
	if (!idle_since(f->now, way_last_seen(word), s->timeout[way_state(word)]))
		return 1;
	if (w->at.where != IN_PENDING && forget(w))
		count_way_closed(word, session);
	return 0;
}

/* Whether another connection of the same client has claimed the port of the one in hand. */
static __noinline int is_port_claimed(struct work *w)
{
	const struct facts *f = &w->facts;

	return can_be_reply(&f->flow) && find_owner(w, &w->other_flow) &&
	       !same_flow(&w->client, &f->flow);
}

/* From now on, packets to the source in w->own.c can be replies to one that has claimed it. */
static __noinline void expect_claimed(struct work *w)
{
	w->client = w->facts.flow;
	w->client.sport = w->own.c.sport;
	expect_replies(&w->client);
}

/*
 * nat keeps the client's port. Two connections of one client port, to two VIPs or ports of a
 * service, can meet at one backend: the second gets another port, or the backend and its replies
 * could not be told apart. That holds for one that is closed as well: late segments are to find
 * their way. Replies to another port find their connection by its claim.
 */
static __noinline int find_source(struct work *w)
{
	const struct settings *s = array_at(settings, 0);
	const struct facts *f = &w->facts;

	reply_flow(&w->own.c, f->flow.protocol, &w->other_flow);
	if (!is_source_taken(w) && !is_port_claimed(w))
		return GO_ON;
	w->search.opens = 1;
	w->search.start = s ? hash_flow(&f->flow, HASH_5_TUPLE, s->nat_secret) >> 32 : 0;
	for (int i = 1; i <= NAT_TRIES; i++) {
		w->own.c.sport = bpf_htons(NAT_FIRST_PORT +
					   (w->search.start + i) % (65536 - NAT_FIRST_PORT));
		reply_flow(&w->own.c, f->flow.protocol, &w->other_flow);
		if (is_source_taken(w) || claim(w))
			continue;
		expect_claimed(w);
		return GO_ON;
	}
	return REASON_NO_PORT;
}

/* One packet of a flow that gets no place. */
static __noinline int go_unrecorded(struct work *w)
{
	count_unrecorded(w->own.c.conn.backend);
	if (w->facts.tcp_flags & TCP_RST)
		return GO_ON;
	build(w);
	w->status = *status_word(&w->own.c.conn);
	remember(w);
	return GO_ON;
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

/* The source that the flow in hand leaves with, in w->own.c. */
static __always_inline int obtain_source(struct work *w, const struct backend *b)
{
	const struct settings *s = array_at(settings, 0);
	int reason;

	if (!b || !s)
		return REASON_NO_BACKEND;
	if (b->forward != FORWARD_FULL_NAT)
		return w->recorded ? find_source(w) : GO_ON;
	/* The flow's own place, so that one which had to make room comes back to its port. */
	w->search.start = hash_flow(&w->facts.flow, HASH_5_TUPLE, s->nat_secret) >> 32;
	if (w->recorded) {
		reason = claim_some_source(w, b);
		if (reason != IS_CROWDED)
			return reason;
		w->recorded = 0;
	}
	return borrow_source(w, b);
}

/* The connection in w->own, which is new, gets a way. IS_RACING: another CPU has been about to
 * enter it, or one that would have the same replies. */
static __noinline int store_connection(struct work *w)
{
	int has_claim = w->own.c.conn.forward == FORWARD_FULL_NAT, entered, found, live = 0;
	struct facts *f = &w->facts;
	struct conn *c = &w->own.c.conn;

	if (w->remembered >> 8 & CONN_REPLIED) {
		c->flags |= CONN_REPLIED;
		live = proven(c, f);
		if (live && f->flow.protocol == IPPROTO_TCP)
			c->state = CONN_ESTABLISHED;
	}
	build(w);
	entered = enter(w, live);
	if (entered == HAS_ENTERED) {
		count_opened(c->backend);
		if (live && has_claim)
			settle_claim(w, CLAIM_ESTABLISHED);
		return GO_ON;
	}
	if (entered == IS_TAKEN) {
		/* Another CPU was first: its connection holds, and can have another port. */
		found = find_flow(w, &f->flow);
		reply_flow(&w->own.c, f->flow.protocol, &w->quoted);
		if (found && has_claim && !same_flow(&w->quoted, &w->other_flow))
			give_up_claim(w);
		return found ? GO_ON : IS_RACING;
	}
	return go_unrecorded(w);
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
	const struct backend *b;
	const struct facts *f;
	struct conn6 *c;
	__u32 id, *slot;
	int reason;

	if (!w)
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
	/* A reset without a connection goes by hash alone: it makes none. */
	w->recorded = !(f->tcp_flags & TCP_RST) && record(f);
	if (stale) {
		if (forget(w) && !is_over(c->conn.state) && w->at.where != IN_PENDING)
			count_closed(c->conn.backend, c->conn.generation);
		if (c->conn.forward == FORWARD_FULL_NAT)
			end_claim(w);
	}
	__builtin_memset(&w->own, 0, sizeof(w->own));
	w->remembered = 0;
	w->own.number = f->sequence;
	c->conn.backend = id;
	c->conn.generation = b->generation;
	c->conn.last_seen = f->now;
	c->conn.ingress = f->ingress;
	c->conn.hop = f->peer;
	c->conn.forward = b->forward;
	c->conn.admission = w->admission;
	c->conn.state = first_state(f->flow.protocol);
	if (f->tcp_flags & TCP_FIN) {
		if (is_direct(&c->conn))
			c->conn.flags = CONN_FIN_CLIENT;
		else
			c->conn.doubt = DOUBT_FIN_CLIENT;
		w->own.number = f->sequence + f->payload;
	}
	__builtin_memcpy(c->saddr, f->flow.saddr, sizeof(c->saddr));
	c->sport = f->flow.sport;
	if (is_direct(&c->conn)) {
		__builtin_memcpy(c->daddr, f->flow.daddr, sizeof(c->daddr));
		c->dport = f->flow.dport;
		if (b->forward != FORWARD_L2)
			set_entropy(c, flow_entropy(&f->flow));
		if (!w->recorded) {
			count_unrecorded(id);
			return GO_ON;
		}
	} else {
		__builtin_memcpy(c->daddr, b->address, sizeof(c->daddr));
		c->dport = b->port ?: f->flow.dport;
	}
	slot = bpf_map_lookup_elem(&interface_slots, &f->ingress);
	if (!slot)
		return REASON_NO_INTERFACE;
	c->conn.hop.slot = *slot;
	for (int i = 0; i < OPEN_TRIES; i++) {
		if (!is_direct(&c->conn)) {
			c->sport = f->flow.sport;
			reason = obtain_source(w, b);
			if (reason != GO_ON)
				return reason;
			compute_deltas(&f->flow, c);
		}
		reason = w->recorded ? store_connection(w) : go_unrecorded(w);
		if (reason != IS_RACING)
			return reason;
	}
	return go_unrecorded(w);
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

/* What a change of the status, which this CPU has made, means to others. */
static __noinline void tell_change(struct work *w, __u32 was)
{
	const struct conn *c = &w->own.c.conn;
	__u32 state = was & 0xff;

	/* Both ends have closed at once: copies would not look for the acknowledgements. */
	if ((c->doubt & DOUBT_FINS) == DOUBT_FINS)
		raise_epoch();
	if (w->at.where == IN_PENDING)
		return;
	if (is_over(c->state) && !is_over(state)) {
		count_closed(c->backend, c->generation);
		if (c->forward == FORWARD_FULL_NAT && state != CONN_OPENING)
			settle_claim(w, CLAIM_CLOSED);
	}
	if (!is_over(c->state) && is_over(state))
		count_reopened(c);
}

/* Whether the connection in w->own, whose other direction is w->other_flow, goes by a source of our
 * own that it has not claimed. */
static __always_inline int lacks_claim(struct work *w)
{
	int is_reply = w->own.c.conn.flags & CONN_REPLY;
	const struct flow6 *client = is_reply ? &w->other_flow : &w->facts.flow;

	if (w->own.c.conn.forward != FORWARD_FULL_NAT)
		return 0;
	return !find_owner(w, is_reply ? &w->facts.flow : &w->other_flow) ||
	       !same_flow(&w->client, client);
}

/* Whether the replies to the flow in hand, of `pending`, are those of a connection that has a
 * place. */
static __noinline int is_contested(struct work *w)
{
	int is_reply = w->own.c.conn.flags & CONN_REPLY;
	int found = look(w, is_reply ? &w->facts.flow : &w->other_flow, 1);

	return !look_pending(w, &w->facts.flow, is_reply) || found;
}

/* A flow without a place that both ends go on with gets one. */
static __always_inline int leave_pending(struct work *w)
{
	struct session *session = w->facts.family == 4 ? &w->held4.session : &w->held6.session;
	__u32 set = w->at.set;

	if (is_over(w->own.c.conn.state) || lacks_claim(w) || is_contested(w) || !record(&w->facts))
		return 0;
	write_session(session, w);
	session->number[w->at.reply & 1] = w->own.number;
	if (enter(w, 1) != HAS_ENTERED) {
		w->at.set = set;
		return 0;
	}
	count_opened(w->own.c.conn.backend);
	if (w->own.c.conn.forward == FORWARD_FULL_NAT)
		settle_claim(w, CLAIM_ESTABLISHED);
	return 1;
}

/* The flow without a place that the packet goes on with, in w->own. A client's flow does so once it
 * has been answered, or where no answer is seen; until then it may find room. */
static __noinline int find_expected(struct work *w)
{
	const struct facts *f = &w->facts;
	const struct conn *c = &w->own.c.conn;
	const struct backend *b;

	w->sought = f->flow;
	if (opens_tcp(f) || !find_pending())
		return 0;
	b = array_at(backends, c->backend);
	if (c->flags & CONN_REPLY)
		return b && b->incarnation == c->generation;
	return c->flags & CONN_REPLIED || is_direct(c);
}

static __noinline int find_again(struct work *w)
{
	int found = w->at.where == IN_PENDING ? find_expected(w) : find_flow(w, &w->facts.flow);

	w->facts.established = found && w->at.word & WAY_PROVEN_BIT;
	return found;
}

enum {
	IS_DONE,
	IS_CHANGED, /* another CPU has, since the connection was found */
};

/* One try of advance(); a reason is negated and less one. Not static: see track(). */
__noinline int step(void)
{
	struct work *w = array_at(scratch, 0);
	__u32 event, was, now_proven;
	int changed = 0, judged;
	struct facts *f;
	struct conn *c;
	__u64 next;

	if (!w)
		return -1 - REASON_TABLE_FULL;
	f = &w->facts;
	c = &w->own.c.conn;
	event = c->flags & CONN_REPLY ? EVENT_BACKEND : 0;
	if (!event) {
		changed = follow_client(f, c);
		if (changed < 0)
			return changed;
		if (c->admission != w->admission) {
			c->admission = w->admission;
			changed = 1;
		}
	}
	/* A later fragment has no TCP header. */
	if (f->flow.protocol == IPPROTO_TCP && f->kind != LATER_FRAGMENT) {
		judged = judge_segment();
		if (judged < 0)
			return IS_DONE;
		event = judged;
		if (event & EVENT_ACK && f->acknowledged == w->own.peer_number + 1)
			event |= EVENT_HEARD;
	}
	was = *status_word(c);
	*status_word(c) = next_status(was, event);
	reply_flow(&w->own.c, f->flow.protocol, &w->other_flow);
	now_proven = proven(c, f) && !f->established;
	if (now_proven && w->at.where == IN_PENDING && leave_pending(w))
		return IS_DONE;
	next = way_with(w->at.word, *status_word(c), f->now);
	if (now_proven && w->at.where != IN_PENDING)
		next |= WAY_PROVEN_BIT;
	if (!change(w, next, changed))
		return IS_CHANGED;
	c->last_seen = f->now;
	if (w->at.where == IN_PENDING && !(c->flags & CONN_REPLY))
		count_unrecorded(c->backend);
	if (now_proven && c->forward == FORWARD_FULL_NAT && w->at.where != IN_PENDING &&
	    !is_over(c->state))
		settle_claim(w, CLAIM_ESTABLISHED);
	tell_change(w, was);
	return IS_DONE;
}

/* A packet of the connection in w->own, of `scratch`. Not static: see track(). */
__noinline int advance(void)
{
	struct work *w = array_at(scratch, 0);

	if (!w)
		return REASON_TABLE_FULL;
	for (int i = 0; i < STATUS_TRIES; i++) {
		int done = step();

		if (done < 0)
			return -1 - done;
		if (done == IS_DONE || !find_again(w))
			break;
	}
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
	if (idle_too_long(c, s, f->now))
		return 1;
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

static __always_inline __u32 service_of(const struct conn *c)
{
	const struct backend *b = array_at(backends, c->backend);

	return b ? b->service : NO_SERVICE;
}

/* Past the rate, first packets are not looked up: one that is a retransmission goes by hash where
 * its connection would say. Not so with full-nat, where that has a port of its own. */
static __noinline int is_crowded_out(const struct facts *f, const struct vip *vip)
{
	const struct service *service;

	if (!opens_tcp(f) || !vip || vip->service == NO_SERVICE)
		return 0;
	service = array_at(services, vip->service);
	return service && service->forward != FORWARD_FULL_NAT && !may_record(f);
}

/*
 * Not static, and without arguments: the verifier then looks at it once, by itself, rather than on
 * each of the many ways that a packet can come here by.
 */
__noinline int track(void)
{
	struct work *w = array_at(scratch, 0);
	int found = 0, goes_on, reason;
	const struct vip *vip = NULL;
	struct facts *f;

	if (!w)
		return REASON_TABLE_FULL;
	f = &w->facts;
	/* No reply, and for no VIP: backends are a router's clients, too. */
	if (f->missed && is_destination_known(f))
		vip = find_vip(&f->flow);
	if (f->missed && !vip && !can_be_reply(&f->flow))
		return REASON_NOT_OURS;
	if (!is_crowded_out(f, vip)) {
		found = find_flow(w, &f->flow);
		if (found && is_direct_call(w) && !find_expected(w)) {
			if (find_flow(w, &f->flow))
				forget(w);
			return REASON_NOT_OURS;
		}
		if (!found)
			found = find_expected(w);
	}
	f->established = found && w->at.word & WAY_PROVEN_BIT;
	goes_on = found && !is_stale(w);
	if (goes_on)
		vip = NULL;
	else if (!vip)
		vip = find_vip(&f->flow);
	if (vip || (goes_on && !(w->own.c.conn.flags & CONN_REPLY))) {
		w->service = vip ? vip->service : service_of(&w->own.c.conn);
		/* What let a connection in that is over says nothing of the next one: its port may
		 * be another service's by now. */
		reason = admit(w, goes_on);
		if (reason != GO_ON)
			return reason;
	} else if (!goes_on) {
		return REASON_NOT_OURS;
	}
	if (f->kind == FIRST_FRAGMENT) {
		reason = remember_fragment(f);
		if (reason != GO_ON)
			return reason;
	}
	if (goes_on)
		return advance();
	return vip ? open_connection(found && !(w->own.c.conn.flags & CONN_REPLY)) : GO_ON;
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
