"""Amazon S3, and what speaks its protocol: parts and objects in S3's words and limits.

The client is boto3's, made by Airflow's S3Hook; nothing of boto3 is imported here. Each part and each small
object carries its CRC32, which S3 checks before it takes them.
"""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Mapping
from typing import Any

from airflow_provider_sendgrid.exceptions import DestinationError, DestinationRefusedError
from airflow_provider_sendgrid.storage.multipart import ObjectInfo, StoredInfo, crc32

log = logging.getLogger(__name__)

_MAX_READ_BYTES = 64 * 1024 * 1024
# Bytes that were damaged on their way to S3 are sent again; boto3 itself does not.
_DAMAGED = ("BadDigest", "XAmzContentSHA256Mismatch")
_SENDS_OF_DAMAGED = 3
_NOT_THERE = ("404", "NoSuchKey", "NotFound")
_DENIED = "Check that the connection's credentials may read, write, list and delete there."
_UNKNOWN_KEY = "Check the credentials in the AWS connection."
# What a further try cannot help, and what to do.
_REFUSALS = {
    "NoSuchBucket": "Check the bucket's name and the account of the AWS connection.",
    "AccessDenied": _DENIED,
    "403": _DENIED,
    "InvalidAccessKeyId": _UNKNOWN_KEY,
    "SignatureDoesNotMatch": _UNKNOWN_KEY,
}
_OUT_OF_DATE = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired")


def client_config(config: Any, connections: int) -> Any:
    """What the client's botocore ``Config`` has to say for us, beside what the user's says.

    Connections are kept for all threads (botocore keeps 10 and would open the others for each call anew). Bodies are
    not hashed once more to sign them: each carries its CRC32 in a signed header (measured: 0.9 s of CPU per GiB). Who
    wants them signed sets ``payload_signing_enabled`` in the connection's ``config_kwargs``.
    """
    from botocore.config import Config

    s3 = {"payload_signing_enabled": False, **(config.s3 or {})}
    return config.merge(Config(max_pool_connections=max(10, connections), s3=s3))


class S3Storage:
    """The objects of one bucket below one prefix.

    Args:
        client: boto3's client for S3; shared by all threads.
        bucket: name of the bucket.
        prefix: what all names begin with, ``path/to/`` or empty.
        extra_args: further arguments of S3's calls, such as ``ACL``, ``StorageClass``, ``Tagging``,
            ``ServerSideEncryption`` and ``SSEKMSKeyId``; each call gets those that it knows.
    """

    def __init__(self, client: Any, bucket: str, prefix: str, extra_args: Mapping[str, Any] | None = None) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix
        # The checksum is always CRC32, and always ours: one of another kind beside it would be refused.
        self._extra_args = {key: value for key, value in (extra_args or {}).items() if "Checksum" not in key}

    def uri(self, name: str) -> str:
        """The object's ``s3://`` URI."""
        return f"s3://{self._bucket}/{self._prefix}{name}"

    def put(self, name: str, content: bytes | bytearray, info: ObjectInfo) -> None:
        """Store a small object at once."""
        checksum = _base64_crc32(crc32(content))
        self.call("put_object", name, **self._described(info), Body=content, ChecksumCRC32=checksum)

    def begin(self, name: str, info: ObjectInfo) -> S3Upload:
        """Start a multipart upload."""
        try:
            answer = self.call("create_multipart_upload", name, **self._described(info), ChecksumAlgorithm="CRC32")
        except DestinationError:
            self._abort_unanswered(name)
            raise
        if answer["ResponseMetadata"].get("RetryAttempts"):
            self._abort_unanswered(name, answer["UploadId"])
        return S3Upload(self, name, answer["UploadId"], info)

    def read(self, name: str) -> bytes | None:
        """The content of a small object, None where there is none."""
        try:
            answer = self.call("get_object", name)
        except DestinationError as error:
            if error.code in _NOT_THERE:
                return None
            raise
        with answer["Body"] as body:
            return bytes(body.read(_MAX_READ_BYTES))

    def head(self, name: str) -> StoredInfo | None:
        """What is known of an object without reading it, None where there is none."""
        try:
            answer = self.call("head_object", name)
        except DestinationError as error:
            if error.code in _NOT_THERE:
                return None
            raise
        return StoredInfo(answer["ContentLength"], answer.get("Metadata") or {})

    def abort_uploads(self, name: str, but: str = "") -> int:
        """End the multipart uploads of an object that a killed worker left open; answer how many there were.

        One may be excepted, by its id.

        Without the permission ``s3:ListBucketMultipartUploads`` it does nothing but say so.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        key = self._prefix + name
        known = self._known_extra_args("list_multipart_uploads")
        try:
            answer = self._client.list_multipart_uploads(**{**known, "Bucket": self._bucket, "Prefix": key})
        except (ClientError, BotoCoreError) as error:
            why = _code(error) if isinstance(error, ClientError) else type(error).__name__
            log.info("Left-over uploads of %s cannot be looked for (%s).", key, why)
            return 0
        left_over = [
            upload["UploadId"]
            for upload in answer.get("Uploads", [])
            if upload["Key"] == key and upload["UploadId"] != but
        ]
        for upload_id in left_over:
            S3Upload(self, name, upload_id).abort()
        return len(left_over)

    def _abort_unanswered(self, name: str, but: str = "") -> None:
        """End the uploads that were begun, though the answer with their id was lost."""
        try:
            self.abort_uploads(name, but)
        except DestinationError as error:
            log.info("An upload that may have been begun could not be ended: %s", error)

    def delete(self, name: str) -> None:
        """Remove an object; nothing happens where there is none."""
        self.call("delete_object", name)

    def call(self, method: str, name: str, **arguments: Any) -> Any:
        """Call one of boto3's methods about an object, with those of the extra arguments that it knows.

        Raises:
            DestinationRefusedError: S3 says no, and will again.
            DestinationError: S3 failed or did not answer.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        known = self._known_extra_args(method)
        given = {**known, **arguments, "Bucket": self._bucket, "Key": self._prefix + name}
        sends_left = _SENDS_OF_DAMAGED
        while True:
            sends_left -= 1
            try:
                return getattr(self._client, method)(**given)
            except ClientError as error:
                if _code(error) not in _DAMAGED or not sends_left:
                    raise _told(error, method, self.uri(name)) from error
                log.warning("%s was damaged on its way to S3 (%s); sending it again.", self.uri(name), _code(error))
            except BotoCoreError as error:
                raise DestinationError(
                    f"{method} of {self.uri(name)}: S3 could not be asked ({type(error).__name__}: {error}). Check the "
                    "AWS connection and the network; run the task again."
                ) from error

    def _known_extra_args(self, method: str) -> dict[str, Any]:
        operation = self._client.meta.method_to_api_mapping[method]
        known = self._client.meta.service_model.operation_model(operation).input_shape.members
        return {key: value for key, value in self._extra_args.items() if key in known}

    def _described(self, info: ObjectInfo) -> dict[str, Any]:
        return {
            "ContentType": self._extra_args.get("ContentType", info.content_type),
            "Metadata": {**self._extra_args.get("Metadata", {}), **info.metadata},
        }


