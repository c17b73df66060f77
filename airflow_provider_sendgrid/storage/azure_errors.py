"""Translates the errors of Azure Blob Storage."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from airflow_provider_sendgrid.exceptions import DestinationError, DestinationRefusedError
from airflow_provider_sendgrid.storage.errors import (
    CHANGED,
    NO_RESPONSE,
    RUN_AGAIN,
    TRANSIENT,
    UNREADABLE_RESPONSE,
    Failure,
    Meaning,
    RetriedCalls,
)

_NO_CONTAINER = Meaning(DestinationRefusedError, "Correct the container's name, its permissions or the connection.")
_KEPT = Meaning(DestinationRefusedError, "A policy or a legal hold protects the blob.")

# By Azure's code, else by status.
_ERRORS: Mapping[str, Meaning] = {
    "BlobNotFound": Meaning(DestinationError, RUN_AGAIN, is_absence=True),
    "ContainerNotFound": _NO_CONTAINER,
    "ContainerBeingDeleted": _NO_CONTAINER,
    "ContainerDisabled": _NO_CONTAINER,
    "ResourceNotFound": Meaning(_NO_CONTAINER.error, _NO_CONTAINER.next_step, is_absence=True),
    # As responses to HEAD requests may be.
    "404 without a code": Meaning(_NO_CONTAINER.error, _NO_CONTAINER.next_step, is_absence=True),
    "404": _NO_CONTAINER,
    "BlobAlreadyExists": CHANGED,
    "ConditionNotMet": CHANGED,
    # The commit of another run discarded the blocks.
    "InvalidBlockList": CHANGED,
    "LeaseIdMissing": Meaning(DestinationRefusedError, "The blob has a lease: release it."),
    "BlobImmutableDueToPolicy": _KEPT,
    "BlobImmutableDueToLegalHold": _KEPT,
    "InvalidBlobType": Meaning(DestinationRefusedError, "A blob of another type has this name: delete it."),
    "AccountIsDisabled": Meaning(DestinationRefusedError, "Enable the storage account."),
    "InvalidMetadata": Meaning(DestinationRefusedError, "The account does not accept the blob's metadata."),
    "Md5Mismatch": TRANSIENT,
}


class DamagedError(Exception):
    """The storage reports other bytes than were sent or received."""


def retried_calls(sleep: Callable[[float], None]) -> RetriedCalls:
    """Calls of Azure's client; `sleep` waits between attempts."""
    return RetriedCalls("Azure", _ERRORS, _failure_of, sleep)


def _failure_of(error: Exception) -> Failure | None:
    """What an exception of Azure's client says; None for any other exception."""
    from azure.core.exceptions import AzureError, HttpResponseError

    if isinstance(error, DamagedError):
        return Failure(("Md5Mismatch",), "bytes were damaged in transit")
    if isinstance(error, HttpResponseError):
        code, status = getattr(error, "error_code", None), error.status_code
        known = str(getattr(code, "value", code)) if code else f"{status} without a code"
        return Failure((known, str(status)), f"{status} ({known}: {error.reason})")
    if isinstance(error, AzureError):
        return Failure((NO_RESPONSE,), f"no response ({type(error).__name__})")
    if isinstance(error, UNREADABLE_RESPONSE):
        return Failure((type(error).__name__,), f"the response cannot be read ({type(error).__name__}: {error})")
    return None
