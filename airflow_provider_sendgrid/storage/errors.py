"""Translates the errors of storages: a table for each, looked up by the storage's own code, then by HTTP status.

Knows no particular cloud and none of their clients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from airflow_provider_sendgrid.backoff import backoff_seconds
from airflow_provider_sendgrid.exceptions import (
    DestinationChangedError,
    DestinationError,
    DestinationRefusedError,
    redact,
)

T = TypeVar("T")
Code = TypeVar("Code", str, int)
StorageError = DestinationChangedError | DestinationError | DestinationRefusedError

ATTEMPTS = 6
_FIRST_PAUSE_SECONDS = 2.0
_LONGEST_PAUSE_SECONDS = 30.0
NO_RESPONSE = "no response"
# What clients raise for a response of unknown shape.
UNREADABLE_RESPONSE = (ValueError, TypeError, AttributeError, KeyError, RecursionError)
# Clients return a complete HTML page as the storage's message.
_MAX_CHARACTERS = 1000


@dataclass(frozen=True, slots=True)
class Meaning:
    """What one error code means.

    Attributes:
        error: the exception to raise; `DestinationRefusedError` if no retry helps.
        next_step: what to do about it, one or more sentences.
        is_absence: for reads, heads and deletes, the object does not exist; for writes it is an error.
        is_retried: whether the same request may succeed soon.
    """

    error: type[StorageError]
    next_step: str
    is_absence: bool = False
    is_retried: bool = False


def find_meaning(codes: Iterable[Code | None], *tables: Mapping[Code, Meaning], default: Meaning) -> Meaning:
    """What an error means: the first table that has one of the codes decides, and in it the first such code."""
    known = list(codes)
    return next((table[code] for table in tables for code in known if code is not None and code in table), default)


def storage_error(
    what: str, meaning: Meaning, *, code: str | None = None, next_step: str | None = None
) -> StorageError:
    """The exception for a failure.

    Args:
        what: the operation, the object and the storage's message; contains no secret.
        meaning: what the failure means.
        code: the storage's own code, if it has one.
        next_step: instead of the one of `meaning`.
    """
    error = meaning.error(f"{what}. {next_step or meaning.next_step}")
    if not isinstance(error, DestinationChangedError):
        error.code = code
    return error


RUN_AGAIN = "Run the task again."
TRANSIENT = Meaning(DestinationError, RUN_AGAIN, is_retried=True)
UNKNOWN = Meaning(DestinationError, RUN_AGAIN)
CHANGED = Meaning(DestinationChangedError, f"Another run stored it meanwhile. {RUN_AGAIN}")

# By HTTP status; a storage's own table comes first.
_STATUSES: Mapping[str, Meaning] = {
    "401": Meaning(DestinationRefusedError, "Correct the credentials of the connection."),
    "403": Meaning(DestinationRefusedError, "Grant the connection's account access, or correct the path."),
    "405": Meaning(DestinationRefusedError, "Correct the endpoint of the connection."),
    "407": Meaning(DestinationRefusedError, "Correct the proxy's user and password."),
    "408": TRANSIENT,
    "412": CHANGED,
    "429": TRANSIENT,
    "451": Meaning(DestinationRefusedError, "The storage refuses for legal reasons; ask its operator."),
    "500": TRANSIENT,
    "502": TRANSIENT,
    "503": TRANSIENT,
    "504": TRANSIENT,
    NO_RESPONSE: TRANSIENT,
}


@dataclass(frozen=True, slots=True)
class Failure:
    """The error response of a storage.

    Attributes:
        codes: the storage's own codes, then the HTTP status, as far as known; `NO_RESPONSE` alone without a response.
        text: the storage's message; contains no secret.
    """

    codes: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class RetriedCalls:
    """Calls a storage's client and retries the errors that its table marks as retryable.

    Args:
        storage: its name, for messages.
        table: its own errors, by code or status.
        failure_of: describes an exception of the client; None for any other exception.
        sleep: waits between two attempts, seconds.
    """

    storage: str
    table: Mapping[str, Meaning]
    failure_of: Callable[[Exception], Failure | None]
    sleep: Callable[[float], None]

    def meaning(self, codes: tuple[str, ...]) -> Meaning:
        """What an error with these codes means."""
        return find_meaning(codes, self.table, _STATUSES, default=UNKNOWN)

    def write(self, operation: str, uri: str, send: Callable[[], T]) -> T:
        """Call `send` until it succeeds or a retry cannot help.

        Raises:
            DestinationChangedError: the object does not have the expected version.
            DestinationRefusedError: the storage refuses, and no retry helps.
            DestinationError: the storage failed.
        """
        number = 0
        while True:
            number += 1
            try:
                return send()
            except Exception as error:
                failure = self.failure_of(error)
                if failure is None:
                    raise
                if number == ATTEMPTS or not self.meaning(failure.codes).is_retried:
                    raise self.error(operation, uri, failure) from _redacted(error)
            self.sleep(pause_seconds(number))

    def find(self, operation: str, uri: str, send: Callable[[], T]) -> T | None:
        """As `write`, for reads, heads and deletes: None if the object does not exist."""

        def send_or_none() -> T | None:
            try:
                return send()
            except Exception as error:
                failure = self.failure_of(error)
                if failure is None or not self.meaning(failure.codes).is_absence:
                    raise
                return None

        return self.write(operation, uri, send_or_none)

    def error(self, operation: str, uri: str, failure: Failure) -> StorageError:
        """The exception for a failure."""
        what = f"{operation} of {uri}: {self.storage} failed: {_shortened(failure.text)}"
        code = next((code for code in failure.codes if code != NO_RESPONSE), None)
        return storage_error(what, self.meaning(failure.codes), code=code)

    def unverified(self, operation: str, uri: str, what: str) -> StorageError:
        """The exception for a response or an object that is not as it must be."""
        next_step = f"{RUN_AGAIN} If that does not help, check the endpoint."
        return storage_error(f"{operation} of {uri}: {what}", UNKNOWN, next_step=next_step)


class ClientError(Exception):
    """What a storage's client raised, for the traceback; without queries of URLs, which may be signatures."""


def _redacted(error: Exception) -> ClientError:
    text = _shortened(redact(str(error)))
    return ClientError(f"{type(error).__name__}: {text}").with_traceback(error.__traceback__)


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}…"


def pause_seconds(number: int) -> float:
    """How long to wait after attempt `number` (from 1)."""
    return backoff_seconds(number, _FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)
