"""Amazon S3, and servers that speak its protocol: parts and objects in S3's words and limits.

The client is boto3's, made by Airflow's S3Hook; nothing of boto3 is imported here.

Bytes are checked on their way: each part and each small object carries its CRC32, which S3 compares. Over plain http,
or without checksum headers, the body is signed too. Over plain http ETags are compared as well, where they are MD5s: if
one is not, an object of known bytes shows what this server's ETags are.

Nothing is overwritten unseen: an object is looked at right before it is written, and the write carries a condition
where boto3 and the server know it. After the write it is looked at again: only what is there, with the size, metadata
and ETag of this write, and encrypted if that was asked for, counts as stored.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import re
import secrets
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from typing import Any

from airflow_provider_sendgrid.exceptions import DestinationChangedError, DestinationError, DestinationRefusedError
from airflow_provider_sendgrid.stopping import StoppedError, StopSignal
from airflow_provider_sendgrid.storage.base import ANY_VERSION, UPLOAD_KEY, ObjectInfo, StoredContent, StoredInfo
from airflow_provider_sendgrid.storage.multipart import crc32
from airflow_provider_sendgrid.storage.s3_arguments import ExtraArguments, folder_prefix, split_s3_uri
from airflow_provider_sendgrid.storage.s3_errors import (
    CONDITION_REFUSED,
    DAMAGED,
    MEANINGS,
    NO_LISTING,
    NO_UPLOAD,
    NOT_ALLOWED,
    NOT_HELD,
    NOT_THERE,
    StorageError,
    advice_for,
    meaning_of,
)

__all__ = ["S3Storage", "S3Upload", "client_config", "folder_prefix", "split_s3_uri"]

log = logging.getLogger(__name__)

_MAX_READ_BYTES = 64 * 1024 * 1024
_SENDS_OF_DAMAGED = 3
_ENCRYPTION = ("ServerSideEncryption", "SSECustomerAlgorithm")
_LOCKS = ("ObjectLockMode", "ObjectLockLegalHoldStatus")
_MD5 = re.compile(r"[0-9a-f]{32}")
# Objects that show what a server's ETags are, for a moment.
_TRIALS = "_receipts/etag-"
_NOT_WHEN_STOPPED = ("CreateMultipartUpload", "UploadPart")
_DIRECTORY_BUCKETS = ("--x-s3", "--xa-s3")
_CHANGING = ("PutObject", "CompleteMultipartUpload", "DeleteObject")  # what `call_over` calls
# boto3's settings, by their names in its configuration; in capitals those of environment variables.
_CALCULATION, _VALIDATION = "request_checksum_calculation", "response_checksum_validation"
_WHEN_REQUIRED = "when_required"


def client_config(config: Any, connections: int) -> Any:
    """The client's botocore ``Config``: the user's, with connections for all threads.

    botocore keeps 10 and would open the others for each call. Whether bodies are signed is decided by `S3Storage`,
    which knows the endpoint; a ``payload_signing_enabled`` in the connection's ``config_kwargs`` wins. A server that
    refuses checksum headers in requests also refuses the one that asks for checksums in responses: without a setting of
    its own, the latter follows the former.
    """
    from botocore.config import Config

    options: dict[str, Any] = {"max_pool_connections": max(10, connections)}
    follows = not getattr(config, _VALIDATION, None) and not os.environ.get(f"AWS_{_VALIDATION.upper()}")
    if follows and _calculation(config) == _WHEN_REQUIRED and _VALIDATION in Config.OPTION_DEFAULTS:
        options[_VALIDATION] = _WHEN_REQUIRED
    return config.merge(Config(**options))


def _calculation(config: Any) -> str:
    """When boto3 computes checksums, by the configuration or the environment; empty where neither decides."""
    calculation = getattr(config, _CALCULATION, None) or os.environ.get(f"AWS_{_CALCULATION.upper()}", "")
    return str(calculation).lower()


class S3Storage:
    """The objects of one bucket below one prefix.

    Args:
        client: boto3's client for S3; shared by all threads.
        bucket: name of the bucket, or the ARN of an access point.
        prefix: what all names begin with, ``path/to/`` or empty.
        extra_args: further arguments of S3's calls, see `ExtraArguments`.
        stop: once it is set, no upload is begun and no part is sent, also not by boto3's own retries.
    """

    def __init__(
        self,
        client: Any,
        bucket: str,
        prefix: str,
        extra_args: Mapping[str, Any] | None = None,
        stop: StopSignal | None = None,
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix
        self._extra_args = ExtraArguments(extra_args, client.meta.service_model if client is not None else None)
        self._is_https = self._sends_checksums = self._is_signed = True
        self._stop = stop or StopSignal()
        self._sending = threading.local()
        if client is not None:
            self._decide_checksums_and_signing()
            for operation in _CHANGING:
                client.meta.events.register(f"request-created.s3.{operation}", self._look_before_sending_again)
            for operation in _NOT_WHEN_STOPPED if stop is not None else ():
                # Emitted before each attempt: boto3 pauses between them, and would go on after the upload was aborted.
                client.meta.events.register(f"before-send.s3.{operation}", lambda **_: self._stop.raise_if_set())
        self._open_uploads: set[str] = set()
        self._unconditional: set[tuple[str, ...]] = set()
        self._compares_etags = True
        self._are_etags_md5s: dict[bool, bool] = {}
        self._etags_lock = threading.Lock()
        self._etag_quote = '"'
        self._logged: set[str] = set()

    def uri(self, name: str) -> str:
        """The object's ``s3://`` URI."""
        return f"s3://{self._bucket}/{self._prefix}{name}"

    def put(self, name: str, content: bytes | bytearray, info: ObjectInfo, over: str | None = ANY_VERSION) -> str:
        """Store a small object at once; return its version."""
        described, checksums = self._described(name, info), self.checksums(content, crc32(content))
        version = ""
        for _ in range(_SENDS_OF_DAMAGED):
            try:
                answer = self.call_over("put_object", name, over, Body=content, **described, **checksums)
            except (DestinationError, DestinationChangedError) as error:
                found = self._find_put(name, content, info) if was_sent_before(error) else None
                if found is None:
                    raise
                return found
            etag = self.value_of(answer, "ETag", "put_object", name)
            version = self.verify_stored(name, len(content), info, etag, content)
            # With another ETag than in the response, the content was compared.
            if etag_of(version) != bare_etag(etag) or not self.is_damaged(answer, content, checksums):
                return version
            log.warning("%s was damaged on its way to S3; sending it again.", self.uri(name))
            over = version
        self._discard(name, version)
        raise _error(self.uri(name), "put_object", "BadDigest", "S3 holds other bytes than were sent", {}, True)

    def begin(self, name: str, info: ObjectInfo, over: str | None = ANY_VERSION) -> S3Upload:
        """Start a multipart upload."""
        known = self._upload_ids(name)
        described = self._described(name, info)
        algorithm = {"ChecksumAlgorithm": "CRC32"} if self._sends_checksums else {}
        self._stop.raise_if_set()
        try:
            answer = self.call("create_multipart_upload", name, **described, **algorithm)
            upload_id = self.value_of(answer, "UploadId", "create_multipart_upload", name)
        except (DestinationError, StoppedError):
            self._abort_unanswered(name, known)
            raise
        self._open_uploads.add(upload_id)
        if answer.get("ResponseMetadata", {}).get("RetryAttempts"):
            self._abort_unanswered(name, known)
        return S3Upload(self, name, upload_id, info, over)

    def read(self, name: str) -> StoredContent | None:
        """A small object, None if there is none; read again if it was damaged on its way."""
        for _ in range(_SENDS_OF_DAMAGED):
            try:
                answer = self.call("get_object", name)
            except DestinationError as error:
                if error.code in NOT_THERE:
                    return None
                raise
            content = self._content(answer, name)
            if self._is_as_stored(answer, content):
                return StoredContent(content, self._version(answer, "get_object", name))
            log.warning("%s was cut or damaged on its way from S3; reading it again.", self.uri(name))
        message = "other bytes came than S3 holds"
        raise _error(self.uri(name), "get_object", "BadDigest", message, {}, self._is_signed)

    def head(self, name: str) -> StoredInfo | None:
        """What is known of an object without reading it, None if there is none."""
        answer = self._look(name)
        return None if answer is None else self._stored_info(answer, name)

    def _look(self, name: str) -> Mapping[str, Any] | None:
        try:
            answer: Mapping[str, Any] = self.call("head_object", name)
        except DestinationError as error:
            if error.code in NOT_THERE:
                return None
            raise
        return answer

    def _stored_info(self, answer: Mapping[str, Any], name: str) -> StoredInfo:
        # Some servers capitalise the names.
        metadata = {key.lower(): value for key, value in (answer.get("Metadata") or {}).items()}
        size = self.value_of(answer, "ContentLength", "head_object", name)
        return StoredInfo(size, metadata, self._version(answer, "head_object", name))

    def versions(self, beginning: str = "") -> Mapping[str, str] | None:
        """The versions of all objects whose names begin like this; None if the credentials may not list them."""
        found: dict[str, str] = {}
        try:
            for entry in self._listed(beginning):
                name = str(entry.get("Key", "")).removeprefix(self._prefix)
                is_below = str(entry.get("Key", "")).startswith(self._prefix + beginning)
                if name and is_below and "/" not in name.removeprefix(beginning):
                    # Some servers list no ETags: then each object is looked at.
                    is_whole = entry.get("ETag") and entry.get("LastModified")
                    found[name] = self._version(entry, "list_objects_v2", name) if is_whole else ""
        except (DestinationError, DestinationRefusedError) as error:
            if error.code not in NO_LISTING and not _is_not_allowed(error):
                raise
            self._log_once("list", logging.WARNING, "Objects cannot be listed: %s", error)
            return None
        return found

    def abort_uploads(self, names: Collection[str]) -> int:
        """End the multipart uploads of objects that others left open; return how many there were."""
        found = self._uploads(names) or {}
        left_over = sorted((name, upload) for upload, name in found.items() if upload not in self._open_uploads)
        return sum(S3Upload(self, name, upload_id).end() for name, upload_id in left_over)

    def delete(self, name: str, version: str = ANY_VERSION) -> None:
        """Delete an object if it still has this version."""
        try:
            self.call_over("delete_object", name, version)
        except DestinationChangedError as error:
            stored = self.head(name)
            if stored is not None and version in (ANY_VERSION, stored.version):
                # S3 says so too while another request for the object is underway.
                raise DestinationError(f"{self.uri(name)} is not deleted: {error}") from error
            log.info("Not deleted: %s", error)
        except DestinationError as error:
            if error.code not in NOT_THERE:
                raise

    # Single calls

    def call_over(self, method: str, name: str, over: str | None, **arguments: Any) -> Any:
        """Change an object if its version is `over`: looked at right before, and by S3 itself if it can.

        Raises:
            DestinationChangedError: it is another.
            DestinationRefusedError: see `send`.
            DestinationError: see `send`.
        """
        self._raise_if_changed(name, over)
        self._sending.over = (name, over)
        try:
            return self._call_over(method, name, over, arguments)
        finally:
            self._sending.over = None

    def _call_over(self, method: str, name: str, over: str | None, arguments: Mapping[str, Any]) -> Any:
        if condition := self._condition(method, over):
            try:
                return self.call(method, name, **condition, **arguments)
            except (DestinationError, DestinationRefusedError) as error:
                if error.code in NOT_THERE and over is not None and "UploadId" not in arguments:
                    raise self._changed(name) from error
                if not _may_refuse_condition(error):
                    raise
                self._raise_if_changed(name, over)
                answer = self.call(method, name, **arguments)
                # Only now it is known that the condition, and nothing else, was refused.
                self._unconditional.add((method, *condition))
                message = "This server takes no conditions (%s); each object is looked at right before it is written."
                self._log_once("condition", logging.INFO, message, error.code)
                return answer
            except DestinationChangedError as error:
                is_match = over is not None and _code_and_message(error.__cause__)[0] in NOT_HELD
                if not is_match or self._is_changed(name, over):
                    raise
                # Nothing changed, so the server compares the ETag in another form: older Ceph RGW without its quotes.
                if condition["IfMatch"].startswith('"'):
                    self._etag_quote = ""
                else:
                    self._unconditional.add((method, *condition))
                return self.call_over(method, name, over, **arguments)
        return self.call(method, name, **arguments)

    def call(self, method: str, name: str | None, **arguments: Any) -> Any:
        """Call one of boto3's methods, see `send`."""
        return self.send(method, name, arguments)

    def send(
        self,
        method: str,
        name: str | None,
        arguments: Mapping[str, Any],
        is_damaged: Callable[[Any], bool] = lambda _answer: False,
    ) -> Any:
        """Call one of boto3's methods, with those of the extra arguments that it knows.

        Args:
            method: its name.
            name: of the object, None for the bucket.
            arguments: of the call.
            is_damaged: whether the response shows that S3 took other bytes; then they are sent again.

        Raises:
            DestinationChangedError: a condition does not hold.
            DestinationRefusedError: S3 refuses, and no retry helps.
            DestinationError: S3 failed or did not answer.
        """
        from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError
        from botocore.parsers import ResponseParserError

        place = {"Bucket": self._bucket} if name is None else {"Bucket": self._bucket, "Key": self._prefix + name}
        given = {**self._extra_args.known(self._members(method), name or ""), **arguments, **place}
        uri, code, message = self.uri(name or ""), None, ""
        for sends_left in reversed(range(_SENDS_OF_DAMAGED)):
            try:
                answer = getattr(self._client, method)(**given)
                if not is_damaged(answer):
                    return answer
                code, message = "BadDigest", "S3 holds other bytes than were sent"
            except ClientError as error:
                code, message = _code_and_message(error)
                if code not in DAMAGED or not sends_left:
                    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
                    raise _error(uri, method, code, message, given, self._is_signed, status) from error
            except ParamValidationError as error:
                # Not `from error`: its text shows the values, of which some are secret.
                reason = self._extra_args.without_values(str(error))
                raise DestinationRefusedError(f"{method} of {uri}: boto3 refuses its arguments. {reason}") from None
            except (ResponseParserError, RecursionError) as error:  # boto3 follows a redirect to itself without end
                raise _no_s3(f"{method} of {uri}: the response could not be read") from error
            except BotoCoreError as error:
                raise _unasked(method, uri, error) from error
            log.warning("%s was damaged on its way to S3 (%s); sending it again.", uri, code)
        raise _error(uri, method, code, message, given, self._is_signed)

    def checksums(self, content: bytes | bytearray, checksum: int) -> dict[str, str]:
        """The arguments that let S3 check a body, unless the client's configuration leaves checksums out.

        Some servers want the algorithm named beside the checksum for Object Lock. S3 takes no locked object without a
        checksum, and a bucket's default retention is not known here: the one that every server knows remains.
        """
        if self._sends_checksums:
            encoded = base64.b64encode(checksum.to_bytes(4, "big")).decode()
            return {"ChecksumAlgorithm": "CRC32", "ChecksumCRC32": encoded}
        return {"ContentMD5": base64.b64encode(_md5(content).digest()).decode()}

    def is_damaged(
        self,
        answer: Mapping[str, Any],
        content: bytes | bytearray,
        checksums: Mapping[str, str],
        *,
        is_part: bool = False,
    ) -> bool:
        """Whether the response to a write shows that S3 took other bytes than `content`."""
        sent, echoed = checksums.get("ChecksumCRC32"), answer.get("ChecksumCRC32")
        if sent is not None and echoed is None:
            message = "The server at %s does not confirm checksums; it may not compare them."
            self._log_once("echo", logging.INFO, message, self._client.meta.endpoint_url)
        if sent is not None and echoed not in (None, sent):
            return True
        return self._contradicts_etag(answer, content, is_part=is_part)

    def value_of(self, answer: Mapping[str, Any], field: str, method: str, name: str) -> Any:
        """A field that S3 always gives.

        Raises:
            DestinationError: it is missing.
        """
        value = answer.get(field)
        if value is None or value == "":
            raise _no_s3(f"{method} of {self.uri(name)}: the response holds no {field}")
        return value

    def verify_stored(
        self, name: str, size: int, info: ObjectInfo, etag: str, content: bytes | bytearray | None = None
    ) -> str:
        """The version of an object that was just written with this ETag.

        Behind some gateways the response to a write has another ETag than the object. Then its content counts, or that
        it has the metadata of this very upload.

        Raises:
            DestinationChangedError: another run's is there, or none.
            DestinationRefusedError: it is not encrypted as asked for; it is deleted again.
            DestinationError: it is not what was sent.
        """
        looked = self._look(name)
        if looked is None:
            raise DestinationChangedError(
                f"{self.uri(name)}: S3 confirmed that it was stored, but it is not there: another run has deleted it, "
                "or the endpoint_url of the AWS connection is no S3 server. Run the task again."
            )
        stored = self._stored_info(looked, name)
        if etag_of(stored.version) != bare_etag(etag):
            if not self._is_of_this_write(stored, name, size, info, content):
                raise self._changed(name)
            message = "The server at %s returned another ETag for %s than the object has; the object's counts."
            self._log_once("other-etag", logging.INFO, message, self._client.meta.endpoint_url, self.uri(name))
        if not is_as_sent(stored, size, info):
            raise _no_s3(f"{self.uri(name)}: what is there has not the size or the metadata that were sent")
        if ignored := self._ignored(_ENCRYPTION, name, looked):
            self._discard(name, stored.version)
            raise DestinationRefusedError(
                f"{self.uri(name)} was deleted again: the server ignored {ignored} and stored it unencrypted. Check "
                f"encrypt, and {ignored} in extra_args, against what this server supports."
            )
        if ignored := self._ignored(_LOCKS, name, looked):
            message = "%s shows no %s: it was ignored, or s3:GetObjectRetention or s3:GetObjectLegalHold is missing."
            self._log_once("lock", logging.WARNING, message, self.uri(name), ignored)
        return stored.version

    def _is_of_this_write(
        self, stored: StoredInfo, name: str, size: int, info: ObjectInfo, content: bytes | bytearray | None
    ) -> bool:
        if content is None:
            return UPLOAD_KEY in info.metadata and is_as_sent(stored, size, info)
        read = self.read(name) if is_as_sent(stored, size, info) else None
        return read is not None and read.content == content

    def find_stored(self, name: str, size: int, info: ObjectInfo) -> StoredInfo | None:
        """An object of this size and metadata; None where it cannot be seen."""
        with suppress(DestinationError, DestinationRefusedError):
            stored = self.head(name)
            return stored if stored is not None and is_as_sent(stored, size, info) else None
        return None

    def _ignored(self, arguments: Sequence[str], name: str, looked: Mapping[str, Any]) -> str:
        """One of these arguments that was sent and that a look at the object does not confirm, empty if all are."""
        sent = self._extra_args.known(self._members("put_object"), name)
        return next((each for each in arguments if each in sent and not looked.get(each)), "")

    def is_open(self, name: str, upload_id: str) -> bool:
        """Whether an upload has not ended; if uploads cannot be listed, it may be open."""
        found = self._upload_ids(name)
        return found is None or upload_id in found

    def _discard(self, name: str, version: str) -> None:
        """Delete a damaged object; without the permission for that, empty it: its metadata must not vouch for it."""
        try:
            self.delete(name, version)
        except DestinationRefusedError:
            self.call("put_object", name, Body=b"")

    def _find_put(self, name: str, content: bytes | bytearray, info: ObjectInfo) -> str | None:
        """The version of a small object if it is there already: the response to an earlier attempt may be lost."""
        with suppress(DestinationError, DestinationRefusedError):
            if (
                self.find_stored(name, len(content), info)
                and (found := self.read(name)) is not None
                and found.content == content
            ):
                log.info("%s was stored already; only the response was lost.", self.uri(name))
                return found.version
        return None

    def log_refused_abort(self, error: Exception) -> None:
        """Log once that uploads cannot be ended."""
        self._log_once("abort", logging.WARNING, "Unfinished uploads cannot be ended: %s", error)

    def upload_has_ended(self, upload_id: str) -> None:
        """Forget an upload of our own."""
        self._open_uploads.discard(upload_id)

    def _version(self, answer: Mapping[str, Any], method: str, name: str) -> str:
        """ETag, time and upload id; equal bytes always have the same ETag.

        Where a response has no metadata, as a listing, it lacks the upload.
        """
        self.value_of(answer, "ETag", method, name)
        modified = self.value_of(answer, "LastModified", method, name)
        metadata = {key.lower(): value for key, value in (answer.get("Metadata") or {}).items()}
        return f"{bare_etag(answer['ETag'])} {int(modified.timestamp())} {metadata.get(UPLOAD_KEY, '')}".rstrip()

    def _content(self, answer: Mapping[str, Any], name: str) -> bytes:
        from botocore.exceptions import BotoCoreError

        try:
            with self.value_of(answer, "Body", "get_object", name) as body:
                return bytes(body.read(_MAX_READ_BYTES))
        except BotoCoreError as error:
            raise _unasked("get_object", self.uri(name), error) from error

    def _is_as_stored(self, answer: Mapping[str, Any], content: bytes) -> bool:
        """Whether the response to a read is whole: boto3 does not compare the length of what is read in pieces."""
        length = answer.get("ContentLength")
        if length is not None and len(content) != min(length, _MAX_READ_BYTES):
            return False
        return len(content) == _MAX_READ_BYTES or not self._contradicts_etag(answer, content)

    def _contradicts_etag(
        self, answer: Mapping[str, Any], content: bytes | bytearray, *, is_part: bool = False
    ) -> bool:
        """Whether plain http brings an ETag that is the MD5 of other bytes."""
        etag = bare_etag(answer.get("ETag"))
        if self._is_https or not self._compares_etags or not _MD5.fullmatch(etag) or _md5(content).hexdigest() == etag:
            return False
        encryption = self._encryption(answer)
        if encryption not in ("", "AES256"):
            return False
        # Some servers encrypt or compress without a word, and their ETags only look like MD5s.
        return self._are_md5s(is_part=is_part, unless_known=not encryption)

    def _are_md5s(self, *, is_part: bool, unless_known: bool) -> bool:
        """Whether this server's ETags of objects, or of parts, are MD5s; `unless_known` if that cannot be tried."""
        with self._etags_lock:
            if is_part not in self._are_etags_md5s:
                try:
                    etag, md5, is_whole = self._try_etag(f"{_TRIALS}{secrets.token_hex(8)}", is_part=is_part)
                except (DestinationError, DestinationRefusedError, DestinationChangedError) as error:
                    log.info("It could not be tried whether the ETags of this server are MD5s: %s", error)
                    return unless_known
                if not is_whole:
                    return unless_known
                self._are_etags_md5s[is_part] = etag == md5
                if etag != md5:
                    message = "The ETags of the server at %s are no MD5s; they are not compared."
                    self._log_once("etags", logging.INFO, message, self._client.meta.endpoint_url)
            return self._are_etags_md5s[is_part]

    def _try_etag(self, name: str, *, is_part: bool) -> tuple[str, str, bool]:
        """Store, read and delete an object: its ETag or its part's, its MD5, and whether it holds what was sent."""
        content = bytearray(os.urandom(32).hex().encode() * 1024)  # so large that a server that compresses does
        trial, info = copy(self), ObjectInfo("text/plain", {UPLOAD_KEY: secrets.token_hex(8)})
        trial._compares_etags = False  # noqa: SLF001 - of this class
        try:
            if is_part:
                upload = trial.begin(name, info)
                try:
                    upload.write_part(1, content, crc32(content))
                    upload.complete()
                finally:
                    upload.abort()
                [etag] = upload.part_etags()
            else:
                etag = etag_of(trial.put(name, content, info))
            stored = trial.read(name)
            return etag, _md5(content).hexdigest(), stored is not None and stored.content == content
        finally:
            with suppress(DestinationError, DestinationRefusedError, DestinationChangedError):
                self.delete(name)

    def _listed(self, beginning: str) -> Iterator[Mapping[str, Any]]:
        """All entries of the bucket whose names begin like this."""
        following: dict[str, Any] = {}
        while True:
            answer = self.call(
                "list_objects_v2", None, Delimiter="/", **self._prefix_of(self._prefix + beginning), **following
            )
            if not answer.keys() & {"Name", "IsTruncated", "KeyCount", "Contents"}:
                raise _no_s3(f"list_objects_v2 of {self.uri('')}: the response is no listing")
            yield from answer.get("Contents") or []
            if not answer.get("IsTruncated"):
                return
            token = self.value_of(answer, "NextContinuationToken", "list_objects_v2", "")
            if token == following.get("ContinuationToken"):
                raise _no_s3(f"list_objects_v2 of {self.uri('')}: the listing has no end")
            following = {"ContinuationToken": token}

    def _upload_ids(self, name: str) -> set[str] | None:
        """The open uploads of an object, None if they cannot be listed."""
        found = self._uploads([name])
        return None if found is None else set(found)

    def _uploads(self, names: Collection[str]) -> dict[str, str] | None:
        """The open uploads of objects: names by ids; None if they cannot be listed."""
        keys = {self._prefix + name: name for name in names}
        found, following = dict[str, str](), dict[str, Any]()
        try:
            while True:
                # Of texts, not of paths.
                prefix = self._prefix_of(os.path.commonprefix(list(keys)))  # noqa: RUF071
                answer = self.call("list_multipart_uploads", None, **prefix, **following)
                uploads = [each for each in answer.get("Uploads") or [] if each.get("Key") in keys]
                found |= {str(each["UploadId"]): keys[each["Key"]] for each in uploads if "UploadId" in each}
                markers = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
                after = {marker: answer[field] for marker, field in markers.items() if answer.get(field)}
                if not answer.get("IsTruncated") or not after or after == following:
                    break
                following = after
        except (DestinationError, DestinationRefusedError) as error:
            self._log_once("uploads", logging.INFO, "Unfinished uploads cannot be listed: %s", error)
            return None
        if len(keys) > 1 and _is_minio(answer):
            # It lists the uploads of one whole name only.
            for name in names:
                found |= self._uploads([name]) or {}
        return found

    def _abort_unanswered(self, name: str, known: set[str] | None) -> None:
        """End the uploads that were begun since `known` was listed, though the response with their id was lost."""
        if known is None:
            return
        for upload_id in (self._upload_ids(name) or set()) - known - self._open_uploads:
            try:
                S3Upload(self, name, upload_id).end()
            except DestinationError as error:
                log.info("An upload that may have been begun could not be ended: %s", error)

    def _prefix_of(self, key: str) -> dict[str, str]:
        """The argument that lists what begins with `key`; directory buckets take only a folder."""
        if self._bucket.endswith(_DIRECTORY_BUCKETS):
            key = key[: key.rfind("/") + 1]
        return {"Prefix": key} if key else {}

    def _raise_if_changed(self, name: str, over: str | None) -> None:
        if over != ANY_VERSION and self._is_changed(name, over):
            raise self._changed(name)

    def _look_before_sending_again(self, request: Any, **_: Any) -> None:
        """Look again before boto3 repeats a change whose response was lost.

        A condition alone would not do: another run may have stored the same bytes since, which have the same ETag.
        """
        over = getattr(self._sending, "over", None)
        if over is not None and request.context.get("retries", {}).get("attempt", 1) > 1:
            try:
                self._raise_if_changed(*over)
            except DestinationChangedError as error:
                raise error from ConnectionError("the response to the request before was lost")

    def _is_changed(self, name: str, over: str | None) -> bool:
        stored = self.head(name)
        return over != (stored.version if stored else None)

    def _changed(self, name: str) -> DestinationChangedError:
        return DestinationChangedError(f"{self.uri(name)}: another run changed it meanwhile. Run the task again.")

    def _condition(self, method: str, over: str | None) -> dict[str, str]:
        quote = self._etag_quote
        condition = {"IfNoneMatch": "*"} if over is None else {"IfMatch": f"{quote}{etag_of(over)}{quote}"}
        is_known = (method, *condition) not in self._unconditional and condition.keys() <= self._members(method).keys()
        return condition if over != ANY_VERSION and is_known else {}

    def _members(self, method: str) -> Any:
        """The arguments of a method that this boto3 knows."""
        operation = self._client.meta.method_to_api_mapping[method]
        return self._client.meta.service_model.operation_model(operation).input_shape.members

    def _described(self, name: str, info: ObjectInfo) -> dict[str, Any]:
        ours = info.metadata
        theirs = {key: value for key, value in self._extra_args.get("Metadata", {}).items() if key.lower() not in ours}
        return {
            "ContentType": self._extra_args.known(("ContentType",), name).get("ContentType", info.content_type),
            "Metadata": {**theirs, **ours},
        }

    def _encryption(self, answer: Mapping[str, Any]) -> str:
        """How an object is encrypted, by the response or the request: S3 has MD5s as ETags only with its own keys."""
        if answer.get("SSECustomerAlgorithm") or self._extra_args.get("SSECustomerAlgorithm"):
            return "customer"
        return str(answer.get("ServerSideEncryption") or self._extra_args.get("ServerSideEncryption") or "")

    def _decide_checksums_and_signing(self) -> None:
        """Send bodies without a signature only where TLS and a checksum protect them, as botocore does itself.

        It would sign those that carry a checksum of ours, too, at 0.9 s of CPU per GiB.
        """
        config = self._client.meta.config
        self._is_https = str(self._client.meta.endpoint_url).lower().startswith("https")
        self._sends_checksums = _calculation(config) != _WHEN_REQUIRED
        chosen = (config.s3 or {}).get("payload_signing_enabled")
        self._is_signed = not (self._is_https and self._sends_checksums) if chosen is None else bool(chosen)
        config.s3 = {**(config.s3 or {}), "payload_signing_enabled": self._is_signed}

    def _log_once(self, what: str, level: int, message: str, *arguments: Any) -> None:
        if what not in self._logged:
            self._logged.add(what)
            log.log(level, message, *arguments)


