"""The exceptions of this provider, and what to do about each.

::

    SendGridError                      base class; has ``status_code`` and ``errors``
    ├── SendGridBadRequestError        400, 402, 409, 413, 422: SendGrid does not accept the request; correct it
    ├── SendGridAuthError              401, 407: the API key or the proxy's password is wrong; correct the connection
    ├── SendGridPermissionError        403, 451: scope, product or address; the message names the causes
    ├── SendGridNotFoundError          404: no such export here; correct the id, the family or the account
    ├── SendGridRateLimitError         429: too many requests; wait ``retry_after_seconds``
    ├── SendGridServerError            5xx, or a response of unknown shape; try again
    ├── SendGridUnavailableError       no response: name, network, TLS, timeout; or no such connection; try again
    ├── ExportFailedError              SendGrid reports ``failure``; start another export
    ├── ExportExpiredError             its files are deleted; start another export
    ├── ExportWithoutFilesError        ready for minutes without files; start another export
    ├── ExportIncompleteError          truncated, or a count that differs; nothing was published
    ├── ExportInDoubtError             several exports may belong to a start whose response was lost; choose one
    ├── DestinationConflictError       the destination has files of another export, or files that would be lost
    ├── DestinationChangedError        another run stored an object there meanwhile; try again
    ├── DestinationRefusedError        the storage refuses: bucket, permission, keys; correct them
    └── DestinationError               the storage failed, or its credentials have expired; try again

They do not derive from Airflow's exceptions: a resumed task with ``soft_fail`` is skipped on any ``AirflowException``,
and a refused key must never look like a skip. Every message is redacted (see `redact`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from airflow_provider_sendgrid import redaction


def redact(text: str) -> str:
    """`text` without API keys, signatures, security tokens, passwords in URLs and queries of URLs."""
    return redaction.redact(text)


def redact_all(value: Any) -> Any:
    """A JSON value in which all texts are redacted, including the keys of mappings."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact(str(key)): redact_all(each) for key, each in value.items()}
    return [redact_all(each) for each in value] if isinstance(value, list | tuple) else value


class SendGridError(Exception):
    """An error in an export or its delivery.

    Attributes:
        status_code: HTTP status of SendGrid's response; None if there was none.
        errors: SendGrid's list of errors, each with ``message`` and perhaps ``field``, ``error_id``, ``parameter`` and
            ``help``.
        may_have_been_accepted: SendGrid may have processed the request although it did not confirm it.
        retry_after_seconds: how long SendGrid asks to wait; None if it names no time.
        is_of_proxy: a proxy or gateway probably refused, not SendGrid.
    """

    retry_after_seconds: float | None = None
    is_of_proxy: bool = False

    def __init__(
        self,
        message: str,
        *,
        status_code: int | None = None,
        errors: Iterable[Mapping[str, Any]] = (),
        may_have_been_accepted: bool = False,
    ) -> None:
        super().__init__(redact(message))
        self.status_code = status_code
        self.errors: tuple[dict[str, Any], ...] = tuple(redact_all(error) for error in errors)
        self.may_have_been_accepted = may_have_been_accepted

    def to_event(self) -> dict[str, Any]:
        """The error as JSON values without secrets, for the event of a trigger."""
        return {
            "type": type(self).__name__,
            "message": str(self),
            "status_code": self.status_code,
            "errors": [{key: redact(str(value)) for key, value in error.items()} for error in self.errors],
        }

    @staticmethod
    def from_event(event: Mapping[str, Any]) -> SendGridError:
        """The error in an event of `to_event`, of the same class."""
        error_class = _CLASSES.get(str(event.get("type")), SendGridError)
        return error_class(
            str(event.get("message") or "unknown error"),
            status_code=event.get("status_code"),
            errors=event.get("errors") or (),
        )


class SendGridBadRequestError(SendGridError):
    """400, 413, or with SendGrid's own message 402, 409 and 422: SendGrid does not accept the request."""


class SendGridAuthError(SendGridError):
    """401 or 407: SendGrid does not accept the API key, or a proxy asks for a password."""


class SendGridPermissionError(SendGridError):
    """403 or 451: the key lacks the scope, the account is on the other product, or the address is blocked."""


class SendGridNotFoundError(SendGridError):
    """404: the resource does not exist in this account and family."""


class SendGridRateLimitError(SendGridError):
    """429: too many requests."""


class SendGridServerError(SendGridError):
    """5xx, or a response of unknown shape: it is never read as an empty result."""


class SendGridUnavailableError(SendGridError):
    """No response: the name, the network, TLS or a timeout; or no connection with this id was found."""


class ExportFailedError(SendGridError):
    """SendGrid reports ``failure``: this export will never be ready."""


class ExportExpiredError(SendGridError):
    """The export's files are deleted, 12 hours after its start."""


class ExportWithoutFilesError(SendGridError):
    """SendGrid calls the export ready without files and without a count of 0; its lists are probably empty."""


class ExportIncompleteError(SendGridError):
    """A file, or the export as a whole, differs from what SendGrid reports; nothing incomplete was published."""


class ExportInDoubtError(SendGridError):
    """Several exports may belong to a start whose response was lost; a person has to choose one."""


class DestinationConflictError(SendGridError):
    """The destination has files of another export, or files that would be lost, and ``replace`` is off."""


class DestinationChangedError(SendGridError):
    """Another run stored an object at the destination meanwhile; run the task again."""


class DestinationRefusedError(SendGridError):
    """The storage refuses permanently: the bucket, the permission or the key is missing or wrong.

    Attributes:
        code: the storage's error code.
    """

    code: str | None = None


class DestinationError(SendGridError):
    """The storage failed, did not respond, or the credentials have expired; nothing incomplete was published.

    Attributes:
        code: the storage's error code; None if it did not respond.
    """

    code: str | None = None


# Someone has to correct the connection or the arguments, or start another export.
NON_RETRYABLE_ERRORS = (
    SendGridBadRequestError,
    SendGridAuthError,
    SendGridPermissionError,
    SendGridNotFoundError,
    ExportFailedError,
    ExportExpiredError,
    ExportWithoutFilesError,
    ExportInDoubtError,
    DestinationConflictError,
    DestinationRefusedError,
)
HOPELESS_ERRORS = NON_RETRYABLE_ERRORS  # its former name


def is_non_retryable(error: SendGridError) -> bool:
    """Whether a retry cannot help. A gateway may accept later what it refused, unless it requires a login (407)."""
    return isinstance(error, NON_RETRYABLE_ERRORS) and not (error.is_of_proxy and error.status_code != 407)


# A wait continues after these until its deadline.
RETRYABLE_ERRORS = (SendGridRateLimitError, SendGridServerError, SendGridUnavailableError)

_CLASSES = {error_class.__name__: error_class for error_class in SendGridError.__subclasses__()}
