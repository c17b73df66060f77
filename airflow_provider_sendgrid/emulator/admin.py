"""The emulator's own endpoints below `/_emulator/`: what `Emulator` does, for other processes.

Knows the JSON of each endpoint. Needs no key.

| request | body or query | response |
|---|---|---|
| `POST /_emulator/lists`, `/_emulator/segments` | fields of `NewAudience` | 201 `{"id"}` |
| `POST /_emulator/exports` | `family` and the fields of SendGrid's own POST | 201 `{"id"}` |
| `GET`, `PATCH /_emulator/settings` | some fields of `Settings` | all of them |
| `GET`, `POST`, `DELETE /_emulator/faults` | fields of a `Fault` | the faults installed |
| `GET`, `DELETE /_emulator/requests` | `method`, `path` (a prefix), `listener` | the requests recorded |
| `GET /_emulator/state` | | lists, segments and exports |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from .audience import FAMILIES, Kind, NewAudience
from .backend import Backend
from .export import Export
from .export_request import ApiError, ExportRequest, json_object
from .fault_list import FaultList
from .faults import Fault
from .messages import Request, Response, json_response
from .payloads import timestamp
from .recording import RequestLog
from .validation import replace_checked

PREFIX: Final = "/_emulator/"


@dataclass(frozen=True, slots=True)
class Admin:
    """What the endpoints show and change."""

    backend: Backend
    log: RequestLog
    faults: FaultList


def handle_admin_request(admin: Admin, request: Request) -> Response:
    """Return the response to a request below `/_emulator/`."""
    endpoint = _ENDPOINTS.get((request.method, request.path.removeprefix(PREFIX)))
    try:
        if endpoint is None:
            known = ", ".join(f"{method} {PREFIX}{name}" for method, name in _ENDPOINTS)
            raise ApiError(404, f"no such endpoint; there are {known}")
        return endpoint(admin, request)
    except ValueError as error:
        return ApiError(400, str(error)).response
    except ApiError as error:
        return error.response


def _add_audience(kind: Kind, admin: Admin, request: Request) -> Response:
    new = replace_checked(NewAudience(name=""), json_object(request.body))
    if not new.name:
        raise ApiError(400, "name must not be empty", "name")
    return json_response(201, {"id": admin.backend.account.add_audience(kind, new).id})


def _start_export(admin: Admin, request: Request) -> Response:
    fields = json_object(request.body)
    family = fields.pop("family", "marketing")
    if family not in FAMILIES:
        raise ApiError(400, f"family must be one of {', '.join(FAMILIES)}", "family")
    wanted = ExportRequest.from_payload(fields, family, admin.backend.account)
    export = admin.backend.start_export(wanted.family, wanted.audiences, wanted.file_type, wanted.max_file_size)
    return json_response(201, {"id": export.id})


def _show_settings(admin: Admin, _: Request) -> Response:
    return json_response(200, admin.backend.settings.as_json())


def _change_settings(admin: Admin, request: Request) -> Response:
    admin.backend.settings = admin.backend.settings.changed(json_object(request.body))
    return _show_settings(admin, request)


def _show_faults(admin: Admin, _: Request) -> Response:
    return json_response(200, {"faults": [fault.as_json() for fault in admin.faults.all()]})


def _add_fault(admin: Admin, request: Request) -> Response:
    admin.faults.add(Fault.from_payload(json_object(request.body)))
    return _show_faults(admin, request)


def _clear_faults(admin: Admin, request: Request) -> Response:
    admin.faults.clear()
    return _show_faults(admin, request)


def _show_requests(admin: Admin, request: Request) -> Response:
    query = request.query
    found = admin.log.matching(query.get("method", ""), query.get("path", ""), query.get("listener", ""))
    return json_response(200, {"requests": [asdict(each) for each in found]})


def _clear_requests(admin: Admin, request: Request) -> Response:
    admin.log.clear()
    return _show_requests(admin, request)


def _show_state(admin: Admin, _: Request) -> Response:
    account = admin.backend.account
    kinds: tuple[Kind, ...] = ("list", "segment")
    state: dict[str, Any] = {
        f"{kind}s": [asdict(each) for family in FAMILIES for each in account.audiences(family, kind)] for kind in kinds
    }
    state["exports"] = [_export_payload(each, admin.backend) for each in account.exports()]
    return json_response(200, state)


def _export_payload(export: Export, backend: Backend) -> dict[str, Any]:
    return {
        "id": export.id,
        "family": export.family,
        "status": backend.status(export),
        "created_at": timestamp(export.created),
        "export_type": export.export_type,
        "file_type": export.file_type,
        "contacts": backend.count(export),
        "lists": [each.id for each in export.audiences if each.kind == "list"],
        "segments": [each.id for each in export.audiences if each.kind == "segment"],
    }


_ENDPOINTS: Final[Mapping[tuple[str, str], Callable[[Admin, Request], Response]]] = {
    ("POST", "lists"): lambda admin, request: _add_audience("list", admin, request),
    ("POST", "segments"): lambda admin, request: _add_audience("segment", admin, request),
    ("POST", "exports"): _start_export,
    ("GET", "settings"): _show_settings,
    ("PATCH", "settings"): _change_settings,
    ("GET", "faults"): _show_faults,
    ("POST", "faults"): _add_fault,
    ("DELETE", "faults"): _clear_faults,
    ("GET", "requests"): _show_requests,
    ("DELETE", "requests"): _clear_requests,
    ("GET", "state"): _show_state,
}
