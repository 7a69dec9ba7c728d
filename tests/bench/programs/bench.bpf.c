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

/* Connections that take turns, in IPv4 without options or IPv6. */
struct run {
	__u32 flows;
	__u32 steps;	 /* how many of `steps` each connection takes before the next one's turn */
	__u32 at_random; /* the next one is drawn */
	__u32 flow;	 /* whose turn it is */
	__u32 step;
	/* Of the packet in hand: not on the stack, of which the datapath leaves nothing. */
	__u32 taken;
	__u32 by_backend;
	__u32 refused;	 /* packets that were not sent on */
	__u32 elsewhere; /* packets that went to another backend than the first of their flow */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct run);
} run SEC(".maps");

/* One of the packets that a connection consists of. Its ends are written for each flow. */
struct step {
	struct saved frame;
	__u32 by_backend;
	__u32 pad;
};

#define STEPS 4

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, STEPS);
	__type(key, __u32);
	__type(value, struct step);
} steps SEC(".maps");

/* The last word of the address that each flow's first packet went to. 0: none yet. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << 20);
	__type(key, __u32);
	__type(value, __u32);
} chosen SEC(".maps");

/* Where the last word of each address stands, and each port. */
enum ends {
	SOURCE4 = 26,
	DESTINATION4 = 30,
	SOURCE_PORT4 = 34,
	DESTINATION_PORT4 = 36,
	SOURCE6 = 34,
	DESTINATION6 = 50,
	SOURCE_PORT6 = 54,
	DESTINATION_PORT6 = 56,
};

static __always_inline int is_ipv4(const void *data)
{
	return *(const __be16 *)(data + 12) == bpf_htons(ETH_P_IP);
}

/*
 * Writes the next packet. Each flow has a client of its own, and clients that follow one another
 * are not neighbours in any table.
 */
static __always_inline int write_next(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	struct run *r = array_at(run, 0);
	struct step *s;
	__u32 flow, place, *backend;
	__be32 address;
	__be16 port;

	if (!r || data + SAVED > (void *)(long)ctx->data_end)
		return -1;
	s = array_at(steps, r->step);
	flow = r->flow;
	if (++r->step >= r->steps) {
		r->step = 0;
		if (r->at_random)
			r->flow = (__u64)bpf_get_prandom_u32() * r->flows >> 32;
		else if (++r->flow >= r->flows)
			r->flow = 0;
	}
	backend = array_at(chosen, flow);
	if (!s || !backend)
		return -1;
	write_frame(data, &s->frame);
	r->taken = flow;
	r->by_backend = s->by_backend;
	/* Odd: no two flows get the same. */
	place = flow * 0x9e3779b1;
	/* 100.64.0.0/10, which other rows have no clients in. */
	address = bpf_htonl(0x64400000 | place >> 15);
	port = bpf_htons(1024 + (place & 0x7fff));
	if (is_ipv4(data) && s->by_backend) {
		*(__be32 *)(data + SOURCE4) = *backend;
		*(__be32 *)(data + DESTINATION4) = address;
		*(__be16 *)(data + DESTINATION_PORT4) = port;
	} else if (is_ipv4(data)) {
		*(__be32 *)(data + SOURCE4) = address;
		*(__be16 *)(data + SOURCE_PORT4) = port;
	} else if (s->by_backend) {
		*(__be32 *)(data + SOURCE6) = *backend;
		*(__be32 *)(data + DESTINATION6) = address;
		*(__be16 *)(data + DESTINATION_PORT6) = port;
	} else {
		*(__be32 *)(data + SOURCE6) = address;
		*(__be16 *)(data + SOURCE_PORT6) = port;
	}
	return 0;
}

/* The datapath on packets of connections that take turns. */
SEC("xdp.frags")
int repeat_flows(struct xdp_md *ctx)
{
	return write_next(ctx) ? XDP_ABORTED : balance(ctx);
}

/* What of that is the wrapper's. */
SEC("xdp.frags")
int flows_wrapper(struct xdp_md *ctx)
{
	return write_next(ctx) ? XDP_ABORTED : XDP_TX;
}

/* Takes down where the packet in hand went. */
static __always_inline int follow(struct xdp_md *ctx, int verdict)
{
	void *data = (void *)(long)ctx->data;
	struct run *r = array_at(run, 0);
	__u32 *backend, went;

	if (!r || data + SAVED > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	backend = array_at(chosen, r->taken);
	if (!backend)
		return XDP_ABORTED;
	if (verdict != XDP_TX && verdict != XDP_REDIRECT) {
		r->refused++;
		return verdict;
	}
	if (r->by_backend)
		return verdict;
	went = *(__be32 *)(data + (is_ipv4(data) ? DESTINATION4 : DESTINATION6));
	if (!*backend)
		*backend = went;
	else if (*backend != went)
		r->elsewhere++;
	return verdict;
}

SEC("xdp.frags")
int follow_flows(struct xdp_md *ctx)
{
	return write_next(ctx) ? XDP_ABORTED : follow(ctx, balance(ctx));
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
 * Writes a packet of a new flow. Offsets 28 and 34 are the source's low half and port in IPv4, and
 * parts of the source address in IPv6.
 */
static __always_inline int write_new(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	struct saved *saved = array_at(frame, 0);
	__u32 random = bpf_get_prandom_u32();

	if (!saved || data + SAVED > (void *)(long)ctx->data_end)
		return -1;
	write_frame(data, saved);
	*(__u16 *)(data + 28) = random;
	*(__u16 *)(data + 34) = random >> 16;
	return 0;
}

/* The datapath with a new flow each time. */
SEC("xdp.frags")
int repeat_new(struct xdp_md *ctx)
{
	return write_new(ctx) ? XDP_ABORTED : balance(ctx);
}

SEC("xdp.frags")
int repeat_new_tunnel(struct xdp_md *ctx)
{
	return write_new(ctx) ? XDP_ABORTED : take_off(ctx, balance(ctx));
}

/* What of repeat_new is the wrapper's. */
SEC("xdp.frags")
int new_wrapper(struct xdp_md *ctx)
{
	return write_new(ctx) ? XDP_ABORTED : XDP_TX;
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
