/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * xdp_lb.h - shared by the datapath and the user side: the keys and values of every
 * map, and the enums and limits that both must agree on.
 *
 * The user side sees these types through the skeleton (BTF), so: fixed widths,
 * explicit padding, no unions, no bool, no bitfields; limits are enums, since a
 * #define never reaches BTF. Fields named __be are in network byte order, all
 * others in the host's.
 *
 * An address is four __be32. IPv4 is held as the IPv4-mapped ::ffff:a.b.c.d
 * (RFC 4291, section 2.5.5.2) wherever one field serves both families.
 */
#ifndef XDPLB_XDP_LB_H
#define XDPLB_XDP_LB_H

#include <linux/types.h>

#include "reasons.h"

/* Rust reads and writes these structs as bytes: whatever is between two fields has a name. */
#pragma clang diagnostic push
#pragma clang diagnostic error "-Wpadded"

enum xdplb_limit {
	NAME_LENGTH = 64,	  /* of a service or backend, with the final NUL */
	SLOT_LIMIT = 64,	  /* network interfaces that XDP may be attached to */
	FILTER_WORDS = 1024,	  /* 64 bits each: the address filter has 65,536 bits */
	NAT_POOL_LIMIT = 4096,	  /* addresses in the full-nat source pool */
	NO_SERVICE = 0xffffffff,  /* vips: a VIP, but no service has the port */
	NO_SLOT = 0xffff,	  /* hop.slot: not resolved */
	FRAGMENT_LIMIT = 16384,	  /* fragmented packets that are followed at a time */
	RULE_BITS = 17,		  /* conn.admission: the rule's id; above it, of which rules */
	RULE_LIMIT = 1 << 17,	  /* ids in `fw_rules`: rules, blocklists, the default */
	DEFAULT_RULE = 0,	  /* the id of what decides where no rule matches */
	NO_RULE = 0x7fffffff,	  /* fw_step.rule: none of the list matches */
	RULE_DENIES = 0x80000000, /* fw_step.rule: beside the id */
	NO_LEVEL = 0xffffffff,	  /* fw_level.parent, fw_prefix.level */
	LEVEL_LIMIT = 132,	  /* prefixes of rules that lie in one another */
	PREFIX_LIMIT = 4194304,	  /* prefixes in `fw_prefixes` */
	RULE_NAME_LENGTH = 128,	  /* of a rule, or a blocklist's file, with the final NUL */
	POLICY_LIMIT = 8,	  /* [[dos]] policies of one protocol */
	SOURCE_WAYS = 4,	  /* sources in a set of `dos_sources` */
	TICK_SHIFT = 20,	  /* policies' time: jiffies << TICK_SHIFT */
	CLAIM_STATE_BITS = 2,	  /* claim4.status: below the time, enum claim_state */
	PORT_HOLD_SECONDS = 65,	  /* a full-nat port stays unused after a close: as long as the
				     backend's TIME_WAIT, and then some */
	SET_WAYS = 7,		  /* connections in a set of `connections` */
	SPILL_BITS = 48,	  /* of set4.spilled: a bit for what is in `conntrack`; above, how
				     often something has moved there */
	SPILL_INDICES = 8,	  /* connections in `conntrack` of one client's address and port */
	PENDING_LIMIT = 32768,	  /* flows without a place that are remembered, of each family */
};

/* The word of a way: bits, from the lowest. It changes by compare-and-swap only. */
enum way_word {
	WAY_STATE_BITS = 3, /* enum conn_state */
	WAY_FLAGS = 3,	    /* enum conn_flag, but for CONN_REPLY */
	WAY_DOUBT = 7,	    /* enum conn_doubt */
	WAY_BUSY = 11,	    /* its record is being written, and nobody's meanwhile */
	WAY_PROVEN = 12,    /* both directions have been seen, or a client that goes on */
	WAY_TAG = 13,	    /* of the hash, so that few records are looked at */
	WAY_TAG_BITS = 10,
	WAY_VERSION = 23, /* another one for each connection that the way gets */
	WAY_AGE = 32,	  /* when a packet last came: jiffies, the low 32 bits */
};

