/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * select.h - the service that an address and port belong to, and the backend that
 * a new connection gets. New connections only.
 */
#ifndef XDPLB_SELECT_H
#define XDPLB_SELECT_H

#include "maps.h"
#include "packet.h"
#include "xxhash.h"

/*
 * A slot can name a backend that went away between two loads. The next slots hold others.
 */
#define SELECT_TRIES 8

/* The VIP's service, an entry with NO_SERVICE if it has none there, or NULL if it is no VIP. */
static __always_inline const struct vip *find_vip(const struct flow6 *flow)
{
	struct vip_key key = {
		.prefixlen = 8 * (sizeof(key) - sizeof(key.prefixlen)),
		.protocol = flow->protocol,
		.port = flow->dport,
	};

	__builtin_memcpy(key.address, flow->daddr, sizeof(key.address));
	return bpf_map_lookup_elem(&vips, &key);
}

static __always_inline int unknown_port(void)
{
	const struct settings *s = array_at(settings, 0);

	if (s && s->unknown_port == REFUSAL_DROP)
		return REASON_UNKNOWN_PORT_DROPPED;
	return s && s->unknown_port == REFUSAL_REJECT ? REASON_UNKNOWN_PORT_REJECTED
						      : REASON_UNKNOWN_PORT_PASSED;
}

static __always_inline int no_backend(__u32 service)
{
	const struct service *s = array_at(services, service);

	if (s && s->no_backend == REFUSAL_PASS)
		return REASON_NO_BACKEND_PASSED;
	return s && s->no_backend == REFUSAL_REJECT ? REASON_NO_BACKEND_REJECTED
						    : REASON_NO_BACKEND;
}

/* XXH64 over the wide 5-tuple, with zeros for what the service does not hash by. */
static __noinline __u64 hash_flow(const struct flow6 *flow, __u32 by, __u64 seed)
{
	struct flow6 input = *flow;

	if (by == HASH_SOURCE_IP || by == HASH_SOURCE_IP_PORT) {
		__builtin_memset(input.daddr, 0, sizeof(input.daddr));
		input.dport = 0;
		input.protocol = 0;
	}
	if (by == HASH_SOURCE_IP)
		input.sport = 0;
	return xxh64(&input, sizeof(input), seed);
}

/* The hash by which a tunnel's outer header varies with the flow. */
static __always_inline __u32 flow_entropy(const struct flow6 *flow)
{
	const struct settings *s = array_at(settings, 0);

	return s ? hash_flow(flow, HASH_5_TUPLE, s->hash_seed) >> 32 : 0;
}

/* The backend for a new connection, and its id; NULL if there is none. */
static __always_inline struct backend *select_backend(__u32 service, const struct flow6 *flow,
						      __u32 *id)
{
	const struct service *s = array_at(services, service);
	const struct settings *set = array_at(settings, 0);
	__u32 offset, size;
	__u64 table, hash;

	if (!s || !set)
		return NULL;
	/* One load, so that offset and size belong together. The slots, and the backends that they
	 * name, were written before it; their addresses are computed from it, so that no CPU loads
	 * them sooner (see src/datapath/array.rs). */
	table = READ_ONCE(s->table);
	offset = table;
	size = table >> 32;
	if (!size)
		return NULL;

	hash = hash_flow(flow, s->hash, set->hash_seed);
	for (int i = 0; i < SELECT_TRIES; i++) {
		__u32 slot = offset + (hash + i) % size;
		const struct slots *pair = array_at(maglev, slot / 2);
		struct backend *b;

		if (!pair)
			return NULL;
		*id = pair->backend[slot & 1];
		b = array_at(backends, *id);
		if (b && READ_ONCE(b->usable))
			return b;
	}
	return NULL;
}

#endif
