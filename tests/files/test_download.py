"""One file by ranges: resumed where a connection broke, complete or not at all."""

from __future__ import annotations

import logging
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count

import pytest

from airflow_provider_sendgrid.emulator import Emulator, Fault, Settings
from airflow_provider_sendgrid.exceptions import (
    ExportExpiredError,
    ExportIncompleteError,
    SendGridError,
    SendGridServerError,
)
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.export import ContactExport
from airflow_provider_sendgrid.exports.sessions import new_download_session
from airflow_provider_sendgrid.files.download import DownloadLimits, FileChangedError, FileDownload
from airflow_provider_sendgrid.files.range_reader import RangeReader
from airflow_provider_sendgrid.files.source import ExportFiles, file_path
from airflow_provider_sendgrid.stopping import StoppedError
from tests.support.clock import FakeClock
from tests.support.file_server import FileServer, redirecting
from tests.support.network import Server, read_request, reset
from tests.support.sendgrid_source import LIMITS, SendGrid
from tests.support.short_lived_urls import fetch_over_short_lived_urls

CONTACTS = 8_000  # about 450 KB of gzip, 2 MB of plain text
SMALL_STEPS = replace(LIMITS, progress_bytes=10_000)
CONTENT = bytes(range(256)) * 1_000


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def sendgrid(clock):
    with Emulator(populate=False, clock=clock) as emulator:
        yield SendGrid(emulator, clock, SMALL_STEPS)


@pytest.fixture
def session():
    with new_download_session(SendGridConnection("SG.key")) as session:
        yield session


def read(reader: RangeReader, piece_bytes: int = 7_000) -> bytes:
    """Everything that is left, in pieces of an odd size."""
    buffer = memoryview(bytearray(piece_bytes))
    content = b""
    while filled := reader.readinto(buffer):
        content += buffer[:filled]
    return content


def download_of(url: str, session, **changes) -> FileDownload:
    """A file whose URL stays the same; `changes` are arguments of `ExportFiles`."""
    export = ContactExport("6f", "ready", urls=(url,))
    options = {"allow_http": True, "limits": SMALL_STEPS, "sleep": lambda _seconds: None} | changes
    files = ExportFiles(lambda: export, session, **options)
    return files.download(file_path(url), "SendGrid export 6f file 1 of 1")


# --- complete


@pytest.mark.parametrize("encoding", ["x-gzip", "gzip", "bare", "plain"])
def test_a_file_arrives_as_it_is_stored(sendgrid, encoding):
    """It is not decoded, whatever the header says, and takes one request without the API key."""
    sendgrid.emulator.configure(encoding=encoding)
    export_id = sendgrid.export(CONTACTS)
    with sendgrid.download(export_id) as download, RangeReader(download).open() as reader:
        content = read(reader)
    assert sendgrid.stored(export_id) == content
    assert (len(content), reader.position) == (download.length, reader.end)
    assert download.etag is not None
    assert download.path.endswith(f"{export_id}-00001.csv.gzip")
    assert [None] == sendgrid.ranges()
    assert [] == sendgrid.emulator.leaks()
    assert [] == sendgrid.waits


def test_urllib3_reads_the_body_if_its_stream_is_not_found(sendgrid, monkeypatch):
    """That is slower, and otherwise the same, also when the connection breaks."""
    monkeypatch.setattr("airflow_provider_sendgrid.files.range_reader.BufferedReader", FileServer)
    sendgrid.emulator.configure(bytes_per_connection=200_000)
    export_id = sendgrid.export(CONTACTS)
    with sendgrid.download(export_id) as download, RangeReader(download).open() as reader:
        assert sendgrid.stored(export_id) == read(reader)
    assert len(sendgrid.stored(export_id)) == download.fetched_bytes


def test_any_range_can_be_read(sendgrid):
    """Parallel downloads read parts of a file."""
    export_id = sendgrid.export(CONTACTS)
    stored = sendgrid.stored(export_id)
    with sendgrid.download(export_id) as download:
        RangeReader(download).open().close()
        with RangeReader(download, 1_000, 50_000) as reader:
            first = read(reader)
        with RangeReader(download, len(stored) - 10, len(stored)) as reader:
            last = read(reader)
    assert stored[1_000:50_000] == first
    assert stored[-10:] == last
    assert ["bytes=1000-49999", f"bytes={len(stored) - 10}-{len(stored) - 1}"] == sendgrid.ranges()[1:]


def test_an_empty_file_is_no_error(session):
    with FileServer({"/file": b""}) as server, RangeReader(download_of(f"{server.url}/file", session)).open() as reader:
        assert b"" == read(reader)
        assert reader.is_done


