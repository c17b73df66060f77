"""Translates S3's errors: what each code means and what to do about it. Makes no request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from airflow_provider_sendgrid.exceptions import DestinationChangedError, DestinationError, DestinationRefusedError
from airflow_provider_sendgrid.storage.errors import (
    RUN_AGAIN,
    UNKNOWN,
    Meaning,
    StorageError,
    find_meaning,
    storage_error,
)


def _table(error_class: type[StorageError], next_step: str, *codes: str) -> dict[str, Meaning]:
    return dict.fromkeys(codes, Meaning(error_class, next_step))


_REFUSED, _RETRY, _CHANGED = DestinationRefusedError, DestinationError, DestinationChangedError
_CONNECTION = Meaning(_RETRY, "Check the AWS connection and the network; run the task again.")
_NO_S3 = Meaning(_RETRY, "Check that the endpoint_url of the AWS connection is an S3 server.")

# The object does not exist, for reads, heads and deletes only. A response without a body has its status as its code.
NOT_FOUND: Final = frozenset({"404", "NoSuchKey", "NotFound"})
# The upload has ended. Ceph and Swift name the key.
NO_UPLOAD: Final = frozenset({"NoSuchUpload", "NoSuchKey", "404"})
# The body was damaged in transit. boto3 does not send it again.
DAMAGED: Final = frozenset({"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"})
# The credentials do not allow this operation, or the server does not have it.
NOT_ALLOWED: Final = frozenset(
    {"403", "405", "501", "AccessDenied", "AllAccessDisabled", "MethodNotAllowed", "NotImplemented"}
)
# The credentials or the server do not allow a listing.
NO_LISTING: Final = NOT_ALLOWED | NOT_FOUND | {"400", "InvalidArgument", "InvalidRequest"}
# The server may not support conditional writes. Without the condition, the same response is final.
CONDITION_REFUSED: Final = frozenset({"NotImplemented", "501", "InvalidArgument", "304", "NotModified"})
CONDITION_FAILED: Final = frozenset({"PreconditionFailed", "412"})
# S3 requires a checksum for an object with Object Lock.
_CHECKSUM_REQUIRED: Final = "MissingUploadObjectWithObjectLockHeaders"

MEANINGS: Final[Mapping[str, Meaning]] = {
    **_table(_REFUSED, "Check the bucket's name and the account of the AWS connection.", "NoSuchBucket"),
    **_table(_REFUSED, "Check the bucket's name.", "InvalidBucketName", "InvalidBucketState"),
    **_table(_REFUSED, "Check the access point's ARN and its account.", "NoSuchAccessPoint", "InvalidAccessPoint"),
    **_table(
        _REFUSED,
        "Check that the connection's credentials may read, write, list and delete there.",
        "AccessDenied",
        "403",
    ),
    **_table(
        _REFUSED,
        "Check the credentials in the AWS connection.",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "InvalidSecurity",
        "NotSignedUp",
    ),
    **_table(
        _REFUSED,
        "The account or the bucket is blocked: ask its administrator.",
        "AllAccessDisabled",
        "AccountProblem",
        "QuotaExceeded",
    ),
    **_table(
        _REFUSED,
        "Set region_name (and endpoint_url, if any) of the AWS connection to the bucket's region.",
        "PermanentRedirect",
        "301",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
    ),
    **_table(
        _REFUSED,
        "Check SSEKMSKeyId in extra_args or the bucket's default key: it must exist, be enabled and be in the bucket's "
        "region.",
        "KMS.NotFoundException",
        "KMS.DisabledException",
        "KMS.InvalidStateException",
        "KMS.KMSInvalidStateException",
        "KMS.InvalidKeyUsageException",
        "KMS.InvalidArnException",
        "KMS.UnsupportedOperationException",
    ),
    **_table(
        _REFUSED,
        "The credentials need kms:GenerateDataKey and kms:Decrypt for the key.",
        "KMS.AccessDeniedException",
    ),
    **_table(
        _REFUSED,
        "Check ServerSideEncryption and the SSE... arguments in extra_args.",
        "InvalidEncryptionAlgorithmError",
        "InvalidEncryptionMethod",
        "ServerSideEncryptionConfigurationNotFoundError",
    ),
    **_table(_REFUSED, "Check StorageClass in extra_args.", "InvalidStorageClass"),
    **_table(
        _REFUSED,
        "The object is archived: StorageClass must be one that can be read at once.",
        "InvalidObjectState",
    ),
    **_table(
        _REFUSED,
        "The bucket has ACLs disabled: leave out acl_policy, and ACL and Grant... in extra_args.",
        "AccessControlListNotSupported",
    ),
    **_table(_REFUSED, "Check acl_policy, and ACL and Grant... in extra_args.", "MalformedACLError", "InvalidACL"),
    **_table(_REFUSED, "Check Tagging in extra_args: key=value&key=value.", "InvalidTag", "NoSuchTagSet"),
    **_table(
        _REFUSED,
        "Check the ObjectLock... arguments in extra_args, and that the bucket has Object Lock enabled.",
        "ObjectLockConfigurationNotFoundError",
        "InvalidRetentionPeriod",
    ),
    **_table(
        _REFUSED,
        "The bucket's Object Lock requires a checksum: remove request_checksum_calculation from the extra of the AWS "
        "connection.",
        _CHECKSUM_REQUIRED,
    ),
    **_table(_REFUSED, "Shorten Metadata in extra_args.", "MetadataTooLarge"),
    **_table(_REFUSED, "Shorten the prefix.", "KeyTooLongError"),
    **_table(
        _REFUSED,
        "Check extra_args and the AWS connection against what this server supports.",
        "InvalidArgument",
        "InvalidRequest",
        "MethodNotAllowed",
        "405",
        "NotImplemented",
        "501",
    ),
    **_table(
        _RETRY,
        "The credentials have expired: renew those of the AWS connection and run the task again.",
        "ExpiredToken",
        "ExpiredTokenException",
        "TokenRefreshRequired",
        "RequestExpired",
        "InvalidToken",
    ),
    **_table(_RETRY, "Set the worker's clock.", "RequestTimeTooSkewed"),
    **_table(
        _RETRY,
        "Check the bucket and the endpoint_url of the AWS connection; run the task again.",
        "404",
        "NoSuchKey",
        "NotFound",
    ),
    **_table(
        _RETRY,
        "It was damaged in transit each time: use https, or check the network and its proxies.",
        *DAMAGED,
    ),
    **_table(
        _CHANGED,
        "Another run stored this object meanwhile. Run the task again.",
        *CONDITION_FAILED,
        "ConditionalRequestConflict",
        "409",
        "OperationAborted",
    ),
}

# The permissions that arguments need, by the beginning of their names.
PERMISSIONS: Final[Mapping[str, str]] = {
    "Tagging": "s3:PutObjectTagging",
    "ACL": "s3:PutObjectAcl",
    "Grant": "s3:PutObjectAcl",
    "ObjectLockMode": "s3:PutObjectRetention",
    "ObjectLockRetainUntilDate": "s3:PutObjectRetention",
    "ObjectLockLegalHoldStatus": "s3:PutObjectLegalHold",
    "SSEKMSKeyId": "kms:GenerateDataKey and kms:Decrypt",
}
_SWITCH_CHECKSUMS_OFF = (
    'If the server knows no checksum headers, set {"config_kwargs": {"request_checksum_calculation": "when_required"}} '
    "in the extra of the AWS connection."
)
_SIGN_PAYLOADS = (
    "If a policy denies UNSIGNED-PAYLOAD, set "
    '{"config_kwargs": {"s3": {"payload_signing_enabled": true}}} in the extra of the AWS connection.'
)


def error_from_code(
    method: str,
    uri: str,
    code: str | None,
    message: str,
    arguments: Mapping[str, object],
    *,
    is_signed: bool,
    status: int | None = None,
) -> StorageError:
    """The exception for an error response.

    Args:
        method: boto3's method.
        uri: the URI of the object.
        code: S3's error code.
        message: S3's message.
        arguments: the arguments of the call.
        is_signed: whether bodies are signed.
        status: the HTTP status.
    """
    meaning = _meaning(code, status)
    creates = method in ("put_object", "create_multipart_upload")
    next_step = _next_step(meaning, code, message, arguments if creates else {}, is_signed=is_signed)
    what = f"{method} of {uri}: S3 answered {code} ({message})"
    return storage_error(what, meaning, code=code, next_step=next_step)


def connection_error(method: str, uri: str, error: Exception) -> StorageError:
    """The exception if boto3 could not send the request or got no response."""
    return storage_error(f"{method} of {uri}: the request to S3 failed ({type(error).__name__}: {error})", _CONNECTION)


def not_s3_error(what: str) -> StorageError:
    """The exception for a response that S3 does not send."""
    return storage_error(what, _NO_S3)


def changed_error(uri: str) -> StorageError:
    """The exception for an object that no longer has the expected version."""
    return storage_error(f"{uri}: another run changed it meanwhile", Meaning(_CHANGED, RUN_AGAIN))


def is_not_allowed(error: DestinationError | DestinationRefusedError) -> bool:
    """Whether the credentials do not allow this operation: a code without a meaning counts if its status is 403."""
    is_unknown = error.code is not None and error.code not in MEANINGS
    return error.code in NOT_ALLOWED or (is_unknown and isinstance(error, DestinationRefusedError))


def may_refuse_condition(error: DestinationError | DestinationRefusedError) -> bool:
    """Whether the response may be about the condition of a request: by its code or by its message."""
    if error.code in CONDITION_REFUSED:
        return True
    return bool(re.search(r"(?i)\bif-?(none-?)?match\b", code_and_message(error.__cause__)[1]))


def was_sent_before(error: Exception) -> bool:
    """Whether S3 may have carried out the request: there was no response, or boto3 had sent it before."""
    if error.__cause__ is None:
        return False
    response = _response_of(error.__cause__)
    return not response or bool(response.get("ResponseMetadata", {}).get("RetryAttempts"))


def code_and_message(error: Any) -> tuple[str | None, str]:
    """S3's code and message from boto3's ClientError; no code without a response."""
    details = _response_of(error).get("Error", {})
    return details.get("Code"), str(details.get("Message"))


def _response_of(error: Any) -> Mapping[str, Any]:
    """S3's response, empty without one: in botocore's connection errors, `response` is None."""
    return getattr(error, "response", None) or {}


def _meaning(code: str | None, status: int | None) -> Meaning:
    """A code without a meaning is retried, unless the status is 403."""
    return find_meaning([code], MEANINGS, default=MEANINGS["403"] if status == 403 else UNKNOWN)


def _next_step(
    meaning: Meaning, code: str | None, message: str, arguments: Mapping[str, object], *, is_signed: bool
) -> str:
    """The table's next step, and what the call itself suggests."""
    is_checksum_required = "required" in message.lower() and "content-md5" in message.lower()
    if is_checksum_required:
        return MEANINGS[_CHECKSUM_REQUIRED].next_step
    steps = [meaning.next_step]
    if code in ("AccessDenied", "403"):
        needs = {need for name in arguments for start, need in PERMISSIONS.items() if name.startswith(start)}
        if needs:
            steps.append(f"With these arguments they also need {', '.join(sorted(needs))}.")
        if not is_signed:
            steps.append(_SIGN_PAYLOADS)
    if code in ("InvalidArgument", "InvalidRequest", "NotImplemented", "501") and "checksum" in message.lower():
        steps.append(_SWITCH_CHECKSUMS_OFF)
    return " ".join(steps)
