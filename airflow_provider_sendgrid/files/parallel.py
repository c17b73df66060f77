"""The parts of one file, in order, over several connections if the network limits the speed.

One connection is enough where the CPU is the limit. A single stream from S3 delivers only 50 to 90 MB/s and leaves the
CPU idle. Therefore, as long as the process uses less than `BUSY` of one core, connections are added after each part: as
many as would keep the core busy. If the storage serves no ranges, the file is read as one stream.

Buffers belong to the caller, who also decides when they are used again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from airflow_provider_sendgrid.files.download import FileDownload
from airflow_provider_sendgrid.files.range_reader import RangeReader

BUSY = 0.7


class Part(Protocol):
    """A buffer to fill."""

    @property
    def unfilled(self) -> memoryview:
        """The bytes to fill."""

    def release(self) -> None:
        """Return the buffer to its owner."""


P = TypeVar("P", bound=Part)


@dataclass(frozen=True, slots=True)
class Clocks:
    """What shows whether the CPU is the limit.

    Attributes:
        wall: a monotonic clock, in seconds.
        cpu: seconds of CPU time that this process has used.
    """

    wall: Callable[[], float] = time.monotonic
    cpu: Callable[[], float] = time.process_time


def fetch_parts(
    download: FileDownload,
    reader: RangeReader,
    next_part: Callable[[bool], P | None],
    max_connections: int,
    clocks: Clocks | None = None,
) -> Generator[P, None, None]:
    """The rest of a file as filled parts, in order; the caller releases each.

    Args:
        download: the file.
        reader: reads the file to its end; the parts begin at its position.
        next_part: returns the next part to fill, not larger than what is left; ``next_part(False)`` returns None
            instead of waiting for a free buffer.
        max_connections: maximum number of connections at once.
        clocks: show whether the CPU is the limit.
    """
    parts = _Parts(download, reader, next_part, _Pace(max_connections, clocks or Clocks()))
    try:
        while (part := parts.next()) is not None:
            yield part
    except BaseException:
        download.stop.set()
        raise
    finally:
        parts.close()


class _Parts(Generic[P]):
    """Parts that are being filled, in order: from one stream, or each from its own connection."""

    def __init__(
        self, download: FileDownload, reader: RangeReader, next_part: Callable[[bool], P | None], pace: _Pace
    ) -> None:
        self._download = download
        self._reader = reader
        self._next_part = next_part
        self._pace = pace
        self._position = self._stream_end = reader.position
        self._pending: deque[tuple[P, Future[None]]] = deque()
        self._stream = ThreadPoolExecutor(1, thread_name_prefix="sendgrid-stream")
        self._ranges = ThreadPoolExecutor(pace.max_connections, thread_name_prefix="sendgrid-fetch")

    def next(self) -> P | None:
        """The next part, once it is filled; None at the end of the file."""
        connections = self._pace.connections if self._download.has_ranges else 1
        # One part more than connections: it arrives while the caller works on another.
        while self._position < self._download.length and len(self._pending) <= connections:
            if not self._begin_part(is_stream=connections == 1):
                break
        if not self._pending:
            return None
        self._download.stop.result(self._pending[0][1])
        self._pace.part_arrived()
        return self._pending.popleft()[0]

    def close(self) -> None:
        """End the threads and the stream, and release the parts."""
        self._stream.shutdown(cancel_futures=True)
        self._ranges.shutdown(cancel_futures=True)
        self._reader.close()
        for part, _ in self._pending:
            part.release()

    def _begin_part(self, *, is_stream: bool) -> bool:
        """Begin to fill one more part; False if that has to wait for the parts before it."""
        if is_stream and self._position != self._stream_end:
            if self._pending:
                return False
            self._reader.close()
            self._reader = RangeReader(self._download, self._position, self._download.length)
            self._stream_end = self._position
        if (part := self._next_part(not self._pending)) is None:
            return False
        buffer, start = part.unfilled, self._position
        self._position += len(buffer)
        if is_stream:
            self._stream_end = self._position
            self._pending.append((part, self._stream.submit(self._reader.fill, buffer)))
        else:
            self._pending.append((part, self._ranges.submit(self._fill_range, start, buffer)))
        return True

    def _fill_range(self, start: int, buffer: memoryview) -> None:
        with RangeReader(self._download, start, start + len(buffer)) as reader:
            reader.fill(buffer)


class _Pace:
    """How many connections to use."""

    def __init__(self, max_connections: int, clocks: Clocks) -> None:
        self.connections = 1
        self.max_connections = max_connections
        self._clocks = clocks
        self._since = (clocks.wall(), clocks.cpu())

    def part_arrived(self) -> None:
        wall, cpu = self._clocks.wall(), self._clocks.cpu()
        seconds, busy_seconds = wall - self._since[0], cpu - self._since[1]
        if busy_seconds < BUSY * seconds:
            would_keep_busy = int(self.connections * seconds / max(busy_seconds, 1e-9))
            self.connections = min(max(self.connections * 2, would_keep_busy), self.max_connections)
        self._since = (wall, cpu)
