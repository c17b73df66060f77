"""What SendGrid says of an export: its status, its files, and the two families it may belong to.

Knows the words of both APIs. Knows nothing of requests or time: `now` is always given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_sendgrid.exceptions import redact
from airflow_provider_sendgrid.exports.arguments import require_bool


class UnreadableError(ValueError):
    """A response of unknown shape; its text says what is odd, to follow "SendGrid answered 200, but"."""


class ExportFamily(str, Enum):
    """Which of SendGrid's two products an export belongs to."""

    MARKETING = "marketing"
    LEGACY = "legacy"


def parse_family(value: Any) -> ExportFamily:
    """`value`, as a template or an XCom rendered it, as a family.

    Raises:
        ValueError: it is none; the message names those that exist.
    """
    try:
        return ExportFamily(value)
    except ValueError:
        names = " or ".join(repr(family.value) for family in ExportFamily)
        raise ValueError(f"family must be {names}, not {value!r}.") from None


@dataclass(frozen=True, slots=True)
class FamilyTraits:
    """Where a family's endpoints are and what its ids are made of (source: Twilio's OpenAPI description)."""

    exports_path: str
    lists_path: str
    segments_path: str
    id_type: type[str] | type[int]
    scope: str
    first_segments_path: str | None = None
    """Segments made with the first segments API; `segments_path` does not list them."""


FAMILIES = {
    ExportFamily.MARKETING: FamilyTraits(
        "/v3/marketing/contacts/exports",
        "/v3/marketing/lists",
        "/v3/marketing/segments/2.0",
        str,
        "marketing.read",
        first_segments_path="/v3/marketing/segments",
    ),
    ExportFamily.LEGACY: FamilyTraits(
        "/v3/contactdb/exports",
        "/v3/contactdb/lists",
        "/v3/contactdb/segments",
        int,
        "marketing_campaigns.read",
    ),
}

PENDING, READY, FAILURE = "pending", "ready", "failure"

# Each field's spellings, in both families: one page of the legacy API shows camelCase, all else snake_case.
_SPELLINGS = {
    "created_at": ("created_at", "createdAt"),
    "updated_at": ("updated_at", "updatedAt"),
    "completed_at": ("completed_at", "completedAt"),
    "expires_at": ("expires_at", "expiresAt"),
    "contact_count": ("contact_count", "contactCount", "recipient_count", "recipientCount"),
    "metadata": ("_metadata", "Metadata", "metadata"),
    "export_type": ("export_type", "exportType"),
}
_TIMES = tuple(name for name in _SPELLINGS if name.endswith("_at"))


