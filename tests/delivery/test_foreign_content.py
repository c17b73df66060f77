"""What is in the place of a file, but is none of SendGrid's: refused before anything is stored."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import re
import tarfile
import zipfile
from contextlib import contextmanager

import pytest

from airflow_provider_sendgrid.delivery.export import DeliveryOptions, deliver_export
from airflow_provider_sendgrid.exceptions import ExportIncompleteError, SendGridServerError
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.export import ContactExport
from airflow_provider_sendgrid.exports.sessions import new_download_session
from airflow_provider_sendgrid.files.source import ExportFiles
from tests.support.file_server import FileServer
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


def source_with(session, urls, count=None) -> ExportFiles:
    export = ContactExport("6f", "ready", urls=tuple(urls), contact_count=count)
    return ExportFiles(lambda: export, session, allow_http=True)


def assert_refused(content, expected=ExportIncompleteError, *, verify=True, **options) -> None:
    storage = MemoryStorage()
    with source_of(content, **options) as source, pytest.raises(expected, match="instead of the"):
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
def test_a_message_instead_of_a_file_is_refused(message, path, count, verify, pack):
    """Nothing else would show it: there is no count to compare, or its one line passes for a header."""
    assert_refused(pack(message), count=count, verify=verify, path=path)


def archived(name: str, content: bytes) -> bytes:
    """A tar archive of one file."""
    archive, info = io.BytesIO(), tarfile.TarInfo(name)
    info.size = len(content)
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(info, io.BytesIO(content))
    return archive.getvalue()


def zipped(content: bytes, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", compression) as file:
        file.writestr("contacts.csv", content)
    return archive.getvalue()


CSV = HEADER + ROW * 20
BINARY = {
    "zip": (zipped(CSV), "a ZIP archive"),
    "stored zip": (zipped(CSV, zipfile.ZIP_STORED), "a ZIP archive"),
    "empty zip": (b"PK\x05\x06" + bytes(18), "a ZIP archive"),
    "bzip2": (bz2.compress(CSV), "bzip2"),
    "empty bzip2": (bz2.compress(b""), "bzip2"),
    "xz": (lzma.compress(CSV), "xz"),
    "zstd": (b"\x28\xb5\x2f\xfd\x24,,@\n,,", "zstd"),
    "7z": (b"7z\xbc\xaf'\x1c\x00\x04,,,@\n", "a 7z archive"),
    "pdf": (b"%PDF-1.7, a, b, c@d\n%\xe2\xe3\xcf\xd3\n", "a PDF"),
    "gzip in gzip": (gzip.compress(gzip.compress(CSV)), "gzip within gzip"),
    "utf-16": (CSV.decode().encode("utf-16"), "UTF-16"),
    "utf-16 without bom": (CSV.decode().encode("utf-16-le"), ""),
    "tar": (archived("contacts.csv", CSV), ""),
    "parquet": (b"PAR1\x15\x00\x15,@,,\n", ""),
    "png": (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", ""),
    "jpeg": (b"\xff\xd8\xff\xe0\x00\x10JFIF", "not UTF-8"),
    "odd quote": (b'a"b\x01,@,\n' * 9, ""),
    "control before a column": (b'\x01"EMAIL","CONTACT_ID"\n', ""),
    "control in a long line": (b"x" * 1_000 + b"\x1b" + b"@," * 200_000, ""),
    "late nul": (b'a@b,"c"\n"d",\0,\n', ""),
}


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(("count", "verify"), [(None, True), (20, False)])
@pytest.mark.parametrize("path", ["/file.csv", "/file.json"])
@pytest.mark.parametrize("kind", [kind for kind in BINARY if kind != "gzip in gzip"])
def test_binary_data_instead_of_a_file_is_refused(kind, path, count, verify, pack):
    """Without a count, a first line would pass for a header; or nothing is counted at all."""
    assert_refused(pack(BINARY[kind][0]), count=count, verify=verify, path=path)


@pytest.mark.parametrize("kind", BINARY)
def test_the_error_names_the_kind_of_binary_data(kind):
    content, name = BINARY[kind]
    named = re.escape("binary data" + (f" ({name})" if name else ""))
    with (
        source_of(content) as source,
        pytest.raises(ExportIncompleteError, match=f"The content is {named} instead of the"),
    ):
        deliver_export(source, MemoryStorage(), DeliveryOptions())


@pytest.mark.parametrize("seed", range(100))
def test_random_bytes_are_no_export(seed):
    assert_refused(random.Random(seed).randbytes(5_000), verify=False)


HONEST = {
    "any language": "Ελένη,Ольга,李娜,فاطمة,שרה,💌",
    "accents": "Zoë,Ñandú,Ærø",
    "tabs": "a\tb,\tc",
    "names of formats": 'PK,BZh,BZh9,7z,PAR1,"%PDF-",Rar!',
    "quoted controls": '"Ann\x01\x1f\x7f","x\x00y","a""b\x02","\x0b"',
    "quotes within quotes": '"""\x01""","a"',
    "a line break in quotes": '"Ann\n\x01Marie","x\r\ny\x02"',
}


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("kind", HONEST)
def test_honest_text_of_any_kind_is_an_export(kind, end, bom):
    """As names of columns, and as a row of a file without a header."""
    row = f"{HONEST[kind]},ann@example.com{end}"
    assert rows_of(f'{bom}"EMAIL",{row}{row}'.encode()) == 1
    assert rows_of(f"{bom}{row * 200}".encode(), count=199) == 199


@pytest.mark.parametrize("content", [b'"EMAIL","NAME"\n"a@b.c","\xfcber"\n', b'"a@b.c","\xfcber \xff\xfe"\n"x@y.z",\n'])
def test_text_that_is_no_utf_8_may_be_an_export(content):
    assert rows_of(content * 200, count=399) == 399


def test_names_of_formats_at_the_start_of_a_row_are_text():
    for name in (b"BZh", b"BZh9", b"PK", b"7z", b"PAR1", b"(", b"Rar!", b"GIF89a", b"%"):
        assert rows_of(name + b"ang,a@b.c,\n" * 200, count=199) == 199


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
def test_a_message_instead_of_a_json_file_is_refused(message, verify):
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
def test_every_file_with_a_column_of_sendgrid_is_accepted(content, rows, pack, content_type):
    """Whatever the storage calls it."""
    assert rows_of(pack(content), content_type=content_type) == rows
    assert rows_of(pack(content), content_type=content_type, verify=False) is None


@pytest.mark.parametrize("content", [ROW, b'"a@b.c"\n', b'"a@b.c","x"\n', b"a,b,c\n", b"1;a@b.c\n"])
@pytest.mark.parametrize("content_type", ["", "text/csv", "text/plain", "application/gzip"])
def test_a_file_without_a_header_is_accepted(content, content_type):
    """It is not known whether later files repeat it; an only file has it."""

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
def test_every_object_that_may_be_a_contact_is_accepted(content):
    assert rows_of(content, path="/file.json") == 1


def test_a_contact_that_is_not_utf_8_is_accepted():
    assert rows_of(b'{"contact_id": "1", "first_name": "\xff"}\n{"contact_id": "2"}\n', path="/file.json") == 2


@pytest.mark.parametrize("content", MESSAGES)
def test_a_message_is_refused_even_if_its_lines_match_the_count(content):
    with source_of(content, count=content.strip().count(b"\n")) as source:
        storage = MemoryStorage()
        with pytest.raises(ExportIncompleteError, match="The content is"):
            deliver_export(source, storage, DeliveryOptions())
        assert not storage.objects


def test_the_content_type_is_a_hint_only_if_rows_are_not_counted():
    content = b"first,second,third\n" + b"1,2,3\n" * 101
    assert rows_of(content, count=101, content_type="application/json") == 101
    with pytest.raises(ExportIncompleteError, match="The content is a message"):
        rows_of(content, content_type="application/json")


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
    """The type and the first line may be found only in a later member."""
    assert rows_of(gzip.compress(content[:cut]) + gzip.compress(content[cut:]), path=path, count=2) == 2


def test_a_page_is_refused_wherever_gzip_members_are_cut():
    page = b"\n<html>no</html>\n"
    storage = MemoryStorage()
    with (
        source_of(gzip.compress(page[:1]) + gzip.compress(page[1:])) as source,
        pytest.raises(ExportIncompleteError, match="an HTML or XML page"),
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
def test_a_url_without_https_is_refused_before_any_download(bad):
    """Also if it is that of a later file."""
    storage = MemoryStorage()
    with FileServer({"/a.csv": HEADER}) as server, new_download_session(SendGridConnection("SG.key")) as session:
        source = source_with(session, [server.url + "/a.csv", bad])
        with pytest.raises(SendGridServerError, match="nothing was fetched"):
            deliver_export(source, storage, DeliveryOptions())
        assert server.headers_seen == []
    assert storage.objects == {}


@pytest.mark.parametrize("content", [b" " * 3_000_000, b"x" * 3_000_000, b"\n \t" * 1_000_000])
@pytest.mark.parametrize("is_gzip", [True, False])
def test_a_line_without_an_end_is_not_a_contact(content, is_gzip):
    """It counts as one record, and is too long to be a header."""
    with source_of(gzip.compress(content) if is_gzip else content, count=1) as source:
        storage = MemoryStorage()
        with pytest.raises(ExportIncompleteError, match=r"only whitespace|longer than|a message|SendGrid counted"):
            deliver_export(source, storage, DeliveryOptions())
        assert not storage.objects
