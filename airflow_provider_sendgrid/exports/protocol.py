"""What to ask SendGrid and how to read its answer; when to ask again and when to give up.

Knows methods, paths, statuses, headers and bodies. Knows no socket and no clock: each function is a
generator that yields a `Request`, is sent the `Reply`, and returns its result. A network failure is thrown
into it as `SendGridUnavailableError`, so the rules for trying again stand here once, for requests and httpx.

Rules: GET is repeated on 429, 5xx, broken answers and network failures. POST is repeated only where it surely
was not accepted (429, or no connection came about), for SendGrid knows no idempotency key.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote, urlsplit

from airflow_provider_sendgrid.exceptions import (
    SendGridAuthError,
    SendGridBadRequestError,
    SendGridError,
    SendGridNotFoundError,
    SendGridPermissionError,
    SendGridRateLimitError,
    SendGridServerError,
)
from airflow_provider_sendgrid.exports.export import FAMILIES, ContactExport, ExportFamily, ExportSelection

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """One request to the API host, without any secret.

    Attributes:
        method: ``GET`` or ``POST``.
        target: path and query, beginning with ``/v3/``.
        body: sent as JSON, where there is one.
        after_seconds: how long to wait before it is sent.
        because: why to wait, for the log.
    """

    method: str
    target: str
    body: Mapping[str, Any] | None = None
    after_seconds: float = 0.0
    because: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer.

    Attributes:
        status_code: HTTP status.
        headers: with names in lower case.
        body: decoded from its Content-Encoding, and bounded by the driver.
        received_at: seconds since the epoch, to read headers that name a moment.
    """

    status_code: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    received_at: float


