"""What each kind of fault does to an answer, or instead of it.

Must not know which requests a fault applies to (that is `faults.py`).

| kind | what happens | fields |
|---|---|---|
| `refuse`, `reset` | the connection is closed or reset, and the request is not carried out | |
| `hang` | no response until faults are cleared | |
| `delay` | carried out, but the response is late | `seconds` |
| `status` | an error (default 500) | `status`, `message`, `retry_after`, `rate_limit_reset`, `seconds` |
| `html` | an HTML page instead (default 200) | `status` |
| `body` | `message` is the whole body (default 200) | `status`, `message` |
| `redirect` | a redirect to `location` (default 302) | `location`, `status` |
| `endless` | JSON that never ends | |
| `endless_header` | a header that never ends | |
| `bomb` | gzip that expands to `at` MiB of spaces (default 1,024) | `at` |
| `lost` | carried out, then the connection is closed or reset without a response | `with_reset` |
| `other_host` | the files' URLs have another origin | `location` |
| `null_listing` | a listing holds null instead of its entries | |
| `unfilled` | a ready export has a count of 0 and no URLs yet | |
| `reorder` | a ready export lists its files in reverse order | |
| `empty`, `broken_json` | carried out, but with none or half of the body and a matching Content-Length | |
| `cut` | the connection ends after some bytes of the body (default: half) | `at`, `with_reset` |
| `trickle` | slow | `bytes_per_second` |
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
from .messages import Answer, FileSlice, Part, errors_answer, first_bytes
from .storage import Treatment, error_answer

_LISTING_KEYS: Final = {"result", "results", "lists", "segments", "scopes"}


@dataclass(frozen=True, slots=True)
class Occasion:
    """Where and when a fault is applied."""

    listener: str
    now: float
    released: threading.Event
    """Is set when faults are cleared."""


Instead = Callable[[Fault, Occasion], Answer]
Treat = Callable[[Treatment, Fault], Treatment]
Change = Callable[[Answer, Fault], Answer]


def answer_instead(due: list[Fault], occasion: Occasion) -> Answer | None:
    """Return the answer of the first fault that replaces the request's own; None without such a fault."""
    for fault in due:
        if fault.kind in _INSTEAD:
            return _INSTEAD[fault.kind](fault, occasion)
    return None


def treatment_of(due: list[Fault]) -> Treatment:
    """Return how the file storage serves the file."""
    treatment = Treatment()
    for fault in due:
        if fault.kind in _TREATMENTS:
            treatment = _TREATMENTS[fault.kind](treatment, fault)
    return treatment


def spoil(answer: Answer, due: list[Fault]) -> Answer:
    """Return the answer with all faults applied that change one."""
    for fault in due:
        if fault.kind in _CHANGES:
            answer = _CHANGES[fault.kind](answer, fault)
    return answer


def _sending(answer: Answer, **changes: Any) -> Answer:
    return replace(answer, sending=replace(answer.sending, **changes))


def _error_status(fault: Fault, occasion: Occasion) -> Answer:
    status = fault.status or 500
    resets = {"epoch": occasion.now + fault.seconds, "seconds": fault.seconds}
    headers = {} if fault.retry_after is None else {"Retry-After": f"{fault.retry_after:g}"}
    if fault.rate_limit_reset:
        headers["X-RateLimit-Reset"] = str(int(resets[fault.rate_limit_reset]))
    make = {"api": errors_answer, "files": error_answer}[occasion.listener]
    return make(status, fault.message).with_headers(headers)


def _html_page(fault: Fault, _occasion: Occasion) -> Answer:
    page = b"<!DOCTYPE html><html><body><h1>We'll be back soon</h1></body></html>"
    return Answer(fault.status or 200, {"Content-Type": "text/html; charset=utf-8"}, (page,))


def _body(fault: Fault, _occasion: Occasion) -> Answer:
    return Answer(fault.status or 200, {"Content-Type": "application/json"}, (fault.message.encode(),))


def _redirect(fault: Fault, _occasion: Occasion) -> Answer:
    return Answer(fault.status or 302, {"Location": fault.location})


def _endless(_fault: Fault, _occasion: Occasion) -> Answer:
    headers = {"Content-Type": "application/json", "Connection": "close"}
    return _sending(Answer(200, headers, (b'{"result": [',)), endless=b'{"id": "again and again"}, ' * 2_000)


def _endless_header(_fault: Fault, _occasion: Occasion) -> Answer:
    return _sending(Answer(0), endless_header=b"HTTP/1.1 200 OK\r\n" + b"X-Filler: again and again\r\n" * 1_000)


