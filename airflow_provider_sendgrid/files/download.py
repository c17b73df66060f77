"""One file of an export, by ranges, resumed where it broke, whole or not at all.

Knows ranges, ETags and how a storage refuses. Knows no key (the session given adds none), no cloud and no
file format: bytes come out as they were sent. A fresh URL is asked for upstream, by a function.

What is pinned on the first answer, length and ETag (or Last-Modified), every later answer must confirm; if there is
neither, a download that breaks off starts again. Only tries in a row that
brought next to nothing are counted: a connection that breaks every few MB is resumed as often as it takes.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from io import BufferedReader
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit

from airflow_provider_sendgrid.backoff import backoff_seconds
from airflow_provider_sendgrid.exceptions import ExportExpiredError, ExportIncompleteError, SendGridError, redact
from airflow_provider_sendgrid.exports.sending import Sending, recorded_in
from airflow_provider_sendgrid.stopping import StopSignal, shut_down

if TYPE_CHECKING:
    import requests

T = TypeVar("T")
log = logging.getLogger(__name__)

_CHUNK_BYTES = 256 * 1024
_MOMENT_SECONDS = 0.05
_MAX_REDIRECTS = 3
# A whole response but its body takes at most so many times the timeout of its next bytes.
_TIMEOUTS_OF_A_RESPONSE = 4
_ERROR_BYTES = 8 * 1024  # of an error's body, which may name the storage's code
_REFUSALS = (400, 401, 403, 404, 410)


class FileChangedError(ExportIncompleteError):
    """The file is no longer the one whose first bytes were read: it must be fetched anew from its start."""


@dataclass(frozen=True, slots=True)
class DownloadLimits:
    """When to give up.

    Attributes:
        tries: tries in a row that may bring less than `progress_bytes` each.
        progress_bytes: what a try must bring to count as progress.
        first_wait_seconds: wait after a try that brought too little; doubles with each in a row.
        longest_wait_seconds: the longest such wait.
        stall_seconds: a connection that is waited for so long, in sum, for less than `stall_bytes` is given up.
        stall_bytes: see `stall_seconds`.
        jitter: answers numbers from 0 to 1; spreads the waits.
    """

    tries: int = 6
    progress_bytes: int = 1024 * 1024
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 30.0
    stall_seconds: float = 60.0
    stall_bytes: int = 64 * 1024
    jitter: Callable[[], float] = random.random

    def wait_seconds(self, failures: int) -> float:
        """How long to wait after `failures` tries in a row that brought too little."""
        return backoff_seconds(failures, self.first_wait_seconds, self.longest_wait_seconds, self.jitter())


DEFAULT_LIMITS = DownloadLimits()


class FileDownload:
    """What is known of one file, and how to ask for any range of it; safe to share among threads.

    Args:
        url: answers a URL for this file; is given the one that was refused, or None.
        session: sends the requests, without the key.
        name: the file in words, for messages: ``export 6f… file 2 of 3``.
        checked: answers the URL it is given if it may be used, and raises otherwise; asked for redirects.
        timeout_seconds: longest wait for a connection, and for the next bytes.
        limits: when to give up.
        sleep: how to wait, in seconds; by default until then, or until `stop` is set.
        clock: seconds, from any moment on.
        stop: ends everything at once, with `StoppedError`: pauses, connections that are being made, and reads.
        has_expired: whether the export's `expires_at` has passed; only then is a refused file no longer kept.

    Attributes:
        stop: a child of the signal given: setting it ends this download alone.
        length: of the file as it is stored at SendGrid, in bytes; -1 before `open`.
        etag: the storage's ETag of it, or None.
        content_type: what the storage says it is, in lower case and without parameters; empty if it does not say.
        path: the path of its URL, which ends in the file's name.
        has_ranges: whether the storage sends a part of the file when asked for it, as far as is known.
        connections: how many were opened for it so far.
        fetched_bytes: received so far, those included that were fetched twice; up to date while a part is filled.
        received_bytes: the same without those that were fetched twice.
        resumptions: how often it was gone on with, after a connection broke or was refused.
    """

    def __init__(
        self,
        url: Callable[[str | None], str],
        session: requests.Session,
        *,
        name: str,
        checked: Callable[[str], str],
        timeout_seconds: float = 30.0,
        limits: DownloadLimits = DEFAULT_LIMITS,
        sleep: Callable[[float], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
        stop: StopSignal | None = None,
        has_expired: Callable[[], bool] = lambda: False,
    ) -> None:
        self.name = name
        self.limits = limits
        self.stop = (stop or StopSignal()).child()
        self.sleep = sleep or self.stop.wait
        self.has_expired = has_expired
        self.clock = clock
        self.length = -1
        self.etag: str | None = None
        self.content_type = ""
        self.path = ""
        self.has_ranges = True
        self.connections = 0
        self.fetched_bytes = 0
        self.received_bytes = 0
        self.resumptions = 0
        self._lock = threading.Lock()
        self._url = url
        self._session = session
        self._checked = checked
        self._timeout_seconds = timeout_seconds
        self._last_modified: str | None = None

    def open(self) -> RangeReader:
        """Ask for the whole file; from here on `length`, `etag` and `path` are known.

        Raises:
            ExportExpiredError: the file is no longer kept.
            ExportIncompleteError: nothing could be had of it; the text tells the whole story.
        """
        return RangeReader(self, 0, None).open()

    def range(self, start: int, end: int) -> RangeReader:
        """A reader of the bytes from `start` up to but not including `end`."""
        return RangeReader(self, start, end)

    def connect(self, start: int, end: int | None, refused: str | None) -> tuple[requests.Response, int]:
        """Ask for a range once; return the response, and how many of its first bytes are to be skipped."""
        import requests
        from urllib3.exceptions import HTTPError

        if start > 0 and self.length >= 0 and self._last_modified is None and self.etag is None:
            raise FileChangedError(
                f"{self.name}: the download broke off, and the storage sends neither ETag nor Last-Modified: it "
                "cannot be seen whether the rest is of the same file."
            )
        headers = {"Accept-Encoding": "identity"}
        if start > 0 or end is not None:
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        url = self.stop.call(partial(self._url, refused), name="sendgrid-url")
        with self._lock:
            self.connections += 1
        sending, is_done = Sending(), False
        try:
            response, error_body = self.stop.call(
                partial(self._follow, url, headers, sending),
                _TIMEOUTS_OF_A_RESPONSE * self._timeout_seconds,
                name="sendgrid-connect",
                late=lambda late: late[0].close(),
            )
            is_done = True
        except (requests.RequestException, HTTPException, HTTPError, OSError, ValueError) as error:
            raise TryAgain(f"no connection ({type(error).__name__})") from None
        finally:
            if not is_done:
                sending.interrupt()
        try:
            self._check_status(response.status_code, url, error_body)
            first = self._pin_or_compare(response, start, end)
        except BaseException:
            response.close()
            raise
        return response, start - first

    def readinto_of(self, response: requests.Response) -> Callable[[memoryview], int]:
        """What reads the bytes of a response into a buffer, as they were sent and as far as they are there."""
        raw: Any = response.raw
        # urllib3 has `read1` from 2.2 on; `read` waits until it has all, so it is asked for less.
        read_some, most = (raw.read1, _CHUNK_BYTES) if hasattr(raw, "read1") else (raw.read, _CHUNK_BYTES // 16)

        def copy_into(room: memoryview) -> int:
            # The sizes between chunks may be sent so slowly that no timeout of a socket ends them.
            read = partial(read_some, min(len(room), most), decode_content=False)
            try:
                chunk: bytes = self.stop.call(read, self.limits.stall_seconds, name="sendgrid-chunk")
            except BaseException:
                shut_down(raw)
                raise
            room[: len(chunk)] = chunk
            return len(chunk)

        return _readinto(response) or copy_into

    def count(self, size: int, *, again: bool = False) -> None:
        """Count bytes that were received, for the first time or again."""
        with self._lock:
            self.fetched_bytes += size
            self.received_bytes += 0 if again else size

    def count_resumption(self) -> None:
        """Count that it was gone on with."""
        with self._lock:
            self.resumptions += 1

    def _follow(self, url: str, headers: dict[str, str], sending: Sending) -> tuple[requests.Response, bytes]:
        """The response, after redirects, and the first bytes of an error's body; no other body is read."""
        for _ in range(_MAX_REDIRECTS + 1):
            with recorded_in(sending):
                response = self._session.get(
                    url, headers=headers, stream=True, allow_redirects=False, timeout=self._timeout_seconds
                )
            if not response.is_redirect:
                return response, b"" if response.status_code in (200, 206) else _first_bytes(response)
            response.close()
            try:
                url = urljoin(url, response.headers["Location"])
            except ValueError:
                raise TryAgain("a redirect to no URL") from None
            url = self._checked(url)
        raise TryAgain(f"more than {_MAX_REDIRECTS} redirects")

    def _check_status(self, status: int, url: str, error_body: bytes) -> None:
        if status in (200, 206):
            return
        if status == 416:
            raise self._changed("it is shorter than it was")
        said = f"{status}{_error_text(error_body)}"
        if status in _REFUSALS:
            raise TryAgain(f"the storage refused the URL ({said})", refused=url)
        raise TryAgain(f"the storage answered {said}")

    def _pin_or_compare(self, response: requests.Response, start: int, end: int | None) -> int:
        """Where the answer's bytes begin; every answer must speak of the same file and range."""
        _require_known_encoding(response, self.name)
        first, last, length = _extent(response, self.name)
        etag, last_modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
        if self.length < 0:
            self.length, self.etag, self.path = length, etag, urlsplit(response.url).path
            self._last_modified = last_modified
            self.content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            is_comparable = etag is not None or last_modified is not None
            self.has_ranges = is_comparable and response.headers.get("Accept-Ranges", "").lower() == "bytes"
        if length != self.length:
            raise self._changed(f"it is {length} bytes long now, it was {self.length}")
        if etag != self.etag:
            raise self._changed("its ETag is another")
        if etag is None and last_modified != self._last_modified:
            raise self._changed("its Last-Modified is another")
        wanted = (start, length if end is None else end)
        if response.status_code == 200 and wanted != (0, length):
            self.has_ranges = False
        if response.status_code == 206 and (first, last) != wanted:
            raise TryAgain(f"the storage sent bytes {first} to {last} instead of {wanted[0]} to {wanted[1]}")
        return first

    def _changed(self, how: str) -> FileChangedError:
        return FileChangedError(f"{self.name}: the file changed while it was read: {how}.")


