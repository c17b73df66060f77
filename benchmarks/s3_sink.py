"""A fake S3 for uploads: accepts PUTs and multipart uploads, counts bytes, and keeps the bodies of JSON only.

It checks no signature and no checksum, so that it is not a bottleneck. ``GET /-/report`` returns what was received
since the last report. With ``--digest``, it includes each object's SHA-256, and bodies are kept in memory: not for
timed runs.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

from benchmarks.http_server import Request, Server, Stream, run, tls_arguments, tls_of

_XML = '<?xml version="1.0" encoding="UTF-8"?>\n'
_LAST_MODIFIED = "Fri, 27 Nov 2026 08:00:00 GMT"
_NOT_FOUND = _XML + "<Error><Code>NoSuchKey</Code><Message>not found</Message></Error>"


@dataclass
class Body:
    """The size of a body, and its bytes if they are kept."""

    size: int = 0
    content: bytearray | None = None

    def take(self, stream: Stream, size: int) -> None:
        self.size += size
        if self.content is None:
            stream.drop(size)
            return
        for piece in stream.pieces(size):
            self.content += piece

    @property
    def bytes(self) -> bytes:
        return bytes(self.content or b"")


@dataclass
class Sink:
    """Handles S3's requests; has the bodies of open uploads by part, and the sizes of objects by key."""

    latency_seconds: float = 0.0
    keeps_digests: bool = False
    objects: dict[str, dict[str, object]] = field(default_factory=dict)
    requests: int = 0
    aborted: int = 0
    _uploads: dict[str, dict[int, Body]] = field(default_factory=dict)
    _metadata: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _headers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _kept: dict[str, bytes] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def respond(self, request: Request, stream: Stream) -> None:
        if request.target == "/-/report":
            self._send(stream, "200 OK", json.dumps(self.report()))
            return
        url = urlsplit(request.target)
        key = unquote(url.path).lstrip("/").partition("/")[2]
        is_kept = self.keeps_digests or request.method == "POST" or key.endswith(".json")
        body = Body(content=bytearray() if is_kept else None)
        receive(request, stream, body)
        time.sleep(self.latency_seconds)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        with self._lock:
            self.requests += 1
            self._dispatch(request, stream, key, query, body)

    def report(self) -> dict[str, object]:
        with self._lock:
            objects, self.objects = self.objects, {}
        return {
            "objects": objects,
            "requests": self.requests,
            "aborted": self.aborted,
            "unfinished": len(self._uploads),
        }

    def _dispatch(self, request: Request, stream: Stream, key: str, query: dict[str, str], body: Body) -> None:
        if request.method == "PUT" and "partNumber" in query:
            self._uploads[query["uploadId"]][int(query["partNumber"])] = body
            self._send(stream, "200 OK", "", 'ETag: "part"')
        elif request.method == "PUT":
            etag = self._publish(key, [body], metadata_of(request))
            self._send(stream, "200 OK", "", f"ETag: {etag}")
        elif request.method == "POST" and "uploads" in query:
            upload = f"upload-{next(self._numbers)}"
            self._uploads[upload] = {}
            self._metadata[upload] = metadata_of(request)
            self._send(stream, "200 OK", _started(key, upload))
        elif request.method == "POST" and "uploadId" in query:
            parts = self._uploads.pop(query["uploadId"])
            metadata = self._metadata.pop(query["uploadId"], ())
            etag = self._publish(key, [parts[number] for number in sorted(parts)], metadata)
            self._send(stream, "200 OK", _completed(key, etag))
        elif request.method == "DELETE":
            if "uploadId" in query:
                self.aborted += self._uploads.pop(query["uploadId"], None) is not None
            else:
                self.objects.pop(key, None)
            self._send(stream, "204 No Content", None)
        else:
            self._show(request, stream, key, query)

    def _show(self, request: Request, stream: Stream, key: str, query: dict[str, str]) -> None:
        if request.method == "GET" and "uploads" in query:
            self._send(stream, "200 OK", _XML + "<ListMultipartUploadsResult></ListMultipartUploadsResult>")
        elif request.method == "GET" and "list-type" in query:
            self._send(stream, "200 OK", self._listing(query.get("prefix", "")))
        elif request.method == "HEAD" and key in self.objects:
            stream.send_head("200 OK", f"Content-Length: {self.objects[key]['size']}", *self._headers[key])
        elif request.method == "GET" and key in self.objects and key in self._kept:
            self._send(stream, "200 OK", self._kept[key].decode(), *self._headers[key])
        else:
            self._send(stream, "404 Not Found", None if request.method == "HEAD" else _NOT_FOUND)

    def _publish(self, key: str, bodies: list[Body], metadata: tuple[str, ...]) -> str:
        etag = f'"{next(self._numbers)}-of-the-sink"'
        self._headers[key] = (f"ETag: {etag}", f"Last-Modified: {_LAST_MODIFIED}", *metadata)
        if key.endswith(".json"):
            self._kept[key] = bodies[0].bytes
        digest = hashlib.sha256(b"".join(body.bytes for body in bodies)).hexdigest() if self.keeps_digests else None
        self.objects[key] = {"size": sum(body.size for body in bodies), "parts": len(bodies), "sha256": digest}
        return etag

    def _listing(self, prefix: str) -> str:
        entries = (
            f"<Contents><Key>{key}</Key><Size>{stored['size']}</Size>"
            f"<ETag>{self._headers[key][0].partition(': ')[2]}</ETag>"
            "<LastModified>2026-11-27T08:00:00.000Z</LastModified></Contents>"
            for key, stored in self.objects.items()
            if key.startswith(prefix)
        )
        return f"{_XML}<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(entries)}</ListBucketResult>"

    @staticmethod
    def _send(stream: Stream, status: str, content: str | None, *headers: str) -> None:
        length = () if content is None and status.startswith("204") else (f"Content-Length: {len(content or '')}",)
        stream.send_head(status, "Content-Type: application/xml", *length, *headers)
        if content:
            stream.connection.sendall(content.encode())


