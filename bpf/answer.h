/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * answer.h - the answers that go back to a packet's sender in place of the packet: ICMP errors, TCP
 * resets, echo replies.
 *
 * Owns when there may be an answer (RFC 1122, section 3.2.2; RFC 4443, section 2.4; RFC 9293,
 * section 3.5.2) and how many in a second. Off the established path: clear before fast.
 */
#ifndef XDPLB_ANSWER_H
#define XDPLB_ANSWER_H

#include "allowance.h"
#include "count.h"
#include "csum.h"
#include "maps.h"
#include "packet.h"
#include "parse.h"
#include "send.h"
#include "track.h"

/* ICMP errors and resets that each CPU sends in a second at most. */
#define ANSWERS_A_SECOND 1000

#define ANSWER_TTL 64
/* Of the packet that an error is about: what fits into 576 bytes (RFC 1812, 4.3.2.3) and into 1280
 * (RFC 4443, 2.4 c). */
#define QUOTE4_LIMIT 548
#define QUOTE6_LIMIT 1232
/* bpf_csum_diff's own limit. */
#define CSUM_CHUNK 512

/* The quoted packet, for its checksum. A whole number of words, and one chunk more. */
struct quote {
	__u8 bytes[3 * CSUM_CHUNK];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct quote);
} quoted SEC(".maps");

static __always_inline int may_answer(void)
{
	return spend(array_at(answers, 0), ANSWERS_A_SECOND);
}

/* Whether the sender's address is that of one host. */
static __always_inline int is_unicast(const __be32 *address, __u8 family)
{
	__u32 first;

	if (family == 6)
		return (address[0] & bpf_htonl(0xff000000)) != bpf_htonl(0xff000000) &&
		       (address[0] || address[1] || address[2] || address[3] & bpf_htonl(~1U));
	first = bpf_ntohl(address[3]) >> 24;
	return first && first != 127 && first < 224;
}

/*
 * Whether the packet comes from one host, in a frame to one station: what is sent to all is
 * answered by nobody (RFC 1122, section 3.2.2).
 */
static __always_inline int may_be_answered(struct xdp_md *ctx, const struct facts *f)
{
	const __u8 *frame = (void *)(long)ctx->data;

	return is_unicast(f->flow.saddr, f->family) &&
	       (const void *)(frame + 1) <= (void *)(long)ctx->data_end && !(*frame & 1);
}

/* One's complement sum of the frame from `offset` on, an IPv4 header's length and `beyond` bytes
 * more; not folded. */
static __noinline __u64 sum_bytes(struct xdp_md *ctx, __u32 offset, __u32 beyond)
{
	struct quote *q = array_at(quoted, 0);
	__u32 length = sizeof(struct iphdr) + beyond;
	__s64 sum = 0;

	if (!q || beyond > QUOTE6_LIMIT - sizeof(struct iphdr))
		return 0;
	/* An odd end is summed with zeros behind it. */
	*(__u32 *)(q->bytes + (length & ~3U)) = 0;
	if (bpf_xdp_load_bytes(ctx, offset, q->bytes, length))
		return 0;
	length = (length + 3) & ~3U;
	for (__u32 i = 0; i < 3; i++) {
		__u32 start = i * CSUM_CHUNK, size;

		if (start >= length)
			break;
		size = length - start;
		if (size > CSUM_CHUNK)
			size = CSUM_CHUNK;
		sum = bpf_csum_diff(NULL, 0, (__be32 *)(q->bytes + start), size, sum);
	}
	return sum;
}

static __always_inline __u64 sum_address(const __be32 *address)
{
	return (__u64)address[0] + address[1] + address[2] + address[3];
}

/* An address of the interface that the packet came by, or the one that it was sent to. */
static __always_inline void own_address(const struct facts *f, __be32 *address)
{
	const __u32 *slot = bpf_map_lookup_elem(&interface_slots, &f->ingress);
	const struct interface *in = slot ? array_at(interfaces, *slot) : NULL;

	copy16(address, f->flow.daddr);
	if (in && f->family == 4 && in->address4)
		address[3] = in->address4;
	if (in && f->family == 6 && in->address6[0])
		copy16(address, in->address6);
}

/* From `at` on, in words: a whole header of 20 bytes. */
static __always_inline void write_ipv4(__u32 *at, __u32 length, __u32 protocol, __be32 saddr,
				       __be32 daddr)
{
	__u32 first = 0x45 | (__u32)bpf_htons(length) << 16;
	__u32 second = (__u32)bpf_htons(IP_DONT_FRAGMENT) << 16;
	__u32 third = ANSWER_TTL | protocol << 8;
	__u16 sum = csum_fold((__u64)first + second + third + saddr + daddr);

	at[0] = first;
	at[1] = second;
	at[2] = third | (__u32)(__u16)~sum << 16;
	at[3] = saddr;
	at[4] = daddr;
}

