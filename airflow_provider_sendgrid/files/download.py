"""One file of an export: its length and ETag, and one attempt to request a range of it.

The first response sets the file's length and its ETag (or Last-Modified); every later response must have the same.
Bytes arrive as they are stored: nothing here knows gzip, CSV, clouds or the API key.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urljoin

from airflow_provider_sendgrid.backoff import backoff_seconds
from airflow_provider_sendgrid.exceptions import ExportIncompleteError, redact
from airflow_provider_sendgrid.exports.sending import SendState, recording_to
from airflow_provider_sendgrid.stopping import StopSignal

if TYPE_CHECKING:
    import requests

_MAX_REDIRECTS = 3
# A response may take this many times the timeout until its body begins: each byte of its head may be in time.
_TIMEOUTS_PER_RESPONSE = 4
_ERROR_BODY_BYTES = 8 * 1024
_REFUSALS = (400, 401, 403, 404, 410)


class FileChangedError(ExportIncompleteError):
    """The file is no longer the one that the first response described: download it again from its start."""


class RetryableError(Exception):
    """One attempt failed; another may succeed. Never leaves `files`.

    Attributes:
        refused_url: the URL that the storage refused, if it refused one.
    """

    def __init__(self, cause: str, *, refused_url: str | None = None) -> None:
        super().__init__(cause)
        self.refused_url = refused_url


@dataclass(frozen=True, slots=True)
class DownloadLimits:
    """When to retry, and when to give up.

    Attributes:
        attempts: how many attempts in a row may receive less than `progress_bytes` each.
        progress_bytes: an attempt that receives this many made progress.
        first_wait_seconds: wait after an attempt without progress; doubles with each in a row.
        longest_wait_seconds: the longest such wait.
        stall_seconds: a connection that needs longer for `stall_bytes` is closed; only time spent reading counts.
        stall_bytes: see `stall_seconds`.
        jitter: returns numbers from 0 to 1, which spread the waits.
    """

    attempts: int = 6
    progress_bytes: int = 1024 * 1024
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 30.0
    stall_seconds: float = 60.0
    stall_bytes: int = 64 * 1024
    jitter: Callable[[], float] = random.random

    def wait_seconds(self, failures: int) -> float:
        """How long to wait after this many attempts in a row without progress."""
        return backoff_seconds(failures, self.first_wait_seconds, self.longest_wait_seconds, self.jitter())


class UrlSource(Protocol):
    """What a download needs of `ExportFiles`, which documents it."""

    session: requests.Session
    timeout_seconds: float
    limits: DownloadLimits
    clock: Callable[[], float]
    sleep: Callable[[float], object] | None
    stop: StopSignal

    def url(self, path: str, *, refused: str | None = None) -> str:
        """A signed URL of the file."""

    def require_encrypted(self, url: str) -> str:
        """The URL itself; raises unless contacts may be downloaded from it."""

    def has_expired(self) -> bool:
        """Whether the export has expired."""


class FileDownload:
    """The state of one file's download; safe to share among threads.

    Args:
        source: where signed URLs come from.
        path: path of the file's URL, which identifies the file.
        title: the file in messages: ``SendGrid export 6f… file 2 of 3``.

    Attributes:
        stop: ends this download alone; it is set with the source's.
        length: bytes of the file as SendGrid stores it; -1 before the first response.
        etag: its ETag, None if the storage sends none.
        content_type: its media type in lower case, without parameters; empty if the storage sends none.
        has_ranges: whether the storage serves ranges, as far as is known.
        connections: number of connections opened so far.
        fetched_bytes: bytes received so far, including bytes received twice; current while a part is being filled.
        received_bytes: the same without bytes received twice.
        resumptions: how often the download was resumed.
    """

    def __init__(self, source: UrlSource, path: str, title: str) -> None:
        self.path = path
        self.title = title
        self.limits = source.limits
        self.clock = source.clock
        self.has_expired = source.has_expired
        self.stop = source.stop.child()
        self.sleep = source.sleep or self.stop.wait
        self.length = -1
        self.etag: str | None = None
        self.content_type = ""
        self.has_ranges = True
        self.connections = 0
        self.fetched_bytes = 0
        self.received_bytes = 0
        self.resumptions = 0
        self._source = source
        self._lock = threading.Lock()
        self._last_modified: str | None = None

    def request(self, start: int, end: int | None, refused_url: str | None) -> tuple[requests.Response, int]:
        """Request a range once; return the response, and how many of its first bytes to skip.

        Raises:
            RetryableError: another attempt may succeed.
            FileChangedError: the file changed, or it cannot be known whether it did.
        """
        if start > 0 and self.length >= 0 and self._last_modified is None and self.etag is None:
            raise FileChangedError(
                f"{self.title}: the connection broke, and the storage sends neither ETag nor Last-Modified: the "
                "download cannot be resumed, because the file may have changed."
            )
        headers = {"Accept-Encoding": "identity"}
        if start > 0 or end is not None:
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        url = self.stop.call(partial(self._source.url, self.path, refused=refused_url), name="sendgrid-url")
        with self._lock:
            self.connections += 1
        response, error_body = self._connect(url, headers)
        try:
            self._check_status(response.status_code, url, error_body)
            first = self._pin_or_compare(response, start, end)
        except BaseException:
            response.close()
            raise
        return response, start - first

    def count(self, size: int, *, again: bool = False) -> None:
        """Count bytes that were received, for the first time or again."""
        with self._lock:
            self.fetched_bytes += size
            self.received_bytes += 0 if again else size

    def count_resumption(self) -> None:
        """Count that the download was resumed."""
        with self._lock:
            self.resumptions += 1

    def _connect(self, url: str, headers: dict[str, str]) -> tuple[requests.Response, bytes]:
        """What `_send` returns, unless it takes too long or the download is stopped: then no request is sent later."""
        import requests
        from urllib3.exceptions import HTTPError

        sending = SendState()
        try:
            return self.stop.call(
                partial(self._send, url, headers, sending),
                _TIMEOUTS_PER_RESPONSE * self._source.timeout_seconds,
                name="sendgrid-connect",
                late=lambda late: late[0].close(),
            )
        except (requests.RequestException, HTTPException, HTTPError, OSError, ValueError) as error:
            sending.interrupt()
            raise RetryableError(f"no connection ({type(error).__name__})") from None
        except BaseException:
            sending.interrupt()
            raise

    def _send(self, url: str, headers: dict[str, str], sending: SendState) -> tuple[requests.Response, bytes]:
        """The response after redirects, and the start of its body if it is an error; no other body is read."""
        for _ in range(_MAX_REDIRECTS + 1):
            with recording_to(sending):
                response = self._source.session.get(
                    url, headers=headers, stream=True, allow_redirects=False, timeout=self._source.timeout_seconds
                )
            if not response.is_redirect:
                return response, b"" if response.status_code in (200, 206) else _error_body(response)
            response.close()
            try:
                url = urljoin(url, response.headers["Location"])
            except ValueError:
                raise RetryableError("a redirect without a valid URL") from None
            url = self._source.require_encrypted(url)
        raise RetryableError(f"more than {_MAX_REDIRECTS} redirects")

    def _check_status(self, status: int, url: str, error_body: bytes) -> None:
        if status in (200, 206):
            return
        if status == 416:
            raise self._changed("it is shorter than it was")
        reason = f"{status}{_error_text(error_body)}"
        if status in _REFUSALS:
            raise RetryableError(f"the storage refused the URL ({reason})", refused_url=url)
        raise RetryableError(f"the storage responded with {reason}")

    def _pin_or_compare(self, response: requests.Response, start: int, end: int | None) -> int:
        """Where the response's bytes begin; every response must be of the same file, and of the requested range."""
        _require_known_encoding(response, self.title)
        first, last, length = parse_content_range(response, self.title)
        etag, last_modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
        if self.length < 0:
            self.length, self.etag, self._last_modified = length, etag, last_modified
            self.content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            is_comparable = etag is not None or last_modified is not None
            self.has_ranges = is_comparable and response.headers.get("Accept-Ranges", "").lower() == "bytes"
        if length != self.length:
            raise self._changed(f"it is {length} bytes long now, it was {self.length}")
        if etag != self.etag:
            raise self._changed("its ETag differs")
        if etag is None and last_modified != self._last_modified:
            raise self._changed("its Last-Modified differs")
        wanted = (start, length if end is None else end)
        if response.status_code == 200 and wanted != (0, length):
            self.has_ranges = False
        if response.status_code == 206 and (first, last) != wanted:
            raise RetryableError(f"the storage sent bytes {first} to {last} instead of {wanted[0]} to {wanted[1]}")
        return first

    def _changed(self, how: str) -> FileChangedError:
        return FileChangedError(f"{self.title}: the file changed while it was read: {how}.")


