"""A resumable upload to Google Cloud Storage: one request after the other, published by the last one."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

from airflow_provider_sendgrid.exceptions import DestinationChangedError, DestinationError, SendGridError
from airflow_provider_sendgrid.storage.errors import ATTEMPTS, NO_RESPONSE, Failure, pause_seconds
from airflow_provider_sendgrid.storage.gcs_errors import reasons_of, retried_calls
from airflow_provider_sendgrid.storage.gcs_object import StoredObject, encoded
from airflow_provider_sendgrid.storage.sequential import SequentialUpload

log = logging.getLogger(__name__)

_UNIT_BYTES = 256 * 1024
_PIECE_BYTES = 1024 * 1024
_INCOMPLETE = 308
_TIMEOUT_SECONDS = (30, 120)
_ABORT_TIMEOUT_SECONDS = 5


class GcsUpload(SequentialUpload):
    """A resumable upload: whole units of 256 KiB are sent at once, the rest with the next ones.

    There is always a rest, because the last request must carry at least one byte.

    Args:
        session_url: the URL that receives the bytes; a secret.
        uri: the URI of the object, for messages.
        sleep: see `GcsStorage`.
        check: called right before the last request; raises if another run stored the object.
        confirm: called with the CRC32C of all bytes and the object in Google's response; raises if they differ.
    """

    def __init__(
        self,
        session_url: str,
        uri: str,
        sleep: Callable[[float], None],
        *,
        check: Callable[[], None] = lambda: None,
        confirm: Callable[[str, StoredObject], None] = lambda _checksum, _stored: None,
    ) -> None:
        import google_crc32c
        import requests

        super().__init__()
        self._session_url = session_url
        self._uri = uri
        self._sleep = sleep
        self._check = check
        self._confirm = confirm
        self._calls = retried_calls(sleep)
        self._http = requests.Session()
        self._checksum = google_crc32c.Checksum()
        self._sent_bytes = 0
        self._rest = b""

    def complete(self) -> None:
        """Send the rest and end the upload."""
        self._check()
        checksum = self._crc32c
        try:
            response = self._send(_Chunk(memoryview(self._rest)), self._sent_bytes + len(self._rest))
        except (DestinationChangedError, DestinationError):
            if not self._is_stored(checksum):
                raise
        else:
            self._confirm(checksum, response.stored)
        self.end()

    def abort(self) -> None:
        """Cancel the upload; if that fails, Google deletes it within a week."""
        import requests

        self.end()
        try:
            requests.delete(self._session_url, timeout=_ABORT_TIMEOUT_SECONDS, allow_redirects=False)
        except requests.RequestException as error:
            log.info("The upload of %s could not be cancelled (%s).", self._uri, type(error).__name__)

    @property
    def _crc32c(self) -> str:
        return encoded(self._checksum)

    def _is_stored(self, checksum: str) -> bool:
        """Whether the last request stored the object, although its response was lost."""
        try:
            self._confirm(checksum, StoredObject())
        except SendGridError:
            return False
        return True

    def _release(self) -> None:
        self._http.close()

    def _append(self, part: bytearray) -> None:
        content = memoryview(part)
        for piece in _Chunk(content):
            self._checksum.update(bytes(piece))
        units = max(0, len(self._rest) + len(part) - 1) // _UNIT_BYTES
        if not units:
            self._rest += content
            return
        split = units * _UNIT_BYTES - len(self._rest)
        self._send(_Chunk(memoryview(self._rest), content[:split]))
        self._rest = bytes(content[split:])

    def _send(self, chunk: _Chunk, total: int | None = None) -> _Response:
        """Send a chunk until Google has all of it; after a failure, ask how much it has.

        Args:
            chunk: what comes next.
            total: size of the object in bytes, with the last chunk, which publishes the object.

        Raises:
            DestinationError: Google does not accept it; other errors as the table says.
        """
        start, end = self._sent_bytes, self._sent_bytes + len(chunk)
        held, response = start, _Response(None)
        for number in range(ATTEMPTS):
            if number:
                self._sleep(pause_seconds(number))
                response = self._put(_Chunk(), held, held, total)
                held = response.held_bytes(held)
            if not response.is_end(end, total):
                response = self._put(chunk.after(held - start), held, end, total)
                held = response.held_bytes(held)
            if response.is_end(end, total):
                self._sent_bytes = end
                return response
            may_help = response.status == _INCOMPLETE or self._calls.meaning(response.codes).is_retried
            if not may_help or not start <= held <= end:
                break
        raise self._calls.error("upload", self._uri, Failure(response.codes, response.text))

    def _put(self, chunk: _Chunk, start: int, end: int, total: int | None) -> _Response:
        """Send a chunk; an empty one asks how much Google has."""
        import requests

        self.raise_if_ended()
        span, goal = f"{start}-{end - 1}" if len(chunk) else "*", "*" if total is None else total
        headers = {"Content-Range": f"bytes {span}/{goal}"}
        if total is not None:
            headers["x-goog-hash"] = f"crc32c={self._crc32c}"
        try:
            response = self._http.put(
                self._session_url,
                data=cast("Any", chunk if len(chunk) else b""),
                headers=headers,
                timeout=_TIMEOUT_SECONDS,
                # Google's 308 is no redirect, and no other host gets the bytes.
                allow_redirects=False,
            )
        except requests.RequestException as error:
            return _Response(None, text=f"no response ({type(error).__name__})")
        return _Response(
            response.status_code,
            response.headers.get("Range", ""),
            f"{response.status_code} {response.text[:300]}",
            _json(response),
        )


class _Chunk:
    """The body of a request, in pieces; it can be sent repeatedly, and no byte is copied."""

    def __init__(self, *contents: memoryview) -> None:
        self._contents = contents

    def __len__(self) -> int:
        return sum(map(len, self._contents))

    def __iter__(self) -> Iterator[memoryview]:
        for content in self._contents:
            for start in range(0, len(content), _PIECE_BYTES):
                yield content[start : start + _PIECE_BYTES]

    def after(self, count: int) -> _Chunk:
        """All but the first `count` bytes."""
        rest = []
        for content in self._contents:
            rest.append(content[count:])
            count = max(0, count - len(content))
        return _Chunk(*rest)


@dataclass(frozen=True, slots=True)
class _Response:
    """Google's response to a request of an upload.

    Attributes:
        status: the HTTP status, None without a response.
        range: the bytes that Google has, ``bytes=0-524287``; empty if it has none.
        text: for messages.
        content: its JSON, None if there is none.
    """

    status: int | None
    range: str = ""
    text: str = NO_RESPONSE
    content: Any = None

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes for the table of errors."""
        if self.status is None:
            return (NO_RESPONSE,)
        error = self.content.get("error") if isinstance(self.content, dict) else None
        reasons = reasons_of(error.get("errors")) if isinstance(error, dict) else ()
        return (*reasons, f"upload {self.status}", str(self.status))

    @property
    def stored(self) -> StoredObject:
        """The object that it describes."""
        return StoredObject.from_json(self.content)

    def held_bytes(self, known: int) -> int:
        """How many bytes Google has; `known` if the response does not say."""
        if self.status != _INCOMPLETE:
            return known
        if not self.range:
            return 0
        held = re.fullmatch(r"(?:bytes=)?0-(\d+)", self.range.strip())
        return int(held[1]) + 1 if held else known

    def is_end(self, end: int, total: int | None) -> bool:
        """Whether Google has all bytes up to `end` and, if `total` is given, published the object."""
        if total is not None:
            return self.status in (HTTPStatus.OK, HTTPStatus.CREATED)
        return self.status == _INCOMPLETE and self.held_bytes(0) == end


def _json(response: Any) -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None
