"""The files of exports on disk: written in the background, once for each content, deleted on close.

Knows rows, gzip and a temporary folder. Must not know accounts, URLs, HTTP or clocks. Holds one block of rows in
memory, never a file.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import tempfile
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from .contacts import HEADER, ContactGenerator, FileType

_BLOCK_ROWS: Final = 500
_READ_BYTES: Final = 1 << 18

Ranges = tuple[tuple[int, int], ...]
"""Contacts by number: (first, end) pairs, in order, without overlap."""


@dataclass(frozen=True, slots=True)
class FileSpec:
    """Determines the bytes of an export's files; equal specs share their files."""

    ranges: Ranges
    file_type: FileType = "csv"
    max_bytes: int = 5_000_000_000
    max_rows: int = 0
    repeat_header: bool = True
    encoding: str = "x-gzip"
    empty_encoding: str = "x-gzip"
    version: int = 0
    """Another version holds other contacts in the same shape, as if the file had been replaced."""

    @property
    def rows(self) -> int:
        """The number of contacts in all files."""
        return sum(end - first for first, end in self.ranges)

    @property
    def file_encoding(self) -> str:
        """How the bytes are stored: `x-gzip`, `gzip`, `bare` or `plain`."""
        return self.encoding if self.rows else self.empty_encoding


@dataclass(frozen=True, slots=True)
class SpooledFile:
    """One file as stored; `plain_bytes` is its size before compression, `etag` is quoted."""

    path: Path
    rows: int
    plain_bytes: int
    stored_bytes: int
    etag: str
    encoding: str

    def read_plain(self) -> Iterator[bytes]:
        """Yield the uncompressed content in chunks."""
        open_file = open if self.encoding == "plain" else gzip.open
        with open_file(self.path, "rb") as file:
            while chunk := file.read(_READ_BYTES):
                yield chunk


class SpoolClosedError(Exception):
    """The emulator was closed while a file was being written."""


class Spool:
    """A temporary folder of files, and one thread that fills it."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._folder: Path | None = None
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="emulator-spool")
        self._requested: dict[FileSpec, Future[tuple[SpooledFile, ...]]] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def request(self, spec: FileSpec) -> Future[tuple[SpooledFile, ...]]:
        """Start to write the files of a spec, unless they were requested before."""
        with self._lock:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="sendgrid-emulator-"))
            if spec not in self._requested:
                self._requested[spec] = self._worker.submit(
                    self._write_files, spec, self._folder / f"{len(self._requested):05}"
                )
            return self._requested[spec]

    def close(self) -> None:
        """Stop writing, and delete all files."""
        self._closed.set()
        self._worker.shutdown(wait=True, cancel_futures=True)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _write_files(self, spec: FileSpec, folder: Path) -> tuple[SpooledFile, ...]:
        generator = ContactGenerator(self._seed + spec.version)
        folder.mkdir()
        header = HEADER if spec.file_type == "csv" else b""
        done: list[SpooledFile] = []
        writer = _Writer(folder / "1", spec.file_encoding, header)
        try:
            for block, rows in _blocks(generator, spec):
                self._check_open()
                if writer.is_full(rows, len(block), spec):
                    done.append(writer.finish())
                    next_header = header if spec.repeat_header else b""
                    writer = _Writer(folder / str(len(done) + 1), spec.file_encoding, next_header)
                writer.write(block, rows)
        finally:
            done.append(writer.finish())
        return tuple(done)

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise SpoolClosedError


def _blocks(generator: ContactGenerator, spec: FileSpec) -> Iterator[tuple[bytes, int]]:
    """Yield the rows in blocks, so that `max_rows` falls between two blocks."""
    step = min(_BLOCK_ROWS, spec.max_rows or _BLOCK_ROWS)
    left_in_file = spec.max_rows or spec.rows
    for first, end in spec.ranges:
        at = first
        while at < end:
            rows = min(step, end - at, left_in_file)
            yield generator.rows(spec.file_type, at, rows), rows
            at += rows
            left_in_file = (left_in_file - rows) or spec.max_rows or spec.rows


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class _Writer:
    """One file that is being written."""

    def __init__(self, path: Path, encoding: str, header: bytes) -> None:
        self._path = path
        self._encoding = encoding
        self._file: BinaryIO = path.open("wb")
        self._compressor = _Plain() if encoding == "plain" else _gzip_compressor()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._rows = self._plain = self._stored = 0
        self.write(header, 0)

    def is_full(self, rows: int, size: int, spec: FileSpec) -> bool:
        over_bytes = self._rows > 0 and self._plain + size > spec.max_bytes
        return over_bytes or bool(spec.max_rows and self._rows + rows > spec.max_rows)

    def write(self, block: bytes, rows: int) -> None:
        self._rows += rows
        self._plain += len(block)
        self._store(self._compressor.compress(block))

    def finish(self) -> SpooledFile:
        self._store(self._compressor.flush())
        self._file.close()
        etag = f'"{self._md5.hexdigest()}"'
        return SpooledFile(self._path, self._rows, self._plain, self._stored, etag, self._encoding)

    def _store(self, data: bytes) -> None:
        self._stored += len(data)
        self._md5.update(data)
        self._file.write(data)


class _Plain:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def _gzip_compressor() -> _Compressor:
    """Return the fastest gzip compressor available; these files are temporary."""
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib.compressobj(level=1, wbits=31)
    compressor: _Compressor = isal_zlib.compressobj(level=1, wbits=31)
    return compressor