/* The protocols that are counted and limited apart. */
enum protocol_class {
	CLASS_TCP,
	CLASS_UDP,
	CLASS_ICMP, /* and ICMPv6 */
	CLASS_OTHER,
	NR_CLASSES,
};

/* The reasons of reasons.h as indices into `counters`. */
enum reason {
#define X(name, verdict, text) REASON_##name,
	XDPLB_REASONS(X)
#undef X
		NR_REASONS,
};

/* The state of a connection. Indexes settings.timeout. */
enum conn_state {
	CONN_FREE,	  /* there is none */
	CONN_OPENING,	  /* TCP: a SYN, no answer and ACK yet */
	CONN_ESTABLISHED, /* TCP: both directions seen */
	CONN_HALF_CLOSED, /* TCP: one side has sent its FIN, the other may still speak */
	CONN_CLOSING,	  /* TCP: both have; late segments still find their way */
	CONN_CLOSED,	  /* TCP: one side has reset; likewise */
	CONN_UDP,	  /* UDP */
	CONN_OTHER,	  /* anything else */
	NR_CONN_STATES,
	CONN_STATE_SLOTS =
		8, /* settings.timeout: a power of two, so that a mask bounds the index */
};

enum conn_flag {
	CONN_REPLY = 1,	      /* as the backend's packets see it */
	CONN_REPLIED = 2,     /* the backend has answered */
	CONN_FIN_CLIENT = 4,  /* the client has sent FIN, and the backend has acknowledged it */
	CONN_FIN_BACKEND = 8, /* likewise the backend */
	CONN_RESET = 16,      /* one of them has sent RST */
};

/* Ends that are not certain. */
enum conn_doubt {
	DOUBT_FIN_CLIENT = 1,	   /* a FIN of the client that the backend has not acknowledged */
	DOUBT_FIN_BACKEND = 2,	   /* likewise of the backend */
	DOUBT_CLIENT_GOES_ON = 4,  /* it has sent since the reset, which has been ignored once */
	DOUBT_BACKEND_GOES_ON = 8, /* both have */
};

/* How packets reach the backend. From FORWARD_L2 on the packet itself stays as it is, the backend
 * answers directly, and a connection has one entry, the client's. */
enum forward_mode {
	FORWARD_NAT = 1,
	FORWARD_FULL_NAT = 2, /* the source is translated too: holds a claim in nat_ports */
	FORWARD_L2 = 3,	      /* only the MAC addresses change */
	FORWARD_IPIP = 4,     /* in an IP header (RFC 2003, 2473, 4213) */
	FORWARD_GUE = 5,      /* in UDP, direct IP (GUE variant 1, draft-ietf-intarea-gue) */
};

/* The part of the packet that chooses the Maglev slot. */
enum hash_by {
	HASH_5_TUPLE = 1,
	HASH_SOURCE_IP = 2,
	HASH_SOURCE_IP_PORT = 3,
};

/* The fate of a packet for a VIP that cannot be balanced: settings.unknown_port,
 * service.no_backend. */
enum refusal {
	REFUSAL_PASS = 1, /* to the host's stack */
	REFUSAL_DROP = 2,
	REFUSAL_REJECT = 3, /* TCP: reset; UDP: ICMP port unreachable */
};

/* The fate of a ping for a VIP. */
enum echo {
	ECHO_PASS = 1, /* to the host's stack: icmp_echo = false */
	ECHO_ANSWER = 2,
	ECHO_DROP = 3, /* no service of the VIP has a usable backend */
};

/* Why a backend may or may not be chosen; the datapath reads only `generation` and `usable`. */
enum backend_state {
	BACKEND_UP = 1,
	BACKEND_DRAIN = 2,
	BACKEND_DOWN = 3,
};

