"""What the errors of a storage mean: one table for each, looked up by the storage's own code, then by HTTP status.

Knows no particular cloud and none of their clients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

ATTEMPTS = 6
LONGEST_PAUSE_SECONDS = 30.0
NO_ANSWER = "no answer"
# What clients raise over an answer of a shape that they do not know.
UNREADABLE_ANSWER = (ValueError, TypeError, AttributeError, KeyError, RecursionError)
# Of what a storage says: clients take a whole page of HTML for its message.
_MOST_CHARACTERS = 1000


@dataclass(frozen=True, slots=True)
class Meaning:
    """What one code means.

    Attributes:
        error: is raised; by a read, a look or a delete only if the object is not known to be absent.
        next_step: what to do about it.
        is_absence: for reads, looks and deletes the object is not there; for writes it is an error all the same.
        is_retried: whether the same request may succeed soon.
    """

    error: type[DestinationChangedError] | type[DestinationError] | type[DestinationRefusedError]
    next_step: str
    is_absence: bool = False
    is_retried: bool = False


RUN_AGAIN = "Run the task again."
PASSING = Meaning(DestinationError, RUN_AGAIN, is_retried=True)
UNKNOWN = Meaning(DestinationError, RUN_AGAIN)
CHANGED = Meaning(DestinationChangedError, f"Another run stored it meanwhile. {RUN_AGAIN}")

# Of any storage, unless its own table says otherwise.
STATUSES: Mapping[str, Meaning] = {
    "401": Meaning(DestinationRefusedError, "Correct the credentials of the connection."),
    "403": Meaning(DestinationRefusedError, "Grant the connection's account access, or correct the path."),
    "405": Meaning(DestinationRefusedError, "Correct the endpoint of the connection."),
    "407": Meaning(DestinationRefusedError, "Correct the proxy's user and password."),
    "408": PASSING,
    "412": CHANGED,
    "429": PASSING,
    "451": Meaning(DestinationRefusedError, "The storage refuses for legal reasons; ask its operator."),
    "500": PASSING,
    "502": PASSING,
    "503": PASSING,
    "504": PASSING,
    NO_ANSWER: PASSING,
}


@dataclass(frozen=True, slots=True)
class Failure:
    """What a storage answered instead of what was asked for.

    Attributes:
        codes: the storage's code and the HTTP status, as far as known; `NO_ANSWER` alone if nothing came back.
        text: in the storage's words; holds no secret.
    """

    codes: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Requests:
    """Calls a storage's client, again where the table says that it may help.

    Args:
        storage: its name, for messages.
        table: see `Meaning`, by code or status.
        describe: what is known of an exception of the client; None if it is none of the storage's.
        sleep: waits between two attempts, seconds.
    """

    storage: str
    table: Mapping[str, Meaning]
    describe: Callable[[Exception], Failure | None]
    sleep: Callable[[float], None]

    def meaning(self, codes: tuple[str, ...]) -> Meaning:
        """What the first known of the codes means."""
        return next((rows[code] for rows in (self.table, STATUSES) for code in codes if code in rows), UNKNOWN)

    def write(self, operation: str, uri: str, send: Callable[[], T]) -> T:
        """Have `send` store something; it is called again until it succeeds or a further attempt cannot help.

        Raises:
            DestinationChangedError: the object's version is not the expected one.
            DestinationRefusedError: somebody has to correct something.
            DestinationError: the storage failed.
        """
        number = 0
        while True:
            number += 1
            try:
                return send()
            except Exception as error:
                failure = self.describe(error)
                if failure is None:
                    raise
                if number == ATTEMPTS or not self.meaning(failure.codes).is_retried:
                    raise self.error(operation, uri, failure) from _redacted(error)
            self.sleep(pause_seconds(number))

    def find(self, operation: str, uri: str, send: Callable[[], T]) -> T | None:
        """Have `send` read or delete something; None if the object is not there.

        Raises:
            DestinationChangedError: as `write`.
            DestinationRefusedError: as `write`.
            DestinationError: as `write`.
        """

        def send_or_none() -> T | None:
            try:
                return send()
            except Exception as error:
                failure = self.describe(error)
                if failure is None or not self.meaning(failure.codes).is_absence:
                    raise
                return None

        return self.write(operation, uri, send_or_none)

    def error(self, operation: str, uri: str, failure: Failure) -> Exception:
        """The failure as one of this package's errors."""
        meaning, text = self.meaning(failure.codes), _shortened(failure.text)
        error = meaning.error(f"{operation} of {uri}: {self.storage} failed: {text}. {meaning.next_step}")
        if isinstance(error, (DestinationError, DestinationRefusedError)):
            error.code = next((code for code in failure.codes if code != NO_ANSWER), None)
        return error

    def unverified(self, operation: str, uri: str, what: str) -> DestinationError:
        """The error for an answer, or an object, that is not what it has to be."""
        return DestinationError(f"{operation} of {uri}: {what}. {RUN_AGAIN} If that does not help, check the endpoint.")


class ClientError(Exception):
    """What a storage's client raised, for the traceback, without the queries of URLs: these may be signatures."""


def _redacted(error: Exception) -> ClientError:
    text = _shortened(redact(str(error)))
    return ClientError(f"{type(error).__name__}: {text}").with_traceback(error.__traceback__)


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"


def pause_seconds(number: int) -> float:
    """How long to wait after attempt `number` (from 1)."""
    return backoff_seconds(number, 2.0, LONGEST_PAUSE_SECONDS)
