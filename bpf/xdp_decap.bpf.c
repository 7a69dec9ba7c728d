/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * xdp_decap.bpf.c - `xdplb decap`: takes the tunnel header off packets for this host.
 *
 * Shares no map with the balancer. A packet's way, top to bottom:
 *
 *   parse      Ethernet, VLAN, the outer header: most packets are not tunnelled and end here
 *   accept     for an address of ours, from a source that was given
 *   check      outer lengths and checksum, then the inner packet's
 *   congestion outer and inner ECN become one (RFC 6040)
 *   strip      the outer header goes, Ethernet and VLAN tags move up to the inner packet
 *
 * A packet is changed only once nothing can refuse it any more.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "csum.h"
#include "decap.h"

#define VLAN_TAGS 2

#define IP_HEADER_LIMIT	    60 /* bytes, options included */
#define IP_MORE_FRAGMENTS   0x2000
#define IP_FRAGMENT_OFFSET  0x1fff
#define IP6_FRAGMENT_OFFSET 0xfff8
#define IP6_FRAGMENT_HEADER 44

/* Below every enum decap_reason: the packet goes on to the next stage. */
#define GO_ON (-1)

/* RFC 3168, section 5. */
enum ecn {
	ECN_NOT_ECT = 0,
	ECN_ECT1 = 1,
	ECN_ECT0 = 2,
	ECN_CE = 3,
};

/* Set before the load. */
const volatile __be16 gue_port = bpf_htons(6080);
const volatile __u32 any_source = 0;

/* The skeleton has the types that BTF has, and BTF those that data uses. */
struct decap_enums {
	enum decap_limit limit;
	enum decap_reason reason;
};
const volatile struct decap_enums shared_enums = {};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, DECAP_ADDRESS_LIMIT);
	__type(key, struct decap_address);
	__type(value, __u32);
} decap_local SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, DECAP_PREFIX_LIMIT);
	__type(key, struct decap_prefix);
	__type(value, __u32);
} decap_sources SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NR_DECAP_REASONS);
	__type(key, __u32);
	__type(value, struct decap_counter);
} decap_counters SEC(".maps");

#define X(name, verdict, text) | (__u64)(XDP_##verdict == XDP_DROP) << DECAP_##name
static const __u64 dropping_reasons = 0 XDPLB_DECAP_REASONS(X);
#undef X

struct vlan_tag {
	__be16 control;
	__be16 ethertype;
};

struct ip6_fragment {
	__u8 next;
	__u8 reserved;
	__be16 offset; /* and two flags */
	__be32 id;
};

/* The facts about the packet in hand. */
struct tunnel {
	void *data;
	void *end;   /* of what XDP can reach */
	void *outer; /* IP header */
	void *inner; /* what the tunnel carries */
	__u32 tags;  /* VLAN */
	__u32 outer_family;
	__u32 inner_family; /* 4 or 6 */
	__u32 gue;	    /* 1: in UDP */
	__u32 protocol;	    /* of the outer header */
	__u32 outer_ecn;
	__u32 room;   /* bytes that the outer packet has for the inner one */
	__u32 length; /* of the inner packet */
};

/* The one place where a reason is counted and becomes a verdict. */
static __always_inline int finish(__u32 reason, __u32 bytes)
{
	struct decap_counter *counter = bpf_map_lookup_elem(&decap_counters, &reason);

	if (counter) {
		counter->packets++;
		counter->bytes += bytes;
	}
	return dropping_reasons >> reason & 1 ? XDP_DROP : XDP_PASS;
}

static __always_inline int decap_kind(const struct tunnel *t)
{
	return t->gue * 4 + (t->outer_family == 6) * 2 + (t->inner_family == 6);
}

/* Sets `outer` and returns the EtherType behind the tags, 0 if the frame is too short. */
static __always_inline __be16 parse_ethernet(struct tunnel *t)
{
	struct ethhdr *eth = t->data;
	__be16 ethertype;

	if ((void *)(eth + 1) > t->end)
		return 0;
	ethertype = eth->h_proto;
	t->outer = eth + 1;
	t->tags = 0;
	for (int i = 0; i < VLAN_TAGS; i++) {
		struct vlan_tag *tag = t->outer;

		if (ethertype != bpf_htons(ETH_P_8021Q) && ethertype != bpf_htons(ETH_P_8021AD))
			break;
		if ((void *)(tag + 1) > t->end)
			return 0;
		ethertype = tag->ethertype;
		t->outer = tag + 1;
		t->tags++;
	}
	return ethertype;
}

