#!/usr/bin/env python3
"""Clients that send at a given rate, and print the result: "ANSWERED of SENT".

    senders.py ask SOURCE ADDRESS PORT RATE SECONDS      datagrams to a server that echoes them
    senders.py web SOURCE ADDRESS PORT RATE SECONDS      HTTP requests one after the other, each on a
                                                       connection of its own
    senders.py connect SOURCE ADDRESS PORT RATE SECONDS  connections that nobody waits for
    senders.py raw SOURCE ADDRESS PROTOCOL RATE SECONDS  IP packets of a protocol; nobody answers

RATE is a second's, 0 as fast as it goes. From SOURCE, an address of this host.
"""

import collections
import select
import socket
import struct
import sys
import time

# How long an answer may take.
WAIT = 2.0
# Connections that are open at a time and have not been waited for.
OPEN = 500


def turns(rate, seconds):
    """Comes back at the rate until the time is up."""
    start = time.monotonic()
    count = 0
    while True:
        now = time.monotonic()
        if now - start >= seconds:
            return
        if rate and start + count / rate > now:
            time.sleep(min(start + count / rate, start + seconds) - now)
            continue
        yield count
        count += 1


def family_of(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def bound(kind, source, protocol=0):
    sock = socket.socket(family_of(source), kind, protocol)
    sock.bind((source, 0))
    return sock


def ask(source, address, port, rate, seconds):
    sock = bound(socket.SOCK_DGRAM, source)
    sock.connect((address, port))
    sock.setblocking(False)
    sent = 0
    answers = set()

    def take():
        try:
            while True:
                answers.add(sock.recv(64))
        except OSError:
            # Nothing more, or an ICMP error about an earlier one.
            pass

    for turn in turns(rate, seconds):
        try:
            sock.send(struct.pack("!Q", turn))
            sent += 1
        except OSError:
            # The interface's queue is full, or an ICMP error as above.
            pass
        take()
    end = time.monotonic() + WAIT
    while len(answers) < sent and time.monotonic() < end:
        if not select.select([sock], [], [], 0.3)[0]:
            break
        take()
    return len(answers), sent


def request(source, address, port):
    sock = bound(socket.SOCK_STREAM, source)
    sock.settimeout(WAIT)
    try:
        sock.connect((address, port))
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return b" 200 " in sock.recv(4096)
    except OSError:
        return False
    finally:
        sock.close()


def web(source, address, port, rate, seconds):
    outcomes = [request(source, address, port) for _ in turns(rate, seconds)]
    return sum(outcomes), len(outcomes)


def connect(source, address, port, rate, seconds):
    opened = collections.deque()
    answered = sent = 0

    def close():
        sock = opened.popleft()
        try:
            sock.getpeername()
            answered = 1
        except OSError:
            answered = 0
        # A reset: nothing is left that waits.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        return answered

    for _ in turns(rate, seconds):
        sock = bound(socket.SOCK_STREAM, source)
        sock.setblocking(False)
        sock.connect_ex((address, port))
        opened.append(sock)
        sent += 1
        if len(opened) > OPEN:
            answered += close()
    time.sleep(0.2)
    while opened:
        answered += close()
    return answered, sent


def raw(source, address, protocol, rate, seconds):
    sock = bound(socket.SOCK_RAW, source, protocol)
    sent = 0
    for turn in turns(rate, seconds):
        sock.sendto(struct.pack("!Q", turn), (address, 0))
        sent += 1
    return 0, sent


def main():
    kinds = {"ask": ask, "web": web, "connect": connect, "raw": raw}
    match sys.argv[1:]:
        case [kind, source, address, port, rate, seconds] if kind in kinds:
            counts = kinds[kind](source, address, int(port), float(rate), float(seconds))
        case _:
            sys.exit(__doc__)
    print("{} of {}".format(*counts))


main()