@dataclass(frozen=True, slots=True)
class ContactExport:
    """One export as SendGrid describes it at one moment.

    Attributes:
        id: the export's id.
        status: ``pending``, ``ready``, ``failure``, or whatever else SendGrid says; empty if it says nothing.
        created_at: when it was begun; like all times an aware datetime, or None.
        updated_at: when it last changed.
        completed_at: when it became ready or failed.
        expires_at: when its files are deleted (12 hours after its start). Its URLs live some 300 s only.
        urls: a signed URL for each file, once it is ready. Each is a credential to personal data.
        message: what SendGrid says of a ``failure``.
        contact_count: the number of contacts exported.
        metadata: SendGrid's ``_metadata``.
        export_type: ``contacts_export``, ``list_export`` or ``segment_export``; in listings only.
        list_ids: ids of the lists exported, as text; in listings only.
        segment_ids: ids of the segments exported, as text; in listings only.
        as_of: SendGrid's time when it sent this description; None where an export was not read from a response.
        is_selection_known: whether `list_ids` and `segment_ids` are what was exported. False where the response leaves
            that open: no ids then do not mean all contacts.
    """

    id: str
    status: str
    created_at: datetime | None = None
    updated_at: datetime | None = None
    completed_at: datetime | None = None
    expires_at: datetime | None = None
    urls: tuple[str, ...] = field(default=(), repr=False)
    message: str | None = None
    contact_count: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    export_type: str | None = None
    list_ids: tuple[str, ...] = ()
    segment_ids: tuple[str, ...] = ()
    as_of: datetime | None = field(default=None, compare=False)
    is_selection_known: bool = field(default=True, compare=False)

    @classmethod
    def from_payload(
        cls, payload: Mapping[str, Any], *, export_id: str = "", as_of: datetime | None = None
    ) -> ContactExport:
        """Read SendGrid's JSON of either family in either spelling; what is missing, null or odd is absent.

        Args:
            payload: the object of a status answer, or one item of a listing.
            export_id: the id that was asked for, where the answer names none.
            as_of: SendGrid's time when it sent the response.
        """
        times = {name: _time(_first(payload, name)) for name in _TIMES}
        metadata = _first(payload, "metadata")
        return cls(
            id=_text(payload.get("id")) or export_id,
            status=redact(_text(payload.get("status")) or ""),
            urls=_urls(payload.get("urls")),
            message=redact(_text(payload.get("message")) or "") or None,
            contact_count=_count(_first(payload, "contact_count")),
            metadata=metadata if isinstance(metadata, Mapping) else {},
            export_type=_text(_first(payload, "export_type")),
            list_ids=_ids(payload.get("lists")),
            segment_ids=_ids(payload.get("segments")),
            as_of=as_of,
            is_selection_known=_is_selection_known(payload),
            **times,
        )

    @classmethod
    def from_status(cls, payload: Mapping[str, Any], *, export_id: str, as_of: datetime | None = None) -> ContactExport:
        """Read the response to a request for the status of one export.

        Raises:
            UnreadableError: it is not the status of this export; the message says why.
        """
        named = payload.get("id")
        if named is not None and str(named).strip().casefold() != export_id.strip().casefold():
            raise UnreadableError("it describes another export than the one asked for")
        _require_status(payload)
        if payload["status"] == FAILURE:
            _require_failure_of_an_export(payload)
        if not isinstance(payload.get("urls"), list | str | None):
            raise UnreadableError("its 'urls' are not a list")
        return cls.from_payload(payload, export_id=export_id, as_of=as_of)

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any], *, as_of: datetime | None = None) -> ContactExport:
        """Read one entry of a listing.

        Raises:
            UnreadableError: a field that decides what the export is cannot be read; the message says which.
        """
        _require_status(entry)
        for name in _TIMES:
            value = _first(entry, name)
            if _any_time(value) is None and (name == "created_at" or value not in (None, "")):
                raise UnreadableError(f"the '{name}' of export {entry.get('id')} is not a time")
        if _time(_first(entry, "created_at")) is None:
            raise UnreadableError(f"the 'created_at' of export {entry.get('id')} is not set")
        for name in ("lists", "segments"):
            value = entry.get(name)
            if value is not None and not (isinstance(value, list) and all(_id(item) for item in value)):
                raise UnreadableError(f"the '{name}' of export {entry.get('id')} are not a list of ids")
        return cls.from_payload(entry, as_of=as_of)

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the URLs, which identify the files, each once."""
        return tuple(dict.fromkeys(map(file_path, self.urls)))

    def is_expired_at(self, now: datetime) -> bool:
        """Whether its files are gone at `now`; an `expires_at` that is not after `created_at` means nothing."""
        if self.expires_at is None or (self.created_at and self.expires_at <= self.created_at):
            return False
        return self.expires_at <= now

    def summary(self) -> dict[str, Any]:
        """What may go into an XCom, a log or a manifest: JSON values, no URLs."""
        times = ("created_at", "updated_at", "completed_at", "expires_at")
        return {
            "id": self.id,
            "status": self.status,
            **{name: value.isoformat() if (value := getattr(self, name)) else None for name in times},
            "message": self.message,
            "contact_count": self.contact_count,
            "file_count": len(self.paths),
        }


@dataclass(frozen=True, slots=True)
class ExportSelection:
    """What to export; neither lists nor segments means every contact.

    Attributes:
        list_ids: ids of the lists.
        segment_ids: ids of the segments.
        file_type: ``csv`` or ``json`` (one object per line).
        max_file_size: largest size of a file in MB; a larger export is split. SendGrid's default is 5000.
        notify_by_email: SendGrid mails a link to the files to the account's owner.
    """

    list_ids: Sequence[str | int] = ()
    segment_ids: Sequence[str | int] = ()
    file_type: str = "csv"
    max_file_size: int | None = None
    notify_by_email: bool = False

    def __post_init__(self) -> None:
        """Keep what an iterator gives: it would be empty when it is read again, and empty means all contacts.

        Raises:
            TypeError: ids are not a list.
        """
        for name in ("list_ids", "segment_ids"):
            ids = getattr(self, name)
            if isinstance(ids, str | bytes | bytearray | memoryview | Mapping) or not isinstance(ids, Iterable):
                raise TypeError(f"{name} must be a list of ids, not {ids!r}.")
            object.__setattr__(self, name, tuple(ids))

    def to_payload(self, family: ExportFamily) -> dict[str, Any]:
        """The body of the POST.

        Raises:
            ValueError: an argument cannot be right; says which and what it should be.
            TypeError: ids are not a list.
        """
        if self.file_type not in ("csv", "json"):
            raise ValueError(f"file_type must be 'csv' or 'json', not {self.file_type!r}.")
        payload: dict[str, Any] = {
            "file_type": self.file_type,
            "notifications": {"email": require_bool("notify_by_email", self.notify_by_email)},
        }
        for name, ids in (("list_ids", self.list_ids), ("segment_ids", self.segment_ids)):
            if typed := typed_ids(name, ids, family):
                payload[name] = typed
        if self.max_file_size is not None:
            payload["max_file_size"] = _megabytes(self.max_file_size)
        return payload


def parse_export_id(value: Any) -> str:
    """`value`, as a template or an XCom rendered it, as the id of one export.

    Raises:
        TypeError: it is something else, such as a list of ids; the message says how to pass one id.
        ValueError: it is empty, or a text that cannot be an id.
    """
    if isinstance(value, Mapping):
        raise TypeError(
            "export_id is a mapping, not an id. If it is the result of a SendGridExportSensor, pass its id: "
            'wait.output["id"].'
        )
    if value is None or isinstance(value, float | bool | bytes):
        raise TypeError(f"export_id is {value!r}, not an id. {_ID_EXPECTED}")
    if not isinstance(value, str | int):
        raise TypeError(
            f"export_id is a {type(value).__name__}, not one id. For one task per export, map the task: "
            ".partial(...).expand(export_id=...). The output of a task must be passed to an operator's argument, "
            "where Airflow replaces it by the id."
        )
    text = str(value).strip()
    if not text.strip(".") or text.casefold() in _NOT_AN_ID or not _EXPORT_ID.fullmatch(text):
        shown = redact(text if len(text) <= 100 else f"{text[:100]}…")
        raise ValueError(f"export_id is {shown!r}, which cannot be the id of an export. {_ID_EXPECTED}")
    return text


_ID_EXPECTED = (
    "Pass the id that the SendGridExportContactsOperator returned, and check that the task that starts the export ran."
)
# What templates make of nothing, and of what is not an id.
_NOT_AN_ID = frozenset({"0", "none", "null", "nan", "undefined", "true", "false"})
# Blanks, quotes and brackets show that a list or a mapping was rendered as text; slashes, that it is a path or a URL.
_EXPORT_ID = re.compile(r"[A-Za-z0-9._~:@=+-]{1,200}")


def typed_ids(name: str, ids: Sequence[str | int], family: ExportFamily) -> list[str | int]:
    """Ids of lists or segments in the type that the family's API takes.

    Raises:
        ValueError: one is not an id of this family.
    """
    # An empty text, as a template may render to, must not be taken for "every contact".
    ids = [item.strip() if isinstance(item, str) else item for item in ids]
    texts = [_text(item) or "" for item in ids]
    odd = [item for item, text in zip(ids, texts, strict=True) if not _is_selected_id(text)]
    if odd:
        raise ValueError(f"{name} must hold ids, texts or numbers, not {odd[0]!r}.")
    if FAMILIES[family].id_type is int and not all(_NUMBER.fullmatch(str(item)) for item in ids):
        raise ValueError(
            f"{name} of the {family.value} family must be numbers, not {list(ids)!r}; "
            "ids like uuids belong to family='marketing'."
        )
    return [FAMILIES[family].id_type(item) for item in ids]


def _is_selected_id(text: str) -> bool:
    return _SELECTED_ID.fullmatch(text) is not None and text.casefold() not in _NOT_AN_ID


# Anything else is a list that was rendered as text, or holds invisible characters.
_SELECTED_ID = re.compile(r"[\w.:-]+", re.ASCII)
# As SendGrid writes it: "007" would never be found in its list of exports.
_NUMBER = re.compile(r"[1-9][0-9]{0,18}")


def _megabytes(value: Any) -> int:
    try:
        number = int(str(value))  # by way of text, for 1.5 and True are no sizes
    except ValueError:
        number = 0
    if number < 1:
        raise ValueError(f"max_file_size must be a whole number of MB, 1 or more, not {value!r}.")
    return number


def file_path(url: str) -> str:
    """The path of a URL, which identifies a file of an export; empty if it is no URL."""
    try:
        return urlsplit(url).path
    except ValueError:
        return ""


def _first(payload: Mapping[str, Any], name: str) -> Any:
    return next((payload[key] for key in _SPELLINGS[name] if payload.get(key) is not None), None)


def _text(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def _urls(value: Any) -> tuple[str, ...]:
    """One for each file; what is no URL becomes an empty text, so that no file is left out without a word."""
    items = value if isinstance(value, list) else [value] if isinstance(value, str) and value else []
    texts = [item.strip() if isinstance(item, str) else "" for item in items]
    return tuple(text if _HTTP.match(text) else "" for text in texts)


_HTTP = re.compile(r"https?://", re.IGNORECASE)


def _require_status(payload: Mapping[str, Any]) -> None:
    # An empty text is an unknown status, like any other text: the wait goes on.
    if not isinstance(payload.get("status"), str):
        raise UnreadableError("its 'status' is missing or not a text")


def _require_failure_of_an_export(payload: Mapping[str, Any]) -> None:
    """A gateway's own failure ends no wait: it neither names the export nor its times, or it holds errors."""
    is_named = payload.get("id") is not None or any(_time(_first(payload, name)) for name in _TIMES)
    if payload.get("errors") or not is_named:
        raise UnreadableError("its 'failure' is not that of an export: it has neither id nor times, or it has errors")


