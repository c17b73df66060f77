"""What to ask SendGrid and how to read its answer; when to ask again and when to give up.

Knows methods, paths, statuses, headers and bodies. Knows no socket and no clock: each function is a
generator that yields a `Request`, is sent the `Reply`, and returns its result. A network failure is thrown
into it as `SendGridUnavailableError`, so the rules for trying again stand here once, for requests and httpx.

Rules: GET is repeated on 429, 5xx, broken responses and network failures. POST is repeated only if it was certainly
not accepted (SendGrid's own 403, 429, or no connection was made), because SendGrid has no idempotency key. A 403 is
repeated a few times only: SendGrid sometimes refuses one request among good ones.

A response of unknown shape is a broken response, never an empty result.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from itertools import islice
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote, urlsplit

from airflow_provider_sendgrid.backoff import backoff_seconds
from airflow_provider_sendgrid.exceptions import (
    SendGridAuthError,
    SendGridBadRequestError,
    SendGridError,
    SendGridNotFoundError,
    SendGridPermissionError,
    SendGridRateLimitError,
    SendGridServerError,
    redact,
)
from airflow_provider_sendgrid.exports.export import (
    FAMILIES,
    READY,
    ContactExport,
    ExportFamily,
    ExportSelection,
    UnreadableError,
)

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
        on_behalf_of: the subuser that the request acted for, for messages.
    """

    status_code: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    received_at: float
    on_behalf_of: str | None = None


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
        seconds_left: until the caller's deadline; a longer wait is not begun either.
    """

    tries: int = 6
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 120.0
    slot_seconds: float = 0.0
    jitter: Callable[[], float] = random.random
    seconds_left: Callable[[], float] = field(default=lambda: math.inf, repr=False)

    def wait_seconds(self, tried: int) -> float:
        """How long to wait after `tried` requests, where SendGrid does not say."""
        return backoff_seconds(tried, self.first_wait_seconds, self.longest_wait_seconds, self.jitter())


DEFAULT_PATIENCE = Patience()
START_PATIENCE = Patience(slot_seconds=600.0)

_MAX_PAGES = 1000
# An answer's errors go into logs and events: so many, and so many characters of each text.
_MAX_ERRORS = 20
_MAX_ERROR_CHARACTERS = 400
# Tries in all for a refusal that may pass: a stray 403, and the 404 of an id that is new.
_GRACE_TRIES = 3
# No wait that SendGrid asks for is longer: larger values are garbage.
_MAX_ASKED_SECONDS = 86_400.0
# Quotes and brackets show that something else was rendered as text.
_ID = re.compile(r"[^\s\"'\[\](){}<>,]{1,200}")
_NO_IDS = frozenset({"none", "null", "undefined", "nil", "nan", "0"})
# No window of a rate limit is longer: what is left of it would stop all requests for as long.
_MAX_WINDOW_SECONDS = 120.0
# What one response says of an export is checked after so long, where one is not enough.
SECOND_LOOK_SECONDS = 5.0


# What can be asked


def is_empty(export: ContactExport) -> bool:
    """Whether SendGrid calls it ready with a count of 0 and names no files."""
    return export.status == READY and not export.urls and export.contact_count == 0


def get_export(
    family: ExportFamily,
    export_id: str,
    patience: Patience = DEFAULT_PATIENCE,
    *,
    is_doubtful: Callable[[ContactExport], bool] = is_empty,
) -> Conversation[ContactExport]:
    """The status of one export.

    Source: "Export Contacts Status" and "Export recipients status". A 404 is repeated a few times: a new id may not be
    known everywhere yet.

    Args:
        family: of the export.
        export_id: its id.
        patience: how often, and how long.
        is_doubtful: such an export is requested once more after 5 seconds, and the second response counts. Usually one
            that is ready with a count of 0 and no URLs: both may be filled in a moment after the status.

    Raises:
        SendGridError: the status could not be fetched; the subclass says why.
        ValueError: `export_id` cannot be an id: it is empty, or dots that a client would resolve in the path.
    """
    if (export_id or "").strip() in ("", ".", ".."):
        raise ValueError(f"export_id {export_id!r} is none: it must be the id that starting an export returned.")
    request = Request("GET", f"{FAMILIES[family].exports_path}/{quote(export_id, safe='')}")
    what = f"status of {family.value} export {export_id}"

    def read(payload: dict[str, Any], response: Reply) -> ContactExport:
        return ContactExport.from_status(payload, export_id=export_id, as_of=time_at_sendgrid(response))

    export = yield from _ask(request, what, patience, read, also_retried=(404,))
    if not is_doubtful(export):
        return export
    seen = "ready with a count of 0 and no files" if is_empty(export) else "expired"
    because = f"{what}: {seen}, by one response. Checking once more before that counts."
    again = replace(request, after_seconds=SECOND_LOOK_SECONDS, because=because)
    return (yield from _ask(again, what, patience, read, also_retried=(404,)))


def list_exports(family: ExportFamily, patience: Patience = DEFAULT_PATIENCE) -> Conversation[list[ContactExport]]:
    """All exports in flight or recently completed, page by page; without counts and messages.

    Source: "Get All Existing Exports".
    """

    def read(entry: Mapping[str, Any], response: Reply) -> ContactExport:
        return ContactExport.from_entry(entry, as_of=time_at_sendgrid(response))

    return (yield from _all_pages(_exports_listing(family), patience, read))


def get_lists(family: ExportFamily, patience: Patience = DEFAULT_PATIENCE) -> Conversation[list[dict[str, Any]]]:
    """All contact lists, as SendGrid describes them: ``id``, ``name`` and a count."""
    query = "?page_size=1000" if family is ExportFamily.MARKETING else ""
    keys = ("result", "results", "lists")
    listing = _Listing(FAMILIES[family].lists_path + query, f"{family.value} lists", keys, counts_all=True)
    return (yield from _all_pages(listing, patience, _as_dict))


def get_segments(family: ExportFamily, patience: Patience = DEFAULT_PATIENCE) -> Conversation[list[dict[str, Any]]]:
    """All segments, as SendGrid describes them: ``id``, ``name`` and a count.

    The marketing family's are those of the segments API 2.0; see `get_first_segments` for older ones.
    """
    listing = _Listing(FAMILIES[family].segments_path, f"{family.value} segments", _SEGMENT_KEYS)
    return (yield from _all_pages(listing, patience, _as_dict))


def get_first_segments(
    family: ExportFamily, patience: Patience = DEFAULT_PATIENCE
) -> Conversation[list[dict[str, Any]]]:
    """All segments that were made with the first segments API; none in a family that has one API only."""
    path = FAMILIES[family].first_segments_path
    if path is None:
        return []
    listing = _Listing(path, f"{family.value} segments of the first API", _SEGMENT_KEYS)
    return (yield from _all_pages(listing, patience, _as_dict))


def get_scopes(patience: Patience = DEFAULT_PATIENCE) -> Conversation[list[str]]:
    """What the API key may do."""

    def read(payload: dict[str, Any], _response: Reply) -> list[str]:
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

    def read(payload: dict[str, Any], _response: Reply) -> str:
        if (export_id := _usable_id(payload.get("id"))) is None:
            raise UnreadableError("it has no usable id")
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
        read: the result of a JSON object and its response; raises `UnreadableError`, with the reason, if the response
            cannot be right: it is repeated like any other broken response.
        also_retried: client errors that are repeated a few times.
    """
    tried, graces, waited_for_slot = 0, 0, 0.0
    passing = {403, *also_retried}
    while True:
        tried += 1
        try:
            response = yield request
            return _read(read, response, what, request)
        except SendGridError as error:
            is_for_slot = isinstance(error, SendGridRateLimitError) and waited_for_slot < patience.slot_seconds
            if is_for_slot:  # requests of other tasks that were faster do not use up the tries
                tried = min(tried, patience.tries - 1)
            graces += error.status_code in passing
            is_final = error.status_code in passing and graces >= _GRACE_TRIES
            wait = None if is_final else _wait_before_retry(error, tried, patience, passing)
            if wait is None:
                raise
            waited_for_slot += wait if is_for_slot else 0.0
            request = replace(request, after_seconds=wait, because=str(error))


