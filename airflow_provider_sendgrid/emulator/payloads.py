"""The JSON of SendGrid's responses, in both families and spellings.

Knows field names. Must not know routes, keys or faults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final

from .audience import Audience, Family
from .backend import USER_ID, Backend
from .export import Export

Payload = dict[str, Any]


@dataclass(frozen=True, slots=True)
class FamilySpec:
    """What differs between the two families."""

    exports_path: str
    scope: str
    id_type: type
    count_field: str


FAMILY_SPECS: Final[Mapping[Family, FamilySpec]] = {
    "marketing": FamilySpec("/v3/marketing/contacts/exports", "marketing.read", str, "contact_count"),
    "legacy": FamilySpec("/v3/contactdb/exports", "marketing_campaigns.read", int, "recipient_count"),
}
_CAMEL_CASE: Final = {
    "created_at": "createdAt",
    "updated_at": "updatedAt",
    "completed_at": "completedAt",
    "expires_at": "expiresAt",
    "recipient_count": "recipientCount",
    "_metadata": "Metadata",
}


@dataclass(frozen=True, slots=True)
class Origins:
    """Where the two listeners are for the client that asks."""

    api: str
    files: str


def started_payload(export: Export, origins: Origins) -> Payload:
    """Return the response to a POST that started an export."""
    return {"_metadata": _self(export, origins), "id": export.id}


def status_payload(export: Export, backend: Backend, origins: Origins) -> Payload:
    """Return the response to a GET of one export."""
    status = backend.status(export)
    pending = status == "pending"
    payload = {
        "id": export.id,
        "status": status,
        "created_at": timestamp(export.shown_created),
        "updated_at": timestamp(export.created if pending else export.completed),
        "completed_at": None if pending else timestamp(export.completed),
        "expires_at": timestamp(export.expires),
        "urls": backend.signed_urls(export, origins.files) if status == "ready" else None,
        "message": export.failing_audience.message if status == "failure" and export.failing_audience else None,
        "_metadata": _self(export, origins),
        FAMILY_SPECS[export.family].count_field: backend.count(export) if status == "ready" else None,
    }
    return _spelled(_with_optional(payload, backend), export.family, backend)


def listed_payload(export: Export, backend: Backend, origins: Origins) -> Payload:
    """Return one item of the export listing, which has fewer fields than the status."""
    status = backend.status(export)
    payload = {
        "id": export.id,
        "status": status,
        "created_at": timestamp(export.shown_created),
        "completed_at": None if status == "pending" else timestamp(export.completed),
        "expires_at": timestamp(export.expires),
        "urls": backend.signed_urls(export, origins.files) if status == "ready" else None,
        "user_id": USER_ID,
        "export_type": export.export_type,
        "segments": _chosen(export, "segment"),
        "lists": _chosen(export, "list"),
        "_metadata": _self(export, origins),
    }
    return _with_optional(payload, backend)


def audience_payload(audience: Audience, origins: Origins) -> Payload:
    """Return a list or a segment as its listing shows it."""
    return _AUDIENCES[audience.family, audience.kind](audience, origins)


def timestamp(epoch: float) -> str:
    """Return a time as SendGrid writes it."""
    return datetime.fromtimestamp(epoch, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _self(export: Export, origins: Origins) -> Payload:
    return {"self": f"{origins.api}{FAMILY_SPECS[export.family].exports_path}/{export.id}"}


def _chosen(export: Export, kind: str) -> list[Payload]:
    return [{"ID": each.id, "Name": each.name} for each in export.audiences if each.kind == kind]


def _with_optional(payload: Payload, backend: Backend) -> Payload:
    if backend.settings.optional_fields == "null":
        return payload
    return {name: value for name, value in payload.items() if value is not None}


def _spelled(payload: Payload, family: Family, backend: Backend) -> Payload:
    if family != "legacy" or backend.settings.spelling != "camelCase":
        return payload
    return {_CAMEL_CASE.get(name, name): value for name, value in payload.items()}


def _marketing_list(audience: Audience, origins: Origins) -> Payload:
    return {
        "id": audience.id,
        "name": audience.name,
        "contact_count": audience.contacts,
        "_metadata": {"self": f"{origins.api}/v3/marketing/lists/{audience.id}"},
    }


def _marketing_segment(audience: Audience, origins: Origins) -> Payload:
    moment = timestamp(0)
    return {
        "id": audience.id,
        "name": audience.name,
        "contacts_count": audience.contacts,
        "created_at": moment,
        "updated_at": moment,
        "sample_updated_at": moment,
        "next_sample_update": moment,
        "parent_list_ids": [],
        "query_version": "" if audience.first_api else "2",
        "status": {"query_validation": "VALID"},
        "_metadata": {
            "self": f"{origins.api}/v3/marketing/segments/{'' if audience.first_api else '2.0/'}{audience.id}"
        },
    }


def _legacy_list(audience: Audience, _: Origins) -> Payload:
    return {"id": audience.id, "name": audience.name, "recipient_count": audience.contacts}


def _legacy_segment(audience: Audience, _: Origins) -> Payload:
    condition = {"field": "country", "value": "Germany", "operator": "eq", "and_or": ""}
    return {**_legacy_list(audience, _), "conditions": [condition]}


_AUDIENCES: Final = {
    ("marketing", "list"): _marketing_list,
    ("marketing", "segment"): _marketing_segment,
    ("legacy", "list"): _legacy_list,
    ("legacy", "segment"): _legacy_segment,
}
