"""The effects of faults on responses and files."""

from __future__ import annotations

import http.client
import socket
from urllib.parse import urlsplit

import pytest

from airflow_provider_sendgrid.emulator import Fault, fault_effects
from airflow_provider_sendgrid.emulator.faults import KINDS

EXPORTS = "/v3/marketing/contacts/exports"
SCOPES = "/v3/scopes"


# --- other responses


@pytest.mark.parametrize(("meaning", "reset"), [("epoch", "1700000030"), ("seconds", "30"), ("", None)])
def test_429_can_have_either_form_of_reset(emulator, client, meaning, reset):
    emulator.inject(Fault("status", status=429, seconds=30, rate_limit_reset=meaning, message="too many requests"))
    response = client.ask("GET", SCOPES)
    assert (response.status, response.headers.get("X-RateLimit-Reset")) == (429, reset)
    assert response.json["errors"][0]["message"] == "too many requests"


def test_an_error_can_have_retry_after(emulator, client):
    emulator.inject(Fault("status", status=503, retry_after=1.5))
    assert client.ask("GET", SCOPES).headers["Retry-After"] == "1.5"


def test_errors_of_the_storage_are_xml(emulator, client):
    url = client.list_url()
    emulator.inject(Fault("status", status=503, message="Please reduce your request rate."))
    assert b"<Message>Please reduce" in client.fetch(url).body


