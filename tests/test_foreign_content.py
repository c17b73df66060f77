"""What is in the place of a file, but is none of SendGrid's: refused before anything is stored."""

from __future__ import annotations

import gzip
from contextlib import contextmanager

import pytest

from airflow_provider_sendgrid.delivery import DeliveryOptions, Source, deliver_export
from airflow_provider_sendgrid.exceptions import ExportIncompleteError, SendGridServerError
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.download import FileDownload
from airflow_provider_sendgrid.exports.export import ContactExport
from airflow_provider_sendgrid.exports.sessions import new_download_session
from airflow_provider_sendgrid.exports.urls import SignedUrls
from tests.file_server import FileServer
from tests.support.memory_storage import MemoryStorage

HEADER = (
    b'"EMAIL","FIRST_NAME","LAST_NAME","ADDRESS_LINE_1","ADDRESS_LINE_2","CITY","STATE_PROVINCE_REGION","POSTAL_CODE",'
    b'"COUNTRY","ALTERNATE_EMAILS","PHONE_NUMBER","WHATSAPP","LINE","FACEBOOK","UNIQUE_NAME","CREATED_AT","UPDATED_AT",'
    b'"CONTACT_ID"\n'
)
ROW = b',"Ann\nMarie",,,,,,,,,,,,,,,,"2a4f"\n'  # no e-mail address, and a line break early on

MESSAGES = [
    b"Service unavailable",
    b"Service unavailable\n",
    b"404 page not found\r\n\r\ntry again\n",
    b"upstream connect error or disconnect/reset before headers, reset reason: overflow",
    b'{"errors": [{"field": null, "message": "too many requests"}]}\n',
    b'{\n  "message": "Internal server error"\n}\n',
    b'[{"message": "no", "code": 1, "id": 2, "x": 3}]',
    b'"Service unavailable"\n',
    b"\xef\xbb\xbf  Forbidden",
    b"Forbidden. Write to admin@corp.example for help\n",
    b"Sorry, this page, like others, is blocked\nReference: 5f, 2, a@b.c\n",
    b"BZh91AY&SY,,,,\n",
    b"This page is blocked. Ask for it by phone, email, or chat\n",
]


@contextmanager
def source_of(content: bytes, count: int | None = None, path: str = "/file.csv", content_type: str = ""):
    """An export of one file."""

    def typed(status, headers):
        return status, {**headers, **({"Content-Type": content_type} if content_type else {})}

    with FileServer({path: content}, typed) as server, new_download_session(SendGridConnection("SG.key")) as session:
        yield source_with(session, [server.url + path], count)


def source_with(session, urls, count=None) -> Source:
    export = ContactExport("6f", "ready", urls=tuple(urls), contact_count=count)
    signed = SignedUrls(lambda: export, allow_http=True)

    def open_file(path, name):
        return FileDownload(
            lambda refused: signed.url(path, refused=refused), session, name=name, checked=signed.checked
        )

    return Source(signed, open_file)


def assert_refused(content, expected=ExportIncompleteError, *, verify=True, **options) -> None:
    storage = MemoryStorage()
    with source_of(content, **options) as source, pytest.raises(expected, match="in the place of the"):
        deliver_export(source, storage, DeliveryOptions(verify_row_count=verify))
    assert storage.objects == {}
    assert storage.uploads == {}


def rows_of(content, *, verify=True, **options) -> int | None:
    with source_of(content, **options) as source:
        return deliver_export(source, MemoryStorage(), DeliveryOptions(verify_row_count=verify)).rows


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(("count", "verify"), [(None, True), (0, True), (3, False)])
@pytest.mark.parametrize("path", ["/file.csv", "/file.csv.gzip", "/file"])
@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_in_the_place_of_a_file_is_no_export(message, path, count, verify, pack):
    """Nothing else would show it: there is no count to compare, or its one line passes for a header."""
    assert_refused(pack(message), count=count, verify=verify, path=path)


@pytest.mark.parametrize(
    "message",
    [
        b'{"errors": []}\n',
        b'{"message": "no"}',
        b'{"code": 1}\n{"code": 2}\n',
        b'{\n"error": "no"\n}\n',
        b'{"type": "about:blank", "title": "Service Unavailable", "status": 503}\n',
        b'{"Status": "error", "Reason": "quota"}\n',
        b"{}\n",
        b"Forbidden",
    ],
)
@pytest.mark.parametrize("verify", [True, False])
def test_a_message_in_the_place_of_a_json_file_is_no_export(message, verify):
    assert_refused(message, path="/file.json", verify=verify)


@pytest.mark.parametrize("content_type", ["text/html; charset=utf-8", "TEXT/HTML", "application/problem+json"])
def test_text_of_another_type_without_a_header_is_no_export(content_type):
    """However many commas it has."""
    assert_refused(b"Sorry, dear user, this page, like others, is blocked\n", content_type=content_type)


