"""What is refused: unreadable URLs, content of another type, damaged gzip."""

from __future__ import annotations

import gzip
from dataclasses import replace

import pytest

from airflow_provider_sendgrid.compression import GZIP_MAGIC
from airflow_provider_sendgrid.delivery.export import ArgumentError
from airflow_provider_sendgrid.exceptions import (
    ExportIncompleteError,
)
from airflow_provider_sendgrid.exports.export import ContactExport
from airflow_provider_sendgrid.files.source import ExportFiles
from airflow_provider_sendgrid.storage.base import ObjectInfo
from tests.support.delivery_runs import assert_proves, csv, deliver, exports
from tests.support.memory_storage import MemoryStorage


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "[]", '"x"'])
def test_a_manifest_with_odd_numbers_is_replaced(number):
    storage = MemoryStorage()
    facts = f'{{"x": {{"size": {number}, "sha256": "", "records": {number}}}}}'
    content = f'{{"sendgrid_export": {{"id": "6f"}}, "entries": [], "facts": {facts}}}'
    storage.put("_manifest.json", content.encode(), ObjectInfo("", {}))
    with exports({"/a": csv("a", 10)}) as source:
        deliver(source("6f", ["/a"], 10), storage)
    assert_proves(storage)


@pytest.mark.parametrize("url", ["https://[bad/x", "https://a\u2100b/x", "https://a/\ud800", "https://a:x/b"])
def test_an_unreadable_url_is_reported_before_any_download(url):
    storage = MemoryStorage()
    with exports({"/a": csv("a", 10)}) as source:
        given = source("6f", ["/a"], 10)
        export = replace(given.export(), urls=(given.export().urls[0], url))
        with pytest.raises(ExportIncompleteError, match="the URL of file 2 of 2 cannot be parsed"):
            deliver(ExportFiles(lambda: export, given.session, allow_http=True), storage)
    assert {} == storage.objects


@pytest.mark.parametrize(
    ("one", "other", "are_same"),
    [
        ("https://a/x?X-Amz-Signature=1&X-Amz-Date=1", "https://a/x?X-Amz-Signature=2&X-Amz-Date=2", True),
        ("https://a/x?Signature=1&Expires=1&Key-Pair-Id=1", "https://A/x?Signature=2", True),
        ("https://a/x?sig=1&se=1", "https://a/x?se=2&sig=2", True),
        ("https://a/x?X-Goog-Signature=1", "https://a/x", True),
        ("https://a/x?file=1", "https://a/x?file=2", False),
        ("https://a/x?file=", "https://a/x", False),
        ("https://a/x", "https://b/x", False),
        ("https://a/x", "https://a:8443/x", False),
    ],
)
def test_urls_that_differ_only_in_the_signature_are_one_file(one, other, are_same):
    export = ContactExport("6f", "ready", urls=(one, other), contact_count=10)
    source = ExportFiles(lambda: export, session=None)
    if are_same:
        assert one == source.url("/x")
        return
    with pytest.raises(ExportIncompleteError, match="two different URLs have the same path") as raised:
        source.url("/x")
    assert "=1" not in str(raised.value)
    with pytest.raises(ExportIncompleteError, match="two different URLs have the same path"):
        deliver(source, MemoryStorage())


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/x.csv.gzip", b'{"message": "Service Unavailable"}'),
        ("/x.json.gzip", b"upstream connect error"),
        ("/x.json", b'[{"email": "a@b.c"}]'),
    ],
)
@pytest.mark.parametrize("is_gzip", [True, False])
def test_content_of_another_type_than_the_name_is_refused(path, content, is_gzip):
    storage = MemoryStorage()
    sent = gzip.compress(content) if is_gzip else content
    with exports({path: sent}) as source, pytest.raises(ExportIncompleteError, match=r"instead of the (CSV|JSON) file"):
        deliver(source("6f", [path], None), storage, verify_row_count=False)
    assert {} == storage.objects


@pytest.mark.parametrize("content", [gzip.compress(csv("a", 3)), b"\0\0\0", csv("a", 3).decode().encode("utf-16")])
@pytest.mark.parametrize("is_gzip", [True, False])
def test_binary_data_instead_of_text_is_refused(content, is_gzip):
    """For example by a proxy that compresses gzip again."""
    sent = gzip.compress(content) if is_gzip else content
    if not is_gzip and content.startswith(GZIP_MAGIC):
        pytest.skip("this is what SendGrid sends")
    storage = MemoryStorage()
    with exports({"/a.csv": sent}) as source, pytest.raises(ExportIncompleteError, match="binary data"):
        deliver(source("6f", ["/a.csv"], None), storage, verify_row_count=False)
    assert {} == storage.objects


def test_a_file_index_of_an_export_without_files_says_so():
    with (
        exports({}) as source,
        pytest.raises(ArgumentError, match=r"file_index 0 of .*: it has no files"),
    ):
        deliver(source("6f", [], 0), MemoryStorage(), 0)


@pytest.mark.parametrize("verify_row_count", [True, False])
@pytest.mark.parametrize("compression", ["gzip", "none"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "followed"])
def test_gzip_is_verified_even_if_rows_are_not_counted(damage, compression, verify_row_count):
    good = gzip.compress(csv("a", 5_000))
    at = len(good) // 2
    bad = {
        "truncated": good[:-4],
        "flipped": good[:at] + bytes([good[at] ^ 255]) + good[at + 1 :],
        "followed": good + b"<html>502 Bad Gateway</html>",
    }[damage]
    storage = MemoryStorage()
    with exports({"/a": bad}) as source, pytest.raises(ExportIncompleteError):
        deliver(source("6f", ["/a"], 5_000), storage, compression=compression, verify_row_count=verify_row_count)
    assert {} == storage.objects