/*
 * Whether what begins at `l4` is a tunnel's, by protocol and port; whether it is sound is
 * seen to later. `length` is what the outer IP header leaves for it.
 */
static __always_inline int is_tunnel(struct tunnel *t, void *l4, __u32 length)
{
	struct udphdr *udp = l4;

	t->gue = 0;
	if (t->protocol == IPPROTO_IPIP || t->protocol == IPPROTO_IPV6)
		return 1;
	if (t->protocol != IPPROTO_UDP || length < sizeof(*udp) || (void *)(udp + 1) > t->end)
		return 0;
	t->gue = 1;
	return udp->dest == gue_port;
}

/* Whether it is for this host, and from an accepted source. The lengths of both keys are not set
 * yet. */
static __always_inline int accept_addresses(const struct decap_prefix *to,
					    struct decap_prefix *from)
{
	if (!bpf_map_lookup_elem(&decap_local, &to->address))
		return DECAP_NOT_LOCAL;
	if (any_source)
		return GO_ON;
	from->length = 8 * sizeof(from->address);
	if (!bpf_map_lookup_elem(&decap_sources, from))
		return DECAP_OTHER_SOURCE;
	return GO_ON;
}

static __always_inline void key_of_ipv4(struct decap_prefix *key, __be32 address)
{
	key->address.family = 4;
	key->address.address[0] = 0;
	key->address.address[1] = 0;
	key->address.address[2] = bpf_htonl(0xffff);
	key->address.address[3] = address;
}

static __always_inline void key_of_ipv6(struct decap_prefix *key, const struct in6_addr *a)
{
	key->address.family = 6;
	key->address.address[0] = a->s6_addr32[0];
	key->address.address[1] = a->s6_addr32[1];
	key->address.address[2] = a->s6_addr32[2];
	key->address.address[3] = a->s6_addr32[3];
}

/* Beyond `end` there may be fragments of a jumbo frame; only what seems short pays for asking. */
static __always_inline int frame_holds(struct xdp_md *ctx, const struct tunnel *t, __u64 length)
{
	return length <= (__u64)(t->end - t->data) || length <= bpf_xdp_get_buff_len(ctx);
}

/* Nobody after us sees this header, so its checksum is ours to verify (RFC 1122, 3.2.1.2). */
static __always_inline int checksum_is_right(const struct tunnel *t, __u32 header)
{
	__u32 *word = t->outer;
	__u64 sum = 0;

	if ((void *)word + sizeof(struct iphdr) > t->end)
		return 0;
	for (__u32 i = 0; i < sizeof(struct iphdr) / sizeof(*word); i++)
		sum += *word++;
	for (__u32 at = sizeof(struct iphdr); at < IP_HEADER_LIMIT; at += sizeof(*word)) {
		if (at >= header)
			break;
		if ((void *)(word + 1) > t->end)
			return 0;
		sum += *word++;
	}
	return csum_fold(sum) == 0xffff;
}

static __always_inline int parse_ipv4(struct xdp_md *ctx, struct tunnel *t)
{
	struct decap_prefix to, from;
	struct iphdr *ip = t->outer;
	__u32 header, total;
	int reason;

	if ((void *)(ip + 1) > t->end)
		return DECAP_NO_TUNNEL;
	header = ip->ihl * 4U;
	total = bpf_ntohs(ip->tot_len);
	t->outer_family = 4;
	t->protocol = ip->protocol;
	t->inner = t->outer + header;
	/* Of a UDP packet's fragments only the first has a port. */
	if (t->protocol == IPPROTO_UDP && ip->frag_off & bpf_htons(IP_FRAGMENT_OFFSET))
		return DECAP_NO_TUNNEL;
	if (!is_tunnel(t, t->inner, total - header))
		return DECAP_NO_TUNNEL;

	key_of_ipv4(&to, ip->daddr);
	key_of_ipv4(&from, ip->saddr);
	reason = accept_addresses(&to, &from);
	if (reason != GO_ON)
		return reason;

	if (ip->frag_off & bpf_htons(IP_MORE_FRAGMENTS | IP_FRAGMENT_OFFSET))
		return DECAP_FRAGMENTED;
	if (ip->version != 4 || header < sizeof(*ip) || total < header ||
	    !frame_holds(ctx, t, t->outer - t->data + total))
		return DECAP_BAD_OUTER;
	if (t->outer + header > t->end)
		return DECAP_SPLIT_HEADERS;
	if (!checksum_is_right(t, header))
		return DECAP_BAD_OUTER;
	t->outer_ecn = ip->tos & 3;
	t->room = total - header;
	return GO_ON;
}