def _read(read: Callable[[dict[str, Any], Reply], T], response: Reply, what: str, request: Request) -> T:
    payload = _json_object(response, what, request)
    try:
        return read(payload, response)
    except UnreadableError as reason:
        raise _broken(f"{what}: SendGrid answered {response.status_code}, but {reason}.", response, request) from None


def _broken(message: str, response: Reply, request: Request) -> SendGridServerError:
    """The error for a success that cannot be read."""
    is_start = request.method == "POST"
    next_step = (
        "Look for the export in the list of exports before you start another."
        if is_start
        else "Run the task again; if it fails again, check the connection's host and proxy."
    )
    error = SendGridServerError(
        f"{message} {next_step}", status_code=response.status_code, may_have_been_accepted=is_start
    )
    error.retry_after_seconds = _pause_seconds(response)
    return error


def _wait_before_retry(error: SendGridError, tried: int, patience: Patience, passing: Collection[int]) -> float | None:
    """Seconds to wait before the next try, None if there must be none."""
    status = error.status_code or 0
    is_refused = 400 <= status < 500 and status not in (429, *passing)
    if is_refused or error.may_have_been_accepted or tried >= patience.tries:
        return None
    wait = patience.wait_seconds(tried)
    asked = error.retry_after_seconds
    if asked is None:
        return wait if wait < patience.seconds_left() else None
    # A little later than asked and not all at once: others wait for the same moment. Never sooner than without the
    # header: it may name a moment that has passed.
    wait = max(wait, asked + patience.jitter() * min(1.0 + asked / 10, 5.0))
    return wait if asked <= patience.longest_wait_seconds and wait < patience.seconds_left() else None