def test_a_response_can_be_html_empty_or_truncated(emulator, client):
    whole = client.ask("GET", SCOPES).body
    emulator.inject(Fault("html", nth=1), Fault("empty", nth=2), Fault("broken_json", nth=3))
    page, empty, half = (client.ask("GET", SCOPES) for _ in range(3))
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert (empty.status, empty.body) == (200, b"")
    assert (half.status, half.body) == (200, whole[: len(whole) // 2])


def test_a_response_can_be_a_redirect(emulator, client):
    emulator.inject(Fault("redirect", location="http://elsewhere.example/", status=307))
    response = client.ask("GET", SCOPES)
    assert (response.status, response.headers["Location"]) == (307, "http://elsewhere.example/")


def test_a_body_can_be_endless(emulator):
    emulator.inject(Fault("endless"))
    connection = http.client.HTTPConnection(urlsplit(emulator.url).netloc, timeout=10)
    connection.request("GET", SCOPES)
    with connection.getresponse() as response:
        assert response.getheader("Content-Length") is None
        assert len(response.read(3_000_000)) == 3_000_000
    connection.close()


def test_a_header_can_be_endless(emulator):
    emulator.inject(Fault("endless_header"))
    parts = urlsplit(emulator.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.sendall(b"GET /v3/scopes HTTP/1.1\r\n\r\n")
        with connection.makefile("rb") as response:
            head = response.read(300_000)
    assert head.startswith(b"HTTP/1.1 200 OK\r\nX-Filler: ")
    assert b"\r\n\r\n" not in head


def test_a_response_can_be_a_gzip_bomb(emulator, client):
    emulator.inject(Fault("bomb", at=3))
    response = client.ask("GET", SCOPES)
    assert response.headers["Content-Encoding"] == "gzip"
    assert len(response.body) < 10_000
    assert response.content == b" " * 3 * 1024 * 1024


def test_file_urls_can_have_another_origin(emulator, client):
    """Only the origin changes; a response without URLs is unchanged."""
    right = client.list_url()
    emulator.inject(Fault("other_host", location="http://elsewhere.example"))
    wrong = client.list_url()
    assert wrong.startswith("http://elsewhere.example/")
    assert urlsplit(wrong).path.count("/") == urlsplit(right).path.count("/")
    assert client.ask("GET", SCOPES).json["scopes"]


def test_a_body_can_have_any_content(emulator, client):
    emulator.inject(Fault("body", message='{"result": null}'), Fault("body", message="gone", status=410))
    response = client.ask("GET", SCOPES)
    assert (response.status, response.body) == (200, b'{"result": null}')


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (EXPORTS, "result"),
        ("/v3/marketing/lists", "result"),
        ("/v3/marketing/segments/2.0", "results"),
        ("/v3/contactdb/lists", "lists"),
        (SCOPES, "scopes"),
    ],
)
def test_a_listing_can_be_null(emulator, client, path, key):
    """Users of the real API report it."""
    whole = client.ask("GET", path).json
    emulator.inject(Fault("null_listing", nth=1))
    assert client.ask("GET", path).json == whole | {key: None}
    assert client.ask("GET", path).json == whole


@pytest.mark.parametrize("family", ["marketing", "legacy"])
def test_a_ready_export_can_still_lack_urls(emulator, client, family):
    export_id = emulator.start_export(family=family)
    path = {"marketing": EXPORTS, "legacy": "/v3/contactdb/exports"}[family]
    emulator.inject(Fault("unfilled", first=1))
    early, late = (client.ask("GET", f"{path}/{export_id}").json for _ in range(2))
    count = {"marketing": "contact_count", "legacy": "recipient_count"}[family]
    assert (early["status"], early["urls"], early[count]) == ("ready", None, 0)
    assert late["urls"]
    assert late[count] > 0


@pytest.mark.parametrize("family", ["marketing", "legacy"])
def test_an_export_can_list_its_files_in_reverse_order(emulator, client, family):
    emulator.configure(contacts_per_file=2)
    path = {"marketing": EXPORTS, "legacy": "/v3/contactdb/exports"}[family]
    export_id = emulator.start_export([emulator.add_list("Seven", family=family, contacts=7)], family=family)
    emulator.inject(Fault("reorder", nth=2))
    orders = [
        [url.partition("?")[0] for url in client.ask("GET", f"{path}/{export_id}").json["urls"]] for _ in range(3)
    ]
    assert len(orders[0]) == 4
    assert orders[0] == orders[1][::-1] == orders[2]


def test_one_of_several_requests_can_be_forbidden(emulator, client):
    emulator.inject(Fault("status", status=403, nth=2))
    assert [client.ask("GET", SCOPES).status for _ in range(3)] == [200, 403, 200]


# --- files


def test_a_download_can_be_cut(emulator, client):
    """After some bytes of each response: a range cut again makes progress."""
    url = client.list_url()
    whole = client.fetch(url).body
    emulator.inject(Fault("cut", listener="files", at=1_000))
    with pytest.raises(http.client.IncompleteRead) as cut:
        client.fetch(url, range="bytes=500-")
    assert cut.value.partial == whole[500:1_500]


def test_a_download_can_be_cut_by_a_reset(emulator, client):
    url = client.list_url("Newsletter")
    emulator.inject(Fault("cut", listener="files", at=1_000, with_reset=True))
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        client.fetch(url)


def test_an_api_response_can_be_cut(emulator, client):
    emulator.inject(Fault("cut"))
    with pytest.raises(http.client.IncompleteRead):
        client.ask("GET", SCOPES)


def test_a_file_can_be_truncated_with_a_matching_length(emulator, client):
    """HTTP reports no error; only the end of the gzip stream is missing."""
    url = client.list_url()
    whole = client.fetch(url).body
    emulator.inject(Fault("truncate", at=2_000))
    assert client.fetch(url).body == whole[:2_000]
    part = client.fetch(url, range="bytes=1990-")
    assert (part.headers["Content-Range"], part.body) == ("bytes 1990-1999/2000", whole[1_990:2_000])


def test_content_length_can_be_wrong(emulator, client):
    url = client.list_url()
    whole = client.fetch(url).body
    emulator.inject(Fault("wrong_length", nth=1), Fault("wrong_length", nth=2, at=-10))
    with pytest.raises(http.client.IncompleteRead) as cut:
        client.fetch(url)
    assert cut.value.partial == whole
    assert client.fetch(url).body == whole[:-10]


def test_content_range_can_be_wrong(emulator, client):
    url = client.list_url()
    size = len(client.fetch(url).body)
    emulator.inject(Fault("wrong_range", at=3))
    assert client.fetch(url, range="bytes=5-9").headers["Content-Range"] == f"bytes 8-12/{size}"
    assert client.fetch(url).status == 200


@pytest.mark.parametrize("asked", [None, "bytes=500-", "bytes=700-700", "bytes=0-99"])
def test_one_byte_of_a_file_can_be_corrupt(emulator, client, asked):
    """At the same offset of the file, whichever range is requested."""
    url = client.list_url()
    sent = {"range": asked} if asked else {}
    right = client.fetch(url, **sent)
    emulator.inject(Fault("corrupt", at=700))
    wrong = client.fetch(url, **sent)
    first = 500 if asked == "bytes=500-" else 700 if asked == "bytes=700-700" else 0
    differing = [first + i for i, (a, b) in enumerate(zip(right.body, wrong.body, strict=True)) if a != b]
    assert differing == ([] if asked == "bytes=0-99" else [700])
    assert wrong.headers == right.headers


def test_one_byte_of_an_api_response_can_be_corrupt(emulator, client):
    right = client.ask("GET", SCOPES).body
    emulator.inject(Fault("corrupt", at=3))
    assert client.ask("GET", SCOPES).body == right[:3] + bytes([right[3] ^ 0xFF]) + right[4:]


def test_a_file_can_change_between_two_requests(emulator, client):
    """It has other contacts and another ETag; `If-Match` detects it."""
    url = client.list_url()
    before = client.fetch(url)
    emulator.inject(Fault("changed"))
    after = client.fetch(url)
    assert before.headers["ETag"] != after.headers["ETag"]
    assert before.content != after.content
    assert client.fetch(url, if_match=before.headers["ETag"]).status == 412


def test_a_url_can_expire_at_once(emulator, client):
    url = client.list_url()
    emulator.inject(Fault("expire", listener="files", first=1))
    assert [client.fetch(url).status for _ in range(2)] == [403, 200]


def test_a_download_can_be_slow(emulator, client):
    url = client.list_url()
    emulator.inject(Fault("trickle", bytes_per_second=100_000))
    assert len(client.fetch(url, range="bytes=0-999").body) == 1_000


def test_every_kind_of_fault_is_documented():
    assert [kind for kind in KINDS if f"`{kind}`" not in fault_effects.__doc__] == []


def test_every_kind_of_fault_has_exactly_one_effect():
    effects = [*fault_effects._REPLACEMENTS, *fault_effects._SERVING, *fault_effects._MODIFICATIONS]
    assert sorted(effects) == sorted(KINDS)
