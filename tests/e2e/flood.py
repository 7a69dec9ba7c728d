#!/usr/bin/env python3
"""Clients that go on while something else floods the service that they talk to.

    flood.py tcp|udp ADDRESS PORT FILE ESTABLISHED RATE

ESTABLISHED connections each ask something about once a second, on one socket for as long as this
runs; RATE new ones a second ask once. Of a TCP server: a few bytes of FILE, which it has as /big. Of
a UDP server: to send them back. Every byte is compared.

Says "ready" when all of the established have had their first answer, and goes on until SIGTERM. Then
each of them has to get one more answer, and the last of the new ones to come to their end; what
became of all of them is printed as a line of JSON.
"""

import asyncio
import collections
import json
import os
import random
import signal
import statistics
import sys
import time

PATH = "/big"
BYTES = 512
# Seconds, from an answer to the next question on an established connection, at random.
PAUSE = (0.5, 1.5)
# What a new connection is given: time for a few SYNs.
PATIENCE = 6.0
# What an established one is given for an answer: TCP sends again later and later.
LONGEST = 30.0
# When a datagram is sent again, and what took longer than that was slow.
AGAIN = 1.0
# How many are connected at once in the beginning.
AT_ONCE = 50


class Wrong(Exception):
    """An answer that came, but not the right one."""


class Http:
    """A TCP connection to a web server."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, address, port):
        return cls(*await asyncio.open_connection(address, port))

    async def exchange(self, content, goes_on):
        first = random.randrange(len(content) - BYTES)
        last = first + BYTES - 1
        self.writer.write(
            f"GET {PATH} HTTP/1.1\r\nHost: flood\r\nRange: bytes={first}-{last}\r\n"
            f"Connection: {'keep-alive' if goes_on else 'close'}\r\n\r\n".encode()
        )
        head = await self.reader.readuntil(b"\r\n\r\n")
        status = head.split(b"\r\n", 1)[0].decode(errors="replace")
        if not status.startswith("HTTP/1.1 206 "):
            raise Wrong(status)
        if await self.reader.readexactly(BYTES) != content[first : last + 1]:
            raise Wrong("other bytes than the file's")

    def close(self):
        self.writer.transport.abort()


class Datagrams(asyncio.DatagramProtocol):
    """A UDP socket, connected to a server that sends back what it gets."""

    def __init__(self):
        self.transport = None
        self.answers = asyncio.Queue()
        self.earlier = collections.deque(maxlen=4)

    @classmethod
    async def connect(cls, address, port):
        loop = asyncio.get_running_loop()
        _, datagrams = await loop.create_datagram_endpoint(cls, remote_addr=(address, port))
        return datagrams

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, _):
        self.answers.put_nowait(data)

    def error_received(self, error):
        self.answers.put_nowait(error)

    async def exchange(self, content, _):
        first = random.randrange(len(content) - BYTES)
        data = os.urandom(8) + content[first : first + BYTES]
        while True:
            self.transport.sendto(data)
            try:
                answer = await asyncio.wait_for(self.answers.get(), AGAIN)
                # Asked twice, answered twice.
                while answer in self.earlier:
                    answer = await asyncio.wait_for(self.answers.get(), AGAIN)
            except asyncio.TimeoutError:
                continue
            if isinstance(answer, OSError):
                raise answer
            if answer != data:
                raise Wrong("other bytes than were sent")
            self.earlier.append(data)
            return

    def close(self):
        self.transport.abort()


class Clients:
    def __init__(self, kind, address, port, content):
        self.kind = kind
        self.address = address
        self.port = port
        self.content = content
        self.over = asyncio.Event()
        self.starting = asyncio.Semaphore(AT_ONCE)
        self.times = []
        self.broken = collections.Counter()
        self.made = 0
        self.latencies = []
        self.unserved = collections.Counter()

    async def run(self, established, rate):
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.over.set)
        begun = asyncio.Semaphore(0)
        kept = [asyncio.create_task(self.keep(begun)) for _ in range(established)]
        for _ in kept:
            await begun.acquire()
        self.times.clear()
        print("ready", flush=True)
        await self.visits(rate)
        await asyncio.gather(*kept)

    async def keep(self, begun):
        """An established connection."""
        connection = None
        try:
            async with self.starting:
                connection = await asyncio.wait_for(self.connect(), LONGEST)
                await asyncio.wait_for(connection.exchange(self.content, True), LONGEST)
            begun.release()
            is_last = False
            while not is_last:
                is_last = await self.pause(random.uniform(*PAUSE))
                start = time.monotonic()
                await asyncio.wait_for(connection.exchange(self.content, True), LONGEST)
                self.times.append(time.monotonic() - start)
        except Exception as error:
            self.broken[reason(error)] += 1
            begun.release()
        finally:
            if connection:
                connection.close()

    async def visits(self, rate):
        """The new ones."""
        visits = []
        due = time.monotonic()
        while not self.over.is_set():
            visits.append(asyncio.create_task(self.visit()))
            due += 1 / rate
            await self.pause(max(0.0, due - time.monotonic()))
        await asyncio.gather(*visits)

    async def visit(self):
        connection = None

        async def whole():
            nonlocal connection
            connection = await self.connect()
            await connection.exchange(self.content, False)

        self.made += 1
        start = time.monotonic()
        try:
            await asyncio.wait_for(whole(), PATIENCE)
            self.latencies.append(time.monotonic() - start)
        except Exception as error:
            self.unserved[reason(error)] += 1
        finally:
            if connection:
                connection.close()

    def connect(self):
        return self.kind.connect(self.address, self.port)

    async def pause(self, seconds):
        """True if it is over."""
        try:
            await asyncio.wait_for(self.over.wait(), seconds)
        except asyncio.TimeoutError:
            pass
        return self.over.is_set()

    def report(self):
        return {
            "established": {
                **summary(self.times),
                "bytes": len(self.times) * BYTES,
                "broken": self.broken.total(),
                "failures": dict(self.broken),
            },
            "new": {
                **summary(self.latencies),
                "made": self.made,
                "failures": dict(self.unserved),
            },
        }


def summary(times):
    """Of answers, in seconds."""
    ordered = sorted(times) or [0.0]
    return {
        "answers": len(times),
        "median": statistics.median(ordered),
        "p99": ordered[len(ordered) * 99 // 100],
        "longest": ordered[-1],
        "slow": sum(time >= AGAIN for time in times),
    }


def reason(error):
    return str(error) if isinstance(error, Wrong) else type(error).__name__


def main():
    kinds = {"tcp": Http, "udp": Datagrams}
    if len(sys.argv) != 7 or sys.argv[1] not in kinds:
        sys.exit(__doc__)
    kind, address, port, file, established, rate = sys.argv[1:]
    with open(file, "rb") as big:
        content = big.read()

    async def whole():
        clients = Clients(kinds[kind], address, int(port), content)
        await clients.run(int(established), float(rate))
        return clients.report()

    print(json.dumps(asyncio.run(whole())))


main()
