"""Google Cloud Storage: a resumable upload, one request after the other, published by its last one.

The client is google-cloud-storage's, made by Airflow's GCSHook. It begins an upload; the bytes go to the URL that
Google answers, which is a secret: it allows anybody to write for a week. It is in no log and no error. Writes and
deletes name the generation they expect. Each object carries a random token of its upload, by which a write whose
answer was lost is recognised, and its CRC32C is compared with that of the bytes sent.
"""

from __future__ import annotations

import base64
import logging
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from traceback import walk_tb
from typing import Any, cast

from airflow_provider_sendgrid.exceptions import (
    DestinationChangedError,
    DestinationError,
    DestinationRefusedError,
    SendGridError,
)
from airflow_provider_sendgrid.storage.base import ANY_VERSION, ObjectInfo, StoredContent, StoredInfo
from airflow_provider_sendgrid.storage.errors import (
    ATTEMPTS,
    NO_ANSWER,
    PASSING,
    UNREADABLE_ANSWER,
    Failure,
    Meaning,
    Requests,
    pause_seconds,
)
from airflow_provider_sendgrid.storage.sequential import InOrderUpload

log = logging.getLogger(__name__)

_UNIT_BYTES = 256 * 1024
_PIECE_BYTES = 1024 * 1024
_INCOMPLETE = 308
_TIMEOUT_SECONDS = (30, 120)
_ABORT_TIMEOUT_SECONDS = 5
_TOKEN = "sendgrid-write"  # noqa: S105  metadata, no secret

# By Google's reason, else by status; "upload" for requests to the URL of a resumable upload.
_ERRORS: Mapping[str, Meaning] = {
    "rateLimitExceeded": PASSING,
    "userRateLimitExceeded": PASSING,
    "retentionPolicyNotMet": Meaning(DestinationRefusedError, "The bucket's retention policy keeps the object."),
    "objectUnderActiveHold": Meaning(DestinationRefusedError, "A hold keeps the object: release it."),
    "userProjectMissing": Meaning(DestinationRefusedError, "The bucket needs a project to bill; use another bucket."),
    "upload 404": Meaning(DestinationError, "The upload has ended. Run the task again."),
    "upload 410": Meaning(DestinationError, "The upload has ended. Run the task again."),
    "404": Meaning(
        DestinationRefusedError, "Correct the bucket's name, its permissions or the connection.", is_absence=True
    ),
}


