/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * csum.h - the Internet checksum (RFC 1071), updated incrementally (RFC 1624, equation 3).
 *
 * A change of header fields is a delta: the sum of the complements of the old words and of
 * the new words. It is computed once for a connection and added to each packet's checksum.
 * Sums are in the byte order of the packet; the algorithm does not care (RFC 1071, 2.B).
 */
#ifndef XDPLB_CSUM_H
#define XDPLB_CSUM_H

#include <linux/types.h>
#include <bpf/bpf_endian.h>

/* TTL and protocol share a 16-bit word, and the TTL is its upper byte: one less is -0x0100. */
#define CSUM_TTL_DECREMENT bpf_htons(0xffff - 0x0100)

static __always_inline __u16 csum_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static __always_inline __u64 csum_delta32(__u32 from, __u32 to)
{
	return (__u64)(__u32)~from + to;
}

static __always_inline __u64 csum_delta16(__u16 from, __u16 to)
{
	return (__u64)(__u16)~from + to;
}

static __always_inline __u16 csum_apply(__u16 check, __u16 delta)
{
	__u32 sum = (__u16)~check + delta;

	return ~((sum & 0xffff) + (sum >> 16));
}

/* 0 says that the sender computed none, and stays (RFC 768); a sum of 0 is sent as 0xffff. */
static __always_inline __u16 csum_apply_udp(__u16 check, __u16 delta)
{
	if (!check)
		return 0;
	check = csum_apply(check, delta);
	return check ? check : 0xffff;
}

#endif