def _ids(value: Any) -> tuple[str, ...]:
    found = map(_id, value if isinstance(value, list) else [])
    return tuple(text for text in found if text)


def _id(item: Any) -> str | None:
    """The id of a list or segment: of an object, or a plain id."""
    return _text(item.get("ID", item.get("id")) if isinstance(item, Mapping) else item)


def _is_selection_known(payload: Mapping[str, Any]) -> bool:
    """Whether a response says which lists and segments were exported: no ids alone do not mean all contacts.

    A missing or null key means none, unless the type of the export says otherwise.
    """
    lists, segments = payload.get("lists"), payload.get("segments")
    has_lists, has_segments = bool(_ids(lists)), bool(_ids(segments))
    expected = {
        "contacts_export": not has_lists and not has_segments,
        "list_export": has_lists,
        "segment_export": has_segments,
    }
    kind = _text(_first(payload, "export_type"))
    return expected.get(
        kind or "", has_lists or has_segments or (isinstance(lists, list) and isinstance(segments, list))
    )


def _count(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
        whole = value if isinstance(value, int) else int(number)
        return whole if number >= 0 and number == int(number) else None
    except (TypeError, ValueError, OverflowError):
        return None


# RFC 3339 with its variants, and what Go prints: "2026-01-02 03:04:05.6 +0000 UTC".
_ISO_8601 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ]\s*(\d\d):(\d\d):(\d\d)(?:[.,](\d+))?"
    r"\s*(?:(Z|UTC|GMT)|([+-])(\d\d)(?::?(\d\d))?(?:\s+[A-Z]{1,5}|\s+[+-]\d\d(?:\d\d)?)?)?",
    re.IGNORECASE | re.ASCII,
)
_RFC_1123 = re.compile(r"[A-Z][a-z]{2}, \d{1,2} [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d (GMT|UTC|[+-]\d{4})", re.ASCII)
_EPOCH = re.compile(r"\d{9,13}(\.\d+)?", re.ASCII)
# An epoch above this is in milliseconds.
_LARGEST_EPOCH_SECONDS = 1e11