def test_connections_are_reused_after_a_complete_read(session):
    """Over TLS, a new connection costs more than a small file."""
    with FileServer({"/file": CONTENT}) as server:
        for _ in range(2):
            download = download_of(f"{server.url}/file", session)
            with RangeReader(download).open() as reader:
                assert read(reader) == CONTENT
            with RangeReader(download, 10, 150_000) as reader:
                assert read(reader) == CONTENT[10:150_000]
    assert (4, 1) == (len(server.headers_seen), len(server.peers))


def test_a_buffer_larger_than_the_range_is_an_error(sendgrid):
    with sendgrid.download(sendgrid.export(10)) as download, RangeReader(download).open() as reader:
        buffer = memoryview(bytearray(download.length + 1))
        with pytest.raises(ValueError, match="more bytes than the range holds"):
            reader.fill(buffer)


# --- resumed


def test_a_broken_connection_is_resumed_where_it_broke(sendgrid):
    """As often as necessary, as long as each attempt makes progress; no byte is fetched twice."""
    sendgrid.emulator.configure(encoding="plain", bytes_per_connection=100_000)
    export_id = sendgrid.export(CONTACTS)
    with sendgrid.download(export_id) as download, RangeReader(download).open() as reader:
        content = read(reader)
    assert sendgrid.stored(export_id) == content
    assert -(-len(content) // 100_000) == download.connections
    assert len(content) == sendgrid.fetched_bytes() == download.fetched_bytes
    expected = [None, *(f"bytes={start}-{len(content) - 1}" for start in range(100_000, len(content), 100_000))]
    assert expected == sendgrid.ranges()


@pytest.mark.parametrize(
    "fault",
    [
        Fault("refuse", listener="files", nth=2),
        Fault("reset", listener="files", nth=2),
        Fault("status", listener="files", nth=2, status=503),
        Fault("status", listener="files", nth=2, status=429),
        Fault("lost", listener="files", nth=2, with_reset=True),
        Fault("wrong_range", listener="files", nth=2),
        Fault("expire", listener="files", nth=2),
        Fault("status", listener="files", nth=2, status=400),
        Fault("cut", listener="files", nth=2, at=0),
        Fault("cut", listener="files", nth=2, with_reset=True),
        Fault("no_ranges", listener="files", nth=2),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}" if fault.status else fault.kind,
)
def test_the_file_is_identical_after_any_fault(sendgrid, fault):
    """The connection breaks, then the request for the rest meets another fault."""
    export_id = sendgrid.export(CONTACTS)
    sendgrid.emulator.inject(Fault("cut", listener="files", nth=1), fault)
    with sendgrid.download(export_id) as download, RangeReader(download).open() as reader:
        content = read(reader)
    assert sendgrid.stored(export_id) == content
    assert [] == sendgrid.emulator.leaks()


def test_a_storage_that_hangs_gets_another_request(sendgrid):
    """The connection's timeout ends the wait for the next byte."""
    sendgrid.timeout_seconds = 0.2
    export_id = sendgrid.export(CONTACTS)
    sendgrid.emulator.inject(Fault("hang", listener="files", nth=1))
    with sendgrid.download(export_id) as download, RangeReader(download).open() as reader:
        assert sendgrid.stored(export_id) == read(reader)
    assert 2 == download.connections


def test_without_ranges_the_file_is_read_again_up_to_the_break(sendgrid):
    """The storage responds with 200 and the whole file: bytes read before are skipped."""
    sendgrid.emulator.configure(ranges=False)
    export_id = sendgrid.export(CONTACTS)
    stored = sendgrid.stored(export_id)
    sendgrid.emulator.inject(Fault("cut", listener="files", nth=1, at=200_000))
    with sendgrid.download(export_id) as download, RangeReader(download).open() as reader:
        content = read(reader)
        assert not download.has_ranges
    assert stored == content
    assert len(stored) + 200_000 == download.fetched_bytes


def test_a_storage_that_ignores_ranges_is_detected(sendgrid):
    """Parallel downloads then request no more parts."""
    export_id = sendgrid.export(CONTACTS)
    sendgrid.emulator.inject(Fault("no_ranges", listener="files"))
    with sendgrid.download(export_id) as download:
        RangeReader(download).open().close()
        claimed = download.has_ranges
        with RangeReader(download, 1_000, 2_000) as reader:
            assert sendgrid.stored(export_id)[1_000:2_000] == read(reader)
    assert (True, False) == (claimed, download.has_ranges)


# --- URLs


def test_urls_that_expire_are_renewed_once_for_all_readers(clock):
    """Eight readers of two files are refused; the export is requested once more."""
    with Emulator(Settings(contacts_per_file=CONTACTS // 2), populate=False, clock=clock) as emulator:
        sendgrid = SendGrid(emulator, lambda: 0.0, SMALL_STEPS)
        export_id = sendgrid.export(CONTACTS)
        with sendgrid.source(export_id) as source:
            downloads = [source.download(file_path(url), "file") for url in source.export().urls]
            for download in downloads:
                RangeReader(download).open().close()
            clock.advance(emulator.settings.url_lifetime)
            readers = [
                RangeReader(download, at, at + 40_000) for download in downloads for at in range(0, 160_000, 40_000)
            ]
            with ThreadPoolExecutor(8) as threads:
                parts = list(threads.map(read, readers))
            assert 1 == source.renewals
        assert sendgrid.stored(export_id, 0)[:160_000] == b"".join(parts[:4])
        assert sendgrid.stored(export_id, 1)[:160_000] == b"".join(parts[4:])
        assert 2 == emulator.count("GET", "/v3/marketing/contacts/exports", "api")


def test_a_download_outlasts_its_urls():
    """30 MB, broken every 1.5 MB, with URLs valid for two seconds: complete, and less than a tenth is fetched twice.

    The same with 300 MB is in `slow_download.py`.
    """
    fetch_over_short_lived_urls(contacts=125_000, cut_every_bytes=1_500_000)


@pytest.mark.parametrize("status", [400, 403, 404])
def test_a_refused_file_of_an_expired_export_is_not_retried(sendgrid, status):
    """By SendGrid's clock: only another export helps."""
    export_id = sendgrid.export(CONTACTS)
    sendgrid.emulator.inject(Fault("status", listener="files", status=status, nth=2))
    with sendgrid.download(export_id) as download:
        download.has_expired = lambda: download.connections == 2
        RangeReader(download).open().close()
        with pytest.raises(ExportExpiredError, match=f"the URL \\({status}.*expired.*Start another export"):
            RangeReader(download, 0, 10).open()
    assert 2 == download.connections


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_refusal_before_expiry_is_retryable(sendgrid, status):
    """Airflow retries it. The message shows the storage's code, and what in the network may be the cause."""
    export_id = sendgrid.export(10)
    sendgrid.emulator.inject(Fault("status", listener="files", status=status))
    with sendgrid.download(export_id) as download, pytest.raises(ExportIncompleteError) as caught:
        RangeReader(download).open()
    assert LIMITS.attempts == download.connections
    assert f"({status} InternalError: injected fault) at its start (5 times)" in str(caught.value)
    assert "VPC endpoint, a proxy, an allow list" in str(caught.value)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            b"<Error><Code>AccessDenied</Code><Message>explicit\n deny</Message></Error>",
            "403 AccessDenied: explicit deny",
        ),
        (b"<Error><Code>AccessDenied</Code></Error>", "403 AccessDenied"),
        (b"<Error><Code>X</Code><Message>/f?X-Amz-Signature=5ecret</Message>", "403 X: /f?***"),
        (b"<!DOCTYPE html><html>Blocked by your company</html>", "403 with a page of HTML"),
        (b"\xff\x00", "403"),
        (b"", "403"),
        (b"x" * 100_000 + b"<Code>AccessDenied</Code>", "403"),
    ],
)
def test_the_storages_error_code_is_shown(session, body, said):
    def refuse(_status, _headers):
        return 403, {"Content-Length": str(len(body))}

    with FileServer({"/file": b""}, refuse, error_body=body) as server:
        download = download_of(f"{server.url}/file?X-Amz-Signature=5ecret", session)
        with pytest.raises(ExportIncompleteError) as caught:
            RangeReader(download).open()
    assert f"the storage refused the URL ({said}) at its start" in str(caught.value)
    assert "5ecret" not in str(caught.value)


