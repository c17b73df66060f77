"""An export as SendGrid describes it: its status and files, and the two families it may belong to.

Knows the vocabulary of both APIs (`fields` reads it). Knows neither requests nor clocks: `now` is a parameter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_sendgrid.exceptions import redact
from airflow_provider_sendgrid.exports.arguments import parse_megabytes, require_bool
from airflow_provider_sendgrid.exports.fields import (
    TIME_FIELDS,
    find_field,
    names_selection,
    parse_any_time,
    parse_count,
    parse_ids,
    parse_selected_id,
    parse_text,
    parse_time,
    parse_urls,
)


class UnreadableError(ValueError):
    """A response of unknown shape; its text continues "SendGrid answered 200, but"."""


class ExportFamily(str, Enum):
    """Which of SendGrid's two products an export belongs to."""

    MARKETING = "marketing"
    LEGACY = "legacy"


def parse_family(value: Any) -> ExportFamily:
    """The family in a template's or an XCom's value.

    Raises:
        ValueError: there is no such family; the message names those that exist.
    """
    try:
        return ExportFamily(value)
    except ValueError:
        names = " or ".join(repr(family.value) for family in ExportFamily)
        raise ValueError(f"family must be {names}, not {value!r}.") from None


@dataclass(frozen=True, slots=True)
class FamilyTraits:
    """The endpoints of a family and the type of its ids (source: Twilio's OpenAPI description)."""

    exports_path: str
    lists_path: str
    segments_path: str
    id_type: type[str] | type[int]
    scope: str
    first_segments_path: str | None = None
    """Segments of the first segments API, which `segments_path` does not list."""


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


@dataclass(frozen=True, slots=True)
class ContactExport:
    """One export as SendGrid describes it at one moment.

    Attributes:
        id: the export's id.
        status: ``pending``, ``ready``, ``failure``, or another word of SendGrid's; empty if there is none.
        created_at: when it was started; like all times an aware datetime, or None.
        updated_at: when it last changed.
        completed_at: when it became ready or failed.
        expires_at: when its files are deleted (12 hours after its start). Its URLs expire after about 300 s.
        urls: a signed URL for each file, once it is ready. Each gives access to personal data.
        message: the reason of a ``failure``.
        contact_count: the number of contacts exported.
        metadata: SendGrid's ``_metadata``.
        export_type: ``contacts_export``, ``list_export`` or ``segment_export``; in listings only.
        list_ids: ids of the lists exported, as text; in listings only.
        segment_ids: ids of the segments exported, as text; in listings only.
        as_of: SendGrid's time of the response; None if it was not read from one.
        is_selection_known: whether `list_ids` and `segment_ids` are complete. If not, no ids do not mean all contacts.
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
        """Read SendGrid's JSON of either family in either spelling; missing, null or malformed fields are absent.

        Args:
            payload: the object of a status response, or one item of a listing.
            export_id: the requested id, for a response without one.
            as_of: SendGrid's time when it sent the response.
        """
        times = {name: parse_time(find_field(payload, name)) for name in TIME_FIELDS}
        metadata = find_field(payload, "metadata")
        return cls(
            id=parse_text(payload.get("id")) or export_id,
            status=redact(parse_text(payload.get("status")) or ""),
            urls=parse_urls(payload.get("urls")),
            message=redact(parse_text(payload.get("message")) or "") or None,
            contact_count=parse_count(find_field(payload, "contact_count")),
            metadata=metadata if isinstance(metadata, Mapping) else {},
            export_type=parse_text(find_field(payload, "export_type")),
            list_ids=parse_ids(payload.get("lists")),
            segment_ids=parse_ids(payload.get("segments")),
            as_of=as_of,
            is_selection_known=names_selection(payload),
            **times,
        )

    @classmethod
    def from_status(cls, payload: Mapping[str, Any], *, export_id: str, as_of: datetime | None = None) -> ContactExport:
        """Read the response to a request for the status of one export.

        Raises:
            UnreadableError: it is not the status of this export.
        """
        named = payload.get("id")
        if named is not None and str(named).strip().casefold() != export_id.strip().casefold():
            raise UnreadableError("it describes another export")
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
            UnreadableError: a field that identifies the export cannot be read.
        """
        _require_status(entry)
        for name in TIME_FIELDS:
            value = find_field(entry, name)
            if parse_any_time(value) is None and (name == "created_at" or value not in (None, "")):
                raise UnreadableError(f"the '{name}' of export {entry.get('id')} is not a time")
        if parse_time(find_field(entry, "created_at")) is None:
            raise UnreadableError(f"the 'created_at' of export {entry.get('id')} is not set")
        for name in ("lists", "segments"):
            value = entry.get(name)
            if value is not None and not (isinstance(value, list) and all(parse_selected_id(item) for item in value)):
                raise UnreadableError(f"the '{name}' of export {entry.get('id')} are not a list of ids")
        return cls.from_payload(entry, as_of=as_of)

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the URLs, which identify the files, each once."""
        return tuple(dict.fromkeys(map(file_path, self.urls)))

    def is_expired_at(self, now: datetime) -> bool:
        """Whether its files are deleted at `now`; an `expires_at` that is not after `created_at` is ignored."""
        if self.expires_at is None or (self.created_at and self.expires_at <= self.created_at):
            return False
        return self.expires_at <= now

    def summary(self) -> dict[str, Any]:
        """JSON values without URLs, for XComs, logs and manifests."""
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
        notify_by_email: SendGrid sends the account's owner a link to the files.
    """

    list_ids: Sequence[str | int] = ()
    segment_ids: Sequence[str | int] = ()
    file_type: str = "csv"
    max_file_size: int | None = None
    notify_by_email: bool = False

    def __post_init__(self) -> None:
        """Turn iterators into tuples: they would be empty when read again, and empty means all contacts.

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
            ValueError: an argument is invalid.
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
            payload["max_file_size"] = parse_megabytes("max_file_size", self.max_file_size)
        return payload


def parse_export_id(value: Any) -> str:
    """The id of one export in a template's or an XCom's value.

    Raises:
        TypeError: it is something else, such as a list of ids; the message says how to pass one id.
        ValueError: it is empty, or cannot be an id.
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
            "where Airflow replaces it with the id."
        )
    text = str(value).strip()
    if not text.strip(".") or text.casefold() in _NOT_AN_ID or not _EXPORT_ID.fullmatch(text):
        shown = redact(text if len(text) <= 100 else f"{text[:100]}…")
        raise ValueError(f"export_id is {shown!r}, which cannot be the id of an export. {_ID_EXPECTED}")
    return text


