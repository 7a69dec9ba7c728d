#!/usr/bin/env python3
"""UDP datagrams of any size, sent whole or in fragments of our own making.

    udp.py echo PORT ADDRESS...        sends every datagram back from the address that it came to
    udp.py ask ADDRESS PORT SIZE       sends SIZE random bytes; done when they come back
    udp.py fragments SOURCE ADDRESS PORT SIZE ORDER...
                                       the same, sent as fragments in that order: "0 2 1"

"ask" and "fragments" say what came of it, and end with status 0 when every byte came back. They
wait for a second; "ask" sends twice, since with IPv6 the first may only teach the path's MTU.
"""

import os
import random
import selectors
import socket
import struct
import sys

# Of what a fragment carries: a multiple of 8.
FRAGMENT = 1400
WAIT = 1.0


def family_of(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def echo(port, addresses):
    ready = selectors.DefaultSelector()
    for address in addresses:
        listener = socket.socket(family_of(address), socket.SOCK_DGRAM)
        listener.bind((address, port))
        ready.register(listener, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in ready.select():
            try:
                data, peer = key.fileobj.recvfrom(65536)
                key.fileobj.sendto(data, peer)
            except OSError as error:
                # An ICMP error about an earlier answer.
                print(error, file=sys.stderr, flush=True)


def await_answer(sock, data):
    sock.settimeout(WAIT)
    try:
        return "all of it" if sock.recv(65536) == data else "something else"
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "no answer"


def ask(address, port, size):
    data = os.urandom(size)
    sock = socket.socket(family_of(address), socket.SOCK_DGRAM)
    sock.connect((address, port))
    for _ in range(2):
        sock.send(data)
        outcome = await_answer(sock, data)
        if outcome != "no answer":
            break
    return outcome


def checksum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def fragments(source, address, port, size, order):
    family = family_of(address)
    data = os.urandom(size)
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((source, 0))
    sock.connect((address, port))
    addresses = socket.inet_pton(family, source) + socket.inet_pton(family, address)

    header = struct.pack("!HHHH", sock.getsockname()[1], port, 8 + size, 0)
    pseudo = addresses + struct.pack("!IHBB", 8 + size, 0, 0, socket.IPPROTO_UDP)
    total = checksum(pseudo + header + data) or 0xFFFF
    datagram = header[:6] + struct.pack("!H", total) + data

    out = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    identification = random.randrange(1, 65536)
    for index in order:
        offset = index * FRAGMENT
        piece = datagram[offset : offset + FRAGMENT]
        more = offset + FRAGMENT < len(datagram)
        if family == socket.AF_INET:
            # The kernel fills in the checksum.
            head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(piece), identification,
                               offset // 8 | more << 13, 64, socket.IPPROTO_UDP, 0)
            packet = head + addresses + piece
        else:
            head = struct.pack("!IHBB", 6 << 28, 8 + len(piece), socket.IPPROTO_FRAGMENT, 64)
            extension = struct.pack("!BBHI", socket.IPPROTO_UDP, 0, offset | more, identification)
            packet = head + addresses + extension + piece
        out.sendto(packet, (address, 0))
    return await_answer(sock, data)


def main():
    arguments = sys.argv[2:]
    match sys.argv[1:2]:
        case ["echo"] if len(arguments) >= 2:
            echo(int(arguments[0]), arguments[1:])
        case ["ask"] if len(arguments) == 3:
            outcome = ask(arguments[0], int(arguments[1]), int(arguments[2]))
        case ["fragments"] if len(arguments) >= 5:
            order = [int(index) for index in arguments[4:]]
            outcome = fragments(*arguments[:2], int(arguments[2]), int(arguments[3]), order)
        case _:
            sys.exit(__doc__)
    print(outcome)
    sys.exit(outcome != "all of it")


main()
