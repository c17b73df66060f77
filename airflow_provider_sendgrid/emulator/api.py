"""SendGrid's endpoints: one table of routes.

Knows keys, scopes, routes and SendGrid's errors. Must not know sockets, files on disk or faults.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from .audience import Audience, Family, Kind
from .backend import Backend
from .export import Export
from .export_request import ApiError, ExportRequest
from .messages import Request, Response, json_response
from .payloads import FAMILY_SPECS, Origins, audience_payload, listed_payload, started_payload, status_payload
from .settings import Key


@dataclass(frozen=True, slots=True)
class Call:
    """One authorised request to an endpoint."""

    backend: Backend
    request: Request
    origins: Origins
    family: Family
    key: Key
    export_id: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint; without a family it accepts any key."""

    method: str
    path: str
    endpoint: Callable[[Call], Response]
    family: Family | None = None


def handle_api_request(backend: Backend, request: Request, origins: Origins) -> Response:
    """Return SendGrid's response to a request."""
    try:
        key = _authenticate(backend, request)
        route, export_id = _find_route(request)
        _authorise(backend, request, key, route)
        call = Call(backend, request, origins, route.family or "marketing", key, export_id)
        return route.endpoint(call)
    except ApiError as error:
        return error.response


def find_key(backend: Backend, request: Request) -> Key | None:
    """Return the key of a request, or None if it is unknown."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    return backend.keys.get(secret.strip()) if scheme.lower() == "bearer" else None


def _authenticate(backend: Backend, request: Request) -> Key:
    key = find_key(backend, request)
    if "authorization" not in request.headers:
        raise ApiError(401, "authorization required")
    if key is None:
        raise ApiError(401, "The provided authorization grant is invalid, expired, or revoked")
    return key


def _find_route(request: Request) -> tuple[Route, str]:
    matches = [(route, found) for route in ROUTES if (found := re.fullmatch(route.path, request.path))]
    if not matches:
        raise ApiError(404, "not found")
    for route, found in matches:
        if route.method == request.method:
            return route, found.groupdict().get("id", "")
    raise ApiError(405, "method not allowed")


def _authorise(backend: Backend, request: Request, key: Key, route: Route) -> None:
    """Check subuser, product and scope; SendGrid has one message for all three."""
    settings = backend.settings
    subuser = request.headers.get("on-behalf-of")
    is_known = subuser is None or subuser in settings.subusers
    has_product = route.family is None or settings.product in ("both", route.family)
    has_scope = route.family is None or FAMILY_SPECS[route.family].scope in key.scopes
    if not (is_known and has_product and has_scope):
        raise ApiError(403, "access forbidden")


def _start_export(call: Call) -> Response:
    wanted = ExportRequest.from_body(call.request.body, call.family, call.backend.account)
    export = call.backend.start_export(wanted.family, wanted.audiences, wanted.file_type, wanted.max_file_size)
    return json_response(202, started_payload(export, call.origins))


def _get_export(call: Call) -> Response:
    export = call.backend.account.export(call.export_id)
    if export is None or export.family != call.family:
        raise ApiError(404, "export not found")
    return json_response(200, status_payload(export, call.backend, call.origins))


def _list_exports(call: Call) -> Response:
    def show(export: Export) -> dict[str, Any]:
        return listed_payload(export, call.backend, call.origins)

    exports = call.backend.account.exports(call.family)
    return _page(call, exports, call.backend.settings.page_size, show, "result")


def _list_marketing_lists(call: Call) -> Response:
    return _page(call, *_audiences(call, "list"), "result")


def _list_marketing_segments(call: Call, *, first_api: bool = False) -> Response:
    segments, size, show = _audiences(call, "segment")
    return _page(call, [each for each in segments if each.first_api == first_api], size, show, "results")


def _list_legacy_lists(call: Call) -> Response:
    lists, _, show = _audiences(call, "list")
    return json_response(200, {"lists": [show(each) for each in lists]})


def _list_legacy_segments(call: Call) -> Response:
    segments, _, show = _audiences(call, "segment")
    return json_response(200, {"segments": [show(each) for each in segments]})


def _audiences(call: Call, kind: Kind) -> tuple[list[Audience], int, Callable[[Audience], dict[str, Any]]]:
    found = call.backend.account.audiences(call.family, kind)
    return found, 100, lambda each: audience_payload(each, call.origins)


def _page(call: Call, items: list[Any], default_size: int, show: Callable[[Any], Any], field: str) -> Response:
    """Return one page. Its token is the id of its first item, so that new items do not shift pages."""
    size = _page_size(call.request.query.get("page_size", str(default_size)))
    token = call.request.query.get("page_token", "")
    ids = [str(each.id) for each in items]
    if token and token not in ids:
        raise ApiError(400, "page_token is not valid", "page_token")
    first = ids.index(token) if token else 0
    links = {"prev": first - size, "self": first, "next": first + size}
    url = f"{call.origins.api}{call.request.path}?page_size={size}&page_token="
    metadata: dict[str, Any] = {name: url + ids[at] for name, at in links.items() if 0 <= at < len(ids)}
    metadata.setdefault("self", url)
    metadata["count"] = len(ids)
    return json_response(200, {field: [show(each) for each in items[first : first + size]], "_metadata": metadata})


def _page_size(text: str) -> int:
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= 1000:
        raise ApiError(400, "page_size must be a number from 1 to 1000", "page_size")
    return int(text)


def _get_scopes(call: Call) -> Response:
    return json_response(200, {"scopes": sorted(call.key.scopes)})


ROUTES: Final = (
    Route("GET", "/v3/scopes", _get_scopes),
    Route("POST", "/v3/marketing/contacts/exports", _start_export, "marketing"),
    Route("GET", "/v3/marketing/contacts/exports", _list_exports, "marketing"),
    Route("GET", "/v3/marketing/contacts/exports/(?P<id>[^/]+)", _get_export, "marketing"),
    Route("GET", "/v3/marketing/lists", _list_marketing_lists, "marketing"),
    Route("GET", re.escape("/v3/marketing/segments/2.0"), _list_marketing_segments, "marketing"),
    Route("GET", "/v3/marketing/segments", partial(_list_marketing_segments, first_api=True), "marketing"),
    Route("POST", "/v3/contactdb/exports", _start_export, "legacy"),
    Route("GET", "/v3/contactdb/exports", _list_exports, "legacy"),
    Route("GET", "/v3/contactdb/exports/(?P<id>[^/]+)", _get_export, "legacy"),
    Route("GET", "/v3/contactdb/lists", _list_legacy_lists, "legacy"),
    Route("GET", "/v3/contactdb/segments", _list_legacy_segments, "legacy"),
)