_ID_EXPECTED = (
    "Pass the id that the SendGridExportContactsOperator returned, and check that the task that starts the export ran."
)
# Empty and other values as templates render them.
_NOT_AN_ID = frozenset({"0", "none", "null", "nan", "undefined", "true", "false"})
# Blanks, quotes and brackets come from a list or mapping that was rendered as text; slashes from a path or URL.
_EXPORT_ID = re.compile(r"[A-Za-z0-9._~:@=+-]{1,200}")


def typed_ids(name: str, ids: Sequence[str | int], family: ExportFamily) -> list[str | int]:
    """Ids of lists or segments in the type of the family's API.

    Raises:
        ValueError: one is not an id of this family.
    """
    # An empty text from a template must not mean all contacts.
    ids = [item.strip() if isinstance(item, str) else item for item in ids]
    texts = [parse_text(item) or "" for item in ids]
    for item, text in zip(ids, texts, strict=True):
        if not _SELECTED_ID.fullmatch(text) or text.casefold() in _NOT_AN_ID:
            raise ValueError(f"{name} must hold ids, texts or numbers, not {item!r}.")
    if FAMILIES[family].id_type is int and not all(_NUMBER.fullmatch(str(item)) for item in ids):
        raise ValueError(
            f"{name} of the {family.value} family must be numbers, not {list(ids)!r}; "
            "ids like uuids belong to family='marketing'."
        )
    return [FAMILIES[family].id_type(item) for item in ids]


# Anything else is a list that was rendered as text, or has invisible characters.
_SELECTED_ID = re.compile(r"[\w.:-]+", re.ASCII)
# As SendGrid writes it: its list of exports would never contain "007".
_NUMBER = re.compile(r"[1-9][0-9]{0,18}")


def file_path(url: str) -> str:
    """The path of a URL, which identifies a file of an export; empty if the URL is invalid."""
    try:
        return urlsplit(url).path
    except ValueError:
        return ""


def _require_status(payload: Mapping[str, Any]) -> None:
    # An empty text is an unknown status, like any other text, and the wait continues.
    if not isinstance(payload.get("status"), str):
        raise UnreadableError("its 'status' is missing or not a text")


def _require_failure_of_an_export(payload: Mapping[str, Any]) -> None:
    """Refuse the failure of a gateway, which has neither the id nor the times of an export, or has errors."""
    is_named = payload.get("id") is not None or any(parse_time(find_field(payload, name)) for name in TIME_FIELDS)
    if payload.get("errors") or not is_named:
        raise UnreadableError("its 'failure' is not that of an export: it has neither id nor times, or it has errors")
