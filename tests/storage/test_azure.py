"""An account that compares nothing: what it says of a blob must agree with what was sent."""

from __future__ import annotations

import base64
import hashlib
import threading
import traceback
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from airflow_provider_sendgrid.exceptions import DestinationChangedError, DestinationError, DestinationRefusedError
from airflow_provider_sendgrid.storage.azure import AzureStorage
from airflow_provider_sendgrid.storage.base import ObjectInfo
from airflow_provider_sendgrid.storage.multipart import crc32
from tests.support.destinations import no_sleep

INFO = ObjectInfo("text/csv", {"sha256": "of what was sent"})
SENT, CAME = b"the-mark,1", b"the-marK,1"


@contextmanager
def careless_account(*, keeps=True, may_delete=True):  # noqa: C901  a server in one place
    """Accepts damaged bytes and returns their MD5; the storage that uses it, and its blobs' bytes and metadata."""
    blobs = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, status, content=b"", **headers):
            self.send_response(status)
            named = {"Last-Modified": "Fri, 27 Nov 2026 09:00:00 GMT", "ETag": '"1"', "x-ms-blob-type": "BlockBlob"}
            for name, value in {**named, "Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def do_PUT(self):
            content = self.rfile.read(int(self.headers["Content-Length"])).replace(SENT, CAME)
            md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
            if keeps and "comp=" not in self.path:
                metadata = {name: value for name, value in self.headers.items() if name.startswith("x-ms-meta-")}
                blobs[self.path] = content, metadata
            self.answer(201, **{"Content-MD5": md5})

        def do_HEAD(self):
            if self.path not in blobs:
                return self.answer(404, **{"x-ms-error-code": "BlobNotFound"})
            content, metadata = blobs[self.path]
            return self.answer(200, content, **metadata)

        def do_GET(self):
            content, _ = blobs[self.path]
            md5 = base64.b64encode(hashlib.md5(SENT).digest()).decode()
            ends = f"bytes 0-{len(content) - 1}/{len(content)}"
            self.answer(206, content, **{"Content-Range": ends, "x-ms-blob-content-md5": md5})

        def do_DELETE(self):
            if may_delete:
                del blobs[self.path.partition("?")[0]]
            self.answer(202 if may_delete else 403)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        from azure.storage.blob import BlobServiceClient

        service = BlobServiceClient(f"http://127.0.0.1:{server.server_address[1]}/account", credential="a2V5")
        yield AzureStorage(service.get_container_client("lake"), "abfs://lake/", "in/", sleep=no_sleep), blobs
    finally:
        server.shutdown()
        server.server_close()


def test_a_small_blob_whose_md5_differs_is_deleted():
    with careless_account() as (storage, blobs):
        with pytest.raises(DestinationError, match=r"put of .*damaged in transit"):
            storage.put("a.csv", SENT, INFO)
        assert {} == blobs


def test_a_damaged_blob_without_permission_to_delete_is_emptied():
    """Its metadata says that it is complete, and the next try would believe that."""
    with careless_account(may_delete=False) as (storage, blobs):
        with pytest.raises(DestinationError, match="damaged in transit"):
            storage.put("a.csv", SENT, INFO)
        assert [(b"", {})] == list(blobs.values())


def test_a_block_whose_md5_differs_is_refused():
    with careless_account() as (storage, _):
        upload = storage.begin("a.csv", INFO)
        part = bytearray(SENT)
        with pytest.raises(DestinationError, match=r"upload of .*damaged in transit"):
            upload.write_part(1, part, crc32(part))


def test_a_small_blob_counts_as_stored_only_if_it_is_there():
    with careless_account(keeps=False) as (storage, _), pytest.raises(DestinationError, match="does not have all"):
        storage.put("a.csv", b"other bytes", INFO)


def test_a_block_list_counts_as_stored_only_if_the_blob_is_there():
    with careless_account(keeps=False) as (storage, _):
        upload = storage.begin("a.csv", INFO)
        upload.write_part(1, bytearray(b"other bytes"), crc32(b"other bytes"))
        with pytest.raises((DestinationError, DestinationChangedError), match="does not have all"):
            upload.complete()


def test_a_blob_that_is_damaged_on_its_way_back_is_not_read():
    with careless_account() as (storage, blobs):
        blobs["/account/lake/in/a.csv"] = CAME, {}
        with pytest.raises(DestinationError, match=r"read of .*damaged in transit"):
            storage.read("a.csv")
        blobs["/account/lake/in/a.csv"] = SENT, {}
        assert SENT == storage.read("a.csv").content


def test_no_signature_is_in_a_traceback():
    """Airflow logs it with all causes; a proxy's page may repeat the full URL."""
    from azure.storage.blob import BlobServiceClient

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(403)
            self.end_headers()
            self.wfile.write(b"Access to the following URL is denied: " + self.path.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/account?sv=2026-01-01&sig=5ecret"
        storage = AzureStorage(BlobServiceClient(url).get_container_client("lake"), "abfs://lake/", "", sleep=no_sleep)
        with pytest.raises(DestinationRefusedError) as caught:
            storage.read("a.csv")
    finally:
        server.shutdown()
        server.server_close()
    text = "".join(traceback.format_exception(caught.value))
    assert "HttpResponseError" in text or "ClientAuthenticationError" in text
    assert "URL is denied" in text
    assert "5ecret" not in text