static __always_inline void write_ipv6(__u32 *at, __u32 payload, __u32 protocol,
				       const __be32 *saddr, const __be32 *daddr)
{
	at[0] = bpf_htonl(6U << 28);
	at[1] = bpf_htons(payload) | protocol << 16 | (__u32)ANSWER_TTL << 24;
	for (int i = 0; i < 4; i++) {
		at[2 + i] = saddr[i];
		at[6 + i] = daddr[i];
	}
}

static __always_inline void swap_macs(struct xdp_md *ctx)
{
	void *frame = (void *)(long)ctx->data;
	__u64 destination, source;

	if (frame + ETH_HLEN > (void *)(long)ctx->data_end)
		return;
	destination = *(__u64 *)frame;
	source = *(__u64 *)(frame + ETH_ALEN);
	write_macs(frame, source, destination);
}

/* Cuts the frame to `length` bytes. */
static __always_inline int shorten_frame(struct xdp_md *ctx, __u32 length)
{
	__s64 beyond = bpf_xdp_get_buff_len(ctx) - length;

	return beyond > 0 ? bpf_xdp_adjust_tail(ctx, -beyond) : 0;
}

/* The segment becomes a reset to its sender (RFC 9293, section 3.10.7.1). */
static __noinline int send_reset(struct xdp_md *ctx, const struct facts *f)
{
	const struct flow6 *flow = &f->flow;
	__u32 flags = TCP_RST, start = f->l3 & 31, *at;
	void *data = (void *)(long)ctx->data;
	struct tcphdr *tcp = data + (f->l4 & 0x7fff);
	__be32 seq = 0, ack = 0;
	__u64 sum;

	if ((void *)(tcp + 1) > (void *)(long)ctx->data_end)
		return REASON_UNANSWERABLE;
	if (f->tcp_flags & TCP_ACK) {
		seq = tcp->ack_seq;
	} else {
		ack = bpf_htonl(bpf_ntohl(tcp->seq) + f->length - f->l4 - tcp->doff * 4 +
				!!(f->tcp_flags & TCP_SYN) + !!(f->tcp_flags & TCP_FIN));
		flags |= TCP_ACK;
	}
	if (shorten_frame(ctx,
			  start + sizeof(*tcp) +
				  (f->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr))))
		return REASON_UNANSWERABLE;

	data = (void *)(long)ctx->data;
	at = data + start;
	if (f->family == 4) {
		if ((void *)at + sizeof(struct iphdr) + sizeof(*tcp) > (void *)(long)ctx->data_end)
			return REASON_UNANSWERABLE;
		write_ipv4(at, sizeof(struct iphdr) + sizeof(*tcp), IPPROTO_TCP, flow->daddr[3],
			   flow->saddr[3]);
		at += sizeof(struct iphdr) / sizeof(*at);
	} else {
		if ((void *)at + sizeof(struct ipv6hdr) + sizeof(*tcp) >
		    (void *)(long)ctx->data_end)
			return REASON_UNANSWERABLE;
		write_ipv6(at, sizeof(*tcp), IPPROTO_TCP, flow->daddr, flow->saddr);
		at += sizeof(struct ipv6hdr) / sizeof(*at);
	}
	at[0] = flow->dport | (__u32)flow->sport << 16;
	at[1] = seq;
	at[2] = ack;
	at[3] = 0x50 | flags << 8;
	/* A mapped IPv4 address has the same sum as without its prefix. */
	sum = sum_address(flow->saddr) + sum_address(flow->daddr) + bpf_htons(IPPROTO_TCP) +
	      bpf_htons(sizeof(*tcp));
	at[4] = (__u16)~csum_fold(sum + at[0] + at[1] + at[2] + at[3]);
	swap_macs(ctx);
	return GO_ON;
}

