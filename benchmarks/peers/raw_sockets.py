"""The minimum for the same work: one download, one PUT, no checks, no retries, no logs.

SHA-256, and gunzip with its option, run in their own threads, with the same libraries as in this provider. The rest is
the cost of everything else that a delivery does.
"""

import hashlib
import itertools
import ssl
from collections.abc import Callable
from http.client import HTTPConnection, HTTPSConnection
from queue import SimpleQueue
from threading import Thread
from urllib.parse import urlsplit

from isal import isal_zlib  # noqa: TID253 - this is not a DAG file

from benchmarks.job import BUCKET, measure, read_job

BUFFER_BYTES, BUFFERS = 1024 * 1024, 8
PIECE_BYTES = 64 * 1024
job = read_job()


def gunzip() -> Callable[[memoryview], None]:
    member = isal_zlib.decompressobj(31)

    def feed(part: memoryview) -> None:
        nonlocal member
        for start in range(0, len(part), PIECE_BYTES):
            piece = part[start : start + PIECE_BYTES]
            while piece:
                if member.eof:
                    member = isal_zlib.decompressobj(31)
                member.decompress(piece, 4 * PIECE_BYTES)
                piece = member.unused_data or member.unconsumed_tail

    return feed


def start_thread(work: Callable[[memoryview], object], source: "SimpleQueue", target: "SimpleQueue") -> Thread:
    """Start a thread that processes each buffer and passes it on; an empty one is the last."""

    def run() -> None:
        while True:
            part = source.get()
            work(part)
            target.put(part)
            if not part:
                return

    thread = Thread(target=run, daemon=True)
    thread.start()
    return thread


def connection(url: str) -> HTTPConnection:
    if job.authority is None:
        return HTTPConnection(urlsplit(url).netloc)
    return HTTPSConnection(urlsplit(url).netloc, context=ssl.create_default_context(cafile=job.authority))


def copy() -> None:
    [(url, key)] = job.targets()
    source, sink = connection(url), connection(job.endpoint)
    source.request("GET", urlsplit(url).path)
    response = source.getresponse()
    sink.putrequest("PUT", f"/{BUCKET}/{key}", skip_accept_encoding=True)
    sink.putheader("Content-Length", str(response.length))
    sink.endheaders()
    works = [hashlib.sha256().update, *([gunzip()] if job.options.get("gunzip") else []), sink.send]
    queues = [SimpleQueue() for _ in range(len(works) + 1)]
    threads = [start_thread(work, *pair) for work, pair in zip(works, itertools.pairwise(queues), strict=True)]
    for _ in range(BUFFERS):
        queues[-1].put(memoryview(bytearray(BUFFER_BYTES)))
    left = response.length
    while left:
        buffer = memoryview(queues[-1].get().obj)
        if not (count := response.readinto(buffer[:left])):
            raise SystemExit("the source ended early")
        left -= count
        queues[0].put(buffer[:count])
    queues[0].put(memoryview(b""))
    for thread in threads:
        thread.join()
    if sink.getresponse().status != 200:
        raise SystemExit("the sink refused it")


measure(copy)
