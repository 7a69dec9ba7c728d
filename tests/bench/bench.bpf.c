/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * bench.bpf.c - programs to measure the datapath with: its own body in a wrapper, and
 * the generators, relays and sinks of the live measurement. Over the datapath's own maps,
 * one of which is a devmap: the kernel wants all programs that share one to agree on frags.
 */
#include "../../bpf/xdp_lb.bpf.c"

/* The headers that the datapath may change: Ethernet, IPv6 and TCP up to its checksum. */
#define SAVED 72

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct saved);
} frame SEC(".maps");

struct saved {
	__u64 words[SAVED / 8];
};

/* Word by word: a packet's bytes have no alignment that the compiler could know of. */
static __always_inline void write_frame(void *data, const struct saved *saved)
{
	__u64 *words = data;

	for (int i = 0; i < SAVED / 8; i++)
		words[i] = saved->words[i];
}

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counter);
} received SEC(".maps");

/* Where `generate` and `relay` send: ifindex by position. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u32);
} bench_ports SEC(".maps");

/* What the harness costs: a bounds check, a write, a verdict. */
SEC("xdp.frags")
int floor_program(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data;

	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	eth->h_source[5]++;
	return XDP_TX;
}

/*
 * The datapath on a packet that is afresh each time: the kernel repeats a run on what
 * the last one left. Writing it is in the figures.
 */
SEC("xdp.frags")
int repeat(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	struct saved *saved = array_at(frame, 0);

	if (!saved || data + SAVED > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	write_frame(data, saved);
	return balance(ctx);
}

/* What of that is the wrapper's. */
SEC("xdp.frags")
int wrapper(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	struct saved *saved = array_at(frame, 0);

	if (!saved || data + SAVED > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	write_frame(data, saved);
	return XDP_TX;
}

/*
 * The same with a new flow each time. Offsets 28 and 34 are the source's low half and
 * port in IPv4, and parts of the source address in IPv6.
 */
SEC("xdp.frags")
int repeat_new(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	struct saved *saved = array_at(frame, 0);
	__u32 random = bpf_get_prandom_u32();

	if (!saved || data + SAVED > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	write_frame(data, saved);
	*(__u16 *)(data + 28) = random;
	*(__u16 *)(data + 34) = random >> 16;
	return balance(ctx);
}

/* A generator for live frames, which come back as the receiver left them. The source
 * port varies, so that there is more than one connection. */
SEC("xdp.frags")
int generate(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	struct saved *saved = array_at(frame, 0);
	struct packet_ports {
		__be16 source;
		__be16 destination;
	} *ports = data + sizeof(struct ethhdr) + sizeof(struct iphdr);

	if (!saved || data + SAVED > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	write_frame(data, saved);
	/* UDP without a checksum: any port is right. */
	ports->source = bpf_htons(1024 + (bpf_get_prandom_u32() & 1023));
	return bpf_redirect_map(&bench_ports, 0, XDP_DROP);
}

/* The limit: what a redirect alone can do. */
SEC("xdp.frags")
int relay(struct xdp_md *ctx __attribute__((unused)))
{
	return bpf_redirect_map(&bench_ports, 1, XDP_DROP);
}

SEC("xdp.frags")
int sink(struct xdp_md *ctx __attribute__((unused)))
{
	struct counter *c = array_at(received, 0);

	if (c)
		c->packets++;
	return XDP_DROP;
}
