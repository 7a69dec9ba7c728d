/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * xxhash.h - XXH64, after the algorithm's specification (doc/xxhash_spec.md of the
 * xxHash project, version 0.2.0), for inputs whose length is known at compile time.
 *
 * Owns nothing but the hash. With a constant length every loop unrolls, which is
 * what the datapath needs; it gives the same values for any length.
 */
#ifndef XDPLB_XXHASH_H
#define XDPLB_XXHASH_H

#include <linux/types.h>

#define XXH64_PRIME_1 0x9E3779B185EBCA87ULL
#define XXH64_PRIME_2 0xC2B2AE3D27D4EB4FULL
#define XXH64_PRIME_3 0x165667B19E3779F9ULL
#define XXH64_PRIME_4 0x85EBCA77C2B2AE63ULL
#define XXH64_PRIME_5 0x27D4EB2F165667C5ULL

static inline __attribute__((always_inline)) __u64 xxh64_rotl(__u64 x, int bits)
{
	return (x << bits) | (x >> (64 - bits));
}

/* Input words are little-endian by the specification. */
static inline __attribute__((always_inline)) __u64 xxh64_read32(const __u8 *p)
{
	__u32 word;

	__builtin_memcpy(&word, p, sizeof(word));
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	word = __builtin_bswap32(word);
#endif
	return word;
}

/* Two halves: the datapath's keys are aligned to four bytes, and BPF's stack takes no less. */
static inline __attribute__((always_inline)) __u64 xxh64_read64(const __u8 *p)
{
	return xxh64_read32(p) | xxh64_read32(p + 4) << 32;
}

static inline __attribute__((always_inline)) __u64 xxh64_round(__u64 acc, __u64 lane)
{
	acc += lane * XXH64_PRIME_2;
	return xxh64_rotl(acc, 31) * XXH64_PRIME_1;
}

static inline __attribute__((always_inline)) __u64 xxh64_merge(__u64 acc, __u64 lane)
{
	acc ^= xxh64_round(0, lane);
	return acc * XXH64_PRIME_1 + XXH64_PRIME_4;
}

/* The algorithm's last step: every bit of the input changes half of the output's. */
static inline __attribute__((always_inline)) __u64 xxh64_avalanche(__u64 acc)
{
	acc ^= acc >> 33;
	acc *= XXH64_PRIME_2;
	acc ^= acc >> 29;
	acc *= XXH64_PRIME_3;
	acc ^= acc >> 32;
	return acc;
}

static inline __attribute__((always_inline)) __u64 xxh64(const void *input, __u32 length,
							 __u64 seed)
{
	const __u8 *p = input;
	__u32 left = length;
	__u64 acc;

	if (left >= 32) {
		__u64 acc1 = seed + XXH64_PRIME_1 + XXH64_PRIME_2;
		__u64 acc2 = seed + XXH64_PRIME_2;
		__u64 acc3 = seed;
		__u64 acc4 = seed - XXH64_PRIME_1;

		for (; left >= 32; left -= 32, p += 32) {
			acc1 = xxh64_round(acc1, xxh64_read64(p));
			acc2 = xxh64_round(acc2, xxh64_read64(p + 8));
			acc3 = xxh64_round(acc3, xxh64_read64(p + 16));
			acc4 = xxh64_round(acc4, xxh64_read64(p + 24));
		}
		acc = xxh64_rotl(acc1, 1) + xxh64_rotl(acc2, 7) + xxh64_rotl(acc3, 12) +
		      xxh64_rotl(acc4, 18);
		acc = xxh64_merge(acc, acc1);
		acc = xxh64_merge(acc, acc2);
		acc = xxh64_merge(acc, acc3);
		acc = xxh64_merge(acc, acc4);
	} else {
		acc = seed + XXH64_PRIME_5;
	}

	acc += length;
	for (; left >= 8; left -= 8, p += 8) {
		acc ^= xxh64_round(0, xxh64_read64(p));
		acc = xxh64_rotl(acc, 27) * XXH64_PRIME_1 + XXH64_PRIME_4;
	}
	if (left >= 4) {
		acc ^= xxh64_read32(p) * XXH64_PRIME_1;
		acc = xxh64_rotl(acc, 23) * XXH64_PRIME_2 + XXH64_PRIME_3;
		left -= 4;
		p += 4;
	}
	for (; left >= 1; left--, p++) {
		acc ^= *p * XXH64_PRIME_5;
		acc = xxh64_rotl(acc, 11) * XXH64_PRIME_1;
	}

	return xxh64_avalanche(acc);
}

#endif