def _bomb(fault: Fault, _occasion: Occasion) -> Answer:
    member = gzip.compress(b" " * 1024 * 1024, mtime=0)
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    return Answer(200, headers, (member * (1_024 if fault.at is None else fault.at),))


def _with_fields(answer: Answer, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Answer:
    """Return the answer with some fields of its JSON object replaced; unchanged if it holds no object."""
    try:
        payload = json.loads(b"".join(part for part in answer.body if isinstance(part, bytes)))
    except ValueError:
        return answer
    if not isinstance(payload, dict) or not (changed := change(payload)):
        return answer
    return replace(answer, body=(json.dumps({**payload, **changed}).encode(),))


def _other_host(answer: Answer, fault: Fault) -> Answer:
    origin = fault.location.rstrip("/")
    return _with_fields(
        answer,
        lambda payload: (
            {"urls": [re.sub(r"^https?://[^/]*", origin, url) for url in payload["urls"]]}
            if isinstance(payload.get("urls"), list)
            else {}
        ),
    )


def _null_listing(answer: Answer, _fault: Fault) -> Answer:
    return _with_fields(answer, lambda payload: dict.fromkeys(payload.keys() & _LISTING_KEYS))


def _unfilled_export(answer: Answer, _fault: Fault) -> Answer:
    unfilled = {"urls": None, "contact_count": 0, "recipient_count": 0, "recipientCount": 0}
    return _with_fields(
        answer,
        lambda payload: (
            {name: value for name, value in unfilled.items() if name in payload}
            if payload.get("status") == "ready"
            else {}
        ),
    )


def _reversed_files(answer: Answer, _fault: Fault) -> Answer:
    return _with_fields(
        answer, lambda payload: {"urls": payload["urls"][::-1]} if isinstance(payload.get("urls"), list) else {}
    )


def _cut_after_bytes(answer: Answer, fault: Fault) -> int:
    return answer.length // 2 if fault.at is None else fault.at


def _wrong_range(answer: Answer, fault: Fault) -> Answer:
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.headers.get("Content-Range", ""))
    if found is None:
        return answer
    first, last, size = (int(text) for text in found.groups())
    off = 1 if fault.at is None else fault.at
    return answer.with_headers({"Content-Range": f"bytes {first + off}-{last + off}/{size}"})


def _wrong_length(answer: Answer, fault: Fault) -> Answer:
    off = 1_000 if fault.at is None else fault.at
    return answer.with_headers({"Content-Length": str(max(0, answer.length + off))})


def _corrupt(answer: Answer, fault: Fault) -> Answer:
    return replace(answer, body=tuple(part for each in answer.body for part in _inverted(each, fault.at or 0)))


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


_INSTEAD: Final[Mapping[str, Instead]] = {
    "refuse": lambda *_: _sending(Answer(0), drop="close"),
    "reset": lambda *_: _sending(Answer(0), drop="reset"),
    "hang": lambda _, occasion: _sending(Answer(0), hang_until=occasion.released),
    "status": _error_status,
    "html": _html_page,
    "body": _body,
    "redirect": _redirect,
    "endless": _endless,
    "endless_header": _endless_header,
    "bomb": _bomb,
}
_TREATMENTS: Final[Mapping[str, Treat]] = {
    "truncate": lambda treatment, fault: replace(treatment, visible_bytes=fault.at or 0),
    "changed": lambda treatment, _: replace(treatment, edition=1),
    "expire": lambda treatment, _: replace(treatment, expired=True),
    "no_ranges": lambda treatment, _: replace(treatment, ranges=False),
}
_CHANGES: Final[Mapping[str, Change]] = {
    "delay": lambda answer, fault: _sending(answer, delay_seconds=fault.seconds),
    "lost": lambda answer, fault: _sending(answer, drop="reset" if fault.with_reset else "close"),
    "other_host": _other_host,
    "null_listing": _null_listing,
    "unfilled": _unfilled_export,
    "reorder": _reversed_files,
    "empty": lambda answer, _: replace(answer, body=()),
    "broken_json": lambda answer, _: replace(answer, body=tuple(first_bytes(answer.body, answer.length // 2))),
    "cut": lambda answer, fault: _sending(
        answer, cut_after=_cut_after_bytes(answer, fault), cut_with_reset=fault.with_reset
    ),
    "trickle": lambda answer, fault: _sending(answer, bytes_per_second=fault.bytes_per_second),
    "wrong_length": _wrong_length,
    "wrong_range": _wrong_range,
    "corrupt": _corrupt,
}
