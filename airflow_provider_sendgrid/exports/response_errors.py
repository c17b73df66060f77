"""Translates error responses of SendGrid's API, and of proxies on the way, into exceptions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

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
from airflow_provider_sendgrid.exports.export import FAMILIES, ExportFamily
from airflow_provider_sendgrid.exports.messages import Request, Response
from airflow_provider_sendgrid.exports.rate_limits import retry_after_seconds

# Limits for logs and events.
_MAX_ERRORS = 20
_MAX_ERROR_CHARACTERS = 400
# Success statuses with a complete body.
_READABLE = range(200, 204)
# Without 408, which gateways send if the response takes too long, and without nonstandard ones such as 499.
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
# Only for responses with SendGrid's error body.
_ERRORS_FROM_SENDGRID: dict[int, tuple[type[SendGridError], str]] = {
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
# Messages that SendGrid sends with a 400 although the arguments are not the reason.
_LACKS_PERMISSION = re.compile(
    r"authori[sz]ation required|(not |un)authori[sz]ed|permission (denied|required)|(lacks?|no|insufficient) permission"
    r"|access (denied|forbidden)|^forbidden",
    re.IGNORECASE,
)
_PROXY_REFUSED = (
    "A proxy on the way probably refused this, not SendGrid: ask its administrators to allow the connection's host."
)
_PLAN_OR_PERMISSION = (
    "The account's plan or the key's permission is missing: check that the plan includes Marketing Campaigns, and that "
    "the key has the scope marketing.read (family='marketing') or marketing_campaigns.read (family='legacy')."
)


def parse_json_object(response: Response, operation: str, request: Request) -> dict[str, Any]:
    """The JSON object in a successful response.

    Args:
        response: to `request`.
        operation: its name in messages.
        request: that was sent.

    Raises:
        SendGridError: see `error_from_response`; `SendGridServerError` for a success without a JSON object.
    """
    if not 200 <= response.status_code < 300:
        raise error_from_response(response, operation, request)
    try:
        payload = json.loads(response.body) if response.status_code in _READABLE else None
    except (ValueError, RecursionError):
        payload = None
    if not isinstance(payload, dict):
        raise unreadable_response_error(
            f"{operation}: SendGrid answered {response.status_code} with something that is not a JSON object "
            f"({len(response.body)} bytes); is a proxy or a login page in between?",
            response,
            request,
        )
    return payload


def unreadable_response_error(message: str, response: Response, request: Request) -> SendGridServerError:
    """The exception for a successful response that cannot be parsed."""
    is_start = request.method == "POST"
    next_step = (
        "Look for the export in the list of exports before you start another."
        if is_start
        else "Run the task again; if it fails again, check the connection's host and proxy."
    )
    error = SendGridServerError(
        f"{message} {next_step}", status_code=response.status_code, may_have_been_accepted=is_start
    )
    error.retry_after_seconds = retry_after_seconds(response)
    return error


def error_from_response(response: Response, operation: str, request: Request) -> SendGridError:
    """The exception for an error response, with SendGrid's messages and the next step."""
    status = response.status_code
    errors = _parse_error_body(response.body)
    text = join_errors(errors) or ("an HTML page" if _is_html(response) else "no message")
    known = _ERRORS | _ERRORS_FROM_SENDGRID if _is_from_sendgrid(response) else _ERRORS
    error_class, usual_step = known.get(status, _SERVER_ERROR if status >= 500 else _UNEXPECTED)
    next_step = _next_step(response, request, errors, usual_step)
    error = error_class(
        f"{operation}: SendGrid answered {status} ({text}). {next_step}",
        status_code=status,
        errors=errors,
        may_have_been_accepted=request.method == "POST" and not _is_certainly_refused(response),
    )
    error.retry_after_seconds = retry_after_seconds(response)
    error.is_of_proxy = 400 <= status < 500 and (status == 407 or _is_from_proxy(response))
    return error


def is_refusal(status: int | None) -> bool:
    """Whether a status means that the request was not processed, if SendGrid itself sent it."""
    return status in _REFUSALS


def _is_certainly_refused(response: Response) -> bool:
    """Whether SendGrid did not process the request.

    A proxy may refuse the response instead of the request. Therefore its refusals prove nothing, except for statuses
    that it sends before it forwards a request.
    """
    status = response.status_code
    return is_refusal(status) and (status in (407, 429) or not _is_from_proxy(response))


