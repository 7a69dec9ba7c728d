/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * xdp_lb.bpf.c - the entry programs, and the map of the house. Each stage of a packet's way has a
 * header of its own, and returns GO_ON or the reason why the packet goes no further.
 *
 *                 frame
 *                   |
 *   parse.h         Ethernet, VLAN, IP, TCP, UDP. The address filter lets most packets go to the
 *                   |       host's stack right here: they are not for us
 *   balance.h       the order of all that follows; once for IPv4, once for IPv6 (family.h)
 *                   |
 *   recent.h        the CPU's own copy of what the connection table says, else
 *   connection.h    one lookup under the 5-tuple as it arrives, in either direction
 *                   |
 *                   |  a packet that its connection expects goes straight on; others by track.h:
 *                   |    admit.h      the firewall (firewall.h), the service's own prefixes, the
 *                   |                 limits of its source (police.h)
 *                   |    tcp.h        what a segment means for the state
 *                   |    select.h     service, and backend for a new connection
 *                   |    nat.h        the source that it leaves with
 *                   |    unrecorded.h new flows that there is no room for
 *                   |  packets without ports by portless.h: later fragments (fragment.h), ICMP
 *                   |                 (icmp.h, relay.h)
 *                   |
 *   rewrite.h       nat: the new 5-tuple, TTL, checksums (csum.h)
 *   encap.h         tunnels: an outer header
 *   send.h          the next hop's MAC address, and out
 *   conclude.h      all others: an answer (answer.h), the host's stack, or nothing
 *   count.h         each packet is counted once, and its verdict made of the reason
 *
 * packet.h and work.h hold what the stages hand on; maps.h has the maps, include/xdp_lb.h their
 * keys and values. The user side writes them; src/lib.rs shows the way of a value from the file
 * to there.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#include "packet.h"
#include "parse.h"
#include "table.h"

#define FAMILY 4
#include "recent.h"
#include "balance.h"
#undef FAMILY

#define FAMILY 6
#include "recent.h"
#include "balance.h"
#undef FAMILY

#include "sweep.h"

static __always_inline int balance(struct xdp_md *ctx)
{
	struct packet p = {};
	int reason = parse_ethernet(ctx, &p);

	if (reason != GO_ON)
		return finish(p.ingress, reason);
	switch (p.ethertype) {
	case bpf_htons(ETH_P_IP):
		return balance_ipv4(ctx, &p);
	case bpf_htons(ETH_P_IPV6):
		return balance_ipv6(ctx, &p);
	default:
		return finish(p.ingress, REASON_NOT_IP);
	}
}

SEC("xdp.frags")
int xdp_lb(struct xdp_md *ctx)
{
	return balance(ctx);
}

/* The skeleton has the types that BTF has, and BTF those that code uses. */
struct shared_enums {
	enum xdplb_limit limit;
	enum reason reason;
	enum conn_state conn_state;
	enum conn_flag conn_flag;
	enum way_word way_word;
	enum claim_state claim_state;
	enum forward_mode forward_mode;
	enum hash_by hash_by;
	enum refusal refusal;
	enum protocol_class protocol_class;
	enum rule_kind rule_kind;
	enum rule_action rule_action;
	enum rule_protocol rule_protocol;
	enum echo echo;
	enum backend_state backend_state;
	enum backend_health backend_health;
};

/* Jiffies are the datapath's clock; this program lets the user side convert them to time. */
SEC("syscall")
int clock(struct clock_reading *reading)
{
	volatile __u32 used = bpf_core_type_id_local(struct shared_enums);

	(void)used;
	reading->jiffies = bpf_jiffies64();
	reading->monotonic = bpf_ktime_get_ns();
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
