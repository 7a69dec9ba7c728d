/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * pass.bpf.c - an XDP program that passes everything on. veth delivers what the far
 * end sends with XDP_TX only to a device that has a program; this is that program.
 */
__attribute__((section("xdp"), used)) int pass(void *ctx)
{
	(void)ctx;
	return 2; /* XDP_PASS; no header, so that nothing but clang is needed */
}
