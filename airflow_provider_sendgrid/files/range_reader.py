"""One range of a file, read in order and resumed where a connection broke.

Only consecutive attempts that receive almost nothing count as failures: a connection that breaks every few MB is
resumed as often as necessary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http.client import HTTPException
from io import BufferedReader
from itertools import groupby
from typing import TYPE_CHECKING, Any

from airflow_provider_sendgrid.exceptions import ExportExpiredError, ExportIncompleteError, SendGridError
from airflow_provider_sendgrid.files.download import FileDownload, RetryableError
from airflow_provider_sendgrid.stopping import shut_down

if TYPE_CHECKING:
    import requests

log = logging.getLogger(__name__)

_CHUNK_BYTES = 256 * 1024
_SHORT_READ_SECONDS = 0.05  # a read returns what arrived by then
_SHOWN_CAUSES = 5


class RangeReader:
    """Reads one range, over as many connections as necessary.

    Args:
        download: the file.
        start: first byte of the range.
        end: end of the range, exclusive; None for the end of the file, whose length may not be known yet.

    Attributes:
        position: position of the next byte in the file.
        end: see above; None while the file's length is unknown.
    """

    def __init__(self, download: FileDownload, start: int = 0, end: int | None = None) -> None:
        self.position = start
        self.end = end
        self._download = download
        self._response: requests.Response | None = None
        self._readinto_body: Callable[[memoryview], int]
        self._forget_stop: Callable[[], None] = lambda: None
        self._refused_url: str | None = None
        self._attempt_start = start
        self._failures = 0
        self._refusals = 0
        self._causes: list[str] = []
        self._stall_seconds, self._stall_bytes = 0.0, 0

    def __enter__(self) -> RangeReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_done(self) -> bool:
        """Whether every byte of the range was read."""
        return self.position == self.end

    def open(self) -> RangeReader:
        """Connect now rather than at the first read; raises what `readinto` raises."""
        self._retry(self._connect)
        return self

    def close(self) -> None:
        """Close the connection."""
        self._forget_stop()
        if self._response is not None:
            self._response.close()
            self._response = None

    def readinto(self, buffer: memoryview) -> int:
        """Read bytes into `buffer` as they arrive; return how many, 0 at the end of the range.

        Raises:
            StoppedError: the download was stopped.
            ExportIncompleteError: the range could not be downloaded; the message lists the causes.
            ExportExpiredError: SendGrid no longer keeps the file.
            FileChangedError: the file changed.
        """
        if self.is_done or not buffer:
            return 0
        start = self.position
        self._retry(lambda: self._read(buffer, start))
        if self.is_done:
            self._finish()
        return self.position - start

    def fill(self, buffer: memoryview) -> None:
        """Fill all of `buffer`; raises what `readinto` raises.

        Raises:
            ValueError: less is left of the range.
        """
        filled = 0
        while filled < len(buffer):
            if not (count := self.readinto(buffer[filled:])):
                raise ValueError(f"{self._download.title}: asked for more bytes than the range holds")
            filled += count

    def _retry(self, attempt: Callable[[], None]) -> None:
        download = self._download
        while True:
            download.stop.raise_if_set()
            try:
                return attempt()
            except RetryableError as error:
                self.close()
                download.stop.raise_if_set()
                self._count_failure(error)
                wait = download.limits.wait_seconds(self._failures)
                log.warning("%s: %s; retrying in %.1f s.", download.title, self._causes[-1], wait)
                download.count_resumption()
                download.sleep(wait)

    def _count_failure(self, error: RetryableError) -> None:
        limits = self._download.limits
        made_progress = self.position - self._attempt_start >= limits.progress_bytes
        self._failures = 1 if made_progress else self._failures + 1
        self._attempt_start = self.position
        self._refused_url = error.refused_url or self._refused_url
        self._refusals = self._refusals + 1 if error.refused_url else 0
        where = f"{self.position} of {self._download.length} bytes" if self._download.length >= 0 else "its start"
        self._causes = [*self._causes, f"{error} at {where}"][-_SHOWN_CAUSES:]
        if error.refused_url and self._download.has_expired():
            raise self._expired() from None
        if self._failures >= limits.attempts:
            raise self._failed() from None

    def _connect(self) -> None:
        response, skipped = self._download.request(self.position, self.end, self._refused_url)
        self._response, self._refused_url = response, None
        self._readinto_body = _direct_readinto(response) or partial(self._copy_into, response.raw)
        self._forget_stop = self._download.stop.on_set(partial(shut_down, response.raw))
        self.end = self._download.length if self.end is None else self.end
        self._attempt_start = self.position
        self._stall_seconds, self._stall_bytes = 0.0, 0
        if skipped > 0:
            self._skip(skipped)

    def _skip(self, count: int) -> None:
        log.warning("%s: the storage serves no ranges; reading %s bytes again.", self._download.title, count)
        scratch = memoryview(bytearray(min(count, _CHUNK_BYTES)))
        wanted = self.position
        self.position -= count
        try:
            while self.position < wanted:
                self._receive(scratch[: wanted - self.position], again=True)
        finally:
            self.position = wanted

    def _read(self, buffer: memoryview, start: int) -> None:
        """Read into a buffer whose first byte belongs at `start` in the file."""
        if self._response is None:
            self._connect()
        left = buffer[self.position - start :][: (self.end or 0) - self.position]
        self._receive(left[:_CHUNK_BYTES])

    def _receive(self, buffer: memoryview, *, again: bool = False) -> None:
        """Read what arrives soon; bytes that arrive before the connection breaks count."""
        from urllib3.exceptions import HTTPError

        self._download.stop.raise_if_set()
        clock, readinto, received = self._download.clock, self._readinto_body, 0
        began = clock()
        try:
            while received < len(buffer) and (received == 0 or clock() - began < _SHORT_READ_SECONDS):
                if not (count := readinto(buffer[received:])):
                    raise RetryableError("the connection ended early")
                received += count
        except (HTTPError, HTTPException, OSError) as error:
            raise RetryableError(f"the connection broke ({type(error).__name__})") from None
        finally:
            self.position += received
            self._download.count(received, again=again)
        self._check_stall(clock() - began, received)

    def _check_stall(self, seconds: float, count: int) -> None:
        limits = self._download.limits
        self._stall_seconds += seconds
        self._stall_bytes += count
        if self._stall_bytes >= limits.stall_bytes:
            self._stall_seconds, self._stall_bytes = 0.0, 0
        elif self._stall_seconds > limits.stall_seconds:
            raise RetryableError(f"less than {limits.stall_bytes} bytes arrived in {limits.stall_seconds:g} s")

    def _copy_into(self, raw: Any, buffer: memoryview) -> int:
        """Read by urllib3's own methods, with a time limit: sizes between chunks can arrive too slowly to time out."""
        # urllib3 has `read1` since 2.2; `read` returns only when it has everything, so it is asked for less.
        read, most = (raw.read1, _CHUNK_BYTES) if hasattr(raw, "read1") else (raw.read, _CHUNK_BYTES // 16)
        read_chunk = partial(read, min(len(buffer), most), decode_content=False)
        try:
            chunk: bytes = self._download.stop.call(
                read_chunk, self._download.limits.stall_seconds, name="sendgrid-chunk"
            )
        except BaseException:
            shut_down(raw)
            raise
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def _finish(self) -> None:
        """Leave the connection to the next request if the response ends with the range, without reading further."""
        from urllib3.exceptions import HTTPError

        raw: Any = self._response.raw if self._response is not None else None
        http_response: Any = getattr(raw, "_fp", None)
        if getattr(http_response, "length", None) == 0:
            self._forget_stop()
            with suppress(HTTPError, HTTPException, OSError):
                http_response.read()  # returns nothing, but marks the response as read
                raw.release_conn()
        self.close()

    def _failed(self) -> SendGridError:
        counted = ((cause, len(list(same))) for cause, same in groupby(self._causes))
        causes = "; ".join(f"{cause} ({times} times)" if times > 1 else cause for cause, times in counted)
        text = f"{self._download.title}: failed after {self._failures} attempts in a row: {causes}."
        if self._refusals > 1:
            text += (
                " New signed URLs are refused too, and the export has not expired. Check what may block this worker's "
                "access to SendGrid's storage: the policy of a VPC endpoint, a proxy, an allow list."
            )
        return ExportIncompleteError(f"{text} Nothing of this file was published; run the task again.")

    def _expired(self) -> SendGridError:
        return ExportExpiredError(
            f"{self._download.title}: {self._causes[-1]}: the export has expired, SendGrid no longer keeps its files. "
            "Start another export."
        )


def _direct_readinto(response: requests.Response) -> Callable[[memoryview], int] | None:
    """A function that reads a body as sent, as far as it has arrived, straight into a buffer.

    It reads http.client's stream, then the socket once the stream's buffer is empty, and updates http.client's count of
    bytes left. Measured in CPU time per GiB: urllib3's own reading costs 0.8 s more; http.client's `read1`, which
    allocates and copies each chunk, 0.1 to 0.3 s; its stream, over TLS in reads of 16 KiB, 0.1 s.

    None if the response has no length, or if urllib3 keeps http.client's response elsewhere.
    """
    http_response: Any = getattr(response.raw, "_fp", None)
    stream = getattr(http_response, "fp", None)
    if not isinstance(stream, BufferedReader) or getattr(http_response, "length", None) is None:
        return None
    socket: Any = getattr(response.raw.connection, "sock", None)
    is_drained = False

    def readinto(buffer: memoryview) -> int:
        nonlocal is_drained
        buffer = buffer[: http_response.length]
        count: int = socket.recv_into(buffer) if is_drained else stream.readinto1(buffer)
        is_drained = is_drained or (socket is not None and count < len(buffer))
        http_response.length -= count
        return count

    return readinto
