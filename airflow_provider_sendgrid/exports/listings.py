"""Reads listings page by page."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_sendgrid.exceptions import SendGridServerError
from airflow_provider_sendgrid.exports.export import UnreadableError
from airflow_provider_sendgrid.exports.messages import Flow, Request, Response, T
from airflow_provider_sendgrid.exports.response_errors import join_errors, parse_errors
from airflow_provider_sendgrid.exports.retries import RetryPolicy, send_with_retries

_MAX_PAGES = 1000
# Quotes and brackets come from another value that was rendered as text.
_ID = re.compile(r"[^\s\"'\[\](){}<>,]{1,200}")
_NO_IDS = frozenset({"none", "null", "undefined", "nil", "nan", "0"})


@dataclass(frozen=True, slots=True)
class Listing:
    """A listing of the API.

    Attributes:
        target: path and query of its first page.
        operation: its name in messages.
        keys: that may hold its entries.
        counts_all: whether SendGrid documents ``_metadata.count`` as the number of entries on all pages.
    """

    target: str
    operation: str
    keys: tuple[str, ...]
    counts_all: bool = False


def read_all_pages(
    listing: Listing, retry_policy: RetryPolicy, parse: Callable[[Mapping[str, Any], Response], T]
) -> Flow[list[T]]:
    """All entries, parsed, from all pages.

    The host in ``_metadata.next`` is ignored, so that the API key is sent nowhere else. An entry that is on two pages,
    because others were added or removed meanwhile, is returned once.
    """
    found: dict[str, T] = {}
    least_count = math.inf

    def parse_page(payload: dict[str, Any], response: Response) -> tuple[dict[str, T], str | None, float]:
        if response.status_code != HTTPStatus.OK:
            raise UnreadableError("a complete listing comes with 200")
        entries = parse_entries(payload, listing.keys)
        page = {_entry_id(entry): parse(entry, response) for entry in entries}
        next_target, count = _parse_next_target(payload), min(least_count, _parse_count(payload))
        if next_target is None:
            _check_count(len(found | page), count, listing)
        return page, next_target, count

    target, path, requested = listing.target, urlsplit(listing.target).path, set[str]()
    while target not in requested:
        requested.add(target)
        if len(requested) > _MAX_PAGES:
            raise SendGridServerError(f"{listing.operation}: more than {_MAX_PAGES} pages; the listing does not end.")
        page, next_target, least_count = yield from send_with_retries(
            Request("GET", target), listing.operation, retry_policy, parse_page
        )
        found |= page
        if next_target is None:
            return list(found.values())
        if next_target.partition("?")[0] != path:
            raise SendGridServerError(f"{listing.operation}: the next page belongs to another list; nothing was read.")
        target = next_target
    raise SendGridServerError(f"{listing.operation}: its pages form a loop.")


def _check_count(entries: int, count: float, listing: Listing) -> None:
    is_short = math.isfinite(count) and entries < count
    if is_short and (listing.counts_all or not entries):
        raise UnreadableError(f"it has {entries} entries, but reports a count of {count:.0f}")


def parse_entries(payload: Mapping[str, Any], keys: tuple[str, ...]) -> list[Any]:
    """The entries of a listing, under the one key that holds a list.

    Raises:
        UnreadableError: no key or several keys do, or the response holds errors.
    """
    if payload.get("errors") or payload.get("error"):
        raise UnreadableError(f"it contains errors ({join_errors(parse_errors(payload))})")
    lists = [value for key in keys if isinstance(value := payload.get(key), list)]
    if len(lists) == 1:
        return lists[0]
    if lists:
        raise UnreadableError(f"several of {', '.join(keys)} hold a list")
    odd = [f"{key!r} is {'null' if payload[key] is None else 'not a list'}" for key in keys if key in payload]
    raise UnreadableError(" and ".join(odd) or f"it has none of the keys {', '.join(map(repr, keys))}")


def _entry_id(entry: Any) -> str:
    if not isinstance(entry, Mapping):
        raise UnreadableError("an entry is not an object")
    if (entry_id := parse_id(entry.get("id"))) is None:
        raise UnreadableError("an entry has no id")
    return entry_id


def parse_id(value: Any) -> str | None:
    """`value` as an id, a text without spaces or an integer; None if it is neither."""
    text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    is_valid = _ID.fullmatch(text) and text.isprintable() and text.casefold() not in _NO_IDS
    return text if is_valid and text.strip(".") else None


def _parse_metadata(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata = payload.get("_metadata") or payload.get("Metadata") or {}
    if not isinstance(metadata, Mapping):
        raise UnreadableError("its '_metadata' is not an object")
    return metadata


def _parse_count(payload: Mapping[str, Any]) -> float:
    count = _parse_metadata(payload).get("count")
    if isinstance(count, int | float) and not isinstance(count, bool) and 0 <= count < 1e15:
        return count
    return math.inf


def _parse_next_target(payload: Mapping[str, Any]) -> str | None:
    """Path and query of the next page; empty if its URL is invalid, None if there is none."""
    next_target = _parse_metadata(payload).get("next")
    if next_target in (None, ""):
        return None
    if not isinstance(next_target, str):
        raise UnreadableError("its '_metadata.next' is not a text")
    try:
        parts = urlsplit(next_target)
    except ValueError:
        return ""
    return f"{parts.path}?{parts.query}" if parts.query else parts.path