class RangeReader:
    """The bytes of one range of a file, in order, over as many connections as it takes.

    Attributes:
        position: of the next byte, in the file.
        end: of the range, not included; None while the file's length is not known.
    """

    def __init__(self, download: FileDownload, start: int, end: int | None) -> None:
        self.position = start
        self.end = end
        self._download = download
        self._response: requests.Response | None = None
        self._forget_stop: Callable[[], None] = lambda: None
        self._next_bytes: Callable[[memoryview], int]
        self._refused: str | None = None
        self._connected_at = start
        self._failures = 0
        self._causes: list[str] = []
        self._refusals = 0
        self._waited_seconds, self._received_bytes = 0.0, 0

    def __enter__(self) -> RangeReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_done(self) -> bool:
        """Whether every byte of the range was read."""
        return self.position == self.end

    def open(self) -> RangeReader:
        """Connect now rather than at the first read."""
        self._persist(self._connect)
        return self

    def _finish(self) -> None:
        """Let the next range use the connection if the response said that it ends here; nothing more is read of it."""
        from urllib3.exceptions import HTTPError

        raw: Any = self._response.raw if self._response is not None else None
        stream: Any = getattr(raw, "_fp", None)
        if getattr(stream, "length", None) == 0:
            self._forget_stop()
            with suppress(HTTPError, HTTPException, OSError):
                stream.read()  # nothing, but then it knows that this was all
                raw.release_conn()
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._forget_stop()
        if self._response is not None:
            self._response.close()
            self._response = None

    def readinto(self, buffer: memoryview) -> int:
        """Read further bytes into `buffer`, as they were sent; return how many, 0 at the end of the range.

        Raises:
            StoppedError: the download was stopped.
            ExportIncompleteError: the range could not be fetched whole; the text says why.
            ExportExpiredError: the file is no longer kept.
            FileChangedError: it is not the file any more whose first bytes were read.
        """
        if self.is_done or not buffer:
            return 0
        start = self.position
        self._persist(lambda: self._read_on(buffer, start))
        if self.is_done:
            self._finish()
        return self.position - start

    def fill(self, buffer: memoryview) -> None:
        """Read as many further bytes as `buffer` holds; raises what `readinto` raises.

        Raises:
            ValueError: the range ends before.
        """
        filled = 0
        while filled < len(buffer):
            if not (count := self.readinto(buffer[filled:])):
                raise ValueError(f"{self._download.name}: asked for more bytes than the range holds")
            filled += count

    def _persist(self, attempt: Callable[[], T]) -> T:
        while True:
            self._download.stop.raise_if_set()
            try:
                return attempt()
            except TryAgain as error:
                self.close()
                self._download.stop.raise_if_set()
                self._count_failure(error)
                wait = self._download.limits.wait_seconds(self._failures)
                log.warning("%s: %s; going on in %.1f s.", self._download.name, self._causes[-1], wait)
                self._download.count_resumption()
                self._download.sleep(wait)

    def _count_failure(self, error: TryAgain) -> None:
        progressed = self.position - self._connected_at >= self._download.limits.progress_bytes
        self._failures = 1 if progressed else self._failures + 1
        self._connected_at = self.position
        self._refused = error.refused or self._refused
        self._refusals = self._refusals + 1 if error.refused else 0
        self._causes = [*self._causes[-4:], f"{error} at {self._at()}"]
        if error.refused and self._download.has_expired():
            raise self._expired() from None
        if self._failures >= self._download.limits.tries:
            raise self._given_up() from None

    def _connect(self) -> None:
        response, skip = self._download.connect(self.position, self.end, self._refused)
        self._response, self._next_bytes, self._refused = response, self._download.readinto_of(response), None
        self._forget_stop = self._download.stop.on_set(partial(shut_down, response.raw))
        self.end = self._download.length if self.end is None else self.end
        self._connected_at = self.position
        self._waited_seconds, self._received_bytes = 0.0, 0
        if skip > 0:
            self._skip(skip)

    def _skip(self, count: int) -> None:
        log.warning("%s: the storage knows no ranges, %s bytes are read again.", self._download.name, count)
        scratch = memoryview(bytearray(min(count, _CHUNK_BYTES)))
        wanted = self.position
        self.position -= count
        try:
            while self.position < wanted:
                self._receive(scratch[: wanted - self.position], again=True)
        finally:
            self.position = wanted

    def _read_on(self, buffer: memoryview, start: int) -> None:
        """Read what comes into a buffer whose first byte is the file's at `start`."""
        if self._response is None:
            self._connect()
        room = buffer[self.position - start :][: (self.end or 0) - self.position]
        self._receive(room[:_CHUNK_BYTES])

    def _receive(self, room: memoryview, *, again: bool = False) -> None:
        """Fill `room` with what comes within a moment; whatever came counts, also before the connection breaks."""
        from urllib3.exceptions import HTTPError

        self._download.stop.raise_if_set()
        clock, readinto, received = self._download.clock, self._next_bytes, 0
        began = clock()
        try:
            while received < len(room) and (received == 0 or clock() - began < _MOMENT_SECONDS):
                if not (count := readinto(room[received:])):
                    raise TryAgain("the connection ended early")
                received += count
        except (HTTPError, HTTPException, OSError) as error:
            raise TryAgain(f"the connection broke ({type(error).__name__})") from None
        finally:
            self.position += received
            self._download.count(received, again=again)
        self._check_stall(clock() - began, received)

    def _check_stall(self, seconds: float, count: int) -> None:
        """Leave a connection that brings next to nothing while it is waited for; pauses of the reader are its own."""
        limits = self._download.limits
        self._waited_seconds += seconds
        self._received_bytes += count
        if self._received_bytes >= limits.stall_bytes:
            self._waited_seconds, self._received_bytes = 0.0, 0
        elif self._waited_seconds > limits.stall_seconds:
            raise TryAgain("the connection slowed to a trickle")

    def _at(self) -> str:
        if self._download.length < 0:
            return "its start"
        return f"{self.position} of {self._download.length} bytes"

    def _given_up(self) -> SendGridError:
        counted = ((cause, len(list(same))) for cause, same in groupby(self._causes))
        causes = "; ".join(f"{cause} ({times} times)" if times > 1 else cause for cause, times in counted)
        text = f"{self._download.name}: {self._failures} tries in a row brought nothing: {causes}."
        if self._refusals > 1:
            text += (
                " Freshly signed URLs are refused too, and the export has not expired. Check what may refuse this "
                "worker on its way to SendGrid's storage: the policy of a VPC endpoint, a proxy, an allow list."
            )
        return ExportIncompleteError(f"{text} Nothing of this file was published; run the task again.")

    def _expired(self) -> SendGridError:
        return ExportExpiredError(
            f"{self._download.name}: {self._causes[-1]}: the export has expired, SendGrid no longer keeps its files. "
            "Start another export."
        )


