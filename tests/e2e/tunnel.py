#!/usr/bin/env python3
"""The sending end of a tunnel, for kernels that have no tunnel devices.

    tunnel.py DEVICE ipip|gue SOURCE DESTINATION [PORT]

Makes a TUN device, and sends every IP packet that is routed into it from SOURCE to
DESTINATION: as the payload of an IP packet (ipip) or of a UDP datagram to PORT (gue,
6080 by default). The outer headers are the kernel's. Says "ready" once the device is there.
"""

import fcntl
import os
import socket
import struct
import sys

# linux/if_tun.h
TUNSETIFF = 0x400454CA
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000


def main():
    if len(sys.argv) not in (5, 6) or sys.argv[2] not in ("ipip", "gue"):
        sys.exit(__doc__)
    device, form, source, destination = sys.argv[1:5]
    port = int(sys.argv[5]) if len(sys.argv) == 6 else 6080
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET

    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TUN | IFF_NO_PI))
    if form == "gue":
        out = socket.socket(family, socket.SOCK_DGRAM)
        out.bind((source, 0))
        by_version = {4: out, 6: out}
        target = (destination, port)
    else:
        by_version = {}
        for version, protocol in ((4, socket.IPPROTO_IPIP), (6, socket.IPPROTO_IPV6)):
            out = socket.socket(family, socket.SOCK_RAW, protocol)
            out.bind((source, 0))
            by_version[version] = out
        target = (destination, 0)
    print("ready", flush=True)
    while True:
        packet = os.read(tun, 65536)
        try:
            by_version[packet[0] >> 4].sendto(packet, target)
        except OSError as error:
            # A neighbour that is not resolved yet, a queue that is full: TCP tries again.
            print(f"not sent: {error}", file=sys.stderr, flush=True)


main()
