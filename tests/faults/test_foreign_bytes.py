"""Each target of `make fuzz` for a moment, and files split at every byte."""

from __future__ import annotations

import csv
import gzip
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_sendgrid.compression import Gunzip
from airflow_provider_sendgrid.files.rows import record_counter
from tests.faults.fuzz import SEEDS, TARGETS

ROWS = [["EMAIL", "NAME"], ["a@b.c", 'says "hi"'], ["b@b.c", "two\nlines, a comma"], ["", "\r\n"], ["é@b.c", '""']]
WORDS = st.sampled_from([*SEEDS, b"\n", b'"', b"\r\n", b"\0", b",", b"[", b"{", b"null", b"bytes 0-1/", b"-1"])
ANYTHING = st.lists(st.one_of(st.binary(max_size=40), WORDS), max_size=8).map(b"".join)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=40)
@given(data=ANYTHING)
def test_any_bytes_are_read_or_refused(target, data):
    TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: repr(seed[:12]))
def test_every_fuzzing_seed_passes(target, seed):
    TARGETS[target](seed)


def csv_file():
    text = io.StringIO()
    csv.writer(text).writerows(ROWS)
    return text.getvalue().encode()


FILES = {
    "csv": (csv_file(), len(ROWS)),
    "json": ("\n".join(json.dumps({"row": row}) for row in ROWS).encode() + b"\n\n \n", len(ROWS)),
}


@pytest.mark.parametrize("file_type", FILES)
def test_a_file_can_be_split_at_every_byte(file_type):
    """Into two and three pieces."""
    content, records = FILES[file_type]
    for first in range(len(content) + 1):
        for second in range(first, len(content) + 1, 7):
            counter = record_counter(file_type)
            for piece in (content[:first], content[first:second], content[second:]):
                counter.feed(piece)
            assert counter.finish().records == records


@pytest.mark.parametrize("file_type", FILES)
def test_gzip_members_can_be_split_at_every_byte(file_type):
    content, records = FILES[file_type]
    gzipped = gzip.compress(content[:20]) + gzip.compress(b"") + gzip.compress(content[20:])
    for border in range(len(gzipped) + 1):
        gunzip, counter = Gunzip(), record_counter(file_type)
        for piece in (gzipped[:border], gzipped[border:]):
            for plain in gunzip.feed(memoryview(piece)):
                counter.feed(plain)
        gunzip.close()
        assert counter.finish().records == records
