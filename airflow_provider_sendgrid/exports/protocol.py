"""The requests to SendGrid's API and the parsing of its responses, without I/O.

Knows methods, paths and bodies; knows no sockets and no clocks. Each function is a generator (a `Flow`): it yields a
`Request`, receives a `Response` and returns its result. Network failures are thrown into it as
`SendGridUnavailableError`. Retry rules therefore exist once, in `retries`, for requests and httpx.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from airflow_provider_sendgrid.exports.export import (
    FAMILIES,
    READY,
    ContactExport,
    ExportFamily,
    ExportSelection,
    UnreadableError,
)
from airflow_provider_sendgrid.exports.listings import Listing, parse_entries, parse_id, read_all_pages
from airflow_provider_sendgrid.exports.messages import Flow, Request, Response, T
from airflow_provider_sendgrid.exports.rate_limits import (
    RateLimit,
    parse_date,
    rate_limit_wait_seconds,
    time_at_sendgrid,
)
from airflow_provider_sendgrid.exports.response_errors import LEGACY_EXPORTS, error_from_response, is_refusal
from airflow_provider_sendgrid.exports.retries import (
    DEFAULT_RETRY_POLICY,
    START_RETRY_POLICY,
    RetryPolicy,
    send_with_retries,
)

__all__ = [
    "CONFIRMATION_SECONDS",
    "DEFAULT_RETRY_POLICY",
    "LEGACY_EXPORTS",
    "START_RETRY_POLICY",
    "Flow",
    "RateLimit",
    "Request",
    "Response",
    "RetryPolicy",
    "T",
    "error_from_response",
    "get_export",
    "get_first_segments",
    "get_lists",
    "get_scopes",
    "get_segments",
    "is_empty",
    "is_refusal",
    "list_exports",
    "parse_date",
    "rate_limit_wait_seconds",
    "start_export",
    "time_at_sendgrid",
]

# The wait before an export is requested again to confirm the first response.
CONFIRMATION_SECONDS = 5.0
_SEGMENT_KEYS = ("results", "result", "segments")


def is_empty(export: ContactExport) -> bool:
    """Whether the export is ready with a count of 0 and no files."""
    return export.status == READY and not export.urls and export.contact_count == 0


def get_export(
    family: ExportFamily,
    export_id: str,
    retry_policy: RetryPolicy = DEFAULT_RETRY_POLICY,
    *,
    needs_confirmation: Callable[[ContactExport], bool] = is_empty,
) -> Flow[ContactExport]:
    """The status of one export.

    Source: "Export Contacts Status" and "Export recipients status". A 404 is retried a few times: a new id may not be
    known everywhere yet.

    Args:
        family: of the export.
        export_id: its id.
        retry_policy: how often and how long to retry.
        needs_confirmation: exports that are requested again after 5 seconds; the second response counts. By default
            those that are ready with a count of 0 and no URLs, because both may be set shortly after the status.

    Raises:
        SendGridError: the status could not be fetched.
        ValueError: `export_id` is empty, or consists of dots, which a client would resolve in the path.
    """
    if (export_id or "").strip() in ("", ".", ".."):
        raise ValueError(f"export_id {export_id!r} is invalid: it must be the id that starting an export returned.")
    request = Request("GET", f"{FAMILIES[family].exports_path}/{quote(export_id, safe='')}")
    operation = f"status of {family.value} export {export_id}"

    def parse(payload: dict[str, Any], response: Response) -> ContactExport:
        return ContactExport.from_status(payload, export_id=export_id, as_of=time_at_sendgrid(response))

    export = yield from send_with_retries(request, operation, retry_policy, parse, also_retried=(404,))
    if not needs_confirmation(export):
        return export
    status = "ready with a count of 0 and no files" if is_empty(export) else "expired"
    reason = f"{operation}: {status}, according to one response. Checking again before this is accepted."
    again = replace(request, delay_seconds=CONFIRMATION_SECONDS, reason=reason)
    return (yield from send_with_retries(again, operation, retry_policy, parse, also_retried=(404,)))


def list_exports(family: ExportFamily, retry_policy: RetryPolicy = DEFAULT_RETRY_POLICY) -> Flow[list[ContactExport]]:
    """All exports in progress or recently completed; without counts and messages.

    Source: "Get All Existing Exports".
    """

    def parse(entry: Mapping[str, Any], response: Response) -> ContactExport:
        return ContactExport.from_entry(entry, as_of=time_at_sendgrid(response))

    return (yield from read_all_pages(_exports_listing(family), retry_policy, parse))


def get_lists(family: ExportFamily, retry_policy: RetryPolicy = DEFAULT_RETRY_POLICY) -> Flow[list[dict[str, Any]]]:
    """All contact lists with ``id``, ``name`` and a count."""
    query = "?page_size=1000" if family is ExportFamily.MARKETING else ""
    keys = ("result", "results", "lists")
    listing = Listing(FAMILIES[family].lists_path + query, f"{family.value} lists", keys, counts_all=True)
    return (yield from read_all_pages(listing, retry_policy, _as_dict))


def get_segments(family: ExportFamily, retry_policy: RetryPolicy = DEFAULT_RETRY_POLICY) -> Flow[list[dict[str, Any]]]:
    """All segments with ``id``, ``name`` and a count.

    For the marketing family, those of the segments API 2.0; see `get_first_segments` for older ones.
    """
    listing = Listing(FAMILIES[family].segments_path, f"{family.value} segments", _SEGMENT_KEYS)
    return (yield from read_all_pages(listing, retry_policy, _as_dict))


def get_first_segments(
    family: ExportFamily, retry_policy: RetryPolicy = DEFAULT_RETRY_POLICY
) -> Flow[list[dict[str, Any]]]:
    """All segments of the first segments API; empty for a family with one segments API."""
    path = FAMILIES[family].first_segments_path
    if path is None:
        return []
    listing = Listing(path, f"{family.value} segments of the first API", _SEGMENT_KEYS)
    return (yield from read_all_pages(listing, retry_policy, _as_dict))


def get_scopes(retry_policy: RetryPolicy = DEFAULT_RETRY_POLICY) -> Flow[list[str]]:
    """The scopes of the API key."""

    def parse(payload: dict[str, Any], _response: Response) -> list[str]:
        return [str(scope) for scope in parse_entries(payload, ("scopes",))]

    return (yield from send_with_retries(Request("GET", "/v3/scopes"), "scopes of the API key", retry_policy, parse))


def start_export(
    family: ExportFamily, selection: ExportSelection, retry_policy: RetryPolicy = START_RETRY_POLICY
) -> Flow[str]:
    """Start an export and return its id.

    Source: "Export Contacts" and "Export Recipients", answered 202.

    Raises:
        SendGridError: it was not started; not certain if ``may_have_been_accepted`` is set.
        ValueError: an argument is invalid.
    """
    request = Request("POST", FAMILIES[family].exports_path, selection.to_payload(family))

    def parse(payload: dict[str, Any], _response: Response) -> str:
        if (export_id := parse_id(payload.get("id"))) is None:
            raise UnreadableError("it has no usable id")
        return export_id

    return (yield from send_with_retries(request, f"start of a {family.value} export", retry_policy, parse))


def _exports_listing(family: ExportFamily) -> Listing:
    return Listing(FAMILIES[family].exports_path, f"list of {family.value} exports", ("result", "results", "exports"))


def _as_dict(entry: Mapping[str, Any], _response: Response) -> dict[str, Any]:
    return dict(entry)
