"""Progress lines in the log while files are downloaded.

Knows bytes, seconds and words. Bytes count as they are received. A line is logged every ten seconds, even if nothing
arrives; it begins with the figures.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

log = logging.getLogger(__name__)

_MIB, _GIB = 1024**2, 1024**3


class Download(Protocol):
    """What is reported of a download: bytes received so far, and the file's length, negative until it is known."""

    length: int
    received_bytes: int


class _File(NamedTuple):
    download: Download
    started_at: float


class Progress:
    """The progress of all files of one delivery; safe to share among threads.

    Args:
        export_id: id of the export.
        file_count: number of its files.
        every_seconds: time between two lines.
        clock: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        export_id: str,
        file_count: int,
        *,
        every_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._export_id = export_id
        self._file_count = file_count
        self._every_seconds = every_seconds
        self._clock = clock
        self._started_at = self._reported_at = clock()
        self._files: dict[int, _File] = {}

    @property
    def seconds(self) -> float:
        """Time since the delivery began."""
        return self._clock() - self._started_at

    def begin(self, index: int, download: Download) -> None:
        """Report file `index` (from 0) from now on."""
        self._files[index] = _File(download, self._clock())

    def end(self, index: int) -> None:
        """Report file `index` no longer."""
        self._files.pop(index, None)

    def seconds_of(self, index: int) -> float:
        """Time since file `index` began."""
        return self._clock() - self._files[index].started_at

    def report(self) -> None:
        """Log a line if it is due; call this more often than that."""
        now = self._clock()
        if now - self._reported_at < self._every_seconds:
            return
        self._reported_at = now
        if files := dict(sorted(self._files.copy().items())):
            figures = _figures(list(files.values()), now)
            log.info("%s: %s of SendGrid export %s", figures, self._names(list(files)), self._export_id)

    def _names(self, indexes: list[int]) -> str:
        first, last = indexes[0] + 1, indexes[-1] + 1
        name = f"file {first}" if len(indexes) == 1 else f"files {first} to {last}"
        return f"{name} of {self._file_count}"


def _figures(files: list[_File], now: float) -> str:
    """How much was received, how fast, and the time left."""
    downloads = [file.download for file in files if file.download.length >= 0]
    if not downloads:
        return "Waiting for the first bytes"
    length = sum(download.length for download in downloads)
    # Bytes that were received twice count once.
    received = sum(min(download.received_bytes, download.length) for download in downloads)
    rate = received / max(*(now - file.started_at for file in files), 1e-3)
    percent = 100 * received // length if length else 100
    if received == length:
        return f"{percent} % {_size(received, length)} received, not all of it stored yet"
    left = f"about {(length - received) / rate:.0f} s left" if rate else "nothing received yet"
    return f"{percent} % {_size(received, length)}, {speed(rate)}, {left}"


def speed(bytes_per_second: float) -> str:
    """In MB/s, with one more digit for slow links; in kB/s where MB/s would show zero."""
    if 0 < bytes_per_second < 1e5:
        return f"{bytes_per_second / 1e3:.1f} kB/s"
    return f"{bytes_per_second / 1e6:.{0 if bytes_per_second >= 1e7 else 1}f} MB/s"


def _size(part: int, whole: int) -> str:
    unit, name = (_GIB, "GiB") if whole >= _GIB else (_MIB, "MiB")
    return f"{part / unit:.1f} of {whole / unit:.1f} {name}"