enum backend_health {
	HEALTH_UP = 1,
	HEALTH_DOWN = 2,
	HEALTH_UNRESOLVED = 3, /* no route, or no neighbour answers */
	HEALTH_NO_SOURCE = 4,  /* full-nat or a tunnel without an address of ours to send from */
};

/* Values of fw_rules[].kind. */
enum rule_kind {
	RULE_FREE = 0,	    /* the id is */
	RULE_OF_FILE = 1,   /* a [[firewall.rule]] */
	RULE_BLOCKLIST = 2, /* a file of firewall.blocklists */
	RULE_DEFAULT = 3,   /* firewall.default */
};

enum rule_action {
	RULE_ALLOW = 1,
	RULE_DENY = 2,
};

/* Values of fw_rules[].protocol beyond the numbers of protocols. */
enum rule_protocol {
	PROTOCOL_ANY = 256,
	PROTOCOL_ICMP = 257, /* ICMP and ICMPv6 */
};

/* New flows that are kept count of apart: `new_flows`, by element. */
enum flow_kind {
	FLOW_SYN,   /* TCP that begins with a SYN */
	FLOW_TCP,   /* TCP that begins otherwise: among others, segments that follow such a SYN */
	FLOW_OTHER, /* other than TCP */
	FLOW_FRAGMENT, /* either, in fragments */
	NR_FLOW_KINDS,
};

/*
 * Where a frame goes next: destination MAC address and interface. Eight bytes and
 * read and written as one __u64, so that no frame meets the address of one
 * neighbour with the interface of another.
 */
struct hop {
	__u8 mac[6];
	__u16 slot; /* index into `interfaces` and `tx_ports` */
} __attribute__((aligned(8)));

/* An interface that XDP is attached to. `interfaces`, by position. */
struct interface {
	__u8 mac[6];
	__u16 pad;	 /* mac and pad are written as one __u64 */
	__u32 ifindex;	 /* 0: the slot is free */
	__u32 mtu;	 /* bytes of an IP packet */
	__be32 address4; /* of ours there, for ICMP errors to come from; 0: none */
	__u32 pad2;
	__be32 address6[4]; /* likewise */
	char name[16];
} __attribute__((aligned(8)));

/* Settings that a reload may change. `settings`, one element. */
struct settings {
	__u64 hash_seed;
	__u64 nat_secret; /* so that nobody can tell which source port comes next (RFC 6056) */
	__u32 timeout[CONN_STATE_SLOTS]; /* jiffies, by enum conn_state */
	__u32 refresh;	      /* jiffies: an entry's age is written when it is off by this */
	__u32 unknown_port;   /* enum refusal */
	__u16 nat_port_first; /* full-nat source ports, host order, inclusive */
	__u16 nat_port_last;
	__u32 hz;	  /* jiffies a second; with the next one, what a time in jiffies means */
	__u64 clock_zero; /* CLOCK_MONOTONIC at jiffy 0, in ns, wrapped. One word: it is read while
			     it is written */
	__be16 gue_port;
	__u16 pad;
	__u32 new_flows; /* entries for new flows that each CPU makes in a second, of each kind */
	/* One word: who is let in without being asked for is not stamped as if he were. */
	__u32 admission; /* what conn.admission has above RULE_BITS when the rules in force have let
			    the connection in; below, 0. 0: there are none */
	__u32 firewall;	 /* 1: fw_prefixes is asked */
	__u32 policies[NR_CLASSES]; /* by enum protocol_class, a bit for each of dos_policies in use
				     */
	__u32 source_sets;	    /* elements of dos_sources */
	__u32 sets4;		    /* elements of connections */
	__u32 sets6;		    /* of connections6 */
	__u32 metered;		    /* 1: there is a firewall or a policy */
};

/*
 * "Certainly not ours" for a few ns: one bit for each hashed address of a VIP or a
 * backend. A set bit may be wrong, a clear one never is. `filter`, one element.
 */
struct filter {
	__u64 words[FILTER_WORDS];
};