@pytest.mark.parametrize("status", [400, 403, 404])
def test_a_file_that_is_refused_later_is_incomplete(sendgrid, status):
    """It was there before: another attempt of the task may get it."""
    export_id = sendgrid.export(CONTACTS)
    sendgrid.emulator.configure(bytes_per_connection=100_000)
    sendgrid.emulator.inject(*(Fault("status", listener="files", nth=n, status=status) for n in range(2, 30)))
    with (
        sendgrid.reader(export_id) as reader,
        pytest.raises(ExportIncompleteError, match=f"refused the URL \\({status} InternalError.*\\) at 100000 of"),
    ):
        read(reader)


def test_a_refusal_among_network_failures_is_no_expiry(sendgrid):
    """One URL was old and refused; then the storage failed, which may pass."""
    sendgrid.emulator.inject(
        Fault("expire", listener="files", nth=1),
        *(Fault("status", listener="files", status=503, nth=number) for number in range(2, 10)),
    )
    with sendgrid.download(sendgrid.export(10)) as download, pytest.raises(ExportIncompleteError, match="503"):
        RangeReader(download).open()


# --- one version of the file


def test_a_file_that_changes_is_not_mixed_with_its_new_version(sendgrid):
    """All responses must have the ETag of the first."""
    export_id = sendgrid.export(CONTACTS)
    sendgrid.emulator.inject(Fault("cut", listener="files", nth=1), Fault("changed", listener="files", nth=2))
    with sendgrid.reader(export_id) as reader, pytest.raises(FileChangedError, match="changed while it was read"):
        read(reader)