class TryAgain(Exception):  # noqa: N818 - what one try tells the next, never seen outside
    """This try brought no further; another may.

    Attributes:
        refused: the URL that the storage refused, where it was the URL's fault.
    """

    def __init__(self, cause: str, *, refused: str | None = None) -> None:
        super().__init__(cause)
        self.refused = refused


def _first_bytes(response: requests.Response) -> bytes:
    """The first bytes of a body as they were sent, fewer if it breaks; the connection is closed."""
    from urllib3.exceptions import HTTPError

    raw: Any = response.raw
    with suppress(HTTPError, HTTPException, OSError):
        return bytes(raw.read(_ERROR_BYTES, decode_content=False))
    return b""


_ERROR_PART = r"<{0}>\s*([^<]{{1,300}}?)\s*</{0}>"
_ERROR_CODE, _ERROR_MESSAGE = (re.compile(_ERROR_PART.format(name)) for name in ("Code", "Message"))


def _error_text(body: bytes) -> str:
    """What a storage says of an error, in S3's XML; or that a page came instead, as from a proxy."""
    text = body.decode("utf-8", "replace")
    code, message = _ERROR_CODE.search(text), _ERROR_MESSAGE.search(text)
    if code:
        text = f" {code.group(1)}: {message.group(1)}" if message else f" {code.group(1)}"
        return redact(" " + " ".join("".join(filter(str.isprintable, text)).split()))
    return " with a page of HTML" if re.search(r"(?i)<(!doctype )?html", text) else ""


