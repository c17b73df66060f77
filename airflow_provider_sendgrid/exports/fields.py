"""Reads the fields of SendGrid's JSON; a null or malformed field counts as missing.

Knows how SendGrid writes names, times, counts, ids and URLs. Knows nothing of what they mean.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import Any

# The spellings of each field, in both families: one page of the legacy API shows camelCase, all others snake_case.
_SPELLINGS = {
    "created_at": ("created_at", "createdAt"),
    "updated_at": ("updated_at", "updatedAt"),
    "completed_at": ("completed_at", "completedAt"),
    "expires_at": ("expires_at", "expiresAt"),
    "contact_count": ("contact_count", "contactCount", "recipient_count", "recipientCount"),
    "metadata": ("_metadata", "Metadata", "metadata"),
    "export_type": ("export_type", "exportType"),
}
TIME_FIELDS = tuple(name for name in _SPELLINGS if name.endswith("_at"))


def find_field(payload: Mapping[str, Any], name: str) -> Any:
    """The first value of a field in any spelling; None if all are missing or null."""
    return next((payload[key] for key in _SPELLINGS[name] if payload.get(key) is not None), None)


def parse_text(value: Any) -> str | None:
    """A string or an integer, as text."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def parse_urls(value: Any) -> tuple[str, ...]:
    """One for each file; an invalid URL becomes an empty text, so that no file is dropped silently."""
    items = value if isinstance(value, list) else [value] if isinstance(value, str) and value else []
    texts = [item.strip() if isinstance(item, str) else "" for item in items]
    return tuple(text if _HTTP.match(text) else "" for text in texts)


_HTTP = re.compile(r"https?://", re.IGNORECASE)


def parse_ids(value: Any) -> tuple[str, ...]:
    """The ids of lists or segments."""
    found = map(parse_selected_id, value if isinstance(value, list) else [])
    return tuple(text for text in found if text)


def parse_selected_id(item: Any) -> str | None:
    """The id of a list or segment, from an object or a plain id."""
    return parse_text(item.get("ID", item.get("id")) if isinstance(item, Mapping) else item)


def names_selection(payload: Mapping[str, Any]) -> bool:
    """Whether a response names the lists and segments exported: the absence of ids alone does not mean all contacts.

    A missing or null key means none, unless the type of the export contradicts that.
    """
    lists, segments = payload.get("lists"), payload.get("segments")
    has_lists, has_segments = bool(parse_ids(lists)), bool(parse_ids(segments))
    expected = {
        "contacts_export": not has_lists and not has_segments,
        "list_export": has_lists,
        "segment_export": has_segments,
    }
    kind = parse_text(find_field(payload, "export_type"))
    return expected.get(
        kind or "", has_lists or has_segments or (isinstance(lists, list) and isinstance(segments, list))
    )


def parse_count(value: Any) -> int | None:
    """A whole number, 0 or more."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
        whole = value if isinstance(value, int) else int(number)
        return whole if number >= 0 and number == int(number) else None
    except (TypeError, ValueError, OverflowError):
        return None


# RFC 3339 with its variants, and the format that Go prints: "2026-01-02 03:04:05.6 +0000 UTC".
_ISO_8601 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ]\s*(\d\d):(\d\d):(\d\d)(?:[.,](\d+))?"
    r"\s*(?:(Z|UTC|GMT)|([+-])(\d\d)(?::?(\d\d))?(?:\s+[A-Z]{1,5}|\s+[+-]\d\d(?:\d\d)?)?)?",
    re.IGNORECASE | re.ASCII,
)
_RFC_1123 = re.compile(r"[A-Z][a-z]{2}, \d{1,2} [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d (GMT|UTC|[+-]\d{4})", re.ASCII)
_EPOCH = re.compile(r"\d{9,13}(\.\d+)?", re.ASCII)
# An epoch above this is in milliseconds.
_LARGEST_EPOCH_SECONDS = 1e11


def parse_time(value: Any) -> datetime | None:
    """A time that was set: the zero times of Go and Unix, in the years 1 and 1970, are absent."""
    time = parse_any_time(value)
    return time if time is not None and time.year > 1970 else None


def parse_any_time(value: Any) -> datetime | None:
    """An RFC 3339 text (any number of decimals, UTC by default), an HTTP date, or an epoch."""
    try:
        text = value.strip() if isinstance(value, str) else ""
        if isinstance(value, int | float) and not isinstance(value, bool):
            return _parse_epoch(value)
        if match := _ISO_8601.fullmatch(text):
            return _parse_iso_8601(match)
        if _EPOCH.fullmatch(text):
            return _parse_epoch(float(text))
        return parsedate_to_datetime(text).astimezone(timezone.utc) if _RFC_1123.fullmatch(text) else None
    except (ValueError, TypeError, OverflowError, OSError):
        return None


def _parse_epoch(number: float) -> datetime:
    return datetime.fromtimestamp(number / 1000 if number > _LARGEST_EPOCH_SECONDS else number, tz=timezone.utc)


def _parse_iso_8601(match: re.Match[str]) -> datetime:
    year, month, day, hour, minute, second = (int(number) for number in match.groups()[:6])
    fraction, _, sign, zone_hours, zone_minutes = match.groups()[6:]
    microsecond = int((fraction or "0")[:6].ljust(6, "0"))
    offset = timedelta(hours=int(zone_hours or 0), minutes=int(zone_minutes or 0))
    zone = timezone(-offset if sign == "-" else offset) if offset else timezone.utc
    is_leap_second = second == 60
    time = datetime(year, month, day, hour, minute, 59 if is_leap_second else second, microsecond, tzinfo=zone)
    return time + timedelta(seconds=is_leap_second)