/* Puts an ICMP error about the packet in front of it. `rest` is the header's second word. */
static __noinline int send_error(struct xdp_md *ctx, const struct facts *f, __u32 type_code,
				 __be32 rest, const __be32 *saddr)
{
	__u32 start = f->l3 & 31, quote = f->length - f->l3, growth, *at;
	__u64 sum, *words, *moved;
	void *data;

	growth = f->family == 4 ? sizeof(struct iphdr) + sizeof(struct icmp_header)
				: sizeof(struct ipv6hdr) + sizeof(struct icmp_header);
	if (f->family == 4 && quote > QUOTE4_LIMIT)
		quote = QUOTE4_LIMIT;
	if (quote > QUOTE6_LIMIT)
		quote = QUOTE6_LIMIT;
	sum = sum_bytes(ctx, start, quote - sizeof(struct iphdr)) + type_code + rest;
	if (shorten_frame(ctx, start + quote) || bpf_xdp_adjust_head(ctx, -(int)growth))
		return REASON_NO_HEADROOM;

	data = (void *)(long)ctx->data;
	words = data;
	moved = data + growth;
	at = data + start;
	/* MAC addresses, VLAN tags and type: 22 bytes at most. */
	if ((void *)(moved + 3) > (void *)(long)ctx->data_end)
		return REASON_UNANSWERABLE;
	for (int i = 0; i < 3; i++)
		words[i] = moved[i];
	swap_macs(ctx);
	if (f->family == 4) {
		if ((void *)(at + 7) > (void *)(long)ctx->data_end)
			return REASON_UNANSWERABLE;
		write_ipv4(at, growth + quote, IPPROTO_ICMP, saddr[3], f->flow.saddr[3]);
		at += sizeof(struct iphdr) / sizeof(*at);
	} else {
		if ((void *)(at + 12) > (void *)(long)ctx->data_end)
			return REASON_UNANSWERABLE;
		write_ipv6(at, sizeof(struct icmp_header) + quote, IPPROTO_ICMPV6, saddr,
			   f->flow.saddr);
		sum += sum_address(saddr) + sum_address(f->flow.saddr) + bpf_htons(IPPROTO_ICMPV6) +
		       bpf_htons(sizeof(struct icmp_header) + quote);
		at += sizeof(struct ipv6hdr) / sizeof(*at);
	}
	at[0] = type_code | (__u32)(__u16)~csum_fold(sum) << 16;
	at[1] = rest;
	return GO_ON;
}

/* As the first two bytes of the header lie in a word. */
#define TYPE_CODE(type, code) ((type) | (code) << 8)

/* Tells the sender the MTU that w->mtu says, which is all of the word in ICMPv6 and its lower half
 * in ICMP (RFC 1191, section 4). From the address that the packet was for. */
static __always_inline int send_too_big(struct xdp_md *ctx, const struct work *w)
{
	return send_error(ctx, &w->facts,
			  w->facts.family == 4
				  ? TYPE_CODE(ICMP_UNREACHABLE, ICMP_FRAGMENTATION_NEEDED)
				  : TYPE_CODE(ICMPV6_TOO_BIG, 0),
			  bpf_htonl(w->mtu), w->facts.flow.daddr);
}

/*
 * Turns the packet in hand, which is described in `scratch`, into the answer that `reason` asks
 * for. Gives back the reason to count: the same one, or why there is no answer.
 */
static __noinline int make_answer(struct xdp_md *ctx, int reason)
{
	struct work *w = array_at(scratch, 0);
	const struct facts *f;
	__be32 own[4] __attribute__((aligned(8)));
	int v4, rejected, error;

	if (!w)
		return REASON_UNANSWERABLE;
	f = &w->facts;
	v4 = f->family == 4;
	/* No answer is due: its sender lets routers cut it up. */
	if (reason == REASON_TOO_BIG && v4 && !w->dont_fragment)
		return REASON_TOO_BIG_DROPPED;
	if (f->kind == ICMP_ERROR || !may_be_answered(ctx, f))
		return REASON_UNANSWERABLE;
	/* An IPv6 packet too big is worth saying of any fragment; the rest of the first one only.
	 */
	if (f->kind == LATER_FRAGMENT && (v4 || reason != REASON_TOO_BIG))
		return REASON_UNANSWERABLE;
	rejected = reason == REASON_UNKNOWN_PORT_REJECTED || reason == REASON_NO_BACKEND_REJECTED;
	if (rejected && f->tcp_flags & TCP_RST)
		return REASON_UNANSWERABLE;
	if (!may_answer())
		return REASON_ANSWERS_LIMITED;
	if (rejected && f->flow.protocol == IPPROTO_TCP) {
		error = send_reset(ctx, f);
	} else if (rejected) {
		error = send_error(ctx, f,
				   v4 ? TYPE_CODE(ICMP_UNREACHABLE, ICMP_PORT_UNREACHABLE)
				      : TYPE_CODE(ICMPV6_UNREACHABLE, ICMPV6_PORT_UNREACHABLE),
				   0, f->flow.daddr);
	} else if (reason == REASON_TTL_EXPIRED) {
		own_address(f, own);
		error = send_error(
			ctx, f,
			v4 ? TYPE_CODE(ICMP_TIME_EXCEEDED, ICMP_TTL_IN_TRANSIT)
			   : TYPE_CODE(ICMPV6_TIME_EXCEEDED, ICMPV6_HOP_LIMIT_IN_TRANSIT),
			0, own);
	} else {
		error = send_too_big(ctx, w);
	}
	return error == GO_ON ? reason : error;
}

#endif
