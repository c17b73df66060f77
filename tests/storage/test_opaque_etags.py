"""ETags that look like MD5s and are none refuse no object over plain HTTP; a damaged body is found all the same.

Neither does a server refuse them whose responses to writes have another ETag than the object.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from urllib.parse import urlsplit

import pytest

from airflow_provider_sendgrid.exceptions import DestinationChangedError, DestinationError
from airflow_provider_sendgrid.storage.base import MIB, UPLOAD_KEY, ObjectInfo
from airflow_provider_sendgrid.storage.multipart import crc32
from airflow_provider_sendgrid.storage.s3 import S3Storage
from airflow_provider_sendgrid.storage.s3_calls import S3Calls
from tests.support.ceph import IS_WANTED as IS_CEPH
from tests.support.losing_proxy import LosingProxy
from tests.support.opaque_proxy import OpaqueProxy
from tests.support.seaweedfs import client_of

pytestmark = pytest.mark.skipif(IS_CEPH, reason="the proxy changes what is signed, which Ceph compares")

INFO = ObjectInfo("text/csv", {"made-by": "us"})
MARK = b"the-mark"
CONTENT = MARK + b"." * 5 * MIB


@contextmanager
def storage_behind(s3, **bent):
    proxy = OpaqueProxy(urlsplit(s3.url).port, **bent)
    with proxy.running():
        yield proxy, S3Storage(client_of(proxy.url, login="test"), s3.bucket, "in/")


def store_parts(storage, info, over=None):
    upload = storage.begin("a.csv", info, over)
    try:
        for number, part in enumerate((CONTENT, b"the end"), 1):
            upload.write_part(number, bytearray(part), crc32(part))
        upload.complete()
    finally:
        upload.abort()


def store(storage, *, in_parts):
    if in_parts:
        store_parts(storage, INFO)
    else:
        storage.put("a.csv", CONTENT, INFO, None)


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("encryption", ["", "AES256", "aws:kms", "aws:kms:dsse"])
def test_an_object_whose_etag_is_no_md5_is_stored_and_read(s3, in_parts, encryption, caplog):
    """Dell ECS, and MinIO with compression or encryption; nothing but the object remains."""
    caplog.set_level("INFO")
    with storage_behind(s3, encryption=encryption) as (proxy, storage):
        store(storage, in_parts=in_parts)
        sent = len(proxy.requests)
        storage.put("b.csv", b"small", INFO, None)
        assert storage.read("b.csv").content == b"small"
    assert s3.read("in/a.csv") == CONTENT + (b"the end" if in_parts else b"")
    assert s3.stored_keys() == ["in/a.csv", "in/b.csv"]
    assert s3.open_uploads() == []
    assert caplog.text.count("ETags of the server") == (0 if encryption.startswith("aws:kms") else 1)
    assert sum("_receipts" in target for _, target in proxy.requests[:sent]) > 0 or encryption.startswith("aws:kms")


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("encryption", ["", "AES256"])
def test_a_damaged_body_is_found_where_etags_are_md5s(s3, in_parts, encryption):
    """Also where the server encrypts with its own keys: S3 has MD5s then."""
    with (
        storage_behind(s3, is_turned=False, encryption=encryption, mark=MARK) as (proxy, storage),
        pytest.raises(DestinationError, match="damaged in transit"),
    ):
        store(storage, in_parts=in_parts)
    assert proxy.damaged == 3
    assert s3.stored_keys() == []
    assert s3.open_uploads() == []


def test_etags_are_tried_once_for_objects_and_once_for_parts(s3):
    with storage_behind(s3) as (proxy, storage):
        for number in range(3):
            storage.put(f"{number}.csv", b"x", INFO)
            upload = storage.begin(f"{number}.parts", INFO)
            upload.write_part(1, bytearray(b"x"), crc32(b"x"))
            upload.abort()
    tried = {path for _, target in proxy.requests if "/_receipts/" in (path := urlsplit(target).path)}
    assert len(tried) == 2


def test_without_a_trial_etags_of_unencrypted_objects_are_md5s(s3, monkeypatch):
    """Without the permission to write elsewhere, a wrong ETag counts as damage, except for encrypted objects."""

    def refuse(self, method, name, arguments, is_damaged=lambda _answer: False):
        if "_receipts" in (name or ""):
            raise DestinationError("no")
        return send(self, method, name, arguments, is_damaged)

    send = S3Calls.send
    monkeypatch.setattr(S3Calls, "send", refuse)
    with storage_behind(s3) as (_, storage), pytest.raises(DestinationError, match="damaged in transit"):
        storage.put("a.csv", CONTENT, INFO, None)
    with storage_behind(s3, encryption="AES256") as (_, storage):
        storage.put("a.csv", CONTENT, INFO, None)
    assert s3.stored_keys() == ["in/a.csv"]


# --- other ETags in responses to writes than the objects have


class WriteProxy(OpaqueProxy):
    """Turns ETags round in responses to writes alone; calls `before_look` before an object is looked at."""

    before_look = staticmethod(lambda _target: None)

    def passed_on(self, method, target, headers, body):
        if method == "HEAD":
            self.before_look(target)
        is_write = method in ("PUT", "POST")
        sent = self._turned_xml(body) if is_write else body
        status, answered, content = LosingProxy.passed_on(self, method, target, headers, sent)
        if is_write:
            answered = [(name, self._turned(name, value)) for name, value in answered]
            content = self._turned_xml(content)
        return status, answered, content


@contextmanager
def storage_behind_gateway(s3, **arguments):
    proxy = WriteProxy(urlsplit(s3.url).port)
    with proxy.running():
        yield proxy, S3Storage(client_of(proxy.url, login="test"), s3.bucket, "in/", **arguments)


OURS = ObjectInfo("text/csv", {UPLOAD_KEY: "ours"})


def test_an_object_counts_whose_write_had_another_etag(s3, caplog):
    """Its content or its upload identifies it; all later writes use the ETag that it has."""
    caplog.set_level("INFO")
    with storage_behind_gateway(s3) as (_, storage):
        store_parts(storage, OURS)
        version = storage.put("_manifest.json", b"1", ObjectInfo("application/json", {}), None)
        assert version == storage.head("_manifest.json").version == storage.versions()["_manifest.json"]
        version = storage.put("_manifest.json", b"2", ObjectInfo("application/json", {}), version)
        storage.put("b.csv", b"small", OURS, None)
        store_parts(storage, ObjectInfo("text/csv", {UPLOAD_KEY: "again"}), storage.head("a.csv").version)
        storage.delete("_manifest.json", version)
    assert s3.stored_keys() == ["in/a.csv", "in/b.csv"]
    assert s3.read("in/a.csv") == CONTENT + b"the end"
    assert s3.open_uploads() == []
    assert caplog.text.count("differs from the object's; using") == 1


@pytest.mark.parametrize("is_small", [True, False])
def test_another_runs_object_is_not_ours_whatever_the_etags(s3, is_small):
    """It was stored right after this run's object, with the same size."""
    with storage_behind_gateway(s3) as (proxy, storage):
        looks = []

        def store_another(target) -> None:
            looks.append(target)
            if len(looks) == 2:  # the first one is before the write
                content = b"other" if is_small else b"#" * len(CONTENT + b"the end")
                s3.client.put_object(Bucket=s3.bucket, Key="in/a.csv", Body=content, Metadata={UPLOAD_KEY: "theirs"})

        if not is_small:
            store_parts(storage, OURS)  # what ETags are is known now
        version = None if is_small else storage.head("a.csv").version
        proxy.before_look = store_another
        write = partial(storage.put, "a.csv", b"small", ObjectInfo("text/csv", {}), None)
        if not is_small:
            write = partial(store_parts, storage, ObjectInfo("text/csv", {UPLOAD_KEY: "next"}), version)
        with pytest.raises(DestinationChangedError, match="another run changed it"):
            write()


def test_no_request_is_added_where_etags_agree(s3):
    proxy = LosingProxy(urlsplit(s3.url).port, lambda *_: False)
    with proxy.running():
        S3Storage(client_of(proxy.url, login="test"), s3.bucket, "in/").put("a.csv", b"small", OURS, None)
    assert [method for method, _ in proxy.requests] == ["HEAD", "PUT", "HEAD"]
