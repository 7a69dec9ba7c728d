/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * bench.bpf.c - programs to measure the datapath with: its own body in a wrapper, and
 * the generators, relays and sinks of the live measurement. Over the datapath's own maps,
 * one of which is a devmap: the kernel wants all programs that share one to agree on frags.
 */
#include "../../../bpf/xdp_lb.bpf.c"

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

/* How many flows take turns, a power of two, and whose turn it is. */
struct turns {
	__u32 flows;
	__u32 next;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct turns);
} turns SEC(".maps");

/* The same with flows that take turns, by their source port in IPv4 without options. */
SEC("xdp.frags")
int repeat_flows(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	struct saved *saved = array_at(frame, 0);
	struct turns *t = array_at(turns, 0);

	if (!saved || !t || data + SAVED > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	write_frame(data, saved);
	*(__be16 *)(data + 34) = bpf_htons(t->next++ & (t->flows - 1));
	return balance(ctx);
}

/* Bytes of the tunnel header that the datapath puts on. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} tunnel_header SEC(".maps");

/* Of a packet whose tunnel header is taken off: MAC addresses, type, TTL, checksum. */
#define TUNNEL_SAVED 32

static __always_inline int take_off(struct xdp_md *ctx, int verdict)
{
	struct saved *saved = array_at(frame, 0);
	__u32 *header = array_at(tunnel_header, 0);
	__u64 *words;

	if (!saved || !header || bpf_xdp_adjust_head(ctx, *header))
		return XDP_ABORTED;
	words = (void *)(long)ctx->data;
	if ((void *)words + TUNNEL_SAVED > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	for (int i = 0; i < TUNNEL_SAVED / 8; i++)
		words[i] = saved->words[i];
	return verdict;
}

/* The datapath with a tunnel: what it has put on is taken off again. */
SEC("xdp.frags")
int repeat_tunnel(struct xdp_md *ctx)
{
	return take_off(ctx, balance(ctx));
}

/* What of that is the wrapper's: room made in front and taken back. */
SEC("xdp.frags")
int tunnel_wrapper(struct xdp_md *ctx)
{
	__u32 *header = array_at(tunnel_header, 0);

	if (!header || bpf_xdp_adjust_head(ctx, -(int)*header))
		return XDP_ABORTED;
	return take_off(ctx, XDP_TX);
}

/* What of `repeat` is the wrapper's. */
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

/*
 * From here on, the live measurement (live.rs): `generate` at the client and `answer` at the
 * backend make frames, `relay` between them is the limit, `sink` at both ends counts.
 */
enum live {
	/* A power of two. Each CPU makes its own flows, as a network card hands each of its queues
	 * other ones. */
	LIVE_FLOWS = 512,
	LIVE_CPUS = 8,
	LIVE_FIRST_PORT = 1024,
	LIVE_FRAME = 60,
	/* Ethernet, IPv4, UDP: live frames come back as the receiver left them, so that each is
	 * written again. */
	LIVE_HEADERS = 42,
	LIVE_VIP_PORT = 80,
	LIVE_BACKEND_PORT = 8080,
};

/* What frames are copies of, and where they leave: positions in `live_frames` and `live_ports`. */
enum live_position {
	LIVE_FROM_CLIENT,
	LIVE_FROM_BACKEND,
	LIVE_TO_BACKEND,
	NR_LIVE_POSITIONS,
};

/* Where a frame that `sink` counts was addressed to: positions in `received`. */
enum live_arrival {
	LIVE_AT_VIP,
	LIVE_AT_BACKEND,
	LIVE_ELSEWHERE,
	NR_LIVE_ARRIVALS,
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NR_LIVE_POSITIONS);
	__type(key, __u32);
	__type(value, struct saved);
} live_frames SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, NR_LIVE_POSITIONS);
	__type(key, __u32);
	__type(value, __u32);
} live_ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NR_LIVE_POSITIONS);
	__type(key, __u32);
	__type(value, struct counter);
} live_turns SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NR_LIVE_ARRIVALS);
	__type(key, __u32);
	__type(value, struct counter);
} received SEC(".maps");

/* The next flow's frame; `port` is the offset of the client's port in it. The UDP checksum is 0,
 * so that any port is right. */
static __always_inline int emit(struct xdp_md *ctx, enum live_position from, __u32 port)
{
	void *data = (void *)(long)ctx->data;
	struct saved *saved = array_at(live_frames, from);
	struct counter *turn = array_at(live_turns, from);
	__u32 cpu = bpf_get_smp_processor_id();

	if (!saved || !turn || data + LIVE_FRAME > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	__builtin_memcpy(data, saved, LIVE_HEADERS);
	*(__be16 *)(data + port) = bpf_htons(LIVE_FIRST_PORT + cpu % LIVE_CPUS * LIVE_FLOWS +
					     turn->packets++ % LIVE_FLOWS);
	return bpf_redirect_map(&live_ports, from, XDP_DROP);
}

SEC("xdp.frags")
int generate(struct xdp_md *ctx)
{
	return emit(ctx, LIVE_FROM_CLIENT, 34);
}

SEC("xdp.frags")
int answer(struct xdp_md *ctx)
{
	return emit(ctx, LIVE_FROM_BACKEND, 36);
}

/* The limit: what a redirect alone can do. */
SEC("xdp.frags")
int relay(struct xdp_md *ctx __attribute__((unused)))
{
	return bpf_redirect_map(&live_ports, LIVE_TO_BACKEND, XDP_DROP);
}

/* Whatever is not IPv4 goes on: the host has neighbours to find. */
SEC("xdp.frags")
int sink(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	struct ethhdr *eth = data;
	struct counter *c;
	__be16 port;

	if (data + LIVE_HEADERS > (void *)(long)ctx->data_end ||
	    eth->h_proto != bpf_htons(ETH_P_IP))
		return XDP_PASS;
	port = *(__be16 *)(data + 36);
	c = array_at(received, port == bpf_htons(LIVE_BACKEND_PORT) ? LIVE_AT_BACKEND
			       : port == bpf_htons(LIVE_VIP_PORT)   ? LIVE_AT_VIP
								    : LIVE_ELSEWHERE);
	if (c)
		c->packets++;
	return XDP_DROP;
}
