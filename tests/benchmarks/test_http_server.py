"""The source and the sink of the benchmarks: what they serve and take is what HTTP and S3 say."""

import gzip
import hashlib
import http.client

import pytest

from benchmarks.content import block, empty_gzip
from benchmarks.http_server import Server
from benchmarks.s3_sink import Sink, decode_aws_chunks
from benchmarks.source import Source, parse_range

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


def test_a_gzip_block_has_its_size_and_can_be_repeated(content):
    stored = content.path.read_bytes()
    plain = gzip.decompress(stored * 2)
    assert (len(stored), len(plain)) == (BLOCK_BYTES, 2 * content.plain_size)


def test_an_empty_gzip_member_has_its_size():
    assert (len(empty_gzip(1000)), gzip.decompress(empty_gzip(1000))) == (1000, b"")


def test_a_file_repeats_the_block_and_has_ranges(serve, content):
    stored = content.path.read_bytes()
    connection = serve(Source(content.path).respond)
    whole, body = ask(connection, "GET", f"/{2 * BLOCK_BYTES}/file.csv.gz")
    ranged, part = ask(connection, "GET", f"/{2 * BLOCK_BYTES}/file.csv.gz", headers={"Range": "bytes=199990-200009"})
    assert (whole.status, body) == (200, stored * 2)
    assert (ranged.status, part) == (206, stored[-10:] + stored[:10])
    assert ranged.headers["Content-Range"] == "bytes 199990-200009/400000"
    assert ranged.headers["ETag"] == whole.headers["ETag"]


def test_a_limited_source_sends_the_same_bytes(serve, content):
    connection = serve(Source(content.path, bytes_per_second=1e9).respond)
    assert ask(connection, "GET", f"/{BLOCK_BYTES}/f")[1] == content.path.read_bytes()


@pytest.mark.parametrize(
    ("header", "expected"), [(None, (0, 9)), ("bytes=2-", (2, 9)), ("bytes=2-4", (2, 5)), ("bytes=2-99", (2, 9))]
)
def test_a_range_includes_its_last_byte(header, expected):
    assert parse_range(header, 9) == expected


def test_a_multipart_upload_joins_its_parts_in_order(serve):
    connection = serve(Sink(keeps_digests=True).respond)
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
    connection = serve(sink.respond)
    started = ask(connection, "POST", "/bench/key?uploads")[1].decode()
    upload = started.partition("<UploadId>")[2].partition("<")[0]
    answer, _ = ask(connection, "DELETE", f"/bench/key?uploadId={upload}")
    report = sink.report()
    assert (answer.status, report["objects"], report["aborted"], report["unfinished"]) == (204, {}, 1, 0)


def test_chunked_bodies_are_read_completely(serve):
    sink = Sink()
    ask(serve(sink.respond), "PUT", "/bench/key", iter([b"one", b"three"]), encode_chunked=True)
    assert sink.report()["objects"]["key"]["size"] == 8


def test_a_missing_object_is_404(serve):
    connection = serve(Sink().respond)
    assert [ask(connection, method, "/bench/key")[0].status for method in ("HEAD", "GET")] == [404, 404]


def test_signed_chunks_are_decoded():
    framed = b"3;chunk-signature=f\r\nabc\r\n2\r\nde\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n"
    assert decode_aws_chunks(framed) == b"abcde"