@dataclass(frozen=True, slots=True)
class _Listing:
    """A listing: where it is, what it is called in messages, and the keys that may hold its entries.

    `counts_all`: SendGrid documents that ``_metadata.count`` is the number of entries on all pages.
    """

    target: str
    what: str
    keys: tuple[str, ...]
    counts_all: bool = False


_SEGMENT_KEYS = ("results", "result", "segments")


def _exports_listing(family: ExportFamily) -> _Listing:
    return _Listing(FAMILIES[family].exports_path, f"list of {family.value} exports", ("result", "results", "exports"))


def _all_pages(
    listing: _Listing, patience: Patience, read: Callable[[Mapping[str, Any], Reply], T]
) -> Conversation[list[T]]:
    """Follow ``_metadata.next`` to the end; its host is never used, so the key cannot be sent elsewhere.

    An entry that is on two pages, because others were added or removed meanwhile, is returned once.
    """
    found: dict[str, T] = {}
    least_count = math.inf

    def read_page(payload: dict[str, Any], response: Reply) -> tuple[dict[str, T], str | None, float]:
        if response.status_code != HTTPStatus.OK:
            raise UnreadableError("a complete listing comes with 200")
        entries = _items(payload, listing.keys)
        page = {_id_of_entry(entry): read(entry, response) for entry in entries}
        following, count = _next_target(payload), min(least_count, _count_of(payload))
        if following is None:
            _check_count(len(found | page), count, listing)
        return page, following, count

    target, path, asked = listing.target, urlsplit(listing.target).path, set[str]()
    while target not in asked:
        asked.add(target)
        if len(asked) > _MAX_PAGES:
            raise SendGridServerError(f"{listing.what}: more than {_MAX_PAGES} pages; this cannot be right.")
        page, following, least_count = yield from _ask(Request("GET", target), listing.what, patience, read_page)
        found |= page
        if following is None:
            return list(found.values())
        if following.partition("?")[0] != path:
            raise SendGridServerError(f"{listing.what}: the next page is not one of the same list; nothing was read.")
        target = following
    raise SendGridServerError(f"{listing.what}: its pages form a circle.")


def _check_count(entries: int, count: float, listing: _Listing) -> None:
    is_short = math.isfinite(count) and entries < count
    if is_short and (listing.counts_all or not entries):
        raise UnreadableError(f"it has {entries} entries and counts {count:.0f}")


def _as_dict(entry: Mapping[str, Any], _response: Reply) -> dict[str, Any]:
    return dict(entry)