Conversation: TypeAlias = Generator[Request, Reply, T]


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and how long one question is asked.

    Attributes:
        tries: requests in all, at least 1.
        first_wait_seconds: wait before the second try where SendGrid names none; doubles each time.
        longest_wait_seconds: a longer wait, even one that SendGrid asks for, is not begun.
        slot_seconds: so long 429s are waited out, beyond the tries: hundreds of tasks may want the same few slots.
        jitter: answers numbers from 0 to 1; spreads the waits between half and all of their length.
    """

    tries: int = 6
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 120.0
    slot_seconds: float = 0.0
    jitter: Callable[[], float] = random.random

    def wait_seconds(self, tried: int) -> float:
        """How long to wait after `tried` requests, where SendGrid does not say."""
        full = min(self.first_wait_seconds * 2.0 ** (tried - 1), self.longest_wait_seconds)
        return full * (0.5 + self.jitter() / 2)


DEFAULT_PATIENCE = Patience()
START_PATIENCE = Patience(slot_seconds=600.0)

_MAX_PAGES = 1000
# An answer's errors go into logs and events: so many, and so many characters of each text.
_MAX_ERRORS = 20
_MAX_ERROR_CHARACTERS = 400
_GRACE_TRIES = 3


# What can be asked


def get_export(
    family: ExportFamily, export_id: str, patience: Patience = DEFAULT_PATIENCE
) -> Conversation[ContactExport]:
    """The status of one export.

    Source: "Export Contacts Status" and "Export recipients status". A 404 is asked again a few times: the id
    may be too new to be known everywhere (never seen, tolerated all the same).

    Raises:
        SendGridError: the export's status could not be had; the subclass says why.
        ValueError: `export_id` cannot be one: it is empty, or dots that a client would resolve in the path.
    """
    if (export_id or "").strip() in ("", ".", ".."):
        raise ValueError(f"export_id {export_id!r} is none: it must be the id that starting an export returned.")
    target = f"{FAMILIES[family].exports_path}/{quote(export_id, safe='')}"
    what = f"status of {family.value} export {export_id}"

    def read(payload: dict[str, Any], reply: Reply) -> ContactExport:
        return ContactExport.from_payload(payload, export_id=export_id, as_of=time_at_sendgrid(reply))

    return (yield from _ask(Request("GET", target), what, patience, read, also_retried=(404,)))


def list_exports(family: ExportFamily, patience: Patience = DEFAULT_PATIENCE) -> Conversation[list[ContactExport]]:
    """All exports in flight or recently completed, page by page; without counts and messages.

    Source: "Get All Existing Exports".
    """

    def read(item: Mapping[str, Any], reply: Reply) -> ContactExport:
        return ContactExport.from_payload(item, as_of=time_at_sendgrid(reply))

    return (yield from _all_pages(FAMILIES[family].exports_path, f"list of {family.value} exports", patience, read))


def get_lists(family: ExportFamily, patience: Patience = DEFAULT_PATIENCE) -> Conversation[list[dict[str, Any]]]:
    """All contact lists, as SendGrid describes them: ``id``, ``name`` and a count."""
    query = "?page_size=1000" if family is ExportFamily.MARKETING else ""
    path = FAMILIES[family].lists_path + query
    return (yield from _all_pages(path, f"{family.value} lists", patience, _as_it_is))


def get_segments(family: ExportFamily, patience: Patience = DEFAULT_PATIENCE) -> Conversation[list[dict[str, Any]]]:
    """All segments, as SendGrid describes them: ``id``, ``name`` and a count."""
    return (yield from _all_pages(FAMILIES[family].segments_path, f"{family.value} segments", patience, _as_it_is))


def get_scopes(patience: Patience = DEFAULT_PATIENCE) -> Conversation[list[str]]:
    """What the API key may do."""

    def read(payload: dict[str, Any], _reply: Reply) -> list[str]:
        return [str(scope) for scope in _items(payload, ("scopes",))]

    return (yield from _ask(Request("GET", "/v3/scopes"), "scopes of the API key", patience, read))


def start_export(
    family: ExportFamily, selection: ExportSelection, patience: Patience = START_PATIENCE
) -> Conversation[str]:
    """Start an export and return its id.

    Source: "Export Contacts" and "Export Recipients", answered 202.

    Raises:
        SendGridError: it was not started, or, where ``may_have_been_accepted`` is set, nobody knows.
        ValueError: an argument cannot be right.
    """
    request = Request("POST", FAMILIES[family].exports_path, selection.to_payload(family))

    def read(payload: dict[str, Any], _reply: Reply) -> str:
        export_id = payload.get("id")
        if not isinstance(export_id, str) or not export_id:
            raise SendGridServerError(
                f"start of a {family.value} export: SendGrid accepted it without naming its id; "
                "look for it in the list of exports before you start another.",
                status_code=202,
                may_have_been_accepted=True,
            )
        return export_id

    return (yield from _ask(request, f"start of a {family.value} export", patience, read))


# How it is asked, again and again


def _ask(
    request: Request,
    what: str,
    patience: Patience,
    read: Callable[[dict[str, Any], Reply], T],
    also_retried: tuple[int, ...] = (),
) -> Conversation[T]:
    """Send `request` until a response can be read.

    Args:
        request: what to send.
        what: names the operation in messages.
        patience: how often, and how long.
        read: the result of a JSON object and its response; raises `SendGridServerError` where it cannot be right, which
            is repeated like any other broken response.
        also_retried: client errors that are repeated a few times.
    """
    tried, waited_for_slot = 0, 0.0
    while True:
        tried += 1
        try:
            reply = yield request
            return read(_json_object(reply, what, request), reply)
        except SendGridError as error:
            is_for_slot = isinstance(error, SendGridRateLimitError) and waited_for_slot < patience.slot_seconds
            if is_for_slot:  # the tries are not used up by those who were faster
                tried = min(tried, patience.tries - 1)
            wait = _wait_before_retry(error, tried, patience, also_retried)
            if wait is None:
                raise
            waited_for_slot += wait if is_for_slot else 0.0
            request = replace(request, after_seconds=wait, because=str(error))


def _wait_before_retry(
    error: SendGridError, tried: int, patience: Patience, also_retried: tuple[int, ...]
) -> float | None:
    """Seconds to wait before the next try, None where there must be none."""
    status = error.status_code or 0
    is_refused = 400 <= status < 500 and status not in (429, *also_retried)
    tries = min(patience.tries, _GRACE_TRIES) if status in also_retried else patience.tries
    if is_refused or error.may_have_been_accepted or tried >= tries:
        return None
    wait = patience.wait_seconds(tried)
    asked = error.retry_after_seconds if isinstance(error, SendGridRateLimitError) else None
    if asked is None:
        return wait
    # A little later than asked and not all at once: others wait for the same moment. Never sooner than of our
    # own accord: a moment that seems past may be still to come, our clock may be ahead of SendGrid's.
    wait = max(wait, asked + patience.jitter() * min(1.0 + asked / 10, 5.0))
    return wait if asked <= patience.longest_wait_seconds else None


def _all_pages(
    target: str, what: str, patience: Patience, read: Callable[[Mapping[str, Any], Reply], T]
) -> Conversation[list[T]]:
    """Follow ``_metadata.next`` to the end; its host is never used, so the key cannot be sent elsewhere."""

    def read_page(payload: dict[str, Any], reply: Reply) -> tuple[list[T], str | None]:
        items = [item for item in _items(payload, _LISTS) if isinstance(item, dict)]
        return [read(item, reply) for item in items], _next_target(payload)

    found: list[T] = []
    path, asked = urlsplit(target).path, set[str]()
    while target not in asked:
        asked.add(target)
        if len(asked) > _MAX_PAGES:
            raise SendGridServerError(f"{what}: more than {_MAX_PAGES} pages; this cannot be right.")
        page, following = yield from _ask(Request("GET", target), what, patience, read_page)
        found += page
        if following is None:
            return found
        if following.partition("?")[0] != path:
            raise SendGridServerError(f"{what}: the next page is not one of the same list; nothing was read.")
        target = following
    raise SendGridServerError(f"{what}: its pages go round in a circle.")


def _as_it_is(item: Mapping[str, Any], _reply: Reply) -> dict[str, Any]:
    return dict(item)


# The names under which SendGrid's listings keep their items.
_LISTS = ("result", "results", "lists", "segments")


def _items(payload: Mapping[str, Any], names: tuple[str, ...]) -> list[Any]:
    return next((payload[name] for name in names if isinstance(payload.get(name), list)), [])


def _next_target(payload: Mapping[str, Any]) -> str | None:
    """Path and query of the next page, empty where its URL cannot be read, None where there is none."""
    metadata = payload.get("_metadata") or payload.get("Metadata")
    following = metadata.get("next") if isinstance(metadata, Mapping) else None
    if not isinstance(following, str) or not following:
        return None
    try:
        parts = urlsplit(following)
    except ValueError:
        return ""
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


# How an answer is read


def _json_object(reply: Reply, what: str, request: Request) -> dict[str, Any]:
    if not 200 <= reply.status_code < 300:
        raise error_of(reply, what, may_have_been_accepted=request.method == "POST")
    try:
        payload = json.loads(reply.body)
    except (ValueError, RecursionError):
        payload = None
    if not isinstance(payload, dict):
        raise SendGridServerError(
            f"{what}: SendGrid answered {reply.status_code} with something that is not a JSON object "
            f"({len(reply.body)} bytes); is a proxy or a login page in between? Check the connection's host.",
            status_code=reply.status_code,
            may_have_been_accepted=request.method == "POST",
        )
    return payload


_ERRORS: dict[int, tuple[type[SendGridError], str]] = {
    400: (SendGridBadRequestError, "Mend the arguments: ids belong to one family, sizes are in MB."),
    401: (
        SendGridAuthError,
        "Check the API key in the connection's password: it begins with 'SG.'; the key's ID is not the key.",
    ),
    403: (
        SendGridPermissionError,
        (
            "One of three causes: the key lacks the scope (marketing.read for family='marketing', "
            "marketing_campaigns.read for family='legacy'); the account is on the other product, so the "
            "other family; or IP Access Management blocks this address."
        ),
    ),
    404: (
        SendGridNotFoundError,
        "Check the id, the family ('marketing' or 'legacy'), the region and the account of the connection.",
    ),
    429: (SendGridRateLimitError, "Poll less often, or run fewer tasks on this account at once."),
}
_SERVER_ERROR = (SendGridServerError, "SendGrid has a problem; try again later.")
_UNEXPECTED = (SendGridServerError, "Check the connection's host: this is not an answer of SendGrid's API.")


def error_of(reply: Reply, what: str, *, may_have_been_accepted: bool = False) -> SendGridError:
    """The exception for an answer that is no success, with SendGrid's messages and what to do next."""
    status = reply.status_code
    error_class, next_step = _ERRORS.get(status, _SERVER_ERROR if status >= 500 else _UNEXPECTED)
    errors = _errors(reply.body)
    said = "; ".join(_said(error) for error in errors) or "no message"
    error = error_class(
        f"{what}: SendGrid answered {status} ({said}). {next_step}",
        status_code=status,
        errors=errors,
        may_have_been_accepted=may_have_been_accepted and not 400 <= status < 500,
    )
    if isinstance(error, SendGridRateLimitError):
        error.retry_after_seconds = rate_limit_wait_seconds(reply)
    return error


