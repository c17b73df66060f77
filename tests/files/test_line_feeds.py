"""Line feeds outside quotes are those that a reader finds who looks at one character after the other."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_sendgrid.files.line_feeds import NumpyLineFeeds, PlainLineFeeds, line_feeds

NUMPY_1 = SimpleNamespace(**{name: each for name, each in vars(np).items() if name != "bitwise_count"})
WAYS = pytest.mark.parametrize(
    "way",
    [PlainLineFeeds, lambda: NumpyLineFeeds(np), lambda: NumpyLineFeeds(NUMPY_1)],
    ids=["plain", "numpy", "numpy 1"],
)
# Bytes whose only sense is to stand where words of 64 bits and pieces of 128 KiB begin and end.
TEXTS = st.lists(
    st.sampled_from([b'"', b"\n", b'""', b"a", b"\0", b"\x80\xff", b"x" * 61, b"x" * 64, b'"\n' * 33]), max_size=40
).map(b"".join)


def read_slowly(content):
    count, in_quotes = 0, False
    for character in content:
        in_quotes ^= character == ord('"')
        count += character == ord("\n") and not in_quotes
    return count, in_quotes


def fed(lines, *pieces):
    for piece in pieces:
        lines.feed(piece)
    return lines.count, lines.in_quotes


@WAYS
@given(content=TEXTS, borders=st.lists(st.integers(0, 2_000), max_size=6))
def test_any_bytes_cut_anywhere(way, content, borders):
    ends = sorted({border % (len(content) + 1) for border in borders} | {len(content)})
    pieces = [content[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    assert read_slowly(content) == fed(way(), *pieces) == fed(way(), *map(memoryview, pieces))


@WAYS
@pytest.mark.parametrize("size", [128 * 1024 + more for more in (-65, -64, -1, 0, 1, 63, 64, 65)])
def test_pieces_larger_than_what_is_looked_at_at_once(way, size):
    """With quotes left open over the border, and closed again."""
    content = (b'"a\n' + b"x" * (size - 6) + b'\n"\n') * 3 + b'"\n'
    assert read_slowly(content) == fed(way(), content)


def test_numpy_counts_where_it_is_installed_and_nobody_needs_it(monkeypatch):
    assert isinstance(line_feeds(), NumpyLineFeeds)
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert isinstance(line_feeds(), PlainLineFeeds)
