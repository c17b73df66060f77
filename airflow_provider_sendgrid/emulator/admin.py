"""The emulator's own endpoints below `/_emulator/`, so that another process can do what Python code can.

Knows JSON forms of what the other files do. Must not do anything itself. No key is needed.

| request | body or query | answer |
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
from .checked import replace_checked
from .export import Export
from .export_request import ExportRequest, RefusedError, json_object
from .fault_list import FaultList
from .faults import Fault
from .messages import Answer, Request, json_answer
from .payloads import timestamp
from .recording import RequestLog

PREFIX: Final = "/_emulator/"


@dataclass(frozen=True, slots=True)
class Admin:
    """What may be looked at and changed from outside."""

    backend: Backend
    log: RequestLog
    faults: FaultList


def answer_admin(admin: Admin, request: Request) -> Answer:
    """Answer one request below `/_emulator/`."""
    endpoint = _ENDPOINTS.get((request.method, request.path.removeprefix(PREFIX)))
    try:
        if endpoint is None:
            known = ", ".join(f"{method} {PREFIX}{name}" for method, name in _ENDPOINTS)
            raise RefusedError(404, f"there are {known}")
        return endpoint(admin, request)
    except ValueError as error:
        return RefusedError(400, str(error)).answer
    except RefusedError as refused:
        return refused.answer


def _add_audience(kind: Kind, admin: Admin, request: Request) -> Answer:
    new = replace_checked(NewAudience(name=""), json_object(request.body))
    if not new.name:
        raise RefusedError(400, "name must not be empty", "name")
    return json_answer(201, {"id": admin.backend.account.add_audience(kind, new).id})


def _start_export(admin: Admin, request: Request) -> Answer:
    fields = json_object(request.body)
    family = fields.pop("family", "marketing")
    if family not in FAMILIES:
        raise RefusedError(400, f"family must be one of {', '.join(FAMILIES)}", "family")
    order = ExportRequest.from_payload(fields, family, admin.backend.account)
    export = admin.backend.start_export(order.family, order.audiences, order.file_type, order.max_file_size)
    return json_answer(201, {"id": export.id})


def _show_settings(admin: Admin, _: Request) -> Answer:
    return json_answer(200, admin.backend.settings.as_json())


def _change_settings(admin: Admin, request: Request) -> Answer:
    admin.backend.settings = admin.backend.settings.changed(json_object(request.body))
    return _show_settings(admin, request)


def _show_faults(admin: Admin, _: Request) -> Answer:
    return json_answer(200, {"faults": [fault.as_json() for fault in admin.faults.all()]})


def _add_fault(admin: Admin, request: Request) -> Answer:
    admin.faults.add(Fault.from_payload(json_object(request.body)))
    return _show_faults(admin, request)


def _clear_faults(admin: Admin, request: Request) -> Answer:
    admin.faults.clear()
    return _show_faults(admin, request)


def _show_requests(admin: Admin, request: Request) -> Answer:
    asked = request.query
    found = admin.log.matching(asked.get("method", ""), asked.get("path", ""), asked.get("listener", ""))
    return json_answer(200, {"requests": [asdict(each) for each in found]})


def _clear_requests(admin: Admin, request: Request) -> Answer:
    admin.log.clear()
    return _show_requests(admin, request)


def _show_state(admin: Admin, _: Request) -> Answer:
    account = admin.backend.account
    kinds: tuple[Kind, ...] = ("list", "segment")
    state: dict[str, Any] = {
        f"{kind}s": [asdict(each) for family in FAMILIES for each in account.audiences(family, kind)] for kind in kinds
    }
    state["exports"] = [_export_payload(each, admin.backend) for each in account.exports()]
    return json_answer(200, state)


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


_ENDPOINTS: Final[Mapping[tuple[str, str], Callable[[Admin, Request], Answer]]] = {
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
