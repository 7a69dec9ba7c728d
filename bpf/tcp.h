/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * tcp.h - the state of a TCP connection, as far as an observer between the two ends can tell (RFC
 * 9293, section 3.3.2).
 *
 * Owns the transitions, and which segments are believed, since the ends ignore those outside of
 * their windows. A FIN counts when the other end acknowledges it. A reset is not acknowledged: it
 * counts if it is near the number that is remembered of its sender, which is written a few times a
 * second at most, and stays at a FIN's; and if both ends go on after it, they have ignored it.
 *
 * A status is the word of struct conn that holds state, flags, forward and doubt. It changes as
 * one, by compare-and-swap: segments of both directions meet here on two CPUs.
 */
#ifndef XDPLB_TCP_H
#define XDPLB_TCP_H

#include "connection.h"
#include "packet.h"
#include "work.h"

/* How far behind and ahead of the number that was remembered a reset is believed, in bytes. A
 * connection in use may have sent a quarter of a second's worth since: 64 MiB are 2
 * Gbit/s. A reset that is refused in error costs an entry that lives for tcp_established; one that
 * is believed in error is taken back when both ends go on, which an idle connection does too late.
 */
#define REACH_BEHIND	 (1 << 20)
#define REACH_AHEAD	 (1 << 26)
#define REACH_AHEAD_IDLE (1 << 24)

/* The meaning of a segment for its connection, as bits. */
enum segment_event {
	EVENT_BACKEND = 1, /* the backend sent it */
	EVENT_RESET = 2,
	EVENT_FIN = 4,
	EVENT_ACK = 8,	   /* ACK without SYN */
	EVENT_BEYOND = 16, /* data behind the FIN that its sender seemed to have sent */
	EVENT_HEARD = 32,  /* acknowledges the other end's FIN */
	EVENT_DATA = 64,
	EVENT_SEGMENT = 128,
	EVENT_AGAIN = 256, /* is_sent_again */
};

#define CONN_FINS  (CONN_FIN_CLIENT | CONN_FIN_BACKEND)
#define DOUBT_FINS (DOUBT_FIN_CLIENT | DOUBT_FIN_BACKEND)
#define GO_ON_BOTH (DOUBT_CLIENT_GOES_ON | DOUBT_BACKEND_GOES_ON)

/* The status after the event. Not static: see track(). */
__noinline __u32 next_status(__u32 status, __u32 event)
{
	__u32 state = status & 0xff, flags = status >> 8 & 0xff, forward = status >> 16 & 0xff;
	__u32 doubt = status >> 24;
	int by_backend = event & EVENT_BACKEND, direct = forward >= FORWARD_L2;
	__u32 fin = by_backend ? CONN_FIN_BACKEND : CONN_FIN_CLIENT;
	__u32 fin_doubt = by_backend ? DOUBT_FIN_BACKEND : DOUBT_FIN_CLIENT;

	if (by_backend)
		flags |= CONN_REPLIED;
	if (!(event & EVENT_SEGMENT))
		return make_status(state, flags, forward, doubt);
	/* As if nothing had been said since. */
	if (event & EVENT_AGAIN && flags & CONN_RESET)
		return make_status(CONN_OPENING, flags & CONN_REPLY, forward, 0);
	if (event & EVENT_RESET)
		return make_status(CONN_CLOSED, flags | CONN_RESET, forward, doubt & ~GO_ON_BOTH);
	if (flags & CONN_RESET) {
		doubt |= by_backend ? DOUBT_BACKEND_GOES_ON : DOUBT_CLIENT_GOES_ON;
		/* Of a backend that answers directly nothing is seen: the client's data have to do.
		 */
		if (direct ? !(event & EVENT_DATA) : (doubt & GO_ON_BOTH) != GO_ON_BOTH)
			return make_status(state, flags, forward, doubt);
		flags &= ~CONN_RESET;
		doubt &= ~GO_ON_BOTH;
	}
	if (event & EVENT_BEYOND) {
		flags &= ~fin;
		doubt &= ~fin_doubt;
	}
	if (event & EVENT_FIN) {
		if (direct)
			flags |= fin;
		else if (!(flags & fin))
			doubt |= fin_doubt;
	}
	if (event & EVENT_HEARD && doubt & (fin_doubt ^ DOUBT_FINS)) {
		flags |= fin ^ CONN_FINS;
		doubt &= fin_doubt;
	}
	if (state == CONN_OPENING &&
	    (by_backend || !(event & EVENT_ACK) || !(flags & CONN_REPLIED || direct)))
		return make_status(state, flags, forward, doubt);
	if (!(flags & CONN_FINS))
		state = CONN_ESTABLISHED;
	/* The last FIN of a connection need not be acknowledged. */
	else if ((flags & CONN_FINS) == CONN_FINS || doubt)
		state = CONN_CLOSING;
	else
		state = CONN_HALF_CLOSED;
	return make_status(state, flags, forward, doubt);
}