def _error_body(response: requests.Response) -> bytes:
    """The start of an error's body, which may contain the storage's code; as much as arrives if it breaks."""
    from urllib3.exceptions import HTTPError

    raw: Any = response.raw
    with suppress(HTTPError, HTTPException, OSError):
        return bytes(raw.read(_ERROR_BODY_BYTES, decode_content=False))
    return b""


_ERROR_ELEMENT = r"<{0}>\s*([^<]{{1,300}}?)\s*</{0}>"
_ERROR_CODE, _ERROR_MESSAGE = (re.compile(_ERROR_ELEMENT.format(name)) for name in ("Code", "Message"))


def _error_text(body: bytes) -> str:
    """Code and message of an error in S3's XML; or that it is an HTML page, as from a proxy."""
    text = body.decode("utf-8", "replace")
    code, message = _ERROR_CODE.search(text), _ERROR_MESSAGE.search(text)
    if code:
        text = f" {code.group(1)}: {message.group(1)}" if message else f" {code.group(1)}"
        return redact(" " + " ".join("".join(filter(str.isprintable, text)).split()))
    return " with a page of HTML" if re.search(r"(?i)<(!doctype )?html", text) else ""


_KNOWN_ENCODINGS: tuple[list[str], ...] = (["gzip"], ["x-gzip"], [])