def test_another_etag_means_another_file(session):
    etags = iter(['"one"', '"two"'])
    with FileServer({"/file": CONTENT}, lambda status, headers: (status, headers | {"ETag": next(etags)})) as server:
        download = download_of(f"{server.url}/file", session)
        RangeReader(download).open().close()
        with RangeReader(download, 0, 10) as reader, pytest.raises(FileChangedError, match="its ETag differs"):
            read(reader)


class Breaking(Server):
    """Sends half of the file and breaks the connection, then the rest; `headers` are those of each response."""

    headers = ()

    def serve(self, connection) -> None:
        request = read_request(connection).decode()
        self.requests.append(request)
        more = self.headers[min(len(self.requests), len(self.headers)) - 1]
        start = int(match[1]) if (match := re.search(r"(?i)range: bytes=(\d+)-", request)) else 0
        status = f"206 Partial\r\nContent-Range: bytes {start}-999/1000" if start else "200 OK"
        head = f"HTTP/1.1 {status}\r\nAccept-Ranges: bytes\r\nContent-Length: {1000 - start}\r\n{more}\r\n"
        connection.sendall(head.encode() + b"x" * (1000 - start if start else 500))


class CutHead(Server):
    """Ends the connection after more and more bytes of a response's head; the last response is complete."""

    head = b""
    body = b"x" * 1000
    ends: tuple = ()
    end = None

    def serve(self, connection) -> None:
        self.requests.append(read_request(connection).decode())
        number = len(self.requests) - 1
        if number < len(self.ends):
            connection.sendall(self.head[: self.ends[number]])
            if self.end is not None:
                self.end(connection)
        else:
            connection.sendall(self.head + self.body)


HEADS = {
    "whole": b'HTTP/1.1 200 OK\r\nContent-Encoding: x-gzip\r\nETag: "one"\r\nContent-Length: 1000\r\n\r\n',
    "length first": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nLast-Modified: Wed, 21 Oct 2026 07:28:00 GMT\r\n\r\n",
}


@pytest.mark.parametrize("end", [None, reset], ids=["closed", "reset"])
@pytest.mark.parametrize("head", HEADS)
def test_a_truncated_head_is_requested_again(session, head, end):
    """It may look complete: with one header less, or with a length of 10 instead of 1000."""
    server = CutHead()
    server.head, server.end = HEADS[head], end
    server.ends = tuple(range(1, len(server.head)))
    with server.running():
        limits = replace(SMALL_STEPS, attempts=len(server.head))
        download = download_of(f"{server.url}/file", session, limits=limits)
        with RangeReader(download).open() as reader:
            assert server.body == read(reader)
    assert len(server.head) == len(server.requests) == download.connections
    assert 1000 == download.length


def test_a_truncated_redirect_is_not_followed(session):
    server = CutHead()
    head = b"HTTP/1.1 307 Elsewhere\r\nLocation: /other/"
    server.head = head + b"\r\nContent-Length: 0\r\n\r\n"
    server.ends = (len(head) - 5, len(head)) * 3
    with server.running(), pytest.raises(ExportIncompleteError, match=r"no connection \(ConnectionError\)"):
        RangeReader(download_of(f"{server.url}/file", session)).open()
    assert {"/file"} == {request.split()[1] for request in server.requests}


def test_a_truncated_head_later_resumes_the_file(session):
    """As if the connection broke within the body: earlier bytes are kept."""
    whole = HEADS["whole"].replace(b"OK", b"OK\r\nAccept-Ranges: bytes")

    class Later(CutHead):
        def serve(self, connection) -> None:
            request = read_request(connection).decode()
            self.requests.append(request)
            start = int(match[1]) if (match := re.search(r"(?i)range: bytes=(\d+)-", request)) else 0
            if len(self.requests) % 3 == 2:
                connection.sendall(whole[: len(self.requests) * 4])
                return
            head = whole
            if start:
                ranged = f"206 Partial\r\nContent-Range: bytes {start}-999/1000".encode()
                head = whole.replace(b"200 OK", ranged).replace(b"Length: 1000", b"Length: %d" % (1000 - start))
            connection.sendall(head + b"x" * 100)

    server = Later()
    with server.running():
        download = download_of(
            f"{server.url}/file", session, limits=replace(SMALL_STEPS, attempts=3, progress_bytes=100)
        )
        with RangeReader(download).open() as reader:
            assert b"x" * 1000 == read(reader)
    assert (1000, 15) == (download.fetched_bytes, download.connections)