def _next_step(response: Response, request: Request, errors: Sequence[Mapping[str, Any]], usual_step: str) -> str:
    """What to do about an error: `usual_step`, unless response and request show more than the status."""
    status = response.status_code
    is_by_id = request.target.rpartition("/")[0] in [traits.exports_path for traits in FAMILIES.values()]
    if 300 <= status < 400:
        return _redirect_step(response)
    if status in (400, 401, 403, 404) and _is_html(response):
        return _UNEXPECTED[1]
    if status == 403 and _is_from_proxy(response):
        return _PROXY_REFUSED
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
    """Whether the reason is a permission. If it is an argument, SendGrid names it and quotes its value."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "", str(error.get("message", "")))
    return not (error.get("field") or error.get("parameter")) and _LACKS_PERMISSION.search(text) is not None


def _is_from_sendgrid(response: Response) -> bool:
    """Whether the body is JSON with errors, as SendGrid sends it."""
    return _is_json(response) and bool(_parse_error_body(response.body))


def _is_from_proxy(response: Response) -> bool:
    """Whether a proxy probably sent the response: its headers show it, or a body of plain text."""
    is_text = bool(response.body.strip()) and not _is_json(response)
    return (
        "x-squid-error" in response.headers
        or is_text
        or ("via" in response.headers and not _is_from_sendgrid(response))
    )


def _is_json(response: Response) -> bool:
    try:
        json.loads(response.body)
    except (ValueError, RecursionError):
        return False
    return True


def _redirect_step(response: Response) -> str:
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


# The keys that may hold errors; SendGrid uses the first.
_ERROR_KEYS = ("errors", "error", "message", "detail", "error_description", "title")
_ERROR_FIELDS = {"message", "field", "parameter", "error_id", "help"}


def _parse_error_body(body: bytes) -> list[dict[str, Any]]:
    """SendGrid's errors, or the text of any other response as a ``message``."""
    try:
        return parse_errors(json.loads(body))
    except (ValueError, RecursionError):
        text = body[: 8 * _MAX_ERROR_CHARACTERS].decode(errors="replace").strip("\ufeff\ufffd \r\n\t")
        is_text = text and not text.startswith(("<", "{", "[")) and "\ufffd" not in text
        return [{"message": _shorten(text)}] if is_text else []


def parse_errors(payload: Any) -> list[dict[str, Any]]:
    """The errors in the JSON of a response, limited in number and length for logs."""
    places = [payload.get(key) for key in _ERROR_KEYS] if isinstance(payload, Mapping) else [payload]
    errors = next((errors for place in places if (errors := _flatten(place))), [])
    return [
        {str(_shorten(key)): _shorten(value) for key, value in islice(error.items(), _MAX_ERRORS)}
        for error in errors[:_MAX_ERRORS]
    ]


def _flatten(value: Any, field_name: str | None = None, depth: int = 3) -> list[dict[str, Any]]:
    """Errors as objects, from objects, texts, or texts by the name of a field."""
    place = {} if field_name is None else {"field": field_name}
    if isinstance(value, str):
        return [{**place, "message": value}] if value.strip() else []
    if isinstance(value, Mapping) and value.keys() & _ERROR_FIELDS:
        known = {key: each for key, each in value.items() if each is not None}
        return [place | known] if known else []
    by_name = value.items() if isinstance(value, Mapping) else ((field_name, each) for each in _as_list(value))
    nested = islice(by_name, _MAX_ERRORS) if depth else ()
    return [error for name, each in nested for error in _flatten(each, name, depth - 1)]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _shorten(value: Any) -> Any:
    """`value` if it is short, else its beginning; texts on one line and redacted."""
    if not isinstance(value, str) and len(str(value)) <= _MAX_ERROR_CHARACTERS:
        return value
    printable = "".join(each if each.isprintable() else " " for each in str(value)[: 20 * _MAX_ERROR_CHARACTERS])
    text = redact(" ".join(printable.split()))
    return text if len(text) <= _MAX_ERROR_CHARACTERS else f"{text[:_MAX_ERROR_CHARACTERS]}…"


def join_errors(errors: Sequence[Mapping[str, Any]]) -> str:
    """All errors in one line."""
    return "; ".join(map(_error_text, errors))


def _error_text(error: Mapping[str, Any]) -> str:
    message = error.get("message", "no message")
    place = error.get("field") or error.get("parameter")
    return f"{place}: {message}" if place else str(message)


def _is_html(response: Response) -> bool:
    kind = response.headers.get("content-type", "").lower()
    return "html" in kind or response.body.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html", b"<?xml"))
