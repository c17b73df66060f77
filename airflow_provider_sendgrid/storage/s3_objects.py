"""Single objects of a bucket: reads them, replaces only the expected version, verifies what was stored.

An object is checked right before it is written. The write is conditional if boto3 and the server support that. The
object is checked again after the write. It counts as stored only if it has the size, metadata and ETag of this write,
and is encrypted as requested.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from airflow_provider_sendgrid.exceptions import DestinationChangedError, DestinationError, DestinationRefusedError
from airflow_provider_sendgrid.storage.base import ANY_VERSION, UPLOAD_KEY, ObjectInfo, StoredContent, StoredInfo
from airflow_provider_sendgrid.storage.s3_calls import ATTEMPTS_IF_DAMAGED, S3Calls
from airflow_provider_sendgrid.storage.s3_checksums import S3Checksums, bare_etag
from airflow_provider_sendgrid.storage.s3_errors import (
    CONDITION_FAILED,
    NOT_FOUND,
    changed_error,
    code_and_message,
    connection_error,
    may_refuse_condition,
    not_s3_error,
)

log = logging.getLogger(__name__)

_MAX_READ_BYTES = 64 * 1024 * 1024
_ENCRYPTION = ("ServerSideEncryption", "SSECustomerAlgorithm")
_LOCKS = ("ObjectLockMode", "ObjectLockLegalHoldStatus")
_CHANGING = ("PutObject", "CompleteMultipartUpload", "DeleteObject")  # what `change` calls


class S3Objects:
    """Objects of one bucket; safe to share among threads.

    Args:
        calls: the calls of boto3 for the bucket.
        checksums: checks bodies.
    """

    def __init__(self, calls: S3Calls, checksums: S3Checksums) -> None:
        self.calls = calls
        self.checksums = checksums
        # The name and version that a thread is changing.
        self._changing = threading.local()
        self._unconditional: set[tuple[str, ...]] = set()
        self._etag_quote = '"'
        calls.on_event("request-created", _CHANGING, self._check_before_sending_again)

    def read(self, name: str) -> StoredContent | None:
        """A small object, None if there is none; read again if it was damaged in transit."""
        for _ in range(ATTEMPTS_IF_DAMAGED):
            try:
                response = self.calls.call("get_object", name)
            except DestinationError as error:
                if error.code in NOT_FOUND:
                    return None
                raise
            content = self._content(response, name)
            if self._is_intact(response, content):
                return StoredContent(content, self.version(response, "get_object", name))
            log.warning("%s was truncated or damaged in transit from S3; reading it again.", self.calls.uri(name))
        raise self.calls.damage_error("get_object", name, "S3 sent different bytes than it stores")

    def head(self, name: str) -> StoredInfo | None:
        """What is known of an object without reading it, None if there is none."""
        response = self._head(name)
        return None if response is None else self._stored_info(response, name)

    def version(self, response: Mapping[str, Any], method: str, name: str) -> str:
        """ETag, time and upload id: equal bytes always have the same ETag.

        Without the upload id where a response has no metadata, as in a listing.
        """
        etag = self.calls.field(response, "ETag", method, name)
        modified = self.calls.field(response, "LastModified", method, name)
        return f"{bare_etag(etag)} {int(modified.timestamp())} {_metadata(response).get(UPLOAD_KEY, '')}".rstrip()

    def change(self, method: str, name: str, over: str | None, **arguments: Any) -> Any:
        """Write or delete an object if its version is `over`: checked right before, and by S3 itself if it can.

        Raises:
            DestinationChangedError: it has another version.
            DestinationRefusedError: see `S3Calls.send`.
            DestinationError: see `S3Calls.send`.
        """
        self._raise_if_changed(name, over)
        self._changing.object = (name, over)
        try:
            condition = self._condition(method, over)
            if not condition:
                return self.calls.call(method, name, **arguments)
            return self._change_on_condition(method, name, over, condition, arguments)
        finally:
            self._changing.object = None

    def verify_stored(
        self, name: str, size: int, info: ObjectInfo, etag: str, content: bytes | bytearray | None = None
    ) -> str:
        """The version of an object that was just written with this ETag.

        Some gateways return an ETag that differs from the object's. Then the object must have the content or the
        metadata of this upload.

        Raises:
            DestinationChangedError: another run's object is there, or none.
            DestinationRefusedError: it is not encrypted as asked for; it is deleted again.
            DestinationError: it is not what was sent.
        """
        uri, response = self.calls.uri(name), self._head(name)
        if response is None:
            raise DestinationChangedError(
                f"{uri}: S3 confirmed that it was stored, but it is not there: another run has deleted it, "
                "or the endpoint_url of the AWS connection is not an S3 server. Run the task again."
            )
        stored = self._stored_info(response, name)
        if etag_of(stored.version) != bare_etag(etag):
            if not self._is_of_this_write(stored, name, size, info, content):
                raise changed_error(uri)
            message = "The server at %s returned an ETag for %s that differs from the object's; using the object's."
            self.calls.log_once("other-etag", logging.INFO, message, self.calls.endpoint_url, uri)
        if not _is_as_sent(stored, size, info):
            raise not_s3_error(f"{uri}: the stored object does not have the size or the metadata that were sent")
        if ignored := self._ignored(_ENCRYPTION, name, response):
            self.discard(name, stored.version)
            raise DestinationRefusedError(
                f"{uri} was deleted again: the server ignored {ignored} and stored it unencrypted. Check "
                f"encrypt, and {ignored} in extra_args, against what this server supports."
            )
        if ignored := self._ignored(_LOCKS, name, response):
            message = "%s has no %s: it was ignored, or s3:GetObjectRetention or s3:GetObjectLegalHold is missing."
            self.calls.log_once("lock", logging.WARNING, message, uri, ignored)
        return stored.version

    def find_stored(self, name: str, size: int, info: ObjectInfo) -> StoredInfo | None:
        """An object of this size and metadata; None if it is not there or cannot be seen."""
        with suppress(DestinationError, DestinationRefusedError):
            stored = self.head(name)
            return stored if stored is not None and _is_as_sent(stored, size, info) else None
        return None

    def delete(self, name: str, version: str = ANY_VERSION) -> None:
        """Delete an object if it still has this version."""
        uri = self.calls.uri(name)
        try:
            self.change("delete_object", name, version)
        except DestinationChangedError as error:
            stored = self.head(name)
            if stored is not None and version in (ANY_VERSION, stored.version):
                # S3 answers so too while another request for the object is in progress.
                raise DestinationError(f"{uri} is not deleted: {error}") from error
            log.info("Not deleted: %s", error)
        except DestinationError as error:
            if error.code not in NOT_FOUND:
                raise

    def discard(self, name: str, version: str) -> None:
        """Delete a damaged object; without the permission for that, empty it, so that its metadata proves nothing."""
        try:
            self.delete(name, version)
        except DestinationRefusedError:
            self.calls.call("put_object", name, Body=b"")

    def _head(self, name: str) -> Mapping[str, Any] | None:
        try:
            response: Mapping[str, Any] = self.calls.call("head_object", name)
        except DestinationError as error:
            if error.code in NOT_FOUND:
                return None
            raise
        return response

    def _stored_info(self, response: Mapping[str, Any], name: str) -> StoredInfo:
        size = self.calls.field(response, "ContentLength", "head_object", name)
        return StoredInfo(size, _metadata(response), self.version(response, "head_object", name))

    def _content(self, response: Mapping[str, Any], name: str) -> bytes:
        from botocore.exceptions import BotoCoreError

        try:
            with self.calls.field(response, "Body", "get_object", name) as body:
                return bytes(body.read(_MAX_READ_BYTES))
        except BotoCoreError as error:
            raise connection_error("get_object", self.calls.uri(name), error) from error

    def _is_intact(self, response: Mapping[str, Any], content: bytes) -> bool:
        """Whether all of an object was read: boto3 does not compare the length of what is read in pieces."""
        length = response.get("ContentLength")
        if length is not None and len(content) != min(length, _MAX_READ_BYTES):
            return False
        return len(content) == _MAX_READ_BYTES or not self.checksums.contradicts_etag(response, content)

    def _change_on_condition(
        self, method: str, name: str, over: str | None, condition: Mapping[str, str], arguments: Mapping[str, Any]
    ) -> Any:
        try:
            return self.calls.call(method, name, **condition, **arguments)
        except (DestinationError, DestinationRefusedError) as error:
            if error.code in NOT_FOUND and over is not None and "UploadId" not in arguments:
                raise changed_error(self.calls.uri(name)) from error
            if not may_refuse_condition(error):
                raise
            self._raise_if_changed(name, over)
            response = self.calls.call(method, name, **arguments)
            # Only now it is known that the condition, and nothing else, was refused.
            self._unconditional.add((method, *condition))
            self.calls.log_once(
                "condition",
                logging.INFO,
                "This server does not support conditional requests (%s); each object is checked right before it is "
                "written.",
                error.code,
            )
            return response
        except DestinationChangedError as error:
            is_match = over is not None and code_and_message(error.__cause__)[0] in CONDITION_FAILED
            if not is_match or self._is_changed(name, over):
                raise
            # Nothing changed, so the server compares the ETag in another form: older Ceph RGW without its quotes.
            if condition["IfMatch"].startswith('"'):
                self._etag_quote = ""
            else:
                self._unconditional.add((method, *condition))
            return self.change(method, name, over, **arguments)

    def _condition(self, method: str, over: str | None) -> dict[str, str]:
        """The condition of a write over a version, as boto3's argument; empty without one."""
        quote = self._etag_quote
        condition = {"IfNoneMatch": "*"} if over is None else {"IfMatch": f"{quote}{etag_of(over)}{quote}"}
        is_unknown = (method, *condition) in self._unconditional or condition.keys() - self.calls.members(method).keys()
        return {} if over == ANY_VERSION or is_unknown else condition

    def _check_before_sending_again(self, request: Any, **_: Any) -> None:
        """Check again before boto3 repeats a change whose response was lost.

        The condition alone is not enough: another run may have stored the same bytes since, which have the same ETag.
        """
        changing = getattr(self._changing, "object", None)
        if changing is not None and request.context.get("retries", {}).get("attempt", 1) > 1:
            try:
                self._raise_if_changed(*changing)
            except DestinationChangedError as error:
                raise error from ConnectionError("the response to the request before was lost")

    def _raise_if_changed(self, name: str, over: str | None) -> None:
        if over != ANY_VERSION and self._is_changed(name, over):
            raise changed_error(self.calls.uri(name))

    def _is_changed(self, name: str, over: str | None) -> bool:
        stored = self.head(name)
        return over != (stored.version if stored else None)

    def _is_of_this_write(
        self, stored: StoredInfo, name: str, size: int, info: ObjectInfo, content: bytes | bytearray | None
    ) -> bool:
        if not _is_as_sent(stored, size, info):
            return False
        if content is None:
            return UPLOAD_KEY in info.metadata
        read = self.read(name)
        return read is not None and read.content == content

    def _ignored(self, arguments: Sequence[str], name: str, response: Mapping[str, Any]) -> str:
        """The first of these arguments that was sent and that a head of the object does not confirm; empty if none."""
        sent = self.calls.extra_args_of("put_object", name)
        return next((each for each in arguments if each in sent and not response.get(each)), "")


def etag_of(version: str) -> str:
    """The ETag in a version, see `S3Objects.version`."""
    return version.partition(" ")[0]


def _metadata(response: Mapping[str, Any]) -> dict[str, str]:
    """The object's metadata, with names in lower case: some servers capitalise them."""
    return {key.lower(): value for key, value in (response.get("Metadata") or {}).items()}


def _is_as_sent(stored: StoredInfo, size: int, info: ObjectInfo) -> bool:
    """Whether an object has the size and the metadata that were sent."""
    return stored.size == size and info.metadata.items() <= stored.metadata.items()
