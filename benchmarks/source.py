"""A fake file storage: files of any size from one block in memory, with ranges, for little CPU.

``/<size>/<anything>`` is a file of so many bytes, the block repeated. Options limit the bytes per second of each
connection and delay each response.
"""

from __future__ import annotations

import argparse
import mmap
import os
import re
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.http_server import Request, Server, Stream, run, tls_arguments, tls_of

_SENDFILE_BYTES = 4 * 1024 * 1024
_PIECE_BYTES = 256 * 1024


class Source:
    """Handles GET and HEAD."""

    def __init__(self, block: Path, *, latency_seconds: float = 0.0, bytes_per_second: float | None = None) -> None:
        self._latency_seconds = latency_seconds
        self._bytes_per_second = bytes_per_second
        self._file = os.open(block, os.O_RDONLY)
        self._block = memoryview(mmap.mmap(self._file, 0, prot=mmap.PROT_READ))

    def respond(self, request: Request, stream: Stream) -> None:
        time.sleep(self._latency_seconds)
        size = int(request.target.split("/")[1])
        start, end = parse_range(request.headers.get("range"), size)
        headers = [
            "Content-Type: application/gzip",
            f"Content-Length: {end - start}",
            f'ETag: "{size}-{len(self._block)}"',
            "Accept-Ranges: bytes",
        ]
        if "range" in request.headers:
            stream.send_head("206 Partial Content", *headers, f"Content-Range: bytes {start}-{end - 1}/{size}")
        else:
            stream.send_head("200 OK", *headers)
        if request.method == "GET":
            self._send(stream, start, end)

    def _send(self, stream: Stream, start: int, end: int) -> None:
        if isinstance(stream.connection, ssl.SSLSocket) or self._bytes_per_second:
            self._send_pieces(stream, start, end)
            return
        for first, last in self._extents(start, end, _SENDFILE_BYTES):
            while first < last:
                first += os.sendfile(stream.connection.fileno(), self._file, first, last - first)  # noqa: PLW2901

    def _send_pieces(self, stream: Stream, start: int, end: int) -> None:
        began, sent = time.monotonic(), 0
        for first, last in self._extents(start, end, _PIECE_BYTES):
            stream.connection.sendall(self._block[first:last])
            sent += last - first
            if self._bytes_per_second:
                time.sleep(max(0.0, began + sent / self._bytes_per_second - time.monotonic()))

    def _extents(self, start: int, end: int, most: int) -> Iterator[tuple[int, int]]:
        """The positions in the block of the file's bytes, in pieces."""
        while start < end:
            first = start % len(self._block)
            last = min(first + most, first + end - start, len(self._block))
            yield first, last
            start += last - first


def parse_range(header: str | None, size: int) -> tuple[int, int]:
    """Start and end (exclusive) of the requested range; one range at most."""
    if header is None:
        return 0, size
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", header)
    if found is None:
        raise ValueError(f"unsupported range: {header}")
    return int(found[1]), min(int(found[2]) + 1, size) if found[2] else size


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("block", type=Path)
    parser.add_argument("--bytes-per-second", type=float)
    tls_arguments(parser)
    options = parser.parse_args()
    source = Source(options.block, latency_seconds=options.latency_seconds, bytes_per_second=options.bytes_per_second)
    run(Server(source.respond, tls_of(options)))


if __name__ == "__main__":
    main()