def _errors(body: bytes) -> list[dict[str, Any]]:
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        return []
    errors = payload.get("errors") if isinstance(payload, dict) else None
    found = [error for error in errors if isinstance(error, dict)] if isinstance(errors, list) else []
    return [
        {key: _bounded(value) for key, value in error.items() if value is not None} for error in found[:_MAX_ERRORS]
    ]


def _bounded(value: Any) -> Any:
    text = str(value)
    return value if len(text) <= _MAX_ERROR_CHARACTERS else f"{text[:_MAX_ERROR_CHARACTERS]}…"


def _said(error: Mapping[str, Any]) -> str:
    message = error.get("message", "no message")
    place = error.get("field") or error.get("parameter")
    return f"{place}: {message}" if place else message


def time_at_sendgrid(reply: Reply) -> datetime:
    """When SendGrid sent the response: its ``Date`` header; this machine's clock where there is none."""
    try:
        date = parsedate_to_datetime(reply.headers.get("date", ""))
    except (ValueError, TypeError, OverflowError):
        return datetime.fromtimestamp(reply.received_at, tz=timezone.utc)
    return date if date.tzinfo else date.replace(tzinfo=timezone.utc)


def rate_limit_wait_seconds(reply: Reply) -> float | None:
    """How long SendGrid asks to wait: ``Retry-After``, else ``X-RateLimit-Reset``, else None.

    Both meanings of Reset have been seen: above 1e9 it is an epoch, below it is seconds to go.
    """
    retry_after = reply.headers.get("retry-after", "")
    number = _number(retry_after)
    if number is not None:
        return number
    try:
        date = parsedate_to_datetime(retry_after)
        # HTTP's dates are UTC, those too that name no zone.
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=timezone.utc)).timestamp() - reply.received_at)
    except (ValueError, TypeError, OverflowError):
        pass
    reset = _number(reply.headers.get("x-ratelimit-reset", ""))
    if reset is not None and reset > 1e9:
        return max(0.0, reset - reply.received_at)
    return reset


class RateLimit:
    """What SendGrid said of its limit last, so that nobody has to be refused to learn of it."""

    def __init__(self) -> None:
        self._remaining: float | None = None
        self._resets_at = 0.0

    def note(self, reply: Reply) -> None:
        """Remember an answer's ``X-RateLimit-Remaining`` and ``X-RateLimit-Reset``, where it has them."""
        self._remaining = _number(reply.headers.get("x-ratelimit-remaining", ""))
        self._resets_at = reply.received_at + (rate_limit_wait_seconds(reply) or 0.0)

    def wait_seconds(self, now: float) -> float:
        """How long to wait before the next request; 0 where one is left, or where SendGrid never said."""
        if self._remaining is None or self._remaining >= 1:
            return 0.0
        return min(max(0.0, self._resets_at - now), DEFAULT_PATIENCE.longest_wait_seconds)

    def spare(self, now: float) -> float:
        """Requests that are left in this window; infinite where SendGrid never said."""
        if self._remaining is None or now >= self._resets_at:
            return float("inf")
        return self._remaining


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 <= number < float("inf") else None
