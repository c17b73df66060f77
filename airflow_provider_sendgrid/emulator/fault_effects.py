"""What each kind of fault does to a response, or instead of it.

Must not know which requests a fault applies to (that is `faults.py`).

| kind | what happens | fields |
|---|---|---|
| `refuse`, `reset` | the connection is closed or reset, and the request has no effect | |
| `hang` | no response until faults are cleared | |
| `delay` | processed, but the response is late | `seconds` |
| `status` | an error (default 500) | `status`, `message`, `retry_after`, `rate_limit_reset`, `seconds` |
| `html` | an HTML page instead (default 200) | `status` |
| `body` | `message` is the whole body (default 200) | `status`, `message` |
| `redirect` | a redirect to `location` (default 302) | `location`, `status` |
| `endless` | JSON that never ends | |
| `endless_header` | a header that never ends | |
| `bomb` | gzip that expands to `at` MiB of spaces (default 1,024) | `at` |
| `lost` | processed, then the connection is closed or reset without a response | `with_reset` |
| `other_host` | the files' URLs have another origin | `location` |
| `null_listing` | a listing holds null instead of its entries | |
| `unfilled` | a ready export has a count of 0 and no URLs yet | |
| `reorder` | a ready export lists its files in reverse order | |
| `empty`, `broken_json` | processed, but with none or half of the body and a matching Content-Length | |
| `cut` | the connection ends after some bytes of the body (default: half) | `at`, `with_reset` |
| `trickle` | the response is slow | `bytes_per_second` |
| `wrong_length` | Content-Length is off by `at` (default 1,000) | `at` |
| `wrong_range` | Content-Range is off by `at` (default 1) | `at` |
| `corrupt` | the byte at offset `at` of the file (default 0) is inverted | `at` |
| `truncate` | the file itself has only its first `at` bytes (default 0), with a matching Content-Length | `at` |
| `changed` | the file has other content and another ETag | |
| `expire` | the URL has expired | |
| `no_ranges` | Range is ignored: 200 with the whole file | |
"""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from .faults import Fault
from .messages import FileSlice, Part, Response, first_bytes, json_error_response
from .storage import ServingOptions, s3_error_response

_LISTING_KEYS: Final = {"result", "results", "lists", "segments", "scopes"}


@dataclass(frozen=True, slots=True)
class FaultContext:
    """Where and when a fault is applied."""

    listener: str
    now: float
    released: threading.Event
    """Set when faults are cleared."""


Replace = Callable[[Fault, FaultContext], Response]
ChangeServing = Callable[[ServingOptions, Fault], ServingOptions]
Modify = Callable[[Response, Fault], Response]


def replacement_response(due: list[Fault], context: FaultContext) -> Response | None:
    """Return the response of the first fault that replaces the request's own, if any."""
    for fault in due:
        if fault.kind in _REPLACEMENTS:
            return _REPLACEMENTS[fault.kind](fault, context)
    return None


def serving_options(due: list[Fault]) -> ServingOptions:
    """Return how the file storage serves the file."""
    options = ServingOptions()
    for fault in due:
        if fault.kind in _SERVING:
            options = _SERVING[fault.kind](options, fault)
    return options


def modified_response(response: Response, due: list[Fault]) -> Response:
    """Return the response, changed by the faults that are due."""
    for fault in due:
        if fault.kind in _MODIFICATIONS:
            response = _MODIFICATIONS[fault.kind](response, fault)
    return response


def _with_send_options(response: Response, **changes: Any) -> Response:
    return replace(response, send_options=replace(response.send_options, **changes))


def _error_status(fault: Fault, context: FaultContext) -> Response:
    status = fault.status or 500
    resets = {"epoch": context.now + fault.seconds, "seconds": fault.seconds}
    headers = {} if fault.retry_after is None else {"Retry-After": f"{fault.retry_after:g}"}
    if fault.rate_limit_reset:
        headers["X-RateLimit-Reset"] = str(int(resets[fault.rate_limit_reset]))
    make = {"api": json_error_response, "files": s3_error_response}[context.listener]
    return make(status, fault.message).with_headers(headers)


def _html_page(fault: Fault, _context: FaultContext) -> Response:
    page = b"<!DOCTYPE html><html><body><h1>We'll be back soon</h1></body></html>"
    return Response(fault.status or 200, {"Content-Type": "text/html; charset=utf-8"}, (page,))


def _body(fault: Fault, _context: FaultContext) -> Response:
    return Response(fault.status or 200, {"Content-Type": "application/json"}, (fault.message.encode(),))


def _redirect(fault: Fault, _context: FaultContext) -> Response:
    return Response(fault.status or 302, {"Location": fault.location})


def _endless(_fault: Fault, _context: FaultContext) -> Response:
    headers = {"Content-Type": "application/json", "Connection": "close"}
    return _with_send_options(Response(200, headers, (b'{"result": [',)), endless=b'{"id": "filler"}, ' * 4_000)


def _endless_header(_fault: Fault, _context: FaultContext) -> Response:
    return _with_send_options(Response(0), endless_header=b"HTTP/1.1 200 OK\r\n" + b"X-Filler: filler\r\n" * 1_500)