MODIFIED = "Last-Modified: Wed, 21 Oct 2026 07:28:0%d GMT\r\n"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([MODIFIED % 1, MODIFIED % 1], b"x" * 1000),
        ([MODIFIED % 1, MODIFIED % 2], "its Last-Modified differs"),
        ([MODIFIED % 1, ""], "its Last-Modified differs"),
        ([MODIFIED % 1, 'ETag: "one"\r\n'], "its ETag differs"),
        (['ETag: "one"\r\n' + MODIFIED % 1, 'ETag: "one"\r\n' + MODIFIED % 2], b"x" * 1000),
        ([""], "neither ETag nor Last-Modified"),
    ],
)
def test_last_modified_replaces_a_missing_etag(session, headers, expected):
    server = Breaking()
    server.headers = headers
    with server.running():
        download = download_of(f"{server.url}/file", session)
        with RangeReader(download).open() as reader:
            if isinstance(expected, bytes):
                assert expected == read(reader)
            else:
                with pytest.raises(FileChangedError, match=expected):
                    read(reader)
        assert download.has_ranges == (headers != [""])
    assert len(server.requests) == (1 if headers == [""] else 2)


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "gzip, br", "gzip, gzip", "Compress"])
def test_an_unknown_content_encoding_is_refused(session, encoding):
    with FileServer(
        {"/file": CONTENT}, lambda status, headers: (status, headers | {"Content-Encoding": encoding})
    ) as server:
        download = download_of(f"{server.url}/file", session)
        with pytest.raises(ExportIncompleteError, match=f"Content-Encoding '{encoding}'"):
            RangeReader(download).open()
        assert 1 == len(server.headers_seen)


@pytest.mark.parametrize("encoding", ["", "identity", "gzip", "x-gzip", "GZIP", "identity, gzip"])
def test_a_known_content_encoding_changes_nothing(session, encoding):
    with (
        FileServer(
            {"/file": CONTENT}, lambda status, headers: (status, headers | {"Content-Encoding": encoding})
        ) as server,
        RangeReader(download_of(f"{server.url}/file", session)).open() as reader,
    ):
        assert CONTENT == read(reader)


def test_a_file_that_became_shorter_has_changed(sendgrid):
    """The storage responds with 416 to a range beyond the end, or with another length."""
    export_id = sendgrid.export(CONTACTS)
    sendgrid.emulator.inject(
        Fault("cut", listener="files", nth=1, at=300_000),
        Fault("truncate", listener="files", nth=2, at=200_000),
    )
    with sendgrid.reader(export_id) as reader, pytest.raises(FileChangedError, match="shorter than it was"):
        read(reader)


@pytest.mark.parametrize("off", [1_000, -1_000])
def test_a_wrong_length_is_noticed_when_resuming(sendgrid, off):
    """Its Content-Length differs from that of later responses."""
    export_id = sendgrid.export(CONTACTS)
    sendgrid.emulator.inject(
        Fault("wrong_length", listener="files", nth=1, at=off), Fault("cut", listener="files", nth=1, at=100_000)
    )
    with sendgrid.reader(export_id) as reader, pytest.raises(FileChangedError, match="bytes long now"):
        read(reader)


def test_an_early_end_is_never_the_end_of_the_file(sendgrid):
    """Each time, fewer bytes arrive than Content-Length says."""
    export_id = sendgrid.export(10)
    sendgrid.emulator.inject(Fault("wrong_length", listener="files", at=500))
    with sendgrid.reader(export_id) as reader, pytest.raises(ExportIncompleteError):
        read(reader)


def test_a_file_without_a_length_is_refused(session):
    """Whether it is complete could not be checked."""

    def without_length(status, headers):
        return status, {"ETag": headers["ETag"]}

    with FileServer({"/file": CONTENT}, without_length) as server:
        download = download_of(f"{server.url}/file", session)
        with pytest.raises(ExportIncompleteError, match="does not say how long the file is"):
            RangeReader(download).open()
    assert 1 == download.connections


@pytest.mark.parametrize(
    "content_range",
    [None, "", "bytes */256000", "bytes 0-9/*", "bytes x-9/256000", "bytes 1-10/256000", "bytes 0-10/256000"],
)
def test_a_range_that_was_not_requested_is_refused(session, content_range):
    """Missing, invalid or another range: requested again, up to the limit."""

    def bend(status, headers):
        headers.pop("Content-Range", None)
        return status, headers if content_range is None else headers | {"Content-Range": content_range}

    with FileServer({"/file": CONTENT}) as server:
        download = download_of(f"{server.url}/file", session)
        RangeReader(download).open().close()
        server.bend = bend
        with RangeReader(download, 0, 10) as reader, pytest.raises(ExportIncompleteError, match="the storage sent"):
            read(reader)
    assert 1 + LIMITS.attempts == download.connections