static __always_inline __u32 own_fin(const struct conn *c)
{
	return c->flags & CONN_REPLY ? CONN_FIN_BACKEND : CONN_FIN_CLIENT;
}

/* The FIN of the packet's sender, heard or not. */
static __always_inline int has_fin(const struct conn *c)
{
	return c->flags & own_fin(c) ||
	       c->doubt & (c->flags & CONN_REPLY ? DOUBT_FIN_BACKEND : DOUBT_FIN_CLIENT);
}

/*
 * Whether the segment is the SYN that opened the connection, sent again after a reset of what was
 * never established. A client does so when the backend has not given up a former connection of the
 * same addresses and ports, and answers for that (RFC 9293, section 3.5.1). That is no new
 * connection: the SYN of a new one has another sequence number.
 */
static __always_inline int is_sent_again(const struct facts *f, const struct known *e)
{
	const struct conn *c = &e->c.conn;

	return !f->established && (c->flags & (CONN_RESET | CONN_REPLY)) == CONN_RESET &&
	       (f->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN &&
	       f->sequence == e->number;
}

/*
 * The enum segment_event bits of the segment of `scratch`, whose connection, in w->own, remembers
 * its sender's sequence number. -1: it is a reset that the receiver will
 * ignore. Not static: see track().
 */
__noinline int judge_segment(void)
{
	const struct settings *s = array_at(settings, 0);
	struct work *w = array_at(scratch, 0);
	__u32 end, event = EVENT_SEGMENT;
	const struct facts *f;
	const struct conn *c;
	struct known *e;
	__s32 ahead;
	int idle;

	if (!w || !s)
		return -1;
	f = &w->facts;
	e = &w->own;
	c = &e->c.conn;
	ahead = f->sequence - e->number;
	idle = idle_since(f->now, c->last_seen, s->hz);
	end = f->sequence + f->payload;
	if (c->flags & CONN_REPLY)
		event |= EVENT_BACKEND;
	if (f->tcp_flags & TCP_RST) {
		/* One that answers a SYN need not have a number (RFC 9293, section 3.5.2). */
		if (e->number && c->state != CONN_OPENING &&
		    (ahead < -REACH_BEHIND || ahead > (idle ? REACH_AHEAD_IDLE : REACH_AHEAD)))
			return -1;
		return event | EVENT_RESET;
	}
	if (f->tcp_flags & TCP_ACK && !(f->tcp_flags & TCP_SYN))
		event |= EVENT_ACK;
	if (f->tcp_flags & TCP_FIN) {
		event |= EVENT_FIN;
		/* One that has been acknowledged stands where it is. */
		if (!(c->flags & own_fin(c)))
			e->number = end;
		return event;
	}
	if (is_sent_again(f, e))
		event |= EVENT_AGAIN;
	if (f->payload)
		event |= EVENT_DATA;
	if (f->payload && has_fin(c) && (__s32)(end - e->number) > 0)
		event |= EVENT_BEYOND;
	/* After a FIN it is that one's. */
	if (!has_fin(c) || event & EVENT_BEYOND)
		e->number = f->sequence;
	return event;
}

/* A packet that may show what has become of a FIN or reset. Not inlined: the verifier would follow
 * each of its outcomes to the end. */
static __noinline int may_settle_end(const struct packet *p, const struct conn *c)
{
	__u32 l4 = p->l4 - p->data;

	return c->flags & CONN_RESET || c->doubt ||
	       (c->flags & own_fin(c) && p->length > l4 + p->headers_end);
}

#endif