def _time(value: Any) -> datetime | None:
    """A time that was ever set: the zeros of Go and of Unix, years 1 and 1970, are none."""
    time = _any_time(value)
    return time if time is not None and time.year > 1970 else None


def _any_time(value: Any) -> datetime | None:
    """An RFC 3339 text (any number of decimals, UTC where no zone is named), an HTTP date, or an epoch."""
    try:
        text = value.strip() if isinstance(value, str) else ""
        if isinstance(value, int | float) and not isinstance(value, bool):
            return _from_epoch(value)
        if match := _ISO_8601.fullmatch(text):
            return _from_iso_8601(match)
        if _EPOCH.fullmatch(text):
            return _from_epoch(float(text))
        return parsedate_to_datetime(text).astimezone(timezone.utc) if _RFC_1123.fullmatch(text) else None
    except (ValueError, TypeError, OverflowError, OSError):
        return None


def _from_epoch(number: float) -> datetime:
    return datetime.fromtimestamp(number / 1000 if number > _LARGEST_EPOCH_SECONDS else number, tz=timezone.utc)


def _from_iso_8601(match: re.Match[str]) -> datetime:
    year, month, day, hour, minute, second = (int(number) for number in match.groups()[:6])
    fraction, _, sign, zone_hours, zone_minutes = match.groups()[6:]
    microsecond = int((fraction or "0")[:6].ljust(6, "0"))
    offset = timedelta(hours=int(zone_hours or 0), minutes=int(zone_minutes or 0))
    zone = timezone(-offset if sign == "-" else offset) if offset else timezone.utc
    is_leap_second = second == 60
    time = datetime(year, month, day, hour, minute, 59 if is_leap_second else second, microsecond, tzinfo=zone)
    return time + timedelta(seconds=is_leap_second)