/*
 * Key of `vips`, an LPM trie: a VIP with protocol and port, where the port's
 * prefix makes ranges. A VIP by itself (prefixlen 128) holds NO_SERVICE.
 */
struct vip_key {
	__u32 prefixlen; /* bits of what follows: 128, or 144 + 0..=16 */
	__be32 address[4];
	__u8 protocol; /* IPPROTO_TCP, IPPROTO_UDP */
	__u8 pad;      /* 0, and counted in prefixlen */
	__be16 port;
};

struct vip {
	__u32 service; /* index into `services`, or NO_SERVICE */
	__u32 echo;    /* enum echo: counts for the VIP by itself */
};

/* One address family of one [[service]]. `services`, by id. */
struct service {
	__u64 table;	  /* region of `maglev`: offset in the low 32 bits, size in the high; 0: no
			     backend */
	__u32 hash;	  /* enum hash_by */
	__u32 forward;	  /* enum forward_mode */
	__u32 family;	  /* 4 or 6; 0: the id is free */
	__u32 no_backend; /* enum refusal */
	__u32 restricted; /* 1: only for the prefixes in `allowed_sources` */
	__u32 pad;
	char name[NAME_LENGTH];
};

/* One backend of one service. `backends`, by id. */
struct backend {
	struct hop hop;	  /* one __u64 */
	__u32 generation; /* of the entries that may use it; 0: set `down`, or gone */
	__be16 port;	  /* 0: the packet's own */
	__u16 weight;
	__be32 address[4];
	__u32 service;	/* index into `services` */
	__u8 forward;	/* enum forward_mode; 0: the id is free */
	__u8 family;	/* 4 or 6; with a tunnel, of the outer header */
	__u8 state;	/* enum backend_state */
	__u8 health;	/* enum backend_health */
	__u64 nat_pool; /* full-nat: slice of `nat_pool`: offset in the low 32 bits, size in the
			  high */
	__be32 outer_source[4]; /* tunnels: the outer source address */
	__be32 outer_mask; /* tunnels: the bits of outer_source[3] that come from the flow; 0 there
			    */
	__u32 on_link;	   /* 1: the next hop is the backend itself, not a router before it */
	__u32 incarnation; /* its generation, while it is `down` too: whose connections are counted
			      for the id */
	__u8 usable;	   /* 1: new connections may get it */
	__u8 rehash; /* a bit for each enum protocol_class: while it is not usable, established
			connections choose anew too */
	__u16 pad;
	char name[NAME_LENGTH];
};

/* An address of ours that full-nat may send from. `nat_pool`, by position. */
struct nat_address {
	__be32 address[4];
};

/* Two slots of `maglev`: ids of backends. A pair, since an array's elements are padded to 8 bytes.
 */
struct slots {
	__u32 backend[2];
};

/* A packet's 5-tuple as it arrives. */
struct flow4 {
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
	__u8 protocol;
	__u8 pad[3];
} __attribute__((aligned(8)));

struct flow6 {
	__be32 saddr[4];
	__be32 daddr[4];
	__be16 sport;
	__be16 dport;
	__u8 protocol;
	__u8 pad[3];
} __attribute__((aligned(8)));

/* The part of a record that both families have in common. */
struct session {
	struct hop hop;	  /* the client's next hop; its slot is where its packets come in by */
	__u32 backend;	  /* index into `backends` */
	__u32 generation; /* backend.generation when it was chosen */
	__u32 admission;  /* the rule that let it in, and of which rules; see RULE_BITS */
	__u32 number[2];  /* TCP, host order, the client's and the backend's: the sequence number of
			     a segment not long ago, and once there was a FIN, of that */
	__u8 forward;	  /* enum forward_mode */
	__u8 pad[3];
};

/*
 * A connection, both its directions: a cache line. What its client's packets come with, and what
 * they leave with, which is what the replies come with, turned round. Where the backend answers
 * directly there are none: those fields are 0.
 */