def _require_known_encoding(response: requests.Response, title: str) -> None:
    """Gzip is detected by its bytes, whatever the header says; other encodings could not be detected."""
    header = response.headers.get("Content-Encoding", "")
    encodings = [each for part in header.split(",") if (each := part.strip().lower()) not in ("", "identity")]
    if encodings not in _KNOWN_ENCODINGS:
        raise ExportIncompleteError(
            f"{title}: the response has Content-Encoding {redact(header[:100])!r}, although none was requested; "
            "nothing was stored. Check whether a proxy compresses responses, then run the task again."
        )


_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", re.IGNORECASE | re.ASCII)


def parse_content_range(response: requests.Response, title: str) -> tuple[int, int, int]:
    """Start and end (exclusive) of a response's bytes in the file, and the file's length.

    Raises:
        ExportIncompleteError: a response with the whole file has no length.
        RetryableError: a response with a range does not say which, or contradicts itself.
    """
    # RFC 9112 ignores Content-Length beside Transfer-Encoding: the body may be longer.
    text = "" if "Transfer-Encoding" in response.headers else response.headers.get("Content-Length", "")
    count = int(text) if re.fullmatch(r"\d{1,19}", text, re.ASCII) else None
    if response.status_code == 200:
        if count is None:
            raise ExportIncompleteError(
                f"{title}: the storage does not say how long the file is, so a truncated file could not be detected; "
                "nothing was stored. Check whether a proxy changes responses, then run the task again."
            )
        return 0, count, count
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    if match is None:
        raise RetryableError("the storage sent a range without a valid Content-Range")
    first, last, total = map(int, match.groups())
    if count is not None and count != last - first + 1:
        raise RetryableError(f"the storage sent {count} bytes as the range {first} to {last}")
    return first, last + 1, total
