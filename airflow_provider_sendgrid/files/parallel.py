"""The parts of one file, in order, over several connections if the link limits the speed.

One connection is enough where the CPU is the limit. A single stream from S3 delivers 50 to 90 MB/s and leaves the CPU
idle: then connections are added, after each part as many as would keep one core busy, while the process uses less than
`BUSY` of it. If the storage serves no ranges, the file is read as one stream.

Buffers belong to the caller, who also decides when they are used again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

from airflow_provider_sendgrid.files.download import FileDownload
from airflow_provider_sendgrid.files.range_reader import RangeReader

BUSY = 0.7


class Part(Protocol):
    """A buffer to fill."""

    @property
    def room(self) -> memoryview:
        """The bytes to fill."""

    def release(self) -> None:
        """Return the buffer to its owner."""


P = TypeVar("P", bound=Part)


@dataclass(frozen=True, slots=True)
class Clocks:
    """What shows whether the CPU is the limit.

    Attributes:
        wall: seconds.
        cpu: seconds of CPU time that this process has used.
    """

    wall: Callable[[], float] = time.monotonic
    cpu: Callable[[], float] = time.process_time


def fetch_parts(
    download: FileDownload,
    reader: RangeReader,
    take: Callable[[bool], P | None],
    max_connections: int,
    clocks: Clocks | None = None,
) -> Generator[P, None, None]:
    """The rest of a file as filled parts, in order; the caller releases each.

    Args:
        download: the file.
        reader: of the whole file; the parts begin at its position.
        take: returns the next part to fill, not larger than what is left of the file; ``take(False)`` returns None
            instead of waiting for a free buffer.
        max_connections: at once.
        clocks: show whether the CPU is the limit.
    """
    pace = _Pace(max_connections, clocks or Clocks())
    position = stream_end = reader.position
    pending: deque[tuple[P, Future[None]]] = deque()
    with (
        ThreadPoolExecutor(1, thread_name_prefix="sendgrid-stream") as stream,
        ThreadPoolExecutor(max_connections, thread_name_prefix="sendgrid-fetch") as ranges,
    ):
        try:
            while position < download.length or pending:
                connections = pace.connections if download.has_ranges else 1
                # One part more than connections: it arrives while the caller works on another.
                while position < download.length and len(pending) <= connections:
                    if connections == 1 and position != stream_end:
                        if pending:
                            break
                        reader.close()
                        reader, stream_end = RangeReader(download, position, download.length), position
                    if (part := take(not pending)) is None:
                        break
                    buffer = part.room
                    if connections == 1:
                        filled = stream.submit(reader.fill, buffer)
                        stream_end += len(buffer)
                    else:
                        filled = ranges.submit(_fill_range, download, position, buffer)
                    pending.append((part, filled))
                    position += len(buffer)
                download.stop.result(pending[0][1])
                pace.part_arrived()
                yield pending.popleft()[0]
        except BaseException:
            download.stop.set()
            raise
        finally:
            stream.shutdown(cancel_futures=True)
            ranges.shutdown(cancel_futures=True)
            reader.close()
            for part, _ in pending:
                part.release()


def _fill_range(download: FileDownload, position: int, buffer: memoryview) -> None:
    with RangeReader(download, position, position + len(buffer)) as reader:
        reader.fill(buffer)


class _Pace:
    """How many connections to use."""

    def __init__(self, max_connections: int, clocks: Clocks) -> None:
        self.connections = 1
        self._max_connections = max_connections
        self._clocks = clocks
        self._since = (clocks.wall(), clocks.cpu())

    def part_arrived(self) -> None:
        wall, cpu = self._clocks.wall(), self._clocks.cpu()
        seconds, busy_seconds = wall - self._since[0], cpu - self._since[1]
        if busy_seconds < BUSY * seconds:
            would_keep_busy = int(self.connections * seconds / max(busy_seconds, 1e-9))
            self.connections = min(max(self.connections * 2, would_keep_busy), self._max_connections)
        self._since = (wall, cpu)