def _readinto(response: requests.Response) -> Callable[[memoryview], int] | None:
    """What reads the bytes as they were sent, as far as they are there, to where they are wanted.

    It takes them from http.client's stream, and from the socket once that stream holds nothing more, and keeps its
    book of what is left. Measured in CPU time per GiB: urllib3's own reading costs 0.8 s more; http.client's `read1`,
    which makes room for each answer and copies it, 0.1 to 0.3 s; its stream, over TLS in reads of 16 KiB, 0.1 s.

    None if the response does not say its length, or urllib3 keeps http.client's response elsewhere.
    """
    book: Any = getattr(response.raw, "_fp", None)
    stream = getattr(book, "fp", None)
    if not isinstance(stream, BufferedReader) or getattr(book, "length", None) is None:
        return None
    socket: Any = getattr(response.raw.connection, "sock", None)
    is_drained = False

    def readinto(room: memoryview) -> int:
        nonlocal is_drained
        room = room[: book.length]
        count: int = socket.recv_into(room) if is_drained else stream.readinto1(room)
        is_drained = is_drained or (socket is not None and count < len(room))
        book.length -= count
        return count

    return readinto


_ENCODINGS: tuple[list[str], ...] = (["gzip"], ["x-gzip"], [])


def _require_known_encoding(response: requests.Response, name: str) -> None:
    """Gzip is recognised by its bytes, whatever the header says; of any other encoding these say nothing."""
    header = response.headers.get("Content-Encoding", "")
    encodings = [each for part in header.split(",") if (each := part.strip().lower()) not in ("", "identity")]
    if encodings not in _ENCODINGS:
        raise ExportIncompleteError(
            f"{name}: it came with Content-Encoding {redact(header[:100])!r}, although it was requested without; "
            "nothing was stored. Is there a proxy in between that compresses responses? Run the task again."
        )


_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", re.IGNORECASE | re.ASCII)


def _extent(response: requests.Response, name: str) -> tuple[int, int, int]:
    """Where the answer's bytes begin and end (not included), and how long the whole file is."""
    # Beside chunks a length means nothing (RFC 9112): the body is not cut there.
    text = "" if "Transfer-Encoding" in response.headers else response.headers.get("Content-Length", "")
    count = int(text) if re.fullmatch(r"\d{1,19}", text, re.ASCII) else None
    if response.status_code == 200:
        if count is None:
            raise ExportIncompleteError(
                f"{name}: the storage does not say how long the file is, so nobody could tell whether it is "
                "whole; nothing was stored. Is there a proxy in between that changes answers? Run the task again."
            )
        return 0, count, count
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    if match is None:
        raise TryAgain("the storage sent a range without saying which")
    first, last, total = map(int, match.groups())
    if count is not None and count != last - first + 1:
        raise TryAgain(f"the storage sent {count} bytes as the range {first} to {last}")
    return first, last + 1, total
