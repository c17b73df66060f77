"""The file storage: what S3 does with a signed URL, on its own origin.

Knows signatures, ranges and S3's errors. Must not know SendGrid's API or sockets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import formatdate
from typing import Final
from xml.sax.saxutils import escape

from .backend import FOLDER, Backend
from .export import Export
from .messages import FileSlice, Request, Response, SendOptions
from .signing import signature_error
from .spool import SpooledFile

_NAME: Final = re.compile(re.escape(FOLDER) + r"/(?P<id>[0-9a-f-]{36})-(?P<number>\d{5})\.(csv|json)\.gzip")
_STATUSES: Final = {
    "AccessDenied": 403,
    "SignatureDoesNotMatch": 403,
    "InvalidArgument": 400,
    "NoSuchKey": 404,
    "MethodNotAllowed": 405,
    "PreconditionFailed": 412,
    "InvalidRange": 416,
}
_ENCODING_HEADERS: Final[Mapping[str, Mapping[str, str]]] = {
    "x-gzip": {"Content-Encoding": "x-gzip"},
    "gzip": {"Content-Encoding": "gzip"},
    "bare": {},
    "plain": {},
}


@dataclass(frozen=True, slots=True)
class ServingOptions:
    """How a file is served; the defaults serve it without faults."""

    ranges: bool = True
    expired: bool = False
    version: int = 0
    visible_bytes: int | None = None
    """The file ends after so many bytes, as if it had been stored so."""


class S3Error(Exception):
    """The request gets one of S3's error responses."""

    def __init__(self, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.response = s3_error_response(_STATUSES[code], message, code).with_headers(headers or {})


def s3_error_response(status: int, message: str, code: str = "InternalError") -> Response:
    """Return S3's error body."""
    content = f"<Code>{code}</Code><Message>{escape(message)}</Message><RequestId>EMULATOR</RequestId>"
    xml = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{content}</Error>'.encode()
    return Response(status, {"Content-Type": "application/xml"}, (xml,))


def handle_file_request(backend: Backend, request: Request, options: ServingOptions | None = None) -> Response:
    """Return S3's response to a request for a file."""
    options = options or ServingOptions()
    try:
        _check_request(backend, request, options)
        file = _find_file(backend, request.path, options)
        _check_if_match(request, file)
        return _serve(backend, request, file, options)
    except S3Error as error:
        return error.response


def _check_request(backend: Backend, request: Request, options: ServingOptions) -> None:
    if "authorization" in request.headers:
        raise S3Error(
            "InvalidArgument",
            "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query"
            " string parameter or the Authorization header should be specified",
        )
    if request.method not in ("GET", "HEAD"):
        raise S3Error("MethodNotAllowed", "The specified method is not allowed against this resource.")
    error = signature_error(request.method, request.path, request.query, backend.clock())
    if error:
        raise S3Error(*error)
    if options.expired:
        raise S3Error("AccessDenied", "Request has expired")


def _find_file(backend: Backend, path: str, options: ServingOptions) -> SpooledFile:
    named = _NAME.fullmatch(path)
    export = backend.account.export(named["id"]) if named else None
    if named is None or export is None or _is_gone(backend, export):
        raise S3Error("NoSuchKey", "The specified key does not exist.")
    files = backend.files(export, options.version)
    number = int(named["number"])
    if not 1 <= number <= len(files):
        raise S3Error("NoSuchKey", "The specified key does not exist.")
    return _truncated(files[number - 1], options.visible_bytes)


def _truncated(file: SpooledFile, visible_bytes: int | None) -> SpooledFile:
    size = file.stored_bytes if visible_bytes is None else min(visible_bytes, file.stored_bytes)
    return replace(file, stored_bytes=size)


def _is_gone(backend: Backend, export: Export) -> bool:
    return backend.clock() >= export.expires


def _check_if_match(request: Request, file: SpooledFile) -> None:
    if request.headers.get("if-match", file.etag) not in (file.etag, "*"):
        raise S3Error("PreconditionFailed", "At least one of the pre-conditions you specified did not hold")


def _serve(backend: Backend, request: Request, file: SpooledFile, options: ServingOptions) -> Response:
    settings = backend.settings
    wants_range = settings.ranges and options.ranges and "range" in request.headers
    requested = _requested_range(request, file) if wants_range else None
    first, end = requested or (0, file.stored_bytes)
    headers = {
        "Content-Type": "binary/octet-stream",
        "ETag": file.etag,
        "Last-Modified": formatdate(file.path.stat().st_mtime, usegmt=True),
        **({"Accept-Ranges": "bytes"} if settings.ranges else {}),
        **_ENCODING_HEADERS[file.encoding],
        **({"Content-Range": f"bytes {first}-{end - 1}/{file.stored_bytes}"} if requested else {}),
    }
    send_options = SendOptions(
        bytes_per_second=settings.bytes_per_second, connection_bytes=settings.bytes_per_connection
    )
    return Response(206 if requested else 200, headers, (FileSlice(file.path, first, end - first),), send_options)


def _requested_range(request: Request, file: SpooledFile) -> tuple[int, int] | None:
    """Return start and end of the requested range, or None if S3 ignores the header."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers["range"].strip())
    if found is None or found.groups() == ("", "") or _is_other_version(request, file):
        return None
    size, (first_text, last_text) = file.stored_bytes, found.groups()
    first = int(first_text) if first_text else max(0, size - int(last_text))
    end = min(size, int(last_text) + 1) if first_text and last_text else size
    if first_text and last_text and int(last_text) < first:
        return None
    if first >= size:
        unsatisfied = {"Content-Range": f"bytes */{size}"}
        raise S3Error("InvalidRange", "The requested range is not satisfiable", unsatisfied)
    return first, end


def _is_other_version(request: Request, file: SpooledFile) -> bool:
    return request.headers.get("if-range", file.etag) != file.etag
