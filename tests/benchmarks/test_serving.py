"""The source and the sink of the benchmarks: what they serve and take is what HTTP and S3 say."""

import gzip
import hashlib
import http.client

import pytest

from benchmarks.content import block, empty_gzip
from benchmarks.serving import Server
from benchmarks.sink import Sink, unframed
from benchmarks.source import Source, extent

BLOCK_BYTES = 200_000


@pytest.fixture(scope="session")
def content(tmp_path_factory):
    return block(tmp_path_factory.mktemp("content"), "gzip", BLOCK_BYTES)


@pytest.fixture
def serve():
    servers, connections = [], []

    def start(answer):
        server = Server(answer).start()
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        servers.append(server)
        connections.append(connection)
        return connection

    yield start
    for each in [*connections, *servers]:
        each.close()


def ask(connection, method, target, body=None, headers=(), **options):
    connection.request(method, target, body, dict(headers), **options)
    answer = connection.getresponse()
    return answer, answer.read()


def test_a_block_of_gzip_is_as_long_as_wanted_and_may_be_repeated(content):
    stored = content.path.read_bytes()
    plain = gzip.decompress(stored * 2)
    assert (len(stored), len(plain)) == (BLOCK_BYTES, 2 * content.plain_size)


def test_an_empty_gzip_is_exactly_as_long_as_wanted():
    assert (len(empty_gzip(1000)), gzip.decompress(empty_gzip(1000))) == (1000, b"")


def test_a_file_is_the_block_repeated_and_ranges_agree_with_it(serve, content):
    stored = content.path.read_bytes()
    connection = serve(Source(content.path).answer)
    whole, body = ask(connection, "GET", f"/{2 * BLOCK_BYTES}/file.csv.gz")
    ranged, part = ask(connection, "GET", f"/{2 * BLOCK_BYTES}/file.csv.gz", headers={"Range": "bytes=199990-200009"})
    assert (whole.status, body) == (200, stored * 2)
    assert (ranged.status, part) == (206, stored[-10:] + stored[:10])
    assert ranged.headers["Content-Range"] == "bytes 199990-200009/400000"
    assert ranged.headers["ETag"] == whole.headers["ETag"]


def test_a_limited_source_sends_the_same_bytes(serve, content):
    connection = serve(Source(content.path, bytes_per_second=1e9).answer)
    assert ask(connection, "GET", f"/{BLOCK_BYTES}/f")[1] == content.path.read_bytes()


@pytest.mark.parametrize(
    ("header", "expected"), [(None, (0, 9)), ("bytes=2-", (2, 9)), ("bytes=2-4", (2, 5)), ("bytes=2-99", (2, 9))]
)
def test_a_range_is_read_with_its_last_byte(header, expected):
    assert extent(header, 9) == expected


def test_a_multipart_upload_becomes_one_object_in_the_order_of_its_parts(serve):
    connection = serve(Sink(keeps_digests=True).answer)
    started = ask(connection, "POST", "/bench/a/key?uploads")[1].decode()
    upload = started.partition("<UploadId>")[2].partition("<")[0]
    ask(connection, "PUT", f"/bench/a/key?uploadId={upload}&partNumber=2", b"second")
    ask(connection, "PUT", f"/bench/a/key?uploadId={upload}&partNumber=1", b"first")
    ask(connection, "POST", f"/bench/a/key?uploadId={upload}", b"<parts/>")
    report = ask(connection, "GET", "/-/report")[1]
    assert hashlib.sha256(b"firstsecond").hexdigest().encode() in report
    assert b'"size": 11, "parts": 2' in report


def test_an_aborted_upload_leaves_nothing(serve):
    sink = Sink()
    connection = serve(sink.answer)
    started = ask(connection, "POST", "/bench/key?uploads")[1].decode()
    upload = started.partition("<UploadId>")[2].partition("<")[0]
    answer, _ = ask(connection, "DELETE", f"/bench/key?uploadId={upload}")
    report = sink.report()
    assert (answer.status, report["objects"], report["aborted"], report["unfinished"]) == (204, {}, 1, 0)


def test_bodies_in_chunks_are_taken_whole(serve):
    sink = Sink()
    ask(serve(sink.answer), "PUT", "/bench/key", iter([b"one", b"three"]), encode_chunked=True)
    assert sink.report()["objects"]["key"]["size"] == 8


def test_what_is_not_there_is_not_found(serve):
    connection = serve(Sink().answer)
    assert [ask(connection, method, "/bench/key")[0].status for method in ("HEAD", "GET")] == [404, 404]


def test_signed_chunks_hold_what_was_signed():
    framed = b"3;chunk-signature=f\r\nabc\r\n2\r\nde\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n"
    assert unframed(framed) == b"abcde"