struct record4 {
	struct flow4 flow;
	__be32 backend; /* address and port: where replies come from */
	__be32 source;	/* where they go: the client's own, or one of ours */
	__be16 backend_port;
	__be16 source_port;
	__u16 l3_delta; /* of the client's packets: added to the complement of the IPv4 header
			   checksum, TTL included (RFC 1624); tunnels: the low half of the flow's
			   hash, which varies the outer source address and port */
	__u16 l4_delta; /* likewise for the TCP or UDP checksum; tunnels: the high half */
	struct session session;
};

/* Two cache lines. */
struct record6 {
	struct flow6 flow;
	__be32 backend[4];
	__be32 source[4];
	__be16 backend_port;
	__be16 source_port;
	__u16 l3_delta;
	__u16 l4_delta;
	struct session session;
	__u64 pad[2];
};

/*
 * The ways of a set, and their records. A connection is in the set that the hash of its client's
 * address, port and protocol names, which packets of both directions carry, or in none.
 * `connections`.
 */
struct set4 {
	__u64 spilled; /* SPILL_BITS: what to look for in `conntrack` */
	__u64 way[SET_WAYS];
	struct record4 record[SET_WAYS];
};

/* `connections6` */
struct set6 {
	__u64 spilled;
	__u64 way[SET_WAYS];
	struct record6 record[SET_WAYS];
};

/* A connection outside of the sets. Value of `conntrack`, element of `pending`. */
struct place4 {
	__u64 way;
	struct record4 record;
};

/* `conntrack6`, `pending6` */
struct place6 {
	__u64 way;
	struct record6 record;
};

/* Key of `conntrack`: what both directions of a connection share. */
struct client4 {
	__be32 address;
	__be16 port;
	__u8 protocol;
	__u8 index; /* of several connections that one client has by one port */
};

/* `conntrack6` */
struct client6 {
	__be32 address[4];
	__be16 port;
	__u8 protocol;
	__u8 index;
	__u32 pad;
} __attribute__((aligned(8)));

/*
 * A connection as packets of one direction need it. Copies of this are what the datapath works
 * with.
 */
struct conn {
	__u32 backend;	  /* index into `backends` */
	__u32 generation; /* backend.generation when it was chosen */
	__u32 last_seen;  /* jiffies, the low 32 bits */
	__u32 ingress;	  /* ifindex that the client's packets come in by */
	struct hop hop;	  /* as in struct session */
	__u32 admission;
	__u8 state;   /* enum conn_state; with the next three, one word: see bpf/tcp.h */
	__u8 flags;   /* enum conn_flag */
	__u8 forward; /* enum forward_mode */
	__u8 doubt;   /* enum conn_doubt */
};

struct conn4 {
	struct conn conn;
	__be32 saddr; /* the 5-tuple that the packet leaves with */
	__be32 daddr;
	__be16 sport;
	__be16 dport;
	__u16 l3_delta; /* as in struct record4, of this direction */
	__u16 l4_delta;
};

struct conn6 {
	struct conn conn;
	__be32 saddr[4];
	__be32 daddr[4];
	__be16 sport;
	__be16 dport;
	__u16 l3_delta;
	__u16 l4_delta;
};

/*
 * A packet that comes in fragments: key of `fragments`. Its first fragment has the ports.
 */
struct fragment_key {
	__be32 saddr[4];
	__be32 daddr[4];
	__be32 id;
	__u32 protocol; /* IPv4; 0 in IPv6 (RFC 8200, section 4.5) */
} __attribute__((aligned(8)));

struct fragment {
	__u64 since; /* jiffies, when the first fragment came. All 64 bits: only the LRU takes
			old ones out, so one may be there for months */
	__be16 sport;
	__be16 dport;
	__u8 protocol; /* IPPROTO_TCP, IPPROTO_UDP */
	__u8 pad;
	__u16 headers_end; /* where its TCP or UDP header ends: later fragments begin behind it */
};

/* Raised when connections are taken out that packets may still follow by a copy. `epoch`, one
 * element. */