def _items(payload: Mapping[str, Any], keys: tuple[str, ...]) -> list[Any]:
    """The entries of a listing, under the one key that holds a list.

    Raises:
        UnreadableError: no key does, or several do; or the response holds errors.
    """
    if payload.get("errors") or payload.get("error"):
        raise UnreadableError(f"it holds errors ({_joined(_errors_in(payload))})")
    lists = [value for key in keys if isinstance(value := payload.get(key), list)]
    if len(lists) == 1:
        return lists[0]
    if lists:
        raise UnreadableError(f"several of {', '.join(keys)} hold a list")
    odd = [f"{key!r} is {'null' if payload[key] is None else 'not a list'}" for key in keys if key in payload]
    raise UnreadableError(" and ".join(odd) or f"it has none of the keys {', '.join(map(repr, keys))}")


def _id_of_entry(entry: Any) -> str:
    if not isinstance(entry, Mapping):
        raise UnreadableError("an entry is not an object")
    if (entry_id := _usable_id(entry.get("id"))) is None:
        raise UnreadableError("an entry has no id")
    return entry_id


def _usable_id(value: Any) -> str | None:
    """`value` as an id: a text without blanks, or a whole number; None if it is neither."""
    text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    is_usable = _ID.fullmatch(text) and text.isprintable() and text.casefold() not in _NO_IDS
    return text if is_usable and text.strip(".") else None