@pytest.mark.parametrize("count", ["9", "11"])
def test_a_range_of_the_wrong_length_is_refused(session, count):
    with FileServer({"/file": CONTENT}) as server:
        download = download_of(f"{server.url}/file", session)
        RangeReader(download).open().close()
        server.bend = lambda status, headers: (status, headers | {"Content-Length": count})
        with (
            RangeReader(download, 0, 10) as reader,
            pytest.raises(ExportIncompleteError, match=f"sent {count} bytes as the"),
        ):
            read(reader)


# --- limits


def test_waits_between_attempts_double_up_to_a_limit():
    """Half a second, one, two, ... thirty; the jitter shortens each by up to a half."""
    full, half = DownloadLimits(jitter=lambda: 1.0), DownloadLimits(jitter=lambda: 0.0)
    assert [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0] == [full.wait_seconds(n) for n in range(1, 9)]
    assert [0.25, 0.5, 1.0] == [half.wait_seconds(n) for n in range(1, 4)]


def test_attempts_are_limited_and_their_causes_listed(sendgrid):
    """The message names the file, the position and every recent cause."""
    export_id = sendgrid.export(CONTACTS)
    stored = sendgrid.stored(export_id)
    sendgrid.emulator.inject(
        Fault("cut", listener="files", nth=1, at=100_000),
        Fault("reset", listener="files", nth=2),
        Fault("status", listener="files", nth=3, status=500),
        Fault("expire", listener="files", nth=4),
        *(Fault("cut", listener="files", nth=number, at=7) for number in range(5, 20)),
    )
    with sendgrid.reader(export_id) as reader, pytest.raises(ExportIncompleteError) as caught:
        read(reader)
    message = str(caught.value)
    assert message.startswith(f"SendGrid export {export_id} file 1 of 1: failed after 6 attempts in a row")
    assert f"the storage responded with 500 InternalError: injected fault at 100000 of {len(stored)} bytes" in message
    assert "refused the URL (403 AccessDenied: Request has expired)" in message
    assert "the connection ended early at 100007 of" in message
    assert "run the task again" in message
    # The first attempt made progress: it counts as the first of the six.
    assert [0.5, 1.0, 2.0, 4.0, 8.0] == sendgrid.waits
    assert "?" not in message
    assert "X-Amz" not in message


def test_a_connection_that_is_too_slow_is_replaced(sendgrid, caplog):
    """Less than 64 KiB in 60 s."""
    sendgrid.emulator.inject(Fault("trickle", listener="files", nth=1, bytes_per_second=50_000))
    export_id = sendgrid.export(CONTACTS)
    seconds = count(0, 15)
    with sendgrid.download(export_id) as download:
        download.clock = lambda: next(seconds)
        with RangeReader(download).open() as reader:
            content = read(reader, 1_000_000)
    assert "less than 65536 bytes arrived in 60 s at " in caplog.text
    assert sendgrid.stored(export_id) == content
    assert 2 == download.connections


def test_pauses_between_reads_are_no_stall(sendgrid, clock):
    """Uploads may be slower than the download."""
    export_id = sendgrid.export(CONTACTS)
    buffer = memoryview(bytearray(1_000))
    with sendgrid.download(export_id) as download, RangeReader(download).open() as reader:
        while reader.readinto(buffer):
            clock.advance(3_600)
    assert 1 == download.connections


def test_a_stopped_download_ends(sendgrid):
    """For all its readers, including those that wait for another attempt."""
    with sendgrid.download(sendgrid.export(CONTACTS)) as download, RangeReader(download).open() as reader:
        reader.readinto(memoryview(bytearray(10)))
        download.stop.set()
        for ask in (lambda: read(reader), RangeReader(download).open, lambda: read(RangeReader(download, 0, 10))):
            with pytest.raises(StoppedError):
                ask()
    assert 1 == sendgrid.emulator.count(listener="files")


def test_a_stopped_download_ends_while_it_skips_bytes(sendgrid):
    """A storage without ranges may send gigabytes again."""
    sendgrid.emulator.configure(ranges=False)
    export_id = sendgrid.export(CONTACTS)
    sendgrid.emulator.inject(Fault("cut", listener="files", nth=1, at=400_000))

    def stop_when_skipping() -> float:
        if download.connections == 2 and download.fetched_bytes > 450_000:
            download.stop.set()
        return 0.0

    with sendgrid.download(export_id) as download, RangeReader(download).open() as reader:
        download.clock = stop_when_skipping
        with pytest.raises(StoppedError):
            read(reader)
        assert (400_000, True) == (reader.position, download.fetched_bytes < 800_000)


# --- redirects