struct epoch {
	__u32 number; /* the low 24 bits count */
	__u32 pad;
};

/* How many ICMP errors and resets may still be sent. `answers`, per CPU. */
struct allowance {
	__u64 refilled; /* jiffies */
	__u64 tokens;
};

/* A claim of a full-nat source address and port. */
enum claim_state {
	CLAIM_OPENING,	   /* a connection of which both directions have not been seen yet */
	CLAIM_ESTABLISHED, /* one of which they have */
	CLAIM_CLOSED,	   /* nothing but the backend's TIME_WAIT, for PORT_HOLD_SECONDS */
	CLAIM_RELEASED,	   /* nothing: it is about to be deleted, and changes no more */
};

/*
 * The holder of a full-nat source address and port: `nat_ports`, `nat_ports6`, keyed by
 * the flow of the replies. Never evicted, so that no two live connections share one.
 */
struct claim4 {
	struct flow4 owner; /* key of the client's direction */
	__u64 status;	    /* since when, in jiffies << CLAIM_STATE_BITS, and what: enum
			       claim_state. One word, changed by compare-and-swap */
};

struct claim6 {
	struct flow6 owner;
	__u64 status;
};

/* The argument and result of the `remove_spilled` program. */
struct spilled_removal {
	struct client6 client; /* key in `conntrack`; an IPv4 address mapped */
	__u64 way;	       /* what its word was */
	__u32 family;	       /* 4 or 6 */
	__u32 removed;	       /* 1: it has been */
};

/* The argument and result of the `remove_claim` program. */
struct claim_removal {
	struct flow6 reply; /* the claim's key; IPv4 addresses mapped */
	__u64 status;	    /* what it was */
	__u32 family;	    /* 4 or 6 */
	__u32 removed;	    /* 1: it has been */
};

/* Packets and bytes of one protocol, both ways. */
struct exchange {
	__u64 packets_in;  /* from clients */
	__u64 bytes_in;	   /* Ethernet header on, padding off */
	__u64 packets_out; /* from the backend */
	__u64 bytes_out;
};

/* Packets, bytes and connections of a backend, both ways. `traffic`, per CPU, by backend id. */
struct traffic {
	struct exchange
		by[NR_CLASSES]; /* enum protocol_class; errors about a connection are ICMP */
	__u64 opened;		/* connections that got an entry */
	__u64 closed;		/* of them, those that ended in sight of the datapath */
	__u64 unrecorded; /* packets that made no entry: too many new flows at once, or a reset */
};

/* Totals that the user side keeps. `past`, by service id: of backends that are gone. `expired`, by
 * backend id: connections whose end the sweep has brought about or found; it wraps like `closed`.
 */
struct expiries {
	__u64 connections;
};

/* `counters`, per CPU, by enum reason. */
struct counter {
	__u64 packets;
};

/* Key of `fw_prefixes`, an LPM trie: a source address. */
struct fw_prefix_key {
	__u32 prefixlen; /* 0..=128; of an IPv4 prefix 96 + 0..=32 */
	__be32 address[4];
};

/*
 * The verdict on the sources in a prefix: a blocklist has it, or these rules may match. The
 * rules of all shorter prefixes are reached from there, so that one lookup finds everything.
 */
struct fw_prefix {
	__u32 blocklist; /* id in `fw_rules`; 0: none */
	__u32 level;	 /* index into `fw_levels`; NO_LEVEL with a blocklist */
};

/* The rules of one source prefix. `fw_levels`; one half is in use, the other is written. */
struct fw_level {
	__u32 first;	/* of `fw_steps` */
	__u32 count;	/* 0: the prefix has no rules itself */
	__u32 parent;	/* the level of the next shorter prefix; NO_LEVEL: there is none */
	__u32 position; /* the lowest in this level and those above it */
};

/*
 * The rules of a level cut the space of protocol and destination port into intervals. A step is one
 * rule of one interval, which goes on until the next one's start. An interval's steps stand from
 * the last in the file to the first, and only that in front may be without condition on the source
 * port. `fw_steps`; likewise in two halves.
 */