def _bomb(fault: Fault, _context: FaultContext) -> Response:
    member = gzip.compress(b" " * 1024 * 1024, mtime=0)
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    return Response(200, headers, (member * (1_024 if fault.at is None else fault.at),))


def _with_fields(response: Response, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Response:
    """Return the response with some fields of its JSON object replaced; unchanged without an object."""
    try:
        payload = json.loads(b"".join(part for part in response.body if isinstance(part, bytes)))
    except ValueError:
        return response
    if not isinstance(payload, dict) or not (changed := change(payload)):
        return response
    return replace(response, body=(json.dumps({**payload, **changed}).encode(),))


def _other_host(response: Response, fault: Fault) -> Response:
    origin = fault.location.rstrip("/")
    return _with_fields(
        response,
        lambda payload: (
            {"urls": [re.sub(r"^https?://[^/]*", origin, url) for url in payload["urls"]]}
            if isinstance(payload.get("urls"), list)
            else {}
        ),
    )


def _null_listing(response: Response, _fault: Fault) -> Response:
    return _with_fields(response, lambda payload: dict.fromkeys(payload.keys() & _LISTING_KEYS))


def _incomplete_export(response: Response, _fault: Fault) -> Response:
    empty = {"urls": None, "contact_count": 0, "recipient_count": 0, "recipientCount": 0}
    return _with_fields(
        response,
        lambda payload: (
            {name: value for name, value in empty.items() if name in payload}
            if payload.get("status") == "ready"
            else {}
        ),
    )


def _reversed_files(response: Response, _fault: Fault) -> Response:
    return _with_fields(
        response, lambda payload: {"urls": payload["urls"][::-1]} if isinstance(payload.get("urls"), list) else {}
    )


def _cut_after_bytes(response: Response, fault: Fault) -> int:
    return response.length // 2 if fault.at is None else fault.at


def _wrong_range(response: Response, fault: Fault) -> Response:
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("Content-Range", ""))
    if found is None:
        return response
    first, last, size = (int(text) for text in found.groups())
    offset = 1 if fault.at is None else fault.at
    return response.with_headers({"Content-Range": f"bytes {first + offset}-{last + offset}/{size}"})


def _wrong_length(response: Response, fault: Fault) -> Response:
    offset = 1_000 if fault.at is None else fault.at
    return response.with_headers({"Content-Length": str(max(0, response.length + offset))})


def _corrupt(response: Response, fault: Fault) -> Response:
    return replace(response, body=tuple(part for each in response.body for part in _inverted(each, fault.at or 0)))


def _inverted(part: Part, at: int) -> Iterator[Part]:
    """Yield the part with the byte at offset `at` inverted."""
    if isinstance(part, bytes):
        yield bytes(byte ^ 0xFF if i == at else byte for i, byte in enumerate(part))
        return
    end = part.first + part.length
    if not part.first <= at < end:
        yield part
        return
    with part.path.open("rb") as file:
        file.seek(at)
        byte = file.read(1)[0]
    yield FileSlice(part.path, part.first, at - part.first)
    yield bytes([byte ^ 0xFF])
    yield FileSlice(part.path, at + 1, end - at - 1)


_REPLACEMENTS: Final[Mapping[str, Replace]] = {
    "refuse": lambda *_: _with_send_options(Response(0), drop="close"),
    "reset": lambda *_: _with_send_options(Response(0), drop="reset"),
    "hang": lambda _, context: _with_send_options(Response(0), hang_until=context.released),
    "status": _error_status,
    "html": _html_page,
    "body": _body,
    "redirect": _redirect,
    "endless": _endless,
    "endless_header": _endless_header,
    "bomb": _bomb,
}
_SERVING: Final[Mapping[str, ChangeServing]] = {
    "truncate": lambda options, fault: replace(options, visible_bytes=fault.at or 0),
    "changed": lambda options, _: replace(options, version=1),
    "expire": lambda options, _: replace(options, expired=True),
    "no_ranges": lambda options, _: replace(options, ranges=False),
}
_MODIFICATIONS: Final[Mapping[str, Modify]] = {
    "delay": lambda response, fault: _with_send_options(response, delay_seconds=fault.seconds),
    "lost": lambda response, fault: _with_send_options(response, drop="reset" if fault.with_reset else "close"),
    "other_host": _other_host,
    "null_listing": _null_listing,
    "unfilled": _incomplete_export,
    "reorder": _reversed_files,
    "empty": lambda response, _: replace(response, body=()),
    "broken_json": lambda response, _: replace(response, body=tuple(first_bytes(response.body, response.length // 2))),
    "cut": lambda response, fault: _with_send_options(
        response, cut_after=_cut_after_bytes(response, fault), cut_with_reset=fault.with_reset
    ),
    "trickle": lambda response, fault: _with_send_options(response, bytes_per_second=fault.bytes_per_second),
    "wrong_length": _wrong_length,
    "wrong_range": _wrong_range,
    "corrupt": _corrupt,
}
