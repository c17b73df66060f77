"""Gzip is detected by its bytes, verified to its end, and decompressed in bounded pieces."""

from __future__ import annotations

import gzip
import random
import zlib
from importlib import import_module

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_provider_sendgrid import compression as gunzip
from airflow_provider_sendgrid.compression import GZIP_MAGIC, Gunzip, Gzip, is_gzip
from airflow_provider_sendgrid.exceptions import ExportIncompleteError

LARGEST_PIECE = 1024 * 1024
PLAIN = b'"EMAIL","CONTACT_ID"\n' + b"".join(b'"%d@example.com","%d"\n' % (n, n * n) for n in range(60))
FILE = gzip.compress(PLAIN)
BYTES = st.binary(max_size=300)


@pytest.fixture(params=["zlib", "isal.isal_zlib"], autouse=True, scope="module")
def decompressor(request):
    """Both modules: isal, and the standard library where isal is not installed."""
    module = pytest.importorskip(request.param) if "." in request.param else import_module(request.param)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(gunzip, "_zlib", module)
        yield request.param


def cut(data, borders):
    """`data` in pieces that end at these positions."""
    ends = sorted({border % (len(data) + 1) for border in borders} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def decompressed(pieces):
    stream, plain = Gunzip(), []
    for piece in pieces:
        plain += stream.feed(memoryview(piece))
    stream.close()
    return b"".join(plain)


# --- detected


@pytest.mark.parametrize(
    ("first_bytes", "expected"),
    [(b"", False), (b"\x1f", False), (b"\x1f\x8b", True), (FILE, True), (PLAIN, False), (b"\x8b\x1f", False)],
)
def test_gzip_is_detected_by_its_first_two_bytes(first_bytes, expected):
    """SendGrid may send an empty export as plain text; a well-known connector crashes on it."""
    assert is_gzip(first_bytes) is expected
    assert is_gzip(memoryview(first_bytes)) is expected


# --- headers


def with_header(flags):
    """A file whose gzip header has these fields: extra (4), name (8), comment (16), checksum of the header (2)."""
    fields = {4: b"\3\0abc", 8: b"name\0", 16: b"comment\0"}
    header = GZIP_MAGIC + bytes([8, flags]) + bytes(5) + b"\xff"
    header += b"".join(field for flag, field in fields.items() if flags & flag)
    return header + ((zlib.crc32(header) & 0xFFFF).to_bytes(2, "little") if flags & 2 else b"") + FILE[10:]


@pytest.mark.parametrize("flags", range(0, 32, 2))
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_a_header_may_have_any_fields_in_any_pieces(flags, size):
    twice = with_header(flags) * 2
    assert PLAIN * 2 == decompressed([twice[start : start + size] for start in range(0, len(twice), size)])


@pytest.mark.parametrize("flag", [32, 64, 128])
def test_a_header_with_reserved_flags_is_damaged(flag):
    """Other programs refuse such a file."""
    with pytest.raises(ExportIncompleteError, match="damaged"):
        decompressed([with_header(flag)])


# --- complete


def test_a_file_may_be_cut_at_every_border():
    for border in range(len(FILE) + 1):
        assert decompressed([FILE[:border], FILE[border:]]) == PLAIN


@given(st.lists(BYTES, min_size=1, max_size=4), st.lists(st.integers(0, 2000)), st.integers(0, 9), st.integers(0, 5))
def test_members_may_be_cut_and_padded_in_any_way(plains, borders, level, padding):
    """Gzip files may have several members, and zeros as padding."""
    file = b"".join(gzip.compress(plain, level) + bytes(padding) for plain in plains)
    assert decompressed(cut(file, borders)) == b"".join(plains)


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_a_file_may_arrive_in_tiny_pieces(step):
    file = FILE + bytes(3) + gzip.compress(b"") + FILE
    assert decompressed(file[start : start + step] for start in range(0, len(file), step)) == PLAIN * 2


@pytest.mark.parametrize("file", [gzip.compress(b""), b"", bytes(9)])
def test_an_empty_file_is_complete(file):
    assert decompressed([file]) == b""


def test_a_header_with_a_name_and_a_comment_is_read(tmp_path):
    path = tmp_path / "contacts.csv.gz"
    with path.open("wb") as raw, gzip.GzipFile("contacts.csv", "wb", fileobj=raw) as file:
        file.write(PLAIN)
    assert decompressed([path.read_bytes()]) == PLAIN


@pytest.mark.parametrize("near", [-1, 0, 1])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_a_file_that_fills_the_output_exactly_is_complete(near, level):
    """The last bytes of a member must not stay in a decompressor whose output is just full."""
    for size in (LARGEST_PIECE, 2 * LARGEST_PIECE):
        for plain in (b"a" * (size + near), random.Random(0).randbytes(size + near)):
            assert decompressed([gzip.compress(plain, level)]) == plain


# --- truncated or damaged


def test_a_truncated_file_is_never_complete():
    for end in range(1, len(FILE)):
        with pytest.raises(ExportIncompleteError, match="truncated"):
            decompressed([FILE[:end]])


@given(st.integers(0, len(FILE) - 1), st.lists(st.integers(0, len(FILE))))
def test_a_truncated_second_member_is_noticed(end, borders):
    file = FILE + FILE[: max(1, end)]
    with pytest.raises(ExportIncompleteError):
        decompressed(cut(file, borders))


# Of a member's header these bytes carry nothing that is checked: flags aside, its time, its level, its system.
CHECKED = [at for at in range(len(FILE)) if at not in range(4, 10)]


@settings(max_examples=300)
@given(st.sampled_from(CHECKED), st.integers(1, 255))
@example(len(FILE) - 1, 1)
@example(len(FILE) - 8, 1)
def test_a_damaged_file_is_never_complete(at, change):
    """Checksum and length are in the trailer."""
    damaged = bytearray(FILE)
    damaged[at] ^= change
    try:
        plain = decompressed([bytes(damaged)])
    except ExportIncompleteError:
        return
    assert plain == PLAIN  # damage that changes nothing, as a flag that says "this is text"


@pytest.mark.parametrize("rubbish", [b"x", b"<html>", b"\0x", b"\x1fx", b"\x1f", b"\x1f\x8b", PLAIN])
def test_data_after_a_file_is_noticed(rubbish):
    with pytest.raises(ExportIncompleteError):
        decompressed([FILE + rubbish])
    with pytest.raises(ExportIncompleteError):
        decompressed([FILE, *cut(rubbish, range(len(rubbish)))])


@pytest.mark.parametrize("rubbish", [b"x", b"\n", b"\0\0x", b"<html>", FILE[2:]])
def test_a_single_byte_after_a_file_is_noticed(rubbish):
    with pytest.raises(ExportIncompleteError, match="other data follows"):
        decompressed([FILE, rubbish[:1], rubbish[1:]])


@pytest.mark.parametrize("end", [1, 4, 8, 9])
def test_a_file_cut_within_its_trailer_is_truncated(end):
    with pytest.raises(ExportIncompleteError, match="truncated"):
        decompressed([FILE[:-end]])


def test_plain_text_is_damaged_gzip():
    """Callers detect plain text and do not decompress it."""
    with pytest.raises(ExportIncompleteError, match="damaged"):
        decompressed([PLAIN])


# --- bounded


@pytest.mark.parametrize("pieces", [1, 5])
def test_a_gzip_bomb_is_decompressed_in_small_pieces(pieces):
    """64 MiB of zeros in 64 KiB: memory must not grow with the content."""
    size = 64 * 1024 * 1024
    bomb = gzip.compress(bytes(size), 9)
    stream, given_bytes = Gunzip(), 0
    for piece in cut(bomb, [len(bomb) * n // pieces for n in range(pieces)]):
        for plain in stream.feed(memoryview(piece)):
            assert 0 < len(plain) <= LARGEST_PIECE
            given_bytes += len(plain)
    stream.close()
    assert given_bytes == size


def test_plain_bytes_are_returned_as_early_as_possible():
    """Rows are counted without keeping the file."""
    noise = random.Random(0).randbytes(LARGEST_PIECE)
    member = gzip.compress(noise)
    first = b"".join(Gunzip().feed(memoryview(member[: len(member) // 2])))
    assert len(first) > LARGEST_PIECE // 4
    assert noise.startswith(first)


# --- compressed


def compressed(pieces):
    stream = Gzip()
    file = b"".join(part for piece in pieces for part in stream.feed(memoryview(piece)))
    return file + stream.close()


@given(st.lists(BYTES, max_size=6))
def test_gzip_reads_what_was_compressed(pieces):
    plain = b"".join(pieces)
    file = compressed(pieces)
    assert is_gzip(file)
    assert gzip.decompress(file) == plain
    assert decompressed([file]) == plain
    assert zlib.decompressobj(31).decompress(file) == plain


def test_contacts_shrink_to_less_than_half():
    assert len(compressed([PLAIN] * 100)) < len(PLAIN) * 100 / 2
