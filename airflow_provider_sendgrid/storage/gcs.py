"""Google Cloud Storage: a resumable upload, one request after the other, committed by its last one.

The client is google-cloud-storage's, made by Airflow's GCSHook. It begins an upload; the bytes go to the address that
it answers, which is a secret of its own kind: whoever has it may write, until it is a week old. It stands in no log
and no error. The last request carries the CRC32C of all bytes, which Google checks before it publishes the object.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

from airflow_provider_sendgrid.exceptions import DestinationError, DestinationRefusedError
from airflow_provider_sendgrid.storage.in_order import InOrderUpload
from airflow_provider_sendgrid.storage.multipart import ObjectInfo, StoredInfo

log = logging.getLogger(__name__)

_UNIT_BYTES = 256 * 1024
_PIECE_BYTES = 1024 * 1024
_INCOMPLETE = 308
_LONGEST_WAIT_SECONDS = 30.0
_TRIES = 6
_TIMEOUT_SECONDS = (30, 120)
_RETRIED = {408, 429, 500, 502, 503, 504}


class GcsStorage:
    """The objects of one bucket below one prefix.

    Args:
        client: google-cloud-storage's ``Client``; shared by all threads.
        bucket: name of the bucket.
        prefix: what all names begin with, ``path/to/`` or empty.
        sleep: waits between tries of a request, seconds.
    """

    def __init__(self, client: Any, bucket: str, prefix: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._bucket = client.bucket(bucket)
        self._address = f"gs://{bucket}/"
        self._prefix = prefix
        self._sleep = sleep

    def uri(self, name: str) -> str:
        """The object's ``gs://`` URI."""
        return f"{self._address}{self._prefix}{name}"

    def put(self, name: str, content: bytes | bytearray, info: ObjectInfo) -> None:
        """Store a small object at once."""
        blob = self._blob(name, info)
        # Google's client tries only what cannot do harm twice: this is the same each time.
        with _told("put", self.uri(name)):
            blob.upload_from_string(bytes(content), content_type=info.content_type, checksum="crc32c", retry=_retry())

    def begin(self, name: str, info: ObjectInfo) -> GcsUpload:
        """Start a resumable upload."""
        with _told("begin", self.uri(name)):
            session_url = self._blob(name, info).create_resumable_upload_session(
                content_type=info.content_type, checksum=None
            )
        return GcsUpload(session_url, self.uri(name), self._sleep)

    def read(self, name: str) -> bytes | None:
        """The content of a small object, None where there is none."""
        from google.api_core.exceptions import NotFound

        try:
            with _told("read", self.uri(name), unless=NotFound):
                return bytes(self._blob(name).download_as_bytes())
        except NotFound:
            self._check_bucket()
            return None

    def head(self, name: str) -> StoredInfo | None:
        """What is known of an object without reading it, None where there is none."""
        with _told("look", self.uri(name)):
            blob = self._bucket.get_blob(self._prefix + name)
        return None if blob is None else StoredInfo(int(blob.size), blob.metadata or {})

    def abort_uploads(self, name: str) -> int:
        """Nothing to end: Google lists no uploads, shows nothing of them, and forgets them within a week."""
        return 0

    def delete(self, name: str) -> None:
        """Remove an object; nothing happens where there is none."""
        from google.api_core.exceptions import NotFound

        try:
            with _told("delete", self.uri(name), unless=NotFound):
                self._blob(name).delete(retry=_retry())
        except NotFound:
            return

    def _blob(self, name: str, info: ObjectInfo | None = None) -> Any:
        blob = self._bucket.blob(self._prefix + name)
        if info is not None:
            blob.metadata = dict(info.metadata)
        return blob

    def _check_bucket(self) -> None:
        """A bucket that is not there is a mistake, not an empty one; who may not ask for it may be right.

        Raises:
            DestinationRefusedError: there is none.
        """
        from google.api_core.exceptions import Forbidden

        try:
            is_there = self._bucket.exists()
        except Forbidden:
            return
        if not is_there:
            raise DestinationRefusedError(f"There is no bucket {self._address}; make it, or mend the path.")