class S3Upload:
    """A multipart upload."""

    def __init__(self, storage: S3Storage, name: str, upload_id: str, info: ObjectInfo | None = None) -> None:
        self._storage = storage
        self._name = name
        self._upload_id = upload_id
        self._info = info
        self._size = 0
        self._parts: dict[int, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def write_part(self, number: int, part: bytearray, crc32: int) -> None:
        """Store part `number` (from 1); S3 refuses it where its CRC32 is not `crc32`."""
        checksum = _base64_crc32(crc32)
        answer = self._call("upload_part", PartNumber=number, Body=part, ChecksumCRC32=checksum)
        with self._lock:
            self._parts[number] = {"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": checksum}
            self._size += len(part)

    def complete(self) -> None:
        """Publish the object."""
        parts = [self._parts[number] for number in sorted(self._parts)]
        try:
            self._call("complete_multipart_upload", MultipartUpload={"Parts": parts})
        except DestinationError as error:
            if error.code not in (None, "NoSuchUpload") or not self._is_published():
                raise
            log.info("%s was published already; only the answer had been lost.", self._storage.uri(self._name))

    def abort(self) -> None:
        """Leave nothing behind; an upload that has ended already is none."""
        try:
            self._call("abort_multipart_upload")
        except DestinationError as error:
            if error.code != "NoSuchUpload":
                raise

    def _is_published(self) -> bool:
        """Whether the very object stands there: boto3 asks again where an answer was lost, and S3 is done then."""
        try:
            stored = self._storage.head(self._name)
        except (DestinationError, DestinationRefusedError):
            return False
        wanted = self._info.metadata if self._info else {}
        return stored is not None and stored.size == self._size and wanted.items() <= stored.metadata.items()

    def _call(self, method: str, **arguments: Any) -> Any:
        return self._storage.call(method, self._name, UploadId=self._upload_id, **arguments)


def _code(error: Any) -> str | None:
    """S3's word for what went wrong, of a ClientError."""
    code: str | None = error.response.get("Error", {}).get("Code")
    return code


def _told(error: Any, method: str, uri: str) -> DestinationError | DestinationRefusedError:
    """What S3 said, as an error of ours: the operation, the object, S3's own words, and what to do."""
    code, message = _code(error), error.response.get("Error", {}).get("Message")
    said = f"{method} of {uri}: S3 answered {code} ({message})."
    told: DestinationError | DestinationRefusedError
    if code in _REFUSALS:
        told = DestinationRefusedError(f"{said} {_REFUSALS[code]}")
    elif code in _OUT_OF_DATE:
        told = DestinationError(f"{said} The credentials have run out: renew those of the AWS connection.")
    else:
        told = DestinationError(f"{said} Run the task again.")
    told.code = code
    return told


def _base64_crc32(checksum: int) -> str:
    return base64.b64encode(checksum.to_bytes(4, "big")).decode()
