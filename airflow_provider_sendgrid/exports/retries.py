"""When a request is retried.

GET is retried on 429, 5xx, unreadable responses and network failures. POST is retried only if it was certainly not
accepted (SendGrid's own 403, 429, or no connection was made), because SendGrid has no idempotency key. A 403 is retried
a few times only: SendGrid sometimes refuses a single request for no reason.

A response of unknown shape is an error, never an empty result.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

from airflow_provider_sendgrid.backoff import backoff_seconds
from airflow_provider_sendgrid.exceptions import SendGridError, SendGridRateLimitError
from airflow_provider_sendgrid.exports.export import UnreadableError
from airflow_provider_sendgrid.exports.messages import Flow, Request, Response, T
from airflow_provider_sendgrid.exports.response_errors import parse_json_object, unreadable_response_error

# Tries in all for client errors that may be transient: a stray 403, and the 404 of a new id.
_TRANSIENT_TRIES = 3


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long a request is retried.

    Attributes:
        tries: requests in all, 1 or more.
        first_wait_seconds: before the first retry, if SendGrid names no time; doubles with each retry.
        longest_wait_seconds: there is no retry if SendGrid asks for a longer wait.
        slot_seconds: how long 429s are retried beyond `tries`: hundreds of tasks may share the rate limit.
        jitter: returns numbers from 0 to 1; spreads the waits between half and all of their length.
        seconds_left: until the caller's deadline; there is no retry after it.
    """

    tries: int = 6
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 120.0
    slot_seconds: float = 0.0
    jitter: Callable[[], float] = random.random
    seconds_left: Callable[[], float] = field(default=lambda: math.inf, repr=False)

    def wait_seconds(self, tried: int) -> float:
        """How long to wait after `tried` requests, if SendGrid names no time."""
        return backoff_seconds(tried, self.first_wait_seconds, self.longest_wait_seconds, self.jitter())


DEFAULT_RETRY_POLICY = RetryPolicy()
START_RETRY_POLICY = RetryPolicy(slot_seconds=600.0)


def send_with_retries(
    request: Request,
    operation: str,
    retry_policy: RetryPolicy,
    parse: Callable[[dict[str, Any], Response], T],
    also_retried: tuple[int, ...] = (),
) -> Flow[T]:
    """Send `request` until its response can be read.

    Args:
        request: what to send.
        operation: its name in messages.
        retry_policy: how often and how long to retry.
        parse: returns the result in a JSON object and its response. If it raises `UnreadableError`, the request is
            retried.
        also_retried: client errors that are retried a few times.

    Raises:
        SendGridError: of the last attempt.
    """
    tried, refusals, waited_for_slot = 0, 0, 0.0
    transient = {403, *also_retried}
    while True:
        tried += 1
        try:
            response = yield request
            return _parse(parse, response, operation, request)
        except SendGridError as error:
            is_for_slot = isinstance(error, SendGridRateLimitError) and waited_for_slot < retry_policy.slot_seconds
            if is_for_slot:  # waiting for other tasks does not use up the tries
                tried = min(tried, retry_policy.tries - 1)
            refusals += error.status_code in transient
            is_final = error.status_code in transient and refusals >= _TRANSIENT_TRIES
            wait = None if is_final else _wait_before_retry(error, tried, retry_policy, transient)
            if wait is None:
                raise
            waited_for_slot += wait if is_for_slot else 0.0
            request = replace(request, delay_seconds=wait, reason=str(error))


def _parse(parse: Callable[[dict[str, Any], Response], T], response: Response, operation: str, request: Request) -> T:
    payload = parse_json_object(response, operation, request)
    try:
        return parse(payload, response)
    except UnreadableError as problem:
        raise unreadable_response_error(
            f"{operation}: SendGrid answered {response.status_code}, but {problem}.", response, request
        ) from None


def _wait_before_retry(
    error: SendGridError, tried: int, retry_policy: RetryPolicy, transient: Collection[int]
) -> float | None:
    """Seconds to wait before a retry; None if there must be none."""
    status = error.status_code or 0
    is_refused = 400 <= status < 500 and status not in (429, *transient)
    if is_refused or error.may_have_been_accepted or tried >= retry_policy.tries:
        return None
    wait = retry_policy.wait_seconds(tried)
    asked = error.retry_after_seconds
    if asked is None:
        return wait if wait < retry_policy.seconds_left() else None
    # Slightly later than asked and with jitter, because other tasks wait for the same time. Never sooner than without
    # the header, whose time may have passed.
    wait = max(wait, asked + retry_policy.jitter() * min(1.0 + asked / 10, 5.0))
    return wait if asked <= retry_policy.longest_wait_seconds and wait < retry_policy.seconds_left() else None
