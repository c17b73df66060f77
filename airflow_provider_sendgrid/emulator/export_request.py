"""The body of a request that starts an export, validated as SendGrid does.

Knows the body's fields in both families. Must not know keys.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from .account import Account
from .audience import Audience, Family, Kind
from .backend import DEFAULT_MAX_FILE_SIZE
from .contacts import FileType
from .messages import json_error_response
from .payloads import FAMILY_SPECS


class ApiError(Exception):
    """The request gets an error response."""

    def __init__(self, status: int, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.response = json_error_response(status, message, field)


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """A valid request for an export."""

    family: Family
    audiences: tuple[Audience, ...]
    file_type: FileType
    max_file_size: int

    @classmethod
    def from_body(cls, body: bytes, family: Family, account: Account) -> ExportRequest:
        """Read the body of a POST.

        Raises:
            ApiError: 400 for a field that is not as documented.
        """
        return cls.from_payload(json_object(body), family, account)

    @classmethod
    def from_payload(cls, fields: dict[str, Any], family: Family, account: Account) -> ExportRequest:
        """Read the fields of the body.

        Raises:
            ApiError: 400 for a field that is not as documented.
        """
        lists = _chosen(fields, "list", family, account)
        segments = _chosen(fields, "segment", family, account)
        _check_notifications(fields)
        return cls(family, (*lists, *segments), _file_type(fields), _max_file_size(fields))


def json_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body; an empty body is an empty object.

    Raises:
        ApiError: 400 for anything else.
    """
    try:
        fields = json.loads(body or b"{}")
    except ValueError:
        raise ApiError(400, "request body is not valid JSON") from None
    if not isinstance(fields, dict):
        raise ApiError(400, "request body must be an object")
    return fields


def _chosen(fields: dict[str, Any], kind: Kind, family: Family, account: Account) -> list[Audience]:
    """Return the lists or segments named in the body."""
    name, id_type = f"{kind}_ids", FAMILY_SPECS[family].id_type
    ids = fields.get(name, [])
    if not isinstance(ids, list) or any(type(each) is not id_type for each in ids):
        kind_of_id = {str: "strings", int: "integers"}[id_type]
        raise ApiError(400, f"{name} must be an array of {kind_of_id}", name)
    known = {each.id: each for each in account.audiences(family, kind)}
    unknown = [each for each in ids if each not in known]
    if unknown:
        raise ApiError(400, f"no {kind} has the id {unknown[0]}", name)
    return [known[each] for each in dict.fromkeys(ids)]


def _check_notifications(fields: dict[str, Any]) -> None:
    notifications = fields.get("notifications", {})
    if not isinstance(notifications, dict) or not isinstance(notifications.get("email", False), bool):
        raise ApiError(400, "notifications must be an object with a boolean email", "notifications")


def _file_type(fields: dict[str, Any]) -> FileType:
    file_type: FileType = fields.get("file_type", "csv")
    if file_type not in ("csv", "json"):
        raise ApiError(400, "file_type must be one of csv, json", "file_type")
    return file_type


def _max_file_size(fields: dict[str, Any]) -> int:
    size = fields.get("max_file_size", DEFAULT_MAX_FILE_SIZE)
    if type(size) is not int or size < 1:
        raise ApiError(400, "max_file_size must be a positive integer", "max_file_size")
    return size