static __always_inline int parse_ipv6(struct xdp_md *ctx, struct tunnel *t)
{
	struct decap_prefix to, from;
	struct ipv6hdr *ip6 = t->outer;
	int reason, fragmented = 0;
	__u32 length;

	if ((void *)(ip6 + 1) > t->end)
		return DECAP_NO_TUNNEL;
	length = bpf_ntohs(ip6->payload_len);
	t->outer_family = 6;
	t->protocol = ip6->nexthdr;
	t->inner = ip6 + 1;
	if (t->protocol == IP6_FRAGMENT_HEADER) {
		struct ip6_fragment *fragment = t->inner;

		if (length < sizeof(*fragment) || (void *)(fragment + 1) > t->end)
			return DECAP_NO_TUNNEL;
		fragmented = 1;
		length -= sizeof(*fragment);
		t->protocol = fragment->next;
		t->inner = fragment + 1;
		if (t->protocol == IPPROTO_UDP && fragment->offset & bpf_htons(IP6_FRAGMENT_OFFSET))
			return DECAP_NO_TUNNEL;
	}
	if (!is_tunnel(t, t->inner, length))
		return DECAP_NO_TUNNEL;

	key_of_ipv6(&to, &ip6->daddr);
	key_of_ipv6(&from, &ip6->saddr);
	reason = accept_addresses(&to, &from);
	if (reason != GO_ON)
		return reason;

	if (fragmented)
		return DECAP_FRAGMENTED;
	if (ip6->version != 6 || !frame_holds(ctx, t, t->inner - t->data + length))
		return DECAP_BAD_OUTER;
	t->outer_ecn = ((__u8 *)ip6)[1] >> 4 & 3;
	t->room = length;
	return GO_ON;
}

/*
 * Direct IP in UDP: GUE's variant is 1 where the payload begins with the bits 01, as both IP
 * versions do (draft-ietf-intarea-gue, section 4). A UDP checksum other than 0 is not
 * verified: that would take reading the whole payload, and the inner packet has its own,
 * which the stack verifies. 0 is right over IPv4, and for tunnels over IPv6 too (RFC 6935).
 */
static __always_inline int parse_gue(struct tunnel *t)
{
	struct udphdr *udp = t->inner;
	__u32 length;
	__u8 *first;

	if ((void *)(udp + 1) > t->end)
		return DECAP_SPLIT_HEADERS;
	length = bpf_ntohs(udp->len);
	if (length < sizeof(*udp) || length > t->room)
		return DECAP_BAD_OUTER;
	t->room = length - sizeof(*udp);
	t->inner = udp + 1;
	first = t->inner;
	if (!t->room)
		return DECAP_OTHER_GUE;
	if ((void *)(first + 1) > t->end)
		return DECAP_SPLIT_HEADERS;
	if (*first >> 4 != 4 && *first >> 4 != 6)
		return DECAP_OTHER_GUE;
	t->inner_family = *first >> 4;
	return GO_ON;
}

/* The inner packet has to be whole: what follows it in the tunnel is the tunnel's padding. */
static __always_inline int parse_inner(struct tunnel *t)
{
	int reason;

	t->inner_family = t->protocol == IPPROTO_IPIP ? 4 : 6;
	if (t->gue) {
		reason = parse_gue(t);
		if (reason != GO_ON)
			return reason;
	}
	if (t->inner_family == 4) {
		struct iphdr *ip = t->inner;

		if (t->room < sizeof(*ip))
			return DECAP_BAD_INNER;
		if ((void *)(ip + 1) > t->end)
			return DECAP_SPLIT_HEADERS;
		t->length = bpf_ntohs(ip->tot_len);
		if (ip->version != 4 || ip->ihl < 5 || t->length < ip->ihl * 4U ||
		    t->length > t->room)
			return DECAP_BAD_INNER;
	} else {
		struct ipv6hdr *ip6 = t->inner;

		if (t->room < sizeof(*ip6))
			return DECAP_BAD_INNER;
		if ((void *)(ip6 + 1) > t->end)
			return DECAP_SPLIT_HEADERS;
		t->length = sizeof(*ip6) + bpf_ntohs(ip6->payload_len);
		if (ip6->version != 6 || t->length > t->room)
			return DECAP_BAD_INNER;
	}
	return GO_ON;
}