def _metadata(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata = payload.get("_metadata") or payload.get("Metadata") or {}
    if not isinstance(metadata, Mapping):
        raise UnreadableError("its '_metadata' is not an object")
    return metadata


def _count_of(payload: Mapping[str, Any]) -> float:
    count = _metadata(payload).get("count")
    if isinstance(count, int | float) and not isinstance(count, bool) and 0 <= count < 1e15:
        return count
    return math.inf


def _next_target(payload: Mapping[str, Any]) -> str | None:
    """Path and query of the next page, empty if its URL cannot be read, None if there is none."""
    following = _metadata(payload).get("next")
    if following in (None, ""):
        return None
    if not isinstance(following, str):
        raise UnreadableError("its '_metadata.next' is not a text")
    try:
        parts = urlsplit(following)
    except ValueError:
        return ""
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


# How a response is read


# Successes whose body is the whole response.
_READABLE = range(200, 204)


def _json_object(response: Reply, what: str, request: Request) -> dict[str, Any]:
    if not 200 <= response.status_code < 300:
        raise error_from_response(response, what, request)
    try:
        payload = json.loads(response.body) if response.status_code in _READABLE else None
    except (ValueError, RecursionError):
        payload = None
    if not isinstance(payload, dict):
        raise _broken(
            f"{what}: SendGrid answered {response.status_code} with something that is not a JSON object "
            f"({len(response.body)} bytes); is a proxy or a login page in between?",
            response,
            request,
        )
    return payload


# Gateways send 408 when the response takes too long, and statuses of their own, such as 499.
_REFUSALS = frozenset(range(400, 500)).intersection(HTTPStatus) - {HTTPStatus.REQUEST_TIMEOUT}
_REGIONS = "region 'global' (api.sendgrid.com) or 'eu' (api.eu.sendgrid.com)"
LEGACY_EXPORTS = (
    "Legacy exports exist only on accounts that SendGrid upgraded in 2025, one account after another; lists may work "
    "without them."
)
_SERVER_ERROR = (SendGridServerError, "SendGrid has a problem; try again later.")
_UNEXPECTED = (
    SendGridServerError,
    "Check the connection's host and proxy: this is not a response of SendGrid's API.",
)
_BAD_REQUEST = (SendGridBadRequestError, "Correct the arguments: ids belong to one family, sizes are in MB.")
# Where SendGrid's own errors come with them; without, they are not SendGrid's.
_ERRORS_OF_SENDGRID: dict[int, tuple[type[SendGridError], str]] = {
    402: (SendGridBadRequestError, "Check that the account's plan is paid and includes Marketing Campaigns."),
    409: (
        SendGridBadRequestError,
        "It conflicts with something else on the account: look for it in SendGrid's message.",
    ),
    422: _BAD_REQUEST,
}
_ERRORS: dict[int, tuple[type[SendGridError], str]] = {
    400: _BAD_REQUEST,
    401: (
        SendGridAuthError,
        (
            "Check the API key in the connection's password: it begins with 'SG.'; the key's ID is not the key. A key "
            f"works in its account's region only: check that the connection names it, {_REGIONS}."
        ),
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
    407: (
        SendGridAuthError,
        "A proxy asks for a user and a password: put both into the proxy's URL, in the connection or in HTTPS_PROXY.",
    ),
    413: (SendGridBadRequestError, "The request is too large: name fewer lists and segments."),
    429: (SendGridRateLimitError, "Poll less often, or run fewer tasks on this account at once."),
    451: (
        SendGridPermissionError,
        "Blocked for legal reasons, by SendGrid or a proxy: ask SendGrid's support or your network's administrators.",
    ),
}
# What SendGrid says with a 400 when the arguments are not the reason.
_LACKS_PERMISSION = re.compile(
    r"authori[sz]ation required|(not |un)authori[sz]ed|permission (denied|required)|(lacks?|no|insufficient) permission"
    r"|access (denied|forbidden)|^forbidden",
    re.IGNORECASE,
)
_OF_A_PROXY = (
    "A proxy on the way probably refused this, not SendGrid: ask its administrators to allow the connection's host."
)
_PLAN_OR_PERMISSION = (
    "The account's plan or the key's permission is missing: check that the plan includes Marketing Campaigns, and that "
    "the key has the scope marketing.read (family='marketing') or marketing_campaigns.read (family='legacy')."
)


def error_from_response(response: Reply, what: str, request: Request) -> SendGridError:
    """The exception for a response that is no success, with SendGrid's messages and the next step."""
    status = response.status_code
    errors = _errors(response.body)
    said = _joined(errors) or ("an HTML page" if _is_html(response) else "no message")
    known = _ERRORS | _ERRORS_OF_SENDGRID if _is_sendgrids(response) else _ERRORS
    error_class, usual_step = known.get(status, _SERVER_ERROR if status >= 500 else _UNEXPECTED)
    next_step = _next_step(response, request, errors, usual_step)
    error = error_class(
        f"{what}: SendGrid answered {status} ({said}). {next_step}",
        status_code=status,
        errors=errors,
        may_have_been_accepted=request.method == "POST" and not _is_surely_refused(response),
    )
    error.retry_after_seconds = _pause_seconds(response)
    error.is_of_proxy = 400 <= status < 500 and (status == 407 or _is_of_a_proxy(response))
    return error


def is_refusal(status: int | None) -> bool:
    """Whether a status means that the request is not carried out, if SendGrid itself sent it."""
    return status in _REFUSALS


def _is_surely_refused(response: Reply) -> bool:
    """Whether SendGrid did not carry the request out.

    A proxy may refuse a response as well as a request, so its refusals leave that open, except of those that it sends
    before it forwards anything.
    """
    status = response.status_code
    return is_refusal(status) and (status in (407, 429) or not _is_of_a_proxy(response))


def _next_step(response: Reply, request: Request, errors: Sequence[Mapping[str, Any]], usual_step: str) -> str:
    """What to do about an error; `usual_step` unless the response or the request says more than the status."""
    status = response.status_code
    is_by_id = request.target.rpartition("/")[0] in [traits.exports_path for traits in FAMILIES.values()]
    if 300 <= status < 400:
        return _redirect_step(response)
    if status in (400, 401, 403, 404) and _is_html(response):
        return _UNEXPECTED[1]  # a proxy sent it
    if status == 403 and _is_of_a_proxy(response):
        return _OF_A_PROXY
    if status == 400 and any(_is_about_permission(error) for error in errors):
        return _PLAN_OR_PERMISSION
    if status in (400, 401, 403) and response.on_behalf_of:
        usual_step = (
            f"The connection acts for the subuser {response.on_behalf_of!r} (on_behalf_of): check that it exists, and "
            f"that the key's account may act for it. Otherwise: {usual_step}"
        )
    if status == 404 and not is_by_id:
        usual_step = "Check the family ('marketing' or 'legacy'), the region and the account of the connection."
    if status in (403, 404) and request.target == FAMILIES[ExportFamily.LEGACY].exports_path:
        return f"{LEGACY_EXPORTS} Otherwise: {usual_step}"
    return usual_step


def _is_about_permission(error: Mapping[str, Any]) -> bool:
    """Whether the reason is not an argument: SendGrid names the argument, and quotes what is wrong with it."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "", str(error.get("message", "")))
    return not (error.get("field") or error.get("parameter")) and _LACKS_PERMISSION.search(text) is not None


def _is_sendgrids(response: Reply) -> bool:
    """Whether the body is JSON that holds an error, as SendGrid's do."""
    return _is_json(response) and bool(_errors(response.body))


def _is_of_a_proxy(response: Reply) -> bool:
    """Whether a proxy seems to have refused: it says so, or the body is a text, which SendGrid does not send."""
    is_text = bool(response.body.strip()) and not _is_json(response)
    return "x-squid-error" in response.headers or is_text or ("via" in response.headers and not _is_sendgrids(response))


def _is_json(response: Reply) -> bool:
    try:
        json.loads(response.body)
    except (ValueError, RecursionError):
        return False
    return True


def _redirect_step(response: Reply) -> str:
    try:
        parts = urlsplit(response.headers.get("location", ""))
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "The address is not a URL, and redirects are not followed. Check the connection's host."
    where = f"to {parts.scheme or 'https'}://{parts.hostname}{port}" if parts.hostname else "to the same host"
    return (
        f"This is a redirect {where}. Redirects are not followed, so that the API key stays with its host. Check the "
        f"connection's host, or set {_REGIONS}."
    )


# Where an error's text may be; SendGrid's own key is the first.
_ERROR_KEYS = ("errors", "error", "message", "detail", "error_description", "title")
_KEYS_OF_AN_ERROR = {"message", "field", "parameter", "error_id", "help"}


def _errors(body: bytes) -> list[dict[str, Any]]:
    """SendGrid's errors, or whatever a response of another shape says; each has a ``message`` where there is one."""
    try:
        return _errors_in(json.loads(body))
    except (ValueError, RecursionError):
        text = body[: 8 * _MAX_ERROR_CHARACTERS].decode(errors="replace").strip("\ufeff\ufffd \r\n\t")
        is_text = text and not text.startswith(("<", "{", "[")) and "\ufffd" not in text
        return [{"message": _bounded(text)}] if is_text else []


def _errors_in(payload: Any) -> list[dict[str, Any]]:
    places = [payload.get(key) for key in _ERROR_KEYS] if isinstance(payload, Mapping) else [payload]
    errors = next((errors for place in places if (errors := _flat(place))), [])
    return [
        {str(_bounded(key)): _bounded(value) for key, value in islice(error.items(), _MAX_ERRORS)}
        for error in errors[:_MAX_ERRORS]
    ]


def _flat(value: Any, field_name: str | None = None, depth: int = 3) -> list[dict[str, Any]]:
    """Errors as objects, whether they are objects, texts, or texts by the name of a field."""
    place = {} if field_name is None else {"field": field_name}
    if isinstance(value, str):
        return [{**place, "message": value}] if value.strip() else []
    if isinstance(value, Mapping) and value.keys() & _KEYS_OF_AN_ERROR:
        known = {key: each for key, each in value.items() if each is not None}
        return [place | known] if known else []
    by_name = value.items() if isinstance(value, Mapping) else ((field_name, each) for each in _list(value))
    nested = islice(by_name, _MAX_ERRORS) if depth else ()
    return [error for name, each in nested for error in _flat(each, name, depth - 1)]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _bounded(value: Any) -> Any:
    """`value` if it is short, else its beginning; a text on one line, without secrets."""
    if not isinstance(value, str) and len(str(value)) <= _MAX_ERROR_CHARACTERS:
        return value
    printable = "".join(each if each.isprintable() else " " for each in str(value)[: 20 * _MAX_ERROR_CHARACTERS])
    text = redact(" ".join(printable.split()))
    return text if len(text) <= _MAX_ERROR_CHARACTERS else f"{text[:_MAX_ERROR_CHARACTERS]}…"


def _joined(errors: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(map(_said, errors))


def _said(error: Mapping[str, Any]) -> str:
    message = error.get("message", "no message")
    place = error.get("field") or error.get("parameter")
    return f"{place}: {message}" if place else str(message)


def _is_html(response: Reply) -> bool:
    kind = response.headers.get("content-type", "").lower()
    return "html" in kind or response.body.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html", b"<?xml"))


def time_at_sendgrid(response: Reply) -> datetime:
    """When SendGrid sent the response: its ``Date`` header; this machine's clock if there is none."""
    return date_of(response) or datetime.fromtimestamp(response.received_at, tz=timezone.utc)


def date_of(response: Reply) -> datetime | None:
    """The response's ``Date`` header; None without one, or if it is of a clock that was never set (1970)."""
    date = _http_date(response.headers.get("date", ""))
    return date if date and date.year > 1970 else None


def rate_limit_wait_seconds(response: Reply) -> float | None:
    """How long SendGrid asks to wait: ``Retry-After``, else ``X-RateLimit-Reset``, else None.

    A time is compared with the response's own ``Date`` header, so that this machine's clock does not matter.
    """
    asked = _retry_after_seconds(response)
    return _seconds_until(response.headers.get("x-ratelimit-reset", ""), response) if asked is None else asked


def _pause_seconds(response: Reply) -> float | None:
    """How long to wait after a response that is no result; a limit's reset counts where the limit is used up."""
    remaining = _number(response.headers.get("x-ratelimit-remaining", ""))
    is_used_up = response.status_code == 429 or (remaining is not None and remaining < 1)
    if (asked := _retry_after_seconds(response)) is not None or not is_used_up:
        return asked
    until_reset = rate_limit_wait_seconds(response)
    return None if until_reset is None else min(until_reset, _MAX_WINDOW_SECONDS)


def _retry_after_seconds(response: Reply) -> float | None:
    return _seconds_until(response.headers.get("retry-after", ""), response)


def _seconds_until(text: str, response: Reply) -> float | None:
    """Seconds to go, written as such, as an epoch (in seconds or milliseconds) or as an HTTP date.

    Both meanings of X-RateLimit-Reset have been seen: above 1e9 it is an epoch, below it is seconds to go.
    """
    if (seconds := _number(text)) is None:
        until = _http_date(text)
        if until is None:
            return None
        seconds = (until - time_at_sendgrid(response)).total_seconds()
    elif seconds > 1e9:
        epoch = seconds / 1000 if seconds > 1e11 else seconds
        seconds = epoch - time_at_sendgrid(response).timestamp()
    return min(max(0.0, seconds), _MAX_ASKED_SECONDS)


def _http_date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
        # HTTP's dates are UTC, also those that name no zone.
        return (date if date.tzinfo else date.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


class RateLimit:
    """The rate limit that SendGrid named last, so that no request has to be refused to learn of it."""

    def __init__(self) -> None:
        self._remaining: float | None = None
        self._resets_at = 0.0

    def note(self, response: Reply) -> None:
        """Remember ``X-RateLimit-Remaining`` and ``X-RateLimit-Reset``, if the response has them."""
        self._remaining = _number(response.headers.get("x-ratelimit-remaining", ""))
        window = min(rate_limit_wait_seconds(response) or 0.0, _MAX_WINDOW_SECONDS)
        self._resets_at = response.received_at + window

    def wait_seconds(self, now: float) -> float:
        """How long to wait before the next request; 0 where one is left, or where SendGrid never said."""
        return self._window_seconds(now) if self.spare(now) < 1 else 0.0

    def spare(self, now: float) -> float:
        """Requests that are left in this window; infinite where SendGrid never said."""
        return float("inf") if self._remaining is None or not self._window_seconds(now) else self._remaining

    def _window_seconds(self, now: float) -> float:
        """What is left of the window; 0 where that cannot be right, because the clock was set back."""
        left = self._resets_at - now
        return left if 0 < left <= _MAX_WINDOW_SECONDS else 0.0


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 <= number < float("inf") else None