def test_redirects_are_followed_without_own_headers(session):
    """Up to three. Headers are those of any client, and the range."""
    with FileServer({"/file": CONTENT}) as target:
        elsewhere = f"{target.url}/file"
        with FileServer({"/file": b""}, redirecting("/file", "/file", elsewhere)) as server:
            download = download_of(f"{server.url}/file?X-Amz-Signature=s3cret", session)
            with RangeReader(download).open() as reader:
                assert CONTENT == read(reader)
        [headers] = target.headers_seen
    assert set(headers) <= {"host", "user-agent", "accept-encoding", "accept", "connection"}
    assert "s3cret" not in str(headers)


def test_redirects_are_limited(session):
    with FileServer({"/file": CONTENT}, redirecting(*["/file"] * 100)) as server:
        download = download_of(f"{server.url}/file", session)
        with pytest.raises(ExportIncompleteError, match="more than 3 redirects"):
            RangeReader(download).open()


def test_a_redirect_to_an_unencrypted_url_is_not_followed(session):
    """It is not requested again either."""
    with FileServer({"/file": CONTENT}) as target, FileServer({"/file": b""}) as server:
        # This address also reaches the server, but is not a loopback address.
        elsewhere = target.url.replace("127.0.0.1", "0.0.0.0")
        server.bend = redirecting(f"{elsewhere}/file?X-Amz-Signature=s3cret")
        download = download_of(f"{server.url}/file", session)
        with pytest.raises(SendGridServerError, match="not encrypted") as caught:
            RangeReader(download).open()
    assert ([], 1) == (target.headers_seen, len(server.headers_seen))
    assert "s3cret" not in str(caught.value)


# --- responses without end

HEAD = b'HTTP/1.1 %s\r\nETag: "one"\r\nAccept-Ranges: bytes\r\n%s\r\n\r\n'


@dataclass
class Endless(Server):
    """Responds with `first` to requests for the whole file, else with `head` and endless `piece`s."""

    head: bytes = b""
    piece: bytes = b""
    first: bytes = HEAD % (b"200 OK", b"Content-Length: 1000") + b"x" * 500
    pause_seconds: float = 0.0
    sent_bytes: int = 0

    def serve(self, connection) -> None:
        request = read_request(connection)
        self.requests.append(request.decode())
        if self.first and b"range:" not in request.lower():
            connection.sendall(self.first)
            return
        connection.sendall(self.head)
        while not self.ended.wait(self.pause_seconds) and self.sent_bytes < 200_000_000:
            connection.sendall(self.piece)
            self.sent_bytes += len(self.piece)


RANGE = b"Content-Range: bytes 500-999/1000\r\n"
CHUNK = b"%x\r\n%s\r\n" % (100_000, b"x" * 100_000)


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (HEAD % (b"206 Partial", RANGE + b"Transfer-Encoding: chunked"), CHUNK),
        (HEAD % (b"206 Partial", RANGE + b"Content-Length: 500"), b"x" * 100_000),
        (HEAD % (b"206 Partial", RANGE + b"Connection: close"), b"x" * 100_000),
    ],
    ids=["chunked", "more than Content-Length", "until it closes"],
)
def test_a_response_without_end_is_read_to_the_end_of_its_range(session, head, piece):
    with Endless(head=head, piece=piece).running() as server:
        with RangeReader(download_of(f"{server.url}/file", session)).open() as reader:
            assert read(reader) == b"x" * 1_000
        server.ended.set()
    assert server.sent_bytes < 20_000_000  # what fits into the buffers of two sockets


def test_a_content_length_beside_chunks_is_ignored(session):
    """The file would be cut there, and plain text that ends with a row looks complete."""
    first = HEAD % (b"200 OK", b"Content-Length: 500\r\nTransfer-Encoding: chunked") + CHUNK + b"0\r\n\r\n"
    with Endless(first=first).running() as server:
        with pytest.raises(ExportIncompleteError, match="does not say how long the file is"):
            RangeReader(download_of(f"{server.url}/file", session)).open()
        server.ended.set()


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (HEAD % (b"302 Found", b"Location: /elsewhere\r\nTransfer-Encoding: chunked"), "more than 3 redirects"),
        (HEAD % (b"403 Forbidden", b"Transfer-Encoding: chunked"), "refused the URL"),
        (HEAD % (b"503 Slow Down", b"Transfer-Encoding: chunked"), "responded with 503"),
        (HEAD % (b"416 Range", b"Transfer-Encoding: chunked"), "changed while it was read"),
    ],
    ids=["redirect", "refusal", "error", "no such range"],
)
def test_bodies_of_redirects_and_errors_are_not_read(session, head, said):
    limits = replace(SMALL_STEPS, attempts=1)
    with Endless(head=head, piece=CHUNK, first=b"").running() as server:
        with pytest.raises(ExportIncompleteError, match=said):
            RangeReader(download_of(f"{server.url}/file", session, limits=limits)).open()
        server.ended.set()
    assert server.sent_bytes < 60_000_000


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        (HEAD % (b"403 Forbidden", b"Transfer-Encoding: chunked"), b"0"),
    ],
    ids=["interim responses", "a header", "the size of a chunk"],
)
def test_a_response_without_a_body_times_out(session, head, piece):
    """Each byte arrives in time, but the whole head must arrive within four timeouts."""
    limits = replace(SMALL_STEPS, attempts=1)
    with Endless(head=head, piece=piece, first=b"", pause_seconds=0.01).running() as server:
        download = download_of(f"{server.url}/file", session, limits=limits, timeout_seconds=0.05)
        with pytest.raises(ExportIncompleteError, match="no connection \\(TimeoutError\\)"):
            RangeReader(download).open()