@pytest.mark.parametrize("content_type", ["", "binary/octet-stream", "text/html", "application/json"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (HEADER, 0),
        (HEADER.replace(b'"', b"").lower(), 0),
        (HEADER.replace(b"\n", b"\r\n") + ROW, 1),
        (b"\xef\xbb\xbf" + HEADER + ROW + ROW, 2),
        (HEADER.rstrip(), 0),
        (b'"EMAIL"\n"a@b.c"\n', 1),
        (b"contact_id\n1\n", 1),
        (b"", 0),
        (b"\n\n", 0),
    ],
)
def test_every_file_with_a_column_of_sendgrids_is_one(content, rows, pack, content_type):
    """Whatever the storage calls it."""
    assert rows_of(pack(content), content_type=content_type) == rows
    assert rows_of(pack(content), content_type=content_type, verify=False) is None


@pytest.mark.parametrize("content", [ROW, b'"a@b.c"\n', b'"a@b.c","x"\n', b"a,b,c\n", b"1;a@b.c\n"])
@pytest.mark.parametrize("content_type", ["", "text/csv", "text/plain", "application/gzip"])
def test_a_file_without_a_header_may_be_one(content, content_type):
    """Whether later files repeat it is not known; an only file has it."""

    def typed(status, headers):
        return status, {**headers, "Content-Type": content_type}

    files = {"/1.csv": HEADER, "/2.csv": content}
    with FileServer(files, typed) as server, new_download_session(SendGridConnection("SG.key")) as session:
        source = source_with(session, [server.url + path for path in files])
        assert len(deliver_export(source, MemoryStorage(), DeliveryOptions(verify_row_count=False)).files) == 2


@pytest.mark.parametrize(
    "content",
    [
        b'{"contact_id": "1"}\n',
        b'{"email": "a@b.c", "message": "x"}\n',
        b'{"row": 1}\n',
    ],
)
def test_every_object_that_may_be_a_contact_is_one(content):
    assert rows_of(content, path="/file.json") == 1


def test_a_contact_whose_bytes_are_no_utf_8_is_one():
    assert rows_of(b'{"contact_id": "1", "first_name": "\xff"}\n{"contact_id": "2"}\n', path="/file.json") == 2


def test_a_count_of_sendgrids_is_proof_enough():
    """Whatever the columns are called."""
    assert rows_of(b"x,y,z\n1,,\n2,,\n", count=2) == 2


@pytest.mark.parametrize("cut", [1, 3, 5, 30])
@pytest.mark.parametrize(
    ("content", "path"),
    [
        (b"\xef\xbb\xbf" + HEADER + ROW + ROW, "/file"),
        (b'\n\n{"contact_id": "1", "first_name": "Ann"}\n{"contact_id": "2"}\n', "/file"),
        (b'{"contact_id": "1", "first_name": "%s"}\n{"contact_id": "2"}\n' % (b"n" * 3_000_000), "/file.json"),
    ],
    ids=["csv", "json", "long"],
)
def test_gzip_may_have_several_members_cut_anywhere(content, path, cut):
    """What type it is, and what its first line is, may show only in a later one."""
    assert rows_of(gzip.compress(content[:cut]) + gzip.compress(content[cut:]), path=path, count=2) == 2


def test_a_page_is_one_wherever_gzip_members_are_cut():
    page = b"\n<html>no</html>\n"
    storage = MemoryStorage()
    with (
        source_of(gzip.compress(page[:1]) + gzip.compress(page[1:])) as source,
        pytest.raises(ExportIncompleteError, match="a page of HTML"),
    ):
        deliver_export(source, storage, DeliveryOptions())
    assert storage.objects == {}


def test_a_first_line_that_is_very_long_is_no_message():
    assert rows_of(b"x" * 300_000 + b"\n1\n") == 1


# --- URLs


@pytest.mark.parametrize(
    "bad",
    ["ftp://files.example/b", "file:///etc/passwd", "//files.example/b", "/b", "files.example/b", "http://8.8.8.8/b",
     "https:///b", "data:,x", "javascript:b"],
)  # fmt: skip
def test_a_url_that_is_not_https_is_refused_before_any_file_is_fetched(bad):
    """Also if it is that of a later file."""
    storage = MemoryStorage()
    with FileServer({"/a.csv": HEADER}) as server, new_download_session(SendGridConnection("SG.key")) as session:
        source = source_with(session, [server.url + "/a.csv", bad])
        with pytest.raises(SendGridServerError, match="nothing was fetched"):
            deliver_export(source, storage, DeliveryOptions())
        assert server.headers_seen == []
    assert storage.objects == {}
