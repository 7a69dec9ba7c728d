#!/usr/bin/env python3
"""Connections that are held open, half-closed or attacked, for scenarios that look at what becomes of them.

    serve PORT                      answers each line with "pong" after as many seconds as it says;
                                    what was asked for before the client's FIN is answered after it
    half-close ADDRESS PORT N WAIT  N clients that send "WAIT", shut their sending side and wait
    hold ADDRESS PORT N             N connections; prints their ports; for each line on standard input
                                    sends "0" on all, and prints how many were answered
    forge SOURCE ADDRESS PORT FLAGS LOCAL_PORT...
                                    a segment from SOURCE on each of these connections, whose sequence
                                    number is drawn at random: hardly ever inside the receiver's window
"""
import random
import socket
import struct
import sys
import threading
import time


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def serve(port):
    listener = socket.socket(socket.AF_INET6)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(("::", int(port)))
    listener.listen(1024)

    def answer(connection):
        with connection, connection.makefile("rb") as lines:
            for line in lines:
                time.sleep(float(line))
                connection.sendall(b"pong\n")

    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


def connected(address, port, count):
    connections = []
    for _ in range(int(count)):
        connection = socket.socket(family(address))
        connection.settimeout(5)
        connection.connect((address, int(port)))
        connections.append(connection)
    return connections


def half_close(address, port, count, wait):
    connections = connected(address, port, count)
    for connection in connections:
        connection.sendall(f"{wait}\n".encode())
        connection.shutdown(socket.SHUT_WR)
    answered = 0
    for connection in connections:
        connection.settimeout(float(wait) + 10)
        try:
            answered += connection.recv(64) == b"pong\n"
        except OSError as error:
            print(error, file=sys.stderr)
    print(answered)


def hold(address, port, count):
    connections = connected(address, port, count)
    print(*(connection.getsockname()[1] for connection in connections), flush=True)
    for _ in sys.stdin:
        answered = 0
        for connection in connections:
            try:
                connection.sendall(b"0\n")
            except OSError:
                pass
        for connection in connections:
            try:
                connection.settimeout(5)
                answered += connection.recv(64) == b"pong\n"
            except OSError:
                pass
        print(answered, flush=True)


FLAGS = {"rst": 0x04, "rst-ack": 0x14, "fin-ack": 0x11}


def checksum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def forge(source, address, port, flags, *local_ports):
    kind = family(address)
    raw = socket.socket(kind, socket.SOCK_RAW, socket.IPPROTO_TCP)
    raw.bind((source, 0))
    ends = socket.inet_pton(kind, source) + socket.inet_pton(kind, address)
    for local in local_ports:
        segment = struct.pack(
            "!HHIIBBHHH",
            int(local),
            int(port),
            random.getrandbits(32),
            random.getrandbits(32),
            5 << 4,
            FLAGS[flags],
            1024,
            0,
            0,
        )
        if kind == socket.AF_INET:
            pseudo = ends + struct.pack("!BBH", 0, 6, len(segment))
        else:
            pseudo = ends + struct.pack("!IHBB", len(segment), 0, 0, 6)
        sum_ = checksum(pseudo + segment)
        raw.sendto(segment[:16] + struct.pack("!H", sum_) + segment[18:], (address, 0))


if __name__ == "__main__":
    mode, arguments = sys.argv[1], sys.argv[2:]
    {"serve": serve, "half-close": half_close, "hold": hold, "forge": forge}[mode](*arguments)