class S3Upload:
    """A multipart upload."""

    def __init__(
        self,
        storage: S3Storage,
        name: str,
        upload_id: str,
        info: ObjectInfo | None = None,
        over: str | None = ANY_VERSION,
    ) -> None:
        self._storage = storage
        self._name = name
        self._upload_id = upload_id
        self._info = info or ObjectInfo("", {})
        self._over = over
        self._size = 0
        self._parts: dict[int, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._is_aborted = False

    def write_part(self, number: int, part: bytearray, crc32: int) -> None:
        """Store part `number` (from 1); S3 refuses it where its CRC32 is not `crc32`."""
        checksums = self._storage.checksums(part, crc32)
        try:
            answer = self._storage.send(
                "upload_part",
                self._name,
                {"UploadId": self._upload_id, "PartNumber": number, "Body": part, **checksums},
                lambda answer: self._storage.is_damaged(answer, part, checksums, is_part=True),
            )
        finally:
            # S3 keeps a part that arrives while its upload is ended, until it is ended again.
            if self._is_aborted:
                with suppress(DestinationError):
                    self.end()
        etag = self._storage.value_of(answer, "ETag", "upload_part", self._name)
        stored = {"ETag": etag, "ChecksumCRC32": checksums.get("ChecksumCRC32")}
        with self._lock:
            self._parts[number] = {"PartNumber": number, **{key: value for key, value in stored.items() if value}}
            self._size += len(part)

    def complete(self) -> None:
        """Publish the object."""
        parts = [self._parts[number] for number in sorted(self._parts)]
        method, upload = "complete_multipart_upload", {"UploadId": self._upload_id, "MultipartUpload": {"Parts": parts}}
        try:
            answer = self._storage.call_over(method, self._name, self._over, **upload)
        except (DestinationError, DestinationChangedError) as error:
            has_ended = isinstance(error, DestinationError) and self._has_ended(error)
            if not (has_ended or was_sent_before(error)) or not self._is_published():
                if has_ended:
                    raise DestinationChangedError(f"{error} Another run ended this upload.") from error
                raise
            log.info("%s was published already; only the response was lost.", self._storage.uri(self._name))
        else:
            # Ceph RGW 16 returns an empty one.
            returned = answer.get("ETag") or self._etag_of_parts()
            etag = returned or self._storage.value_of(answer, "ETag", method, self._name)
            self._storage.verify_stored(self._name, self._size, self._info, etag)
        self._storage.upload_has_ended(self._upload_id)

    def abort(self) -> None:
        """Leave nothing behind; an upload that has ended already is none."""
        self._is_aborted = True
        self.end()

    def end(self) -> bool:
        """End the upload; return whether it is ended, for the credentials may not allow it."""
        self._storage.upload_has_ended(self._upload_id)
        try:
            self._storage.call("abort_multipart_upload", self._name, UploadId=self._upload_id)
        except (DestinationError, DestinationRefusedError) as error:
            if _is_not_allowed(error):
                self._storage.log_refused_abort(error)
                return False
            if error.code not in NO_UPLOAD:
                raise
        return True

    def part_etags(self) -> list[str]:
        """The ETags of the parts, in their order."""
        return [bare_etag(self._parts[number]["ETag"]) for number in sorted(self._parts)]

    def _has_ended(self, error: DestinationError) -> bool:
        """Whether the upload is not there any more: Ceph RGW calls that an internal error."""
        is_internal = error.code == "InternalError" and not self._storage.is_open(self._name, self._upload_id)
        return error.code in NO_UPLOAD or is_internal

    def _is_published(self) -> bool:
        """Whether this very object is there: boto3 asks again if a response is lost, S3 has published it by then."""
        stored = self._storage.find_stored(self._name, self._size, self._info)
        return stored is not None and etag_of(stored.version) == self._etag_of_parts()

    def _etag_of_parts(self) -> str:
        """The ETag of an object in parts, the MD5 of its parts' MD5s; empty where theirs are none."""
        etags = self.part_etags()
        if not all(_MD5.fullmatch(etag) for etag in etags):
            return ""
        return f"{_md5(bytes.fromhex(''.join(etags))).hexdigest()}-{len(etags)}"


def _code_and_message(error: Any) -> tuple[str | None, str]:
    """S3's code and message, of a ClientError; no code if S3 did not answer."""
    details = _response_of(error).get("Error", {})
    return details.get("Code"), str(details.get("Message"))


def _is_minio(answer: Mapping[str, Any]) -> bool:
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return "minio" in str(headers.get("server", "")).lower()


def _error(
    uri: str,
    method: str,
    code: str | None,
    message: str,
    arguments: Mapping[str, object],
    is_signed: bool,
    status: int | None = None,
) -> StorageError:
    """S3's error as one of ours: the operation, the object, S3's own words, and what to do."""
    making = arguments if method in ("put_object", "create_multipart_upload") else {}
    advice = advice_for(code, message, making, is_signed=is_signed, status=status)
    error = meaning_of(code, status).error_class(f"{method} of {uri}: S3 answered {code} ({message}). {advice}")
    if not isinstance(error, DestinationChangedError):
        error.code = code
    return error


def _unasked(method: str, uri: str, error: Exception) -> DestinationError:
    return DestinationError(
        f"{method} of {uri}: S3 could not be asked ({type(error).__name__}: {error}). Check the AWS connection and the "
        "network; run the task again."
    )


def _no_s3(what: str) -> DestinationError:
    return DestinationError(f"{what}. Check that the endpoint_url of the AWS connection is an S3 server.")


def _is_not_allowed(error: DestinationError | DestinationRefusedError) -> bool:
    """Whether the credentials may not do this one thing: an unknown code is refused only if its status is 403."""
    is_unknown = error.code is not None and error.code not in MEANINGS
    return error.code in NOT_ALLOWED or (is_unknown and isinstance(error, DestinationRefusedError))


def _may_refuse_condition(error: DestinationError | DestinationRefusedError) -> bool:
    """Whether S3's answer may be about the condition of a request: by its code, or by S3's own words."""
    if error.code in CONDITION_REFUSED:
        return True
    return bool(re.search(r"(?i)\bif-?(none-?)?match\b", _code_and_message(error.__cause__)[1]))


def was_sent_before(error: Exception) -> bool:
    """Whether S3 may have carried out the request: no response came, or boto3 had sent it before."""
    if error.__cause__ is None:
        return False
    response = _response_of(error.__cause__)
    return not response or bool(response.get("ResponseMetadata", {}).get("RetryAttempts"))


def _response_of(error: Any) -> Mapping[str, Any]:
    """What S3 answered, empty if it did not: errors of botocore's connections have a `response`, too, which is None."""
    return getattr(error, "response", None) or {}


def bare_etag(etag: Any) -> str:
    """An ETag without its quotes."""
    return str(etag or "").removeprefix("W/").strip('"')


def etag_of(version: str) -> str:
    """The ETag in a version of ours."""
    return version.partition(" ")[0]


def is_as_sent(stored: StoredInfo, size: int, info: ObjectInfo) -> bool:
    """Whether an object has the size and the metadata that were sent."""
    return stored.size == size and info.metadata.items() <= stored.metadata.items()


def _md5(content: bytes | bytearray) -> Any:
    return hashlib.md5(content, usedforsecurity=False)
