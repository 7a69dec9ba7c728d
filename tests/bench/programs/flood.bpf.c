/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * flood.bpf.c - the flood of flood.rs: frames from random sources, and a sink for most of them.
 *
 * Live frames come back as the receiver left them, so each is written afresh: from a model, in
 * which what is random is 0 and the checksums are right for that.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "../../../bpf/csum.h"

enum flood {
	FLOOD_WORDS4 = 8, /* of a frame, 8 bytes each */
	FLOOD_WORDS6 = 10,
	FLOOD_MORE = 0x2000, /* iphdr.frag_off: more fragments follow */
	FLOOD_OFFSET = 0x1fff,
	FLOOD_MARK = 0x04,  /* IPv4's type of service, IPv6's traffic class: for `swallow` */
	FLOOD_ANSWERED = 8, /* one of so many has no mark */
};

struct flood_frame {
	__u64 words[FLOOD_WORDS6];
};

/* Two, since there are fragments of TCP and of UDP. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct flood_frame);
} models SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} port SEC(".maps");

/* One CPU's: there is one generator. */
struct flood_state {
	__u64 frames;  /* written so far */
	__be32 source; /* of the last first fragment */
	__be16 id;
	__u16 model;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flood_state);
} state SEC(".maps");

static __always_inline struct flood_state *current_state(void)
{
	__u32 key = 0;

	return bpf_map_lookup_elem(&state, &key);
}

/* Writes a frame of so many words. Where it begins, or NULL. */
static __always_inline void *write(struct xdp_md *ctx, __u32 model, int words)
{
	const struct flood_frame *from = bpf_map_lookup_elem(&models, &model);
	__u64 *frame = (void *)(long)ctx->data;

	if (!from || (void *)(frame + words) > (void *)(long)ctx->data_end)
		return NULL;
	for (int i = 0; i < words; i++)
		frame[i] = from->words[i];
	return frame;
}

static __always_inline int is_answered(const struct flood_state *s)
{
	return !(s->frames % FLOOD_ANSWERED);
}

static __always_inline int emit(struct flood_state *s)
{
	s->frames++;
	return bpf_redirect_map(&port, 0, XDP_DROP);
}

/* Gives a TCP or UDP header a random source port, TCP a sequence number as well. `addresses`: the
 * sum of what has been written into them. */
static __always_inline void vary_transport(void *header, __u8 protocol, __u64 addresses)
{
	__u32 random = bpf_get_prandom_u32();
	struct tcphdr *tcp = header;
	struct udphdr *udp = header;

	if (protocol == IPPROTO_TCP) {
		tcp->source = random;
		tcp->seq = random;
		tcp->check = csum_apply(tcp->check, csum_fold(addresses + (__u16)random + random));
	} else {
		udp->source = random;
		udp->check = csum_apply_udp(udp->check, csum_fold(addresses + (__u16)random));
	}
}

/* What it adds to the header's checksum. */
static __always_inline __u64 unmark4(const struct flood_state *s, struct iphdr *ip)
{
	if (!is_answered(s))
		return 0;
	ip->tos = 0;
	return csum_delta16(bpf_htons(FLOOD_MARK), 0);
}

SEC("xdp")
int flood4(struct xdp_md *ctx)
{
	struct flood_state *s = current_state();
	struct ethhdr *eth = write(ctx, 0, FLOOD_WORDS4);
	struct iphdr *ip = (void *)(eth + 1);

	if (!s || !eth)
		return XDP_ABORTED;
	ip->saddr = bpf_get_prandom_u32();
	ip->check = csum_apply(ip->check, csum_fold(ip->saddr + unmark4(s, ip)));
	vary_transport(ip + 1, ip->protocol, ip->saddr);
	return emit(s);
}

SEC("xdp")
int flood6(struct xdp_md *ctx)
{
	struct flood_state *s = current_state();
	struct ethhdr *eth = write(ctx, 0, FLOOD_WORDS6);
	struct ipv6hdr *ip = (void *)(eth + 1);
	__be32 *source;

	if (!s || !eth)
		return XDP_ABORTED;
	source = ip->saddr.in6_u.u6_addr32;
	source[1] = bpf_get_prandom_u32();
	source[3] = bpf_get_prandom_u32();
	if (is_answered(s))
		ip->flow_lbl[0] = 0;
	vary_transport(ip + 1, ip->nexthdr, (__u64)source[1] + source[3]);
	return emit(s);
}

/*
 * Half of them are first fragments, of a packet each; of the others half belong to the last of
 * these, wherever in it they lie, and half to nothing.
 */
SEC("xdp")
int fragments4(struct xdp_md *ctx)
{
	struct flood_state *s = current_state();
	__u32 random = bpf_get_prandom_u32();
	__u16 position = random & (FLOOD_MORE | FLOOD_OFFSET);
	int is_first = random >> 16 & 1, follows = !is_first && random >> 17 & 1;
	__u32 model = random >> 18 & 1;
	struct ethhdr *eth;
	struct iphdr *ip;

	if (!s)
		return XDP_ABORTED;
	if (follows)
		model = s->model & 1;
	eth = write(ctx, model, FLOOD_WORDS4);
	ip = (void *)(eth + 1);
	if (!eth)
		return XDP_ABORTED;
	ip->saddr = follows ? s->source : bpf_get_prandom_u32();
	ip->id = follows ? s->id : bpf_get_prandom_u32();
	if (is_first) {
		position = FLOOD_MORE;
		s->source = ip->saddr;
		s->id = ip->id;
		s->model = model;
		vary_transport(ip + 1, ip->protocol, ip->saddr);
	}
	ip->frag_off = bpf_htons(position);
	ip->check = csum_apply(ip->check,
			       csum_fold(ip->saddr + ip->id + ip->frag_off + unmark4(s, ip)));
	return emit(s);
}

/*
 * At a backend, where marked frames end: to answer them would take its stack longer than all else
 * that they meet, and is not what is tested.
 */
SEC("xdp")
int swallow(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct iphdr *ip = (void *)(eth + 1);
	struct ipv6hdr *ipv6 = (void *)(eth + 1);

	if ((void *)(ip + 1) > end)
		return XDP_PASS;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		return ip->tos == FLOOD_MARK ? XDP_DROP : XDP_PASS;
	if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		return ipv6->flow_lbl[0] == FLOOD_MARK << 4 ? XDP_DROP : XDP_PASS;
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "GPL";