class GcsStorage:
    """The objects of one bucket below one prefix.

    Args:
        client: google-cloud-storage's ``Client``; shared by all threads.
        bucket: name of the bucket.
        prefix: what all names begin with, ``path/to/`` or empty.
        sleep: waits between attempts of a request, seconds.
    """

    def __init__(self, client: Any, bucket: str, prefix: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._bucket = client.bucket(bucket)
        self._address = f"gs://{bucket}/"
        self._prefix = prefix
        self._sleep = sleep
        self._requests = _requests(sleep)
        self._is_listing_refused = False

    def uri(self, name: str) -> str:
        """The object's ``gs://`` URI."""
        return f"{self._address}{self._prefix}{name}"

    def put(self, name: str, content: bytes | bytearray, info: ObjectInfo, over: str | None = ANY_VERSION) -> str:
        """Store a small object at once; return its generation."""
        self._raise_if_changed("put", name, over)
        token, checksum = secrets.token_hex(8), _crc32c(bytes(content))

        def send() -> _Stored:
            blob = self._blob(name, info, token)
            blob.upload_from_string(
                bytes(content),
                content_type=info.content_type,
                checksum="crc32c",
                retry=None,
                if_generation_match=_generation(over),
            )
            return _Stored.of_blob(blob)

        try:
            stored = self._requests.write("put", self.uri(name), send)
        except (DestinationChangedError, DestinationError):
            # The answer of an earlier attempt may be lost, and the object be stored.
            with suppress(SendGridError):
                return self._confirm("put", name, token, checksum, _Stored())
            raise
        return self._confirm("put", name, token, checksum, stored)

    def begin(self, name: str, info: ObjectInfo, over: str | None = ANY_VERSION) -> GcsUpload:
        """Start a resumable upload."""
        token = secrets.token_hex(8)

        def send() -> Any:
            return self._blob(name, info, token).create_resumable_upload_session(
                content_type=info.content_type, checksum=None, retry=None, if_generation_match=_generation(over)
            )

        def confirm(checksum: str, stored: _Stored) -> None:
            self._confirm("upload", name, token, checksum, stored)

        session_url = self._requests.write("begin", self.uri(name), send)
        if not session_url:
            raise self._requests.unverified("begin", self.uri(name), "the answer names no upload")
        return GcsUpload(
            session_url,
            self.uri(name),
            self._sleep,
            check=lambda: self._raise_if_changed("upload", name, over),
            confirm=confirm,
        )

    def read(self, name: str) -> StoredContent | None:
        """A small object, None if there is none."""
        for _ in range(ATTEMPTS):
            stored = self._look(name)
            if stored is None:
                self._raise_without_bucket()
                return None
            blob = self._bucket.blob(self._prefix + name, generation=int(stored.generation))
            content = self._requests.find("read", self.uri(name), partial(blob.download_as_bytes, retry=None))
            if content is not None:
                return StoredContent(bytes(content), stored.generation)
        raise self._requests.unverified("read", self.uri(name), "the object changes all the time")

    def head(self, name: str) -> StoredInfo | None:
        """What is known of an object without reading it, None if there is none."""
        stored = self._look(name)
        if stored is None:
            return None
        metadata = {key.lower(): value for key, value in stored.metadata.items() if key.lower() != _TOKEN}
        return StoredInfo(stored.size, metadata, stored.generation)

    def versions(self, beginning: str = "") -> Mapping[str, str] | None:
        """The generations of all objects whose names begin like this; None if they may not be listed."""

        def send() -> dict[str, str]:
            listed = self._bucket.list_blobs(
                prefix=self._prefix + beginning or None,
                delimiter="/",
                fields="items(name,generation),prefixes,nextPageToken",
                retry=None,
            )
            return {blob.name.removeprefix(self._prefix): str(blob.generation) for blob in listed}

        try:
            return {name: version for name, version in self._requests.write("list", self.uri(""), send).items() if name}
        except DestinationRefusedError as error:
            if not self._is_listing_refused:
                log.warning("The objects cannot be listed: %s", error)
            self._is_listing_refused = True
            return None

    def abort_uploads(self, names: Collection[str]) -> int:
        """Nothing to end: Google lists no uploads, shows nothing of them, and deletes them within a week."""
        return 0

    def delete(self, name: str, version: str = ANY_VERSION) -> None:
        """Delete an object if it has this generation."""
        with suppress(DestinationChangedError):
            self._raise_if_changed("delete", name, version)
            self._requests.find(
                "delete",
                self.uri(name),
                lambda: self._blob(name).delete(retry=None, if_generation_match=_generation(version)),
            )

    def _blob(self, name: str, info: ObjectInfo | None = None, token: str = "") -> Any:
        blob = self._bucket.blob(self._prefix + name)
        if info is not None:
            blob.metadata = {**info.metadata, _TOKEN: token}
        return blob

    def _look(self, name: str) -> _Stored | None:
        def send() -> _Stored:
            blob = self._blob(name)
            blob.reload(retry=None)
            return _Stored.of_blob(blob)

        stored = self._requests.find("look", self.uri(name), send)
        if stored is not None and not stored.generation:
            raise self._requests.unverified("look", self.uri(name), "the answer names no generation")
        return stored

    def _raise_if_changed(self, operation: str, name: str, expected: str | None) -> None:
        """Look right before a write, for servers that ignore its condition."""
        if expected == ANY_VERSION:
            return
        stored = self._look(name)
        if expected != (None if stored is None else stored.generation):
            raise self._requests.error(operation, self.uri(name), Failure(("412",), "the object was changed"))

    def _confirm(self, operation: str, name: str, token: str, checksum: str, answer: _Stored) -> str:
        """Make sure that what is stored is what was sent; return its generation.

        Raises:
            DestinationChangedError: another run stored the object.
            DestinationError: it is not there, or its bytes are not those that were sent; such an object is deleted.
        """
        uri = self.uri(name)
        stored = answer if answer.is_complete else self._look(name)
        if stored is None:
            raise self._requests.unverified(operation, uri, "the storage accepted the object, but it is not there")
        if stored.metadata.get(_TOKEN) != token:
            raise self._requests.error(operation, uri, Failure(("412",), "the object is of another run"))
        if stored.crc32c != checksum:
            with suppress(SendGridError):
                self.delete(name, stored.generation)
            what = f"the stored object's CRC32C is {stored.crc32c}, not {checksum}; the bytes were damaged on their way"
            raise self._requests.unverified(operation, uri, what)
        return stored.generation

    def _raise_without_bucket(self) -> None:
        """A bucket that is not there is a mistake, not an empty one; without the permission to ask it may be there.

        Raises:
            DestinationRefusedError: there is none.
        """
        from google.api_core.exceptions import Forbidden

        def is_there() -> bool:
            try:
                return bool(self._bucket.exists(retry=None))
            except Forbidden:
                return True

        if not self._requests.find("look", self._address, is_there):
            raise DestinationRefusedError(f"There is no bucket {self._address}; create it, or correct the path.")


@dataclass(frozen=True, slots=True)
class _Stored:
    """What Google says of an object; empty what it does not say."""

    generation: str = ""
    crc32c: str = ""
    size: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_blob(cls, blob: Any) -> _Stored:
        return cls(str(blob.generation or ""), blob.crc32c or "", int(blob.size or 0), dict(blob.metadata or {}))

    @classmethod
    def of_answer(cls, answer: Any) -> _Stored:
        """Read JSON; whatever is not of the known shape counts as not said."""
        try:
            return cls(str(answer["generation"]), answer["crc32c"], int(answer["size"]), dict(answer["metadata"]))
        except (KeyError, TypeError, ValueError):
            return cls()

    @property
    def is_complete(self) -> bool:
        """Whether it says all that is compared."""
        return bool(self.generation and self.crc32c and _TOKEN in self.metadata)


def _generation(version: str | None) -> int | None:
    """The condition of a request: 0 if there must be no object, None if it does not matter."""
    return None if version == ANY_VERSION else int(version or 0)


def _crc32c(content: bytes) -> str:
    import google_crc32c

    return base64.b64encode(google_crc32c.Checksum(content).digest()).decode()


def _requests(sleep: Callable[[float], None]) -> Requests:
    return Requests("Google Cloud Storage", _ERRORS, _describe, sleep)


def _describe(error: Exception) -> Failure | None:
    """What is known of an exception of Google's client."""
    from google.api_core.exceptions import GoogleAPICallError
    from google.auth.exceptions import GoogleAuthError, TransportError
    from requests import RequestException
    from requests.exceptions import InvalidJSONError, TooManyRedirects

    name = type(error).__name__
    if isinstance(error, GoogleAPICallError):
        status = str(int(error.code)) if error.code else name
        return Failure((*_reasons(error.errors), status), f"{status} {error.message}")
    if (response := _response_of_unreadable_error(error)) is not None:
        return Failure((str(response.status_code),), f"{response.status_code} {response.text}")
    if isinstance(error, (InvalidJSONError, TooManyRedirects, *UNREADABLE_ANSWER)) or name in _UNREADABLE:
        return Failure((name,), f"the answer cannot be read ({name}: {error})")
    if isinstance(error, (TransportError, RequestException)):
        return Failure((NO_ANSWER,), f"no answer ({name}: {error})")
    return Failure((name,), f"no credentials ({name}: {error})") if isinstance(error, GoogleAuthError) else None


def _response_of_unreadable_error(error: Exception) -> Any:
    """The error response that Google's client could not parse; None if `error` has another cause.

    The client expects ``{"error": {...}}`` and raises AttributeError for ``{"error": "text"}``, which gateways send.
    The status is known only to the function that failed, so it is read from the traceback.
    """
    from google.api_core.exceptions import from_http_response

    for frame, _ in walk_tb(error.__traceback__):
        if frame.f_code is from_http_response.__code__:
            return frame.f_locals.get("response")
    return None


# A download whose checksum is wrong, by whichever of Google's packages.
_UNREADABLE = {"DataCorruption", "InvalidResponse"}


def _reasons(errors: Any) -> tuple[str, ...]:
    return tuple(str(each["reason"]) for each in errors or () if isinstance(each, Mapping) and "reason" in each)


class GcsUpload(InOrderUpload):
    """A resumable upload: whole units of 256 KiB go at once, what is left over goes with the next ones.

    Something is always left over, for the last request must carry at least one byte.

    Args:
        session_url: where the bytes go; a secret.
        uri: of the object, for messages.
        sleep: see `GcsStorage`.
        check: called right before the last request; raises if another run stored the object.
        confirm: is given the CRC32C of all bytes and what Google says of the object; raises if these differ.
    """

    def __init__(
        self,
        session_url: str,
        uri: str,
        sleep: Callable[[float], None],
        *,
        check: Callable[[], None] = lambda: None,
        confirm: Callable[[str, _Stored], None] = lambda _checksum, _stored: None,
    ) -> None:
        import google_crc32c
        import requests

        super().__init__()
        self._session_url = session_url
        self._uri = uri
        self._sleep = sleep
        self._check = check
        self._confirm = confirm
        self._requests = _requests(sleep)
        self._http = requests.Session()
        self._checksum = google_crc32c.Checksum()
        self._sent_bytes = 0
        self._rest = b""

    def complete(self) -> None:
        """Send the rest, and that this was all."""
        self._check()
        checksum = self._crc32c
        try:
            answer = self._send(_Chunk(memoryview(self._rest)), self._sent_bytes + len(self._rest))
        except (DestinationChangedError, DestinationError):
            if not self._is_stored(checksum):
                raise
        else:
            self._confirm(checksum, answer.stored)
        self.end()

    def abort(self) -> None:
        """Cancel the upload; if that fails, Google deletes it by itself."""
        import requests

        self.end()
        try:
            requests.delete(self._session_url, timeout=_ABORT_TIMEOUT_SECONDS, allow_redirects=False)
        except requests.RequestException as error:
            log.info("The upload of %s could not be cancelled (%s).", self._uri, type(error).__name__)

    @property
    def _crc32c(self) -> str:
        return base64.b64encode(self._checksum.digest()).decode()

    def _is_stored(self, checksum: str) -> bool:
        """Whether the last request stored the object, although its answer was lost."""
        try:
            self._confirm(checksum, _Stored())
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

    def _send(self, chunk: _Chunk, total: int | None = None) -> _Answer:
        """Send a chunk until Google has all of it; after a failure it is asked what it has.

        Args:
            chunk: what comes next.
            total: bytes of the object; with it this chunk is the last, and publishes the object.

        Raises:
            DestinationError: it does not take it, or the table says what else.
        """
        start, end = self._sent_bytes, self._sent_bytes + len(chunk)
        held, answer = start, _Answer(None)
        for number in range(ATTEMPTS):
            if number:
                self._sleep(pause_seconds(number))
                answer = self._put(_Chunk(), held, held, total)
                held = answer.held_bytes(held)
            if not answer.is_end(end, total):
                answer = self._put(chunk.after(held - start), held, end, total)
                held = answer.held_bytes(held)
            if answer.is_end(end, total):
                self._sent_bytes = end
                return answer
            may_help = answer.status == _INCOMPLETE or self._requests.meaning(answer.codes).is_retried
            if not may_help or not start <= held <= end:
                break
        raise self._requests.error("upload", self._uri, Failure(answer.codes, answer.text))

    def _put(self, chunk: _Chunk, start: int, end: int, total: int | None) -> _Answer:
        """Send a chunk, or, if it is empty, ask what is there."""
        import requests

        self.raise_if_ended()
        span, goal = f"{start}-{end - 1}" if len(chunk) else "*", "*" if total is None else total
        headers = {"Content-Range": f"bytes {span}/{goal}"}
        if total is not None:
            headers["x-goog-hash"] = f"crc32c={self._crc32c}"
        try:
            answer = self._http.put(
                self._session_url,
                data=cast("Any", chunk if len(chunk) else b""),
                headers=headers,
                timeout=_TIMEOUT_SECONDS,
                # Google's 308 is no redirect, and the bytes go nowhere else.
                allow_redirects=False,
            )
        except requests.RequestException as error:
            return _Answer(None, text=f"no answer ({type(error).__name__})")
        return _Answer(
            answer.status_code,
            answer.headers.get("Range", ""),
            f"{answer.status_code} {answer.text[:300]}",
            _json(answer),
        )


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
        status: of HTTP, None if no answer came.
        range: which bytes it holds, ``bytes=0-524287``; empty if it holds none.
        text: for people.
        content: its JSON, None if there is none.
    """

    status: int | None
    range: str = ""
    text: str = NO_ANSWER
    content: Any = None

    @property
    def codes(self) -> tuple[str, ...]:
        """For the table of errors."""
        if self.status is None:
            return (NO_ANSWER,)
        error = self.content.get("error") if isinstance(self.content, dict) else None
        reasons = _reasons(error.get("errors")) if isinstance(error, dict) else ()
        return (*reasons, f"upload {self.status}", str(self.status))

    @property
    def stored(self) -> _Stored:
        """What it says of the object."""
        return _Stored.of_answer(self.content)

    def held_bytes(self, known: int) -> int:
        """How many bytes Google holds; `known` if it does not say."""
        if self.status != _INCOMPLETE:
            return known
        if not self.range:
            return 0
        held = re.fullmatch(r"(?:bytes=)?0-(\d+)", self.range.strip())
        return int(held[1]) + 1 if held else known

    def is_end(self, end: int, total: int | None) -> bool:
        """Whether all bytes up to `end` are there, and the object is published if `total` says that it ends."""
        if total is not None:
            return self.status in (HTTPStatus.OK, HTTPStatus.CREATED)
        return self.status == _INCOMPLETE and self.held_bytes(0) == end


def _json(answer: Any) -> Any:
    try:
        return answer.json()
    except (ValueError, RecursionError):
        return None
