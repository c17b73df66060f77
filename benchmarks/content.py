"""Realistic contacts, as gzip and as plain CSV, in blocks that a server repeats for a file of any size.

A block of gzip is one member at zlib's default level, and an empty second one whose comment pads the block: so any
number of blocks is a gzip file. Every block holds whole records, so that their number is known. Blocks are made once
and kept.
"""

from __future__ import annotations

import json
import random
import re
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from airflow_provider_sendgrid.emulator.contacts import HEADER, ContactGenerator

KINDS = ("gzip", "plain")
_ROWS_AT_ONCE = 100
_GZIP_WINDOW = 31
_MARGIN_BYTES = 128 * 1024  # more than zlib buffers
_LEAST_BYTES = 192 * 1024
_CONTACT_ID = re.compile(rb"\b[0-9a-f]{8}-[0-9a-f]{4}-4000-8000-[0-9a-f]{12}\b")
_EMAIL = re.compile(rb"\bcontact[.]\d+[.]\d+@example[.]com\b")
_TIME = re.compile(rb"T\d\d:\d\d:\d\dZ")


@dataclass(frozen=True)
class Block:
    """The bytes that a file repeats, and their records."""

    path: Path
    size: int
    records: int
    plain_size: int


def block(folder: Path, kind: str, size: int) -> Block:
    """The block of this kind and size, made unless it exists."""
    if size < _LEAST_BYTES:
        raise ValueError(f"a block has {_LEAST_BYTES} bytes or more, not {size}")
    path = folder / f"{kind}-{size}"
    metadata = path.with_suffix(".json")
    if not metadata.exists():
        folder.mkdir(parents=True, exist_ok=True)
        content, records, plain_size = {"gzip": _gzip, "plain": _plain}[kind](size)
        path.write_bytes(content)
        metadata.write_text(json.dumps({"records": records, "plain_size": plain_size}))
    return Block(path, size, **json.loads(metadata.read_text()))


def _plain(size: int) -> tuple[bytes, int, int]:
    content, records = bytearray(), 0
    for rows, count in _contacts():
        if len(content) + len(rows) + 3 > size:
            break
        content += rows
        records += count
    filler = b'"' + b"x" * (size - len(content) - 3) + b'"\n'
    return bytes(content + filler), records + 1, size


def _gzip(size: int) -> tuple[bytes, int, int]:
    member = zlib.compressobj(6, zlib.DEFLATED, _GZIP_WINDOW)
    content, records, plain_size = bytearray(), 0, 0
    for rows, count in _contacts():
        if len(content) + _MARGIN_BYTES > size:
            break
        content += member.compress(rows)
        records += count
        plain_size += len(rows)
    content += member.flush()
    return bytes(content + empty_gzip(size - len(content))), records, plain_size


def empty_gzip(size: int) -> bytes:
    """An empty gzip member of exactly this size, padded by its comment."""
    beginning, end = b"\x1f\x8b\x08\x10\0\0\0\0\0\x03", b"\0\x03\0" + bytes(8)
    return beginning + b"." * (size - len(beginning) - len(end)) + end


def _randomized(rows: bytes, rng: random.Random) -> bytes:
    """Replace ids, addresses and times by random ones: they determine the compression ratio."""
    rows = _CONTACT_ID.sub(lambda _: str(uuid.UUID(int=rng.getrandbits(128), version=4)).encode(), rows)
    rows = _EMAIL.sub(lambda _: b"%s.%d@example.com" % (rng.randbytes(5).hex().encode(), rng.randrange(99)), rows)
    return _TIME.sub(lambda _: b"T%02d:%02d:%02dZ" % tuple(rng.randrange(n) for n in (24, 60, 60)), rows)


def _contacts() -> Iterator[tuple[bytes, int]]:
    """The header, then endless blocks of rows, each with its number of records."""
    yield HEADER, 1
    generator, rng, first = ContactGenerator(seed=7), random.Random(7), 0
    while True:
        yield _randomized(generator.rows("csv", first, _ROWS_AT_ONCE), rng), _ROWS_AT_ONCE
        first += _ROWS_AT_ONCE
