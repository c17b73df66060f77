"""What S3's error codes mean: whether a retry helps, and what to do. Knows no client and makes no request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from airflow_provider_sendgrid.exceptions import DestinationChangedError, DestinationError, DestinationRefusedError

StorageError = DestinationError | DestinationRefusedError | DestinationChangedError


@dataclass(frozen=True, slots=True)
class Meaning:
    """What an error code means.

    Attributes:
        error_class: `DestinationRefusedError` if no retry helps.
        advice: what to do, one or more sentences.
    """

    error_class: type[StorageError]
    advice: str


def _table(error_class: type[StorageError], advice: str, *codes: str) -> dict[str, Meaning]:
    return dict.fromkeys(codes, Meaning(error_class, advice))


_REFUSED, _RETRY, _CHANGED = DestinationRefusedError, DestinationError, DestinationChangedError
_DEFAULT = Meaning(_RETRY, "Run the task again.")

# "Not there", for reads, heads and deletes only. A response without a body has its status as its code.
NOT_THERE: Final = frozenset({"404", "NoSuchKey", "NotFound"})
NOT_THERE_METHODS: Final = frozenset({"get_object", "head_object", "delete_object"})
# An upload that has ended: Ceph and Swift name the key.
NO_UPLOAD: Final = frozenset({"NoSuchUpload", "NoSuchKey", "404"})
# Damaged on the way: boto3 does not send it again, we do.
DAMAGED: Final = frozenset({"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"})
# The credentials may not do this one thing, or the server does not have it.
NOT_ALLOWED: Final = frozenset(
    {"403", "405", "501", "AccessDenied", "AllAccessDisabled", "MethodNotAllowed", "NotImplemented"}
)
# The answer to a listing that the credentials or the server do not allow, or that the server does not have.
NO_LISTING: Final = NOT_ALLOWED | NOT_THERE | {"400", "InvalidArgument", "InvalidRequest"}
# To a write with a condition: the server may not know conditions. Sent again without one, the same answer is final.
CONDITION_REFUSED: Final = frozenset({"NotImplemented", "501", "InvalidArgument", "304", "NotModified"})
# A condition does not hold.
NOT_HELD: Final = frozenset({"PreconditionFailed", "412"})
# S3 wants a checksum for a locked object.
_CHECKSUM_WANTED: Final = "MissingUploadObjectWithObjectLockHeaders"

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
        "The bucket's Object Lock wants a checksum: take request_checksum_calculation out of the extra of the AWS "
        "connection.",
        _CHECKSUM_WANTED,
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
        "The credentials have run out: renew those of the AWS connection.",
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
        "It was damaged on its way each time: use https, or check the network and its proxies.",
        *DAMAGED,
    ),
    **_table(
        _CHANGED,
        "Another run stored this object meanwhile. Run the task again.",
        *NOT_HELD,
        "ConditionalRequestConflict",
        "409",
        "OperationAborted",
    ),
}

# What AccessDenied may mean when these arguments are used, by how their names begin.
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


def advice_for(
    code: str | None, message: str, arguments: Mapping[str, object], *, is_signed: bool, status: int | None = None
) -> str:
    """What to do about an error: the table's advice, and what the request itself suggests.

    Args:
        code: S3's error code.
        message: S3's message.
        arguments: of the request.
        is_signed: whether bodies are signed.
        status: of the HTTP response.
    """
    is_checksum_wanted = "required" in message.lower() and "content-md5" in message.lower()
    if is_checksum_wanted:
        return MEANINGS[_CHECKSUM_WANTED].advice
    advice = [meaning_of(code, status).advice]
    if code in ("AccessDenied", "403"):
        needs = {need for name in arguments for start, need in PERMISSIONS.items() if name.startswith(start)}
        if needs:
            advice.append(f"With these arguments they also need {', '.join(sorted(needs))}.")
        if not is_signed:
            advice.append(_SIGN_PAYLOADS)
    if code in ("InvalidArgument", "InvalidRequest", "NotImplemented", "501") and "checksum" in message.lower():
        advice.append(_SWITCH_CHECKSUMS_OFF)
    return " ".join(advice)


def meaning_of(code: str | None, status: int | None = None) -> Meaning:
    """What a code means; one that is not in the table may pass, unless its HTTP status forbids the request."""
    return MEANINGS.get(code or "", MEANINGS["403"] if status == 403 else _DEFAULT)
