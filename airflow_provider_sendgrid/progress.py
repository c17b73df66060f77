"""What a person reads in the log while files are on their way.

Knows bytes, seconds and words. Says something every ten seconds at most, however many files are underway.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

_MIB, _GIB = 1024**2, 1024**3


class Progress:
    """The progress of all files of one delivery; safe to share among threads.

    Args:
        file_count: how many files there are.
        every_seconds: shortest time between two lines.
        clock: seconds, from any moment on.
    """

    def __init__(
        self, file_count: int, *, every_seconds: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.fetched_bytes = 0
        self._file_count = file_count
        self._every_seconds = every_seconds
        self._clock = clock
        self._started_at = self._said_at = clock()
        self._lock = threading.Lock()

    @property
    def seconds(self) -> float:
        """Since the delivery began."""
        return self._clock() - self._started_at

    def file(self, index: int, length: int) -> FileProgress:
        """The progress of file `index` (from 0), `length` bytes long at its source."""
        return FileProgress(self, index, length)

    def advance(self, file: FileProgress, count: int) -> None:
        """Count `count` fetched bytes of `file`, and say so where it is time."""
        with self._lock:
            self.fetched_bytes += count
            file.position += count
            now = self._clock()
            if now - self._said_at < self._every_seconds:
                return
            self._said_at = now
        log.info("%s", file.describe(now, self._file_count))

    def now(self) -> float:
        """The time by the clock given."""
        return self._clock()


class FileProgress:
    """How far one file is."""

    def __init__(self, progress: Progress, index: int, length: int) -> None:
        self.position = 0
        self._progress = progress
        self._index = index
        self._length = length
        self._started_at = progress.now()

    def advance(self, count: int) -> None:
        """Say that `count` further bytes have come."""
        self._progress.advance(self, count)

    @property
    def seconds(self) -> float:
        """Since this file was begun."""
        return self._progress.now() - self._started_at

    def describe(self, now: float, file_count: int) -> str:
        """One line: which file, how far, how fast, how long still."""
        rate = self.position / max(now - self._started_at, 1e-3)
        percent = 100 * self.position // max(self._length, 1)
        left = (self._length - self.position) / max(rate, 1.0)
        return (
            f"File {self._index + 1} of {file_count}: {_size(self.position)} of {_size(self._length)} ({percent} %), "
            f"{speed(rate)}, about {left:.0f} s left."
        )


def speed(bytes_per_second: float) -> str:
    """In MB/s, with a digit more for slow links."""
    return f"{bytes_per_second / 1e6:.{0 if bytes_per_second >= 1e7 else 1}f} MB/s"


def _size(count: int) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / _MIB:.1f} MiB"