/*
 * RFC 6040, section 4.2: what the inner packet leaves with. Negative: it must not go on,
 * since its receiver could not be told of the congestion.
 */
static __always_inline int combined_ecn(__u32 outer, __u32 inner)
{
	if (inner == ECN_NOT_ECT)
		return outer == ECN_CE ? -1 : ECN_NOT_ECT;
	if (outer == ECN_CE)
		return ECN_CE;
	if (outer == ECN_ECT1 && inner == ECN_ECT0)
		return ECN_ECT1;
	return inner;
}

static __always_inline int carry_congestion(struct tunnel *t)
{
	__u8 *byte = t->inner;
	__u32 inner;
	int ecn;

	/* The byte that holds ECN: IPv4's second, and the upper half of IPv6's second. */
	if ((void *)(byte + sizeof(struct iphdr)) > t->end)
		return DECAP_SPLIT_HEADERS;
	inner = t->inner_family == 4 ? byte[1] & 3 : byte[1] >> 4 & 3;
	ecn = combined_ecn(t->outer_ecn, inner);
	if (ecn < 0)
		return DECAP_BAD_ECN;
	if ((__u32)ecn == inner)
		return GO_ON;
	if (t->inner_family == 4) {
		struct iphdr *ip = t->inner;
		__u16 *word = t->inner, before = *word;

		ip->tos = (ip->tos & ~3) | ecn;
		ip->check = csum_apply(ip->check, csum_fold(csum_delta16(before, *word)));
	} else {
		byte[1] = (byte[1] & ~0x30) | ecn << 4;
	}
	return GO_ON;
}

/*
 * Takes out what lies between Ethernet with its tags and the inner packet. These are read
 * first and written to where the frame then begins: the two places overlap.
 */
static __always_inline int remove_outer(struct xdp_md *ctx, const struct tunnel *t)
{
	__be16 ethertype = t->inner_family == 4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	__u32 words[5] = {};
	__u32 *frame = t->data;

	for (__u32 i = 0; i < 5; i++) {
		if (i >= 3 + t->tags)
			break;
		if ((void *)(frame + i + 1) > t->end)
			return DECAP_SPLIT_HEADERS;
		words[i] = frame[i];
	}
	/* Fails only if less than an Ethernet header would be left. */
	if (bpf_xdp_adjust_head(ctx, t->inner - t->outer))
		return DECAP_SPLIT_HEADERS;
	frame = (void *)(long)ctx->data;
	for (__u32 i = 0; i < 5; i++) {
		if (i >= 3 + t->tags)
			break;
		if ((void *)(frame + i + 1) > (void *)(long)ctx->data_end)
			return DECAP_SPLIT_HEADERS;
		frame[i] = words[i];
	}
	frame += 3 + t->tags;
	if ((void *)frame + sizeof(ethertype) > (void *)(long)ctx->data_end)
		return DECAP_SPLIT_HEADERS;
	*(__be16 *)frame = ethertype;
	return GO_ON;
}

SEC("xdp.frags")
int xdp_decap(struct xdp_md *ctx)
{
	struct tunnel t = {
		.data = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
	};
	int reason;

	switch (parse_ethernet(&t)) {
	case bpf_htons(ETH_P_IP):
		reason = parse_ipv4(ctx, &t);
		break;
	case bpf_htons(ETH_P_IPV6):
		reason = parse_ipv6(ctx, &t);
		break;
	default:
		reason = DECAP_NO_TUNNEL;
	}
	if (reason == GO_ON)
		reason = parse_inner(&t);
	if (reason == GO_ON)
		reason = carry_congestion(&t);
	if (reason == GO_ON)
		reason = remove_outer(ctx, &t);
	if (reason != GO_ON)
		return finish(reason, 0);
	return finish(decap_kind(&t), t.length);
}

char LICENSE[] SEC("license") = "GPL";
