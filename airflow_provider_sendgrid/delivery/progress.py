"""What a person reads in the log while files are fetched.

Knows bytes, seconds and words. Bytes count as they are received. There is a line every ten seconds, also if nothing
comes; it begins with the figures.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

_MIB, _GIB = 1024**2, 1024**3


class Progress:
    """The progress of all files of one delivery; safe to share among threads.

    Args:
        export_id: of the export.
        file_count: how many files it has.
        every_seconds: time between two lines.
        clock: seconds, from any moment on.
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
        self._files: dict[int, FileProgress] = {}

    @property
    def seconds(self) -> float:
        """Since the delivery began."""
        return self._clock() - self._started_at

    def file(self, index: int, received_bytes: Callable[[], int]) -> FileProgress:
        """The progress of file `index` (from 0), from now until `FileProgress.end`.

        Args:
            index: of the file.
            received_bytes: how many of its bytes were received so far.
        """
        file = self._files[index] = FileProgress(self._clock, received_bytes, lambda: self._files.pop(index, None))
        return file

    def report(self) -> None:
        """Log a line if it is time; call this more often than that."""
        if self._clock() - self._reported_at < self._every_seconds:
            return
        self._reported_at = self._clock()
        if files := dict(sorted(self._files.copy().items())):
            log.info(
                "%s: %s of SendGrid export %s", _figures(list(files.values())), self._names(files), self._export_id
            )

    def _names(self, files: dict[int, FileProgress]) -> str:
        numbers = [index + 1 for index in files]
        name = f"file {numbers[0]}" if len(numbers) == 1 else f"files {numbers[0]} to {numbers[-1]}"
        return f"{name} of {self._file_count}"


class FileProgress:
    """How much of one file was received.

    Attributes:
        length: of the file as it is sent, in bytes; None until that is known.
    """

    def __init__(
        self, clock: Callable[[], float], received_bytes: Callable[[], int], end: Callable[[], object]
    ) -> None:
        self.length: int | None = None
        self.end = end
        self._clock = clock
        self._received_bytes = received_bytes
        self._started_at = clock()

    @property
    def seconds(self) -> float:
        """Since this file was begun."""
        return self._clock() - self._started_at

    @property
    def received_bytes(self) -> int:
        """Received so far, at most `length`: what was received twice counts once."""
        return min(self._received_bytes(), self.length or 0)


def _figures(files: list[FileProgress]) -> str:
    """How far these files are, how fast, and how long they still take."""
    lengths = [file.length for file in files if file.length is not None]
    if not lengths:
        return "Waiting for the first bytes"
    received, length = sum(file.received_bytes for file in files), sum(lengths)
    rate = received / max(*(file.seconds for file in files), 1e-3)
    percent = 100 * received // length if length else 100
    if received == length:
        return f"{percent} % {_size(received, length)} received, not all of it stored yet"
    left = f"about {(length - received) / rate:.0f} s left" if rate else "nothing received yet"
    return f"{percent} % {_size(received, length)}, {speed(rate)}, {left}"


def speed(bytes_per_second: float) -> str:
    """In MB/s, with a digit more for slow links; in kB/s where that would show nothing."""
    if 0 < bytes_per_second < 1e5:
        return f"{bytes_per_second / 1e3:.1f} kB/s"
    return f"{bytes_per_second / 1e6:.{0 if bytes_per_second >= 1e7 else 1}f} MB/s"


def _size(part: int, whole: int) -> str:
    unit, name = (_GIB, "GiB") if whole >= _GIB else (_MIB, "MiB")
    return f"{part / unit:.1f} of {whole / unit:.1f} {name}"
