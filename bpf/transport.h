/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * transport.h - the protocols above IP: which of them are balanced, what their headers have to
 * hold, where their ports are, and which checksum covers the addresses too.
 *
 * Owns all that tells one of them from another when packets are read and written, a switch for each
 * question. What is not named in one has no ports (ESP, AH), and no checksum that other addresses
 * would make wrong (those two, and SCTP's CRC32c). A protocol is added here.
 */
#ifndef XDPLB_TRANSPORT_H
#define XDPLB_TRANSPORT_H

#include <linux/in.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>

#include "csum.h"
#include "packet.h"

static __always_inline int may_be_balanced(__u32 protocol)
{
	switch (protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
		return 1;
	default:
		return 0;
	}
}

/* Whether the header begins with a source and a destination port. */
static __always_inline int has_ports(__u32 protocol)
{
	switch (protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
		return 1;
	default:
		return 0;
	}
}

/* The state in which a connection begins. */
static __always_inline __u32 first_state(__u32 protocol)
{
	switch (protocol) {
	case IPPROTO_TCP:
		return CONN_OPENING;
	case IPPROTO_UDP:
		return CONN_UDP;
	default:
		return CONN_OTHER;
	}
}

/*
 * Checks the header at p->l4, with `length` bytes from there on by the IP header. A first fragment
 * has to have all of it, or what is behind it could come by another way (RFC 1858, RFC 7112).
 */
static __always_inline int parse_transport(struct packet *p, __u32 length)
{
	int bad = likely(p->kind == WHOLE_PACKET) ? REASON_BAD_HEADER : REASON_BAD_FRAGMENT;
	struct tcphdr *tcp = p->l4;
	struct udphdr *udp = p->l4;

	switch (p->protocol) {
	case IPPROTO_TCP:
		if (length < sizeof(*tcp))
			return bad;
		if ((void *)(tcp + 1) > p->end)
			return REASON_SPLIT_HEADER;
		if (tcp->doff < 5 || tcp->doff * 4U > length)
			return bad;
		p->tcp_flags = ((__u8 *)tcp)[13];
		p->headers_end += tcp->doff * 4U;
		return GO_ON;
	case IPPROTO_UDP:
		if (length < sizeof(*udp))
			return bad;
		if ((void *)(udp + 1) > p->end)
			return REASON_SPLIT_HEADER;
		if (bpf_ntohs(udp->len) < sizeof(*udp) ||
		    (p->kind == WHOLE_PACKET && bpf_ntohs(udp->len) > length))
			return bad;
		p->tcp_flags = 0;
		p->headers_end += sizeof(*udp);
		return GO_ON;
	default:
		return is_icmp(p->protocol) && p->kind == WHOLE_PACKET ? IS_PORTLESS
								       : REASON_OTHER_PROTOCOL;
	}
}

static __always_inline void write_ports(void *header, __be16 sport, __be16 dport)
{
	__be16 *ports = header;

	ports[0] = sport;
	ports[1] = dport;
}

/* Puts other ports into a header that parse_transport has checked, and `delta` on its checksum.
 * Linux 6.1's verifier does not remember that it is there. */
static __always_inline void rewrite_transport(struct packet *p, __u16 delta, __be16 sport,
					      __be16 dport)
{
	struct tcphdr *tcp = p->l4;
	struct udphdr *udp = p->l4;

	switch (p->protocol) {
	case IPPROTO_TCP:
		if ((void *)(tcp + 1) > p->end)
			return;
		tcp->check = csum_apply(tcp->check, delta);
		write_ports(tcp, sport, dport);
		return;
	case IPPROTO_UDP:
		if ((void *)(udp + 1) > p->end)
			return;
		udp->check = csum_apply_udp(udp->check, delta);
		write_ports(udp, sport, dport);
		return;
	default:
		return;
	}
}

/*
 * Likewise in the first `left` bytes of a header, which an ICMP error quotes: the ports are among
 * them, the checksum need not be. `addresses` is the delta of the quoted addresses. Gives back the
 * delta of what is quoted from the header on, for a sum over it.
 */
static __always_inline __u64 rewrite_quoted(void *header, const void *end, __u32 left,
					    __u32 protocol, __u16 addresses, __be16 sport,
					    __be16 dport)
{
	const __be16 *ports = header;
	struct tcphdr *tcp = header;
	struct udphdr *udp = header;
	__u64 delta = 0;
	__u16 before;

	if (has_ports(protocol)) {
		delta = csum_delta16(ports[0], sport) + csum_delta16(ports[1], dport);
		write_ports(header, sport, dport);
	}
	switch (protocol) {
	case IPPROTO_TCP:
		if (left < __builtin_offsetof(struct tcphdr, urg_ptr) ||
		    (void *)&tcp->urg_ptr > end)
			return delta;
		before = tcp->check;
		tcp->check = csum_apply(before, csum_fold(addresses + delta));
		return delta + csum_delta16(before, tcp->check);
	case IPPROTO_UDP:
		if (left < sizeof(*udp) || (void *)(udp + 1) > end)
			return delta;
		before = udp->check;
		udp->check = csum_apply_udp(before, csum_fold(addresses + delta));
		return delta + csum_delta16(before, udp->check);
	default:
		return delta;
	}
}

/* Whether a whole packet has a checksum over its pseudo-header and all of the `length` bytes that
 * follow the IP header: with it they sum to zero. */
static __always_inline int is_summed(const struct packet *p, __u32 length)
{
	const struct udphdr *udp = p->l4;

	if (p->kind != WHOLE_PACKET)
		return 0;
	switch (p->protocol) {
	case IPPROTO_TCP:
		return 1;
	case IPPROTO_UDP:
		/* Parsing has looked, but Linux 6.1's verifier does not remember. */
		return (const void *)(udp + 1) <= p->end && udp->check &&
		       udp->len == bpf_htons(length);
	default:
		return 0;
	}
}

#endif
