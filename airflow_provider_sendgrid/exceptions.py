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
    ├── DestinationConflictError       something of another export stands where this one would go
    ├── DestinationRefusedError        the storage says no: bucket, permission, keys; mend these
    └── DestinationError               the storage failed, or its credentials have run out; try again

They are plain exceptions, not Airflow's: a task that was resumed with ``soft_fail`` is skipped on any
``AirflowException``, and a refused key must never look like a skip. No text of theirs holds an API key
or a signed URL: every message goes through `redact`.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from typing import Any

_SECRETS = (
    # An API key: SG.<22 characters>.<43 characters>, whatever touches it; shorter ones may be cut.
    (re.compile(r"SG\.[\w-]{16,}\.[\w-]{16,}|\bSG\.[\w-]{4,}(?:\.[\w-]+)?"), "SG.***"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{4,}"), r"\1 ***"),
    # The query of a URL carries its signature; the path names the bucket only.
    (re.compile(r"(?i)(https?://[^\s?\"'<>]+)\?[^\s\"'<>]+"), r"\1?***"),
    # User and password in the URL of a proxy or a host; a password may hold an @ itself.
    (re.compile(r"(://)[^\s/?#\"'<>]+@"), r"\1***@"),
    (re.compile(r"(?i)\b(x-amz-[a-z-]+|awsaccesskeyid|signature)=[^\s&\"'<>]+"), r"\1=***"),
    # The same as a header, or in the repr of a mapping; x-amz-request-id stays, it helps the support.
    (re.compile(r"(?i)(x-amz-(?:signature|credential|security-token)[\"']?\s*[:=]\s*[\"']?)[^\s&\"'<>]+"), r"\1***"),
)


# Keys of connections, by their text: a gateway's need not look like SendGrid's.
_HIDDEN: dict[str, re.Pattern[str]] = {}
# A shorter text is part of too many words.
_LEAST_SECRET_CHARACTERS = 8


def hide_secret(secret: str) -> None:
    """Have `redact` hide this text from now on: as it is, percent-encoded, in base64, or torn apart by blanks."""
    if secret in _HIDDEN or len(secret) < _LEAST_SECRET_CHARACTERS:
        return
    letters = (f"(?:{re.escape(each)}|%{ord(each):02x})" for each in secret)
    encoded = b64encode(secret.encode()).decode().rstrip("=")
    _HIDDEN[secret] = re.compile(rf"{r'[^!-~]*'.join(letters)}|{re.escape(encoded)}=*", re.IGNORECASE)


def holds_key(text: str) -> bool:
    """Whether there is an API key in a text: one like SendGrid's, or one that is hidden."""
    return any(pattern.search(text) for pattern in (_SECRETS[0][0], *_HIDDEN.values()))


def redact(text: str) -> str:
    """`text` without API keys, signatures, security tokens and passwords in URLs."""
    for pattern in tuple(_HIDDEN.values()):
        text = pattern.sub("***", text)
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


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
    """

    retry_after_seconds: float | None = None

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
    """What stands at the destination belongs to another export, and ``replace`` is off."""


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

# Errors that may pass: a wait goes on until its deadline.
RETRYABLE_ERRORS = (SendGridRateLimitError, SendGridServerError, SendGridUnavailableError)

_CLASSES = {error_class.__name__: error_class for error_class in SendGridError.__subclasses__()}
