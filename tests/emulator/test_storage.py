"""The file storage responds as S3 does."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from airflow_provider_sendgrid.emulator.contacts import HEADER
from airflow_provider_sendgrid.emulator.payloads import timestamp

ENCODINGS = [("x-gzip", "x-gzip", True), ("gzip", "gzip", True), ("bare", None, True), ("plain", None, False)]


def s3_error(response):
    return response.status, response.body.decode().partition("<Message>")[2].partition("</Message>")[0]


def test_a_file_has_the_exported_contacts(emulator, client):
    """Its name starts with the export's id, as SendGrid's names do."""
    url = client.list_url()
    [export] = client.ask("GET", "/v3/marketing/contacts/exports").json["result"]
    [file] = emulator.export_files(export["id"])
    response = client.fetch(url)
    assert (response.status, response.content) == (200, file.read())
    assert urlsplit(url).path.endswith(f"/{file.name}")
    assert file.name == f"{export['id']}-00001.csv.gzip"


@pytest.mark.parametrize(("encoding", "header", "is_gzipped"), ENCODINGS)
def test_the_encoding_is_a_setting(emulator, client, encoding, header, is_gzipped):
    """The name ends with gzip in any case."""
    emulator.configure(encoding=encoding)
    response = client.fetch(client.list_url())
    assert response.headers.get("Content-Encoding") == header
    assert response.body.startswith(b"\x1f\x8b") is is_gzipped
    assert response.content.startswith(HEADER)


def test_an_empty_export_can_be_plain_text(emulator, client):
    emulator.configure(empty_encoding="plain")
    response = client.fetch(client.list_url("Empty list"))
    assert (response.body, response.headers.get("Content-Encoding")) == (HEADER, None)


def test_a_response_has_length_etag_and_accept_ranges(client):
    response = client.fetch(client.list_url())
    assert response.headers["Content-Length"] == str(len(response.body))
    assert response.headers["ETag"].startswith('"')
    assert response.headers["Accept-Ranges"] == "bytes"


def test_a_url_is_signed_for_get_only(client):
    """S3 refuses HEAD for it."""
    response = client.fetch(client.list_url(), "HEAD")
    assert (response.status, response.body) == (403, b"")


def test_an_export_has_one_url_per_file(emulator, client):
    emulator.configure(contacts_per_file=200)
    urls = client.urls(list_ids=[emulator.list_id("Customers")], file_type="json")
    assert [client.fetch(url).content.count(b"\n") for url in urls] == [200, 200, 100]


# --- ranges


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=10-19", 10, 19),
        ("bytes=100-", 100, -1),
        ("bytes=-7", -7, -1),
        ("bytes=5-999999999", 5, -1),
    ],
)
def test_a_range_returns_exactly_its_bytes(client, asked, first, last):
    url = client.list_url()
    whole = client.fetch(url).body
    size = len(whole)
    first, last = first % size, last % size
    part = client.fetch(url, range=asked)
    assert (part.status, part.body) == (206, whole[first : last + 1])
    assert part.headers["Content-Range"] == f"bytes {first}-{last}/{size}"
    assert part.headers["Content-Length"] == str(last + 1 - first)


@pytest.mark.parametrize("asked", ["bytes=5-2", "bytes=-", "bytes=0-1,4-5", "lines=0-1", "nonsense"])
def test_an_invalid_range_is_ignored(client, asked):
    assert client.fetch(client.list_url(), range=asked).status == 200


def test_a_range_beyond_the_end_is_416(client):
    url = client.list_url()
    size = len(client.fetch(url).body)
    response = client.fetch(url, range=f"bytes={size}-")
    assert s3_error(response) == (416, "The requested range is not satisfiable")
    assert response.headers["Content-Range"] == f"bytes */{size}"


def test_a_range_of_another_version_returns_the_whole_file(client):
    """By `If-Range`."""
    url = client.list_url()
    etag = client.fetch(url).headers["ETag"]
    assert client.fetch(url, range="bytes=5-", if_range=etag).status == 206
    assert client.fetch(url, range="bytes=5-", if_range='"another"').status == 200


def test_if_match_refuses_another_version(client):
    url = client.list_url()
    etag = client.fetch(url).headers["ETag"]
    assert client.fetch(url, if_match=etag).status == 200
    assert client.fetch(url, if_match='"another"').status == 412


def test_without_ranges_the_whole_file_is_sent(emulator, client):
    emulator.configure(ranges=False)
    response = client.fetch(client.list_url(), range="bytes=5-9")
    assert response.status == 200
    assert "Accept-Ranges" not in response.headers


# --- errors


def test_an_expired_url_can_be_renewed(emulator, client, clock):
    """After five minutes by default; the status returns new URLs."""
    status = client.start(list_ids=[emulator.list_id("Customers")])
    [old] = client.ask("GET", status).json["urls"]
    clock.advance(300)
    assert s3_error(client.fetch(old)) == (403, "Request has expired")
    [new] = client.ask("GET", status).json["urls"]
    assert client.fetch(new).status == 200


def test_the_lifetime_of_a_url_is_a_setting(emulator, client, clock):
    emulator.configure(url_lifetime=10)
    url = client.list_url()
    clock.advance(10)
    assert client.fetch(url).status == 403


def test_a_file_is_deleted_after_twelve_hours(emulator, client, clock):
    status = client.start(list_ids=[emulator.list_id("Customers")])
    clock.advance(12 * 3600)
    [url] = client.ask("GET", status).json["urls"]
    assert s3_error(client.fetch(url)) == (404, "The specified key does not exist.")


def test_urls_of_an_expired_export_are_404(emulator, client, clock):
    gone = emulator.add_list("Gone", outcome="expired")
    status = client.ask("GET", client.start(list_ids=[gone])).json
    assert status["created_at"] < status["expires_at"] < timestamp(clock())
    assert client.fetch(status["urls"][0]).status == 404


def test_an_api_key_is_refused_and_recorded_as_a_leak(emulator, client):
    url = client.list_url()
    assert emulator.leaks() == []
    assert client.fetch(url, authorization=f"Bearer {emulator.api_key}").status == 400
    assert [(leak.listener, leak.status) for leak in emulator.leaks()] == [("files", 400)]


def test_a_changed_url_is_refused(client):
    url = client.list_url()
    assert client.fetch(url.replace("00001.csv", "00002.csv")).status == 403
    assert client.fetch(url.partition("?")[0]).status == 403


@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST"])
def test_files_are_read_only(client, method):
    assert client.fetch(client.list_url(), method).status == 405