@contextmanager
def _told(operation: str, uri: str, unless: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """Tell of Google's errors as ours: the operation, the object, Google's own words, and what to do."""
    from google.api_core.exceptions import Forbidden, GoogleAPICallError, NotFound, RetryError, Unauthorized
    from google.auth.exceptions import GoogleAuthError
    from requests import RequestException

    try:
        yield
    except unless:
        raise
    except (Unauthorized, Forbidden, NotFound) as error:
        raise DestinationRefusedError(
            f"{operation} of {uri}: Google Cloud Storage answered {error.code}: {error.message}. Mend the "
            "bucket's name, its permissions or the connection."
        ) from error
    except (GoogleAPICallError, RetryError, GoogleAuthError, RequestException) as error:
        raise DestinationError(
            f"{operation} of {uri}: Google Cloud Storage failed ({type(error).__name__}: {error}). Run the task again."
        ) from error


def _retry() -> Any:
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY


class GcsUpload(InOrderUpload):
    """A resumable upload: whole units of 256 KiB go at once, what is left over goes with the next ones.

    Something is always left over, for the last request must carry at least one byte.
    """

    def __init__(self, session_url: str, uri: str, sleep: Callable[[float], None]) -> None:
        import google_crc32c
        import requests

        super().__init__()
        self._session_url = session_url
        self._uri = uri
        self._sleep = sleep
        self._http = requests.Session()
        self._checksum = google_crc32c.Checksum()
        self._sent_bytes = 0
        self._rest = b""

    def complete(self) -> None:
        """Send the rest, and that this was all."""
        self._send(_Chunk(memoryview(self._rest)), self._sent_bytes + len(self._rest))
        self._http.close()

    def abort(self) -> None:
        """Have Google forget it; where that fails it does so by itself."""
        import requests

        try:
            self._http.delete(self._session_url, timeout=_TIMEOUT_SECONDS)
        except requests.RequestException as error:
            log.info("The upload of %s could not be cancelled (%s).", self._uri, type(error).__name__)
        self._http.close()

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

    def _send(self, chunk: _Chunk, total: int | None = None) -> None:
        """Send a chunk until Google has all of it; after a failure it is asked what it has.

        Args:
            chunk: what comes next.
            total: bytes of the object; with it this chunk is the last, and publishes the object.

        Raises:
            DestinationError: it does not take it.
        """
        start, end = self._sent_bytes, self._sent_bytes + len(chunk)
        held, answer = start, _Answer(None)
        for number in range(_TRIES):
            if number:
                self._sleep(min(2.0**number, _LONGEST_WAIT_SECONDS))
                answer = self._put(_Chunk(), held, held, total)
                held = answer.held_bytes(held)
            if not answer.is_end(end, total):
                answer = self._put(chunk.after(held - start), held, end, total)
                held = answer.held_bytes(held)
            if answer.is_end(end, total):
                self._sent_bytes = end
                return
            if not answer.is_worth_another_try or not start <= held <= end:
                break
        raise DestinationError(
            f"upload of {self._uri}: Google Cloud Storage did not take it ({answer.text}). Run the task again."
        )

    def _put(self, chunk: _Chunk, start: int, end: int, total: int | None) -> _Answer:
        """Send a chunk, or, where it is empty, ask what is there."""
        import requests

        span, goal = f"{start}-{end - 1}" if len(chunk) else "*", "*" if total is None else total
        headers = {"Content-Range": f"bytes {span}/{goal}"}
        if total is not None:
            headers["x-goog-hash"] = f"crc32c={base64.b64encode(self._checksum.digest()).decode()}"
        try:
            answer = self._http.put(
                self._session_url,
                data=cast("Any", chunk if len(chunk) else b""),
                headers=headers,
                timeout=_TIMEOUT_SECONDS,
            )
        except requests.RequestException as error:
            return _Answer(None, text=type(error).__name__)
        return _Answer(answer.status_code, answer.headers.get("Range", ""), f"{answer.status_code} {answer.text[:300]}")


class _Chunk:
    """Bytes in pieces, which a request's body is made of as often as it is needed; none of them is copied."""

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
class _Answer:
    """What Google said to a request of an upload.

    Attributes:
        status: of HTTP, None where no answer came.
        range: which bytes it holds, ``bytes=0-524287``; empty where it holds none.
        text: for people.
    """

    status: int | None
    range: str = ""
    text: str = "no answer"

    @property
    def is_worth_another_try(self) -> bool:
        return self.status is None or self.status == _INCOMPLETE or self.status in _RETRIED

    def held_bytes(self, known: int) -> int:
        """How many bytes Google holds; `known` where it does not say."""
        if self.status != _INCOMPLETE:
            return known
        return int(self.range.rpartition("-")[2]) + 1 if self.range else 0

    def is_end(self, end: int, total: int | None) -> bool:
        """Whether all bytes up to `end` are there, and the object is published where `total` says that it ends."""
        if total is not None:
            return self.status in (HTTPStatus.OK, HTTPStatus.CREATED)
        return self.status == _INCOMPLETE and self.held_bytes(0) == end
