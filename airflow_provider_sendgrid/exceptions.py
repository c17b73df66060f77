"""What can go wrong, and what you can do about it.

::

    SendGridError                      anything below; has ``status_code`` and ``errors``
    ├── SendGridBadRequestError        400, 402, 409, 413, 422: SendGrid does not accept the request; correct it
    ├── SendGridAuthError              401, 407: the API key or the proxy's password is wrong; correct the connection
    ├── SendGridPermissionError        403, 451: scope, product or address; the message names the causes
    ├── SendGridNotFoundError          404: no such export here; mend the id, the family or the account
    ├── SendGridRateLimitError         429: too many requests; wait ``retry_after_seconds``
    ├── SendGridServerError            5xx, or a response of unknown shape; try again
    ├── SendGridUnavailableError       no answer: name, network, TLS, timeout; or no such connection; try again
    ├── ExportFailedError              SendGrid says ``failure``; start another export
    ├── ExportExpiredError             its files are gone; start another export
    ├── ExportWithoutFilesError        ready for minutes, but names no files; start another export
    ├── ExportIncompleteError          truncated, or a count that disagrees; nothing was published
    ├── ExportInDoubtError             several exports may be the one that a lost start began; choose
    ├── DestinationConflictError       another export's files, or delivered ones that would be lost, are there
    ├── DestinationChangedError        another run stored something there meanwhile; try again
    ├── DestinationRefusedError        the storage says no: bucket, permission, keys; mend these
    └── DestinationError               the storage failed, or its credentials have expired; try again

They are plain exceptions, not Airflow's: a task that was resumed with ``soft_fail`` is skipped on any
``AirflowException``, and a refused key must never look like a skip. No text of theirs holds an API key
or a signed URL: every message goes through `redact`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from airflow_provider_sendgrid import redaction


def redact(text: str) -> str:
    """`text` without API keys, signatures, security tokens, passwords in URLs and queries of URLs."""
    return redaction.redact(text)


def redact_all(value: Any) -> Any:
    """A JSON value with each text in it redacted, keys of mappings too."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact(str(key)): redact_all(each) for key, each in value.items()}
    return [redact_all(each) for each in value] if isinstance(value, list | tuple) else value


class SendGridError(Exception):
    """Anything that went wrong between us and SendGrid.

    Attributes:
        status_code: HTTP status of SendGrid's answer, None where there was none.
        errors: SendGrid's own list of errors, each with ``message`` and, where given, ``field``,
            ``error_id``, ``parameter`` and ``help``.
        may_have_been_accepted: the request may have been carried out although no good answer came.
        retry_after_seconds: how long SendGrid asks to wait, None where it does not say.
        is_of_proxy: a proxy or gateway seems to have refused, not SendGrid.
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
        """What a trigger's event may carry of this error: JSON values without secrets."""
        return {
            "type": type(self).__name__,
            "message": str(self),
            "status_code": self.status_code,
            "errors": [{key: redact(str(value)) for key, value in error.items()} for error in self.errors],
        }

    @staticmethod
    def from_event(event: Mapping[str, Any]) -> SendGridError:
        """The error that `to_event` described, of the same class."""
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
    """404: SendGrid knows no such thing for this account and family."""


class SendGridRateLimitError(SendGridError):
    """429: too many requests."""


class SendGridServerError(SendGridError):
    """5xx, or a response of unknown shape: it is never read as an empty result."""


class SendGridUnavailableError(SendGridError):
    """No answer: the name, the network, TLS or a timeout; or no connection of this name was found."""


class ExportFailedError(SendGridError):
    """SendGrid says ``failure``: this export will never be ready."""


class ExportExpiredError(SendGridError):
    """The export's files are no longer kept: they live for 12 hours."""


class ExportWithoutFilesError(SendGridError):
    """SendGrid calls the export ready, but names no files and no count of 0; its lists are probably empty."""


class ExportIncompleteError(SendGridError):
    """A file or the export as a whole is not what SendGrid says it is; nothing incomplete was published."""


class ExportInDoubtError(SendGridError):
    """Several exports may be the one that a start, whose answer was lost, began; a person has to choose."""


class DestinationConflictError(SendGridError):
    """The destination holds another export's files, or delivered ones that would be lost, and ``replace`` is off."""


class DestinationChangedError(SendGridError):
    """Another run stored an object at the destination meanwhile; run the task again."""


class DestinationRefusedError(SendGridError):
    """The storage says no, and will again: there is no such bucket, permission or key; somebody has to mend that.

    Attributes:
        code: the storage's own word for it.
    """

    code: str | None = None


class DestinationError(SendGridError):
    """The storage failed, did not answer, or found the credentials out of date; nothing incomplete was published.

    Attributes:
        code: the storage's own word for it, None where it gave no answer.
    """

    code: str | None = None


# What a further try cannot help: somebody has to mend the connection or the arguments, or start anew.
HOPELESS_ERRORS = (
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


def is_hopeless(error: SendGridError) -> bool:
    """Whether no further try helps. What a gateway refused it may let pass later, unless it wants a login (407)."""
    return isinstance(error, HOPELESS_ERRORS) and not (error.is_of_proxy and error.status_code != 407)


# Errors that may pass: a wait goes on until its deadline.
RETRYABLE_ERRORS = (SendGridRateLimitError, SendGridServerError, SendGridUnavailableError)

_CLASSES = {error_class.__name__: error_class for error_class in SendGridError.__subclasses__()}
