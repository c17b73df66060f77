"""The parts of one file, in order; over several connections where the link, not the CPU, is the bound.

One connection is enough on a fast link, where the CPU is the bound. A single stream from S3 brings some 50 to 90 MB/s
and leaves the CPU idle: then more connections are opened, after each part as many as would keep one core at work, as
long as the process uses less than `BUSY` of it. A storage without ranges is read as one stream.

Knows ranges and the size of buffers. What a buffer is for, and when it may be used again, is its owner's business.
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
    """A buffer to be filled."""

    @property
    def room(self) -> memoryview:
        """Where the bytes go."""

    def release(self) -> None:
        """Give it up."""


P = TypeVar("P", bound=Part)


@dataclass(frozen=True, slots=True)
class Clocks:
    """How to tell whether the CPU is the bound.

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
    """The rest of a file as filled parts, in order; whoever gets a part sees to its release.

    Args:
        download: the file.
        reader: of the whole file; what was read from it already is not read again.
        take: answers the next part to fill, none larger than what is left of the file; ``take(False)`` answers None
            rather than to wait for a free one.
        max_connections: at once.
        clocks: to tell whether the CPU is the bound.
    """
    pace = _Pace(max_connections, clocks or Clocks())
    position = stream_end = reader.position
    underway: deque[tuple[P, Future[None]]] = deque()
    with (
        ThreadPoolExecutor(1, thread_name_prefix="sendgrid-stream") as stream,
        ThreadPoolExecutor(max_connections, thread_name_prefix="sendgrid-fetch") as ranges,
    ):
        try:
            while position < download.length or underway:
                connections = pace.connections_to(download)
                # One more than there are connections: it arrives while the reader of these parts works on another.
                while position < download.length and len(underway) <= connections:
                    if connections == 1 and position != stream_end:
                        if underway:
                            break
                        reader.close()
                        reader, stream_end = RangeReader(download, position, download.length), position
                    if (part := take(not underway)) is None:
                        break
                    room = part.room
                    if connections == 1:
                        filled = stream.submit(reader.fill, room)
                        stream_end += len(room)
                    else:
                        filled = ranges.submit(_fill_range, room, download, position)
                    underway.append((part, filled))
                    position += len(room)
                download.stop.result(underway[0][1])
                pace.part_arrived()
                yield underway.popleft()[0]
        except BaseException:
            download.stop.set()
            raise
        finally:
            stream.shutdown(cancel_futures=True)
            ranges.shutdown(cancel_futures=True)
            reader.close()
            for part, _ in underway:
                part.release()


def _fill_range(room: memoryview, download: FileDownload, position: int) -> None:
    with RangeReader(download, position, position + len(room)) as reader:
        reader.fill(room)


class _Pace:
    """How many connections are worth it by now."""

    def __init__(self, most: int, clocks: Clocks) -> None:
        self._connections = 1
        self._most = most
        self._clocks = clocks
        self._since = (clocks.wall(), clocks.cpu())

    def connections_to(self, download: FileDownload) -> int:
        return self._connections if download.has_ranges else 1

    def part_arrived(self) -> None:
        wall, cpu = self._clocks.wall(), self._clocks.cpu()
        seconds, busy_seconds = wall - self._since[0], cpu - self._since[1]
        if busy_seconds < BUSY * seconds:
            would_keep_busy = int(self._connections * seconds / max(busy_seconds, 1e-9))
            self._connections = min(max(self._connections * 2, would_keep_busy), self._most)
        self._since = (wall, cpu)
