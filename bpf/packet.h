/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * packet.h - the facts about the packet in hand, and the two ways a stage ends.
 *
 * Owns `struct packet`, which parsing fills and the later stages read, and the
 * convention: a stage returns GO_ON, or the reason why the packet is not balanced.
 */
#ifndef XDPLB_PACKET_H
#define XDPLB_PACKET_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <bpf/bpf_helpers.h>

#include "xdp_lb.h"

#define READ_ONCE(x)	 (*(const volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, v) (*(volatile typeof(x) *)&(x) = (v))

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "frames are written in words whose order of bytes is that of x86-64 and arm64"
#endif

/* Of the eight bytes that begin with a MAC address. */
#define MAC_BITS 0x0000ffffffffffffULL

/* Below every enum reason. */
#define GO_ON (-1)

/* The parsed facts of a packet that has no 5-tuple of its own: ICMP, or a later fragment. */
#define IS_PORTLESS (-2)
/* It has left, by the verdict in struct work. */
#define IS_SENT (-3)

static __always_inline int is_icmp(__u32 protocol)
{
	return protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6;
}

static __always_inline __u32 protocol_class(__u32 protocol)
{
	if (protocol == IPPROTO_TCP)
		return CLASS_TCP;
	if (protocol == IPPROTO_UDP)
		return CLASS_UDP;
	return is_icmp(protocol) ? CLASS_ICMP : CLASS_OTHER;
}

enum packet_kind {
	WHOLE_PACKET,
	FIRST_FRAGMENT, /* has the TCP or UDP header */
	LATER_FRAGMENT, /* has none: its 5-tuple is its first fragment's */
	ICMP_ERROR,	/* goes with the connection that it quotes */
};

/* The bytes of tcphdr's thirteenth octet, RFC 9293, section 3.1. */
enum tcp_flag {
	TCP_FIN = 0x01,
	TCP_SYN = 0x02,
	TCP_RST = 0x04,
	TCP_ACK = 0x10,
};

/* In two words: clang copies memory byte by byte unless it knows it to be aligned. */
static __always_inline void copy16(void *to, const void *from)
{
	((__u64 *)to)[0] = ((const __u64 *)from)[0];
	((__u64 *)to)[1] = ((const __u64 *)from)[1];
}

struct packet {
	void *data; /* Ethernet header */
	void *end;  /* of what XDP can reach */
	void *l3;   /* IPv4 or IPv6 header */
	void *l4;   /* the header of its protocol, checked to be there */
	__be16 ethertype;
	__u16 ethernet; /* bytes before l3: header and VLAN tags */
	__u32 length;	/* Ethernet header on, padding off: may be more than IP's 65,535 */
	/* Words, so that the verifier sees one value wherever they are compared. */
	__u32 protocol;	  /* once it is parsed, one that is balanced: see transport.h */
	__u32 tcp_flags;  /* 0 for others */
	__u32 ttl;	  /* or hop limit */
	__u32 ingress;	  /* ifindex */
	__u32 kind;	  /* enum packet_kind */
	__u32 is_towards; /* 0: its destination is certainly neither a VIP nor a backend */
	/* Of a fragment. */
	__be32 fragment_id;
	__u32 fragment_offset; /* bytes from where the first one's data begins */
	__u32 headers_end;     /* where the TCP or UDP header ends: of a first fragment likewise, of
				  a whole packet from l4 on */
};

/* The same for the stages that new and changing connections go through: no pointers, and one
 * shape for both families. */
struct facts {
	struct flow6 flow; /* IPv4 addresses mapped */
	struct hop peer;   /* the sender's MAC address; `slot` is not set */
	__u32 ingress;	   /* ifindex */
	__u32 now;	   /* jiffies */
	__u32 l3;	   /* from the frame's start: the IP header */
	__u32 l4;	   /* what follows it and its extensions */
	__u32 length;	   /* of the frame, padding off */
	__u8 family;	   /* 4 or 6 */
	__u8 tcp_flags;
	__u8 ttl;
	__u8 established; /* both directions of its connection have been seen before */
	__u8 kind;	  /* enum packet_kind */
	__u8 missed;	  /* it is in no set */
	__u8 spared;	  /* 1: the firewall's default does not deny it */
	__u8 pad;
	__be32 fragment_id;
	__u32 fragment_offset; /* bytes */
	__u32 headers_end;
	/* Of a TCP segment, host order. */
	__u32 sequence;
	__u32 acknowledged;
	__u32 payload; /* bytes */
};

#endif