def metadata_of(request: Request) -> tuple[str, ...]:
    """The headers of user metadata, which responses for the object repeat."""
    return tuple(f"{name}: {value}" for name, value in request.headers.items() if name.startswith("x-amz-meta-"))


def receive(request: Request, stream: Stream, body: Body) -> None:
    """Read a request's body: plain, in HTTP chunks, in chunks of S3's streaming signatures, or both."""
    if request.headers.get("expect", "").lower() == "100-continue":
        stream.send_head("100 Continue")
    is_framed = "aws-chunked" in request.headers.get("content-encoding", "")
    target = Body(content=bytearray()) if is_framed and body.content is not None else body
    if request.headers.get("transfer-encoding", "").lower() == "chunked":
        _receive_chunks(stream, target)
    else:
        target.take(stream, int(request.headers.get("content-length", "0")))
    if is_framed:
        body.size = int(request.headers["x-amz-decoded-content-length"])
        body.content = decode_aws_chunks(target.bytes) if body.content is not None else None


def _receive_chunks(stream: Stream, body: Body) -> None:
    while size := int(stream.read_line().split(b";")[0], 16):
        body.take(stream, size)
        stream.read_line()
    while stream.read_line():
        pass


def decode_aws_chunks(content: bytes) -> bytearray:
    """The content of S3's chunks: ``size;signature``, bytes, and so on to an empty chunk, then trailers."""
    plain, at = bytearray(), 0
    while True:
        line_end = content.index(b"\r\n", at)
        size = int(content[at:line_end].split(b";")[0], 16)
        if size == 0:
            return plain
        plain += content[line_end + 2 : line_end + 2 + size]
        at = line_end + 2 + size + 2


def _started(key: str, upload: str) -> str:
    return (
        f"{_XML}<InitiateMultipartUploadResult><Bucket>bench</Bucket><Key>{key}</Key>"
        f"<UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
    )


def _completed(key: str, etag: str) -> str:
    return (
        f"{_XML}<CompleteMultipartUploadResult><Location>here</Location><Bucket>bench</Bucket><Key>{key}</Key>"
        f"<ETag>{etag}</ETag></CompleteMultipartUploadResult>"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--digest", action="store_true", help="keep bodies and report their SHA-256")
    tls_arguments(parser)
    options = parser.parse_args()
    sink = Sink(latency_seconds=options.latency_seconds, keeps_digests=options.digest)
    run(Server(sink.respond, tls_of(options)))


if __name__ == "__main__":
    main()
