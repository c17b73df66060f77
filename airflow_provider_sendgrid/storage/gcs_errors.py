"""Translates the errors of Google Cloud Storage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from traceback import walk_tb
from typing import Any

from airflow_provider_sendgrid.exceptions import DestinationError, DestinationRefusedError
from airflow_provider_sendgrid.storage.errors import (
    NO_RESPONSE,
    TRANSIENT,
    UNREADABLE_RESPONSE,
    Failure,
    Meaning,
    RetriedCalls,
)

# By Google's reason, else by status; with "upload" for requests to the URL of a resumable upload.
_ERRORS: Mapping[str, Meaning] = {
    "rateLimitExceeded": TRANSIENT,
    "userRateLimitExceeded": TRANSIENT,
    "retentionPolicyNotMet": Meaning(DestinationRefusedError, "The bucket's retention policy protects the object."),
    "objectUnderActiveHold": Meaning(DestinationRefusedError, "A hold protects the object: release it."),
    "userProjectMissing": Meaning(DestinationRefusedError, "The bucket needs a project to bill; use another bucket."),
    "upload 404": Meaning(DestinationError, "The upload has ended. Run the task again."),
    "upload 410": Meaning(DestinationError, "The upload has ended. Run the task again."),
    "404": Meaning(
        DestinationRefusedError, "Correct the bucket's name, its permissions or the connection.", is_absence=True
    ),
}

# A download with a wrong checksum; which of Google's packages raises it depends on the version.
_UNREADABLE = {"DataCorruption", "InvalidResponse"}


def retried_calls(sleep: Callable[[float], None]) -> RetriedCalls:
    """Calls of Google's client; `sleep` waits between attempts."""
    return RetriedCalls("Google Cloud Storage", _ERRORS, _failure_of, sleep)


def reasons_of(errors: Any) -> tuple[str, ...]:
    """Google's reasons, from the list of errors in a response."""
    return tuple(str(each["reason"]) for each in errors or () if isinstance(each, Mapping) and "reason" in each)


def _failure_of(error: Exception) -> Failure | None:
    """What an exception of Google's client says; None for any other exception."""
    from google.api_core.exceptions import GoogleAPICallError
    from google.auth.exceptions import GoogleAuthError, TransportError
    from requests import RequestException
    from requests.exceptions import InvalidJSONError, TooManyRedirects

    name = type(error).__name__
    if isinstance(error, GoogleAPICallError):
        status = str(int(error.code)) if error.code else name
        return Failure((*reasons_of(error.errors), status), f"{status} {error.message}")
    if (response := _response_of_unreadable_error(error)) is not None:
        return Failure((str(response.status_code),), f"{response.status_code} {response.text}")
    if isinstance(error, (InvalidJSONError, TooManyRedirects, *UNREADABLE_RESPONSE)) or name in _UNREADABLE:
        return Failure((name,), f"the response cannot be read ({name}: {error})")
    if isinstance(error, (TransportError, RequestException)):
        return Failure((NO_RESPONSE,), f"no response ({name}: {error})")
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