def test_a_chunk_that_never_begins_times_out(session):
    head = HEAD % (b"206 Partial", RANGE + b"Transfer-Encoding: chunked")
    limits = replace(SMALL_STEPS, attempts=2, stall_seconds=0.1)
    with Endless(head=head, piece=b"0", pause_seconds=0.01).running() as server:
        reader = RangeReader(download_of(f"{server.url}/file", session, limits=limits)).open()
        with reader, pytest.raises(ExportIncompleteError, match="broke \\(TimeoutError\\) at 500 of 1000"):
            read(reader)
        server.ended.set()


@pytest.mark.parametrize("location", ["https://[", "//[x", "https://h:port/", "\\\\"])
def test_a_redirect_to_an_invalid_url_is_a_sendgrid_error(session, location):
    def bend(_status, _headers):
        return 302, {"Location": location, "Content-Length": "0"}

    with FileServer({"/file": b""}, bend) as server, pytest.raises(SendGridError):
        RangeReader(download_of(f"{server.url}/file", session)).open()


# --- idle connections and counters


def test_an_idle_connection_that_was_dropped_is_resumed(session, clock):
    """A large file waits for others with an open response; that time is no stall."""
    with Endless(head=HEAD % (b"206 Partial", RANGE + b"Content-Length: 500") + b"y" * 500).running() as server:
        with RangeReader(download_of(f"{server.url}/file", session, clock=clock)).open() as reader:
            clock.advance(3_600)
            assert read(reader) == b"x" * 500 + b"y" * 500
        server.ended.set()
    assert len(server.requests) == 2


def test_bytes_are_counted_while_a_part_is_filled(sendgrid):
    """Progress is reported from them."""
    export_id = sendgrid.export(CONTACTS)
    seen = []

    def note_progress() -> float:
        seen.append(download.received_bytes)
        return 0.0

    with sendgrid.download(export_id) as download, RangeReader(download).open() as reader:
        download.clock = note_progress
        reader.fill(memoryview(bytearray(400_000)))
        assert (400_000, 400_000) == (download.received_bytes, download.fetched_bytes)
    assert any(0 < count < 400_000 for count in seen)


def test_bytes_of_concurrent_connections_are_all_counted(session):
    """Even if the interpreter switches threads within an addition."""
    download = download_of("https://files.example/1", session)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            for _ in range(8):
                threads.submit(lambda: [download.count(1, again=bool(n % 2)) for n in range(10_000)])
    finally:
        sys.setswitchinterval(interval)
    assert (80_000, 40_000) == (download.fetched_bytes, download.received_bytes)


def test_bytes_read_twice_are_received_once(sendgrid):
    sendgrid.emulator.configure(ranges=False)
    export_id = sendgrid.export(CONTACTS)
    sendgrid.emulator.inject(Fault("cut", listener="files", nth=1, at=200_000))
    with sendgrid.download(export_id) as download, RangeReader(download).open() as reader:
        assert len(read(reader)) == download.received_bytes == download.fetched_bytes - 200_000


# --- secrets


def test_signed_urls_appear_in_no_log_and_no_message(sendgrid, caplog):
    """Neither from the provider nor from libraries, at any level."""
    caplog.set_level(logging.DEBUG)
    export_id = sendgrid.export(CONTACTS)
    sendgrid.emulator.configure(bytes_per_connection=50_000)
    sendgrid.emulator.inject(
        Fault("expire", listener="files", nth=3),
        Fault("refuse", listener="files", nth=4),
        Fault("status", listener="files", status=404, nth=5),
        *(Fault("hang", listener="files", nth=number) for number in range(6, 20)),
    )
    sendgrid.timeout_seconds = 0.05
    with (
        sendgrid.download(export_id) as download,
        RangeReader(download).open() as reader,
        pytest.raises(SendGridError) as caught,
    ):
        read(reader)
    for text in (caplog.text, str(caught.value), repr(caught.value)):
        assert None is re.search("Signature=[0-9a-f]", text)
        assert sendgrid.emulator.api_key not in text