struct fw_step {
	__u32 start;	    /* protocol << 16 | port, host order; 0 for a port that there is not */
	__u32 position;	    /* in the file, counted from 0: the lowest that matches decides */
	__u32 rule;	    /* id, and RULE_DENIES; NO_RULE: nothing matches here */
	__u16 source_first; /* host order, inclusive; 0 and 65535: any, or no ports */
	__u16 source_last;
};

/* The rules as people read them. `fw_rules`, by id: one that stays with a rule over reloads. */
struct fw_rule {
	__u32 position; /* in the file, of its kind, counted from 0 */
	__u32 prefixes; /* blocklists: how many it has */
	__be32 source[4];
	__u8 family;	    /* 4, 6; 0: any source */
	__u8 prefix_length; /* of the source, 0..=32 or 128 */
	__u8 kind;	    /* enum rule_kind */
	__u8 action;	    /* enum rule_action */
	__u16 protocol;	    /* number, or enum rule_protocol */
	__u16 port_first;   /* host order, inclusive; 0 and 65535: any */
	__u16 port_last;
	__u16 source_port_first;
	__u16 source_port_last;
	__u16 pad;
	char name[RULE_NAME_LENGTH];
};

/* Packets that a rule has decided. `fw_hits`, per CPU, by rule id. */
struct hits {
	__u64 packets;
	__u64 bytes; /* Ethernet header on, padding off */
};

/* Key of `allowed_sources`, an LPM trie: who may reach a restricted service. */
struct allowed_key {
	__u32 prefixlen; /* 32 + as in fw_prefix_key */
	__u32 service;	 /* index into `services` */
	__be32 address[4];
};

/* A [[dos]] policy: a token bucket (GCRA, ITU-T I.371) for each source. `dos_policies`, by
 * POLICY_LIMIT * protocol_class + 0..POLICY_LIMIT. Time is in jiffies << TICK_SHIFT. */
struct dos_policy {
	__u64 interval;	 /* between packets at the limit */
	__u64 tolerance; /* burst * interval */
	__u64 block_for; /* jiffies; 0: only the excess is dropped */
	__u32 limit;	 /* packets a second */
	__u32 burst;
	__u8 flags_mask; /* TCP flags that are looked at */
	__u8 flags;	 /* what they have to be; others are not counted */
	__u8 class;	 /* enum protocol_class */
	__u8 used;	 /* 0: the slot is free */
	__u32 pad;
	char name[NAME_LENGTH];
};

/* Counters of policies. `dos_hits`, per CPU, like `dos_policies`. */
struct policy_hits {
	__u64 dropped; /* packets */
	__u64 blocked; /* how many times a source was */
};

/* A source of one protocol: an IPv4 address, or an IPv6 /64. */
struct dos_source {
	__be32 source[2]; /* IPv4: the address and 0; written as one __u64 */
	__u8 family;	  /* 4, 6; 0: free */
	__u8 class;	  /* enum protocol_class */
	__u8 policy;	  /* 0..POLICY_LIMIT: the one that blocks, or limits */
	__u8 pad;
	__u32 last_seen;	 /* jiffies, the low 32 bits */
	__u64 blocked_until;	 /* jiffies; a time that is past: when it was no longer, or sent too
				    much */
	__u64 due[POLICY_LIMIT]; /* by policy: when a packet is due at the limit; see dos_policy */
};

/* `dos_sources`: a source is in the set that its hash names, or in none. The one seen longest ago
 * makes room, but none that is blocked, or has just sent too much, while there is another. */
struct dos_set {
	struct dos_source ways[SOURCE_WAYS];
};

/* Written by the `clock` program: the two clocks read together. */
struct clock_reading {
	__u64 jiffies;
	__u64 monotonic; /* ns, CLOCK_MONOTONIC */
};

#pragma clang diagnostic pop

#endif
