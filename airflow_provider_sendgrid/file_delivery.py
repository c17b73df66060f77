"""One file of an export: found stored, or fetched, changed where it must be, counted, and published whole.

What is stored differs from what came only in its compression. Its first bytes decide what becomes of it. An object is
published when its length and checksums agree, and what was found out about it lies beside it, until the manifest says
it: in its metadata, or, where that had to be sent before the last byte was known, in a receipt below ``_receipts/``.

Knows one file and one storage. Knows nothing of the other files, nor when the export is whole: that is `delivery`.
"""

from __future__ import annotations

import codecs
import json
import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass

from airflow_provider_sendgrid.exceptions import ExportIncompleteError
from airflow_provider_sendgrid.exports.download import FileDownload, RangeReader
from airflow_provider_sendgrid.exports.fetch import fetch_parts
from airflow_provider_sendgrid.exports.gunzip import Gunzip, Gzip, is_gzip
from airflow_provider_sendgrid.exports.rows import RecordCount, RecordCounter, record_counter
from airflow_provider_sendgrid.manifest import FileFacts, KnownManifest
from airflow_provider_sendgrid.progress import FileProgress, speed
from airflow_provider_sendgrid.storage.multipart import MIB, ObjectInfo, PartBuffers, PartWriter, Storage

log = logging.getLogger(__name__)

EXPORT_ID_KEY = "sendgrid-export-id"
_PIECE_BYTES = 256 * 1024
_PIECES_AHEAD = 2  # of gunzip's before the counting
_CONTENT_TYPES = {
    ".csv": "text/csv; charset=utf-8",
    ".json": "application/x-ndjson",
    ".csv.gz": "application/gzip",
    ".json.gz": "application/gzip",
}


@dataclass(frozen=True, slots=True)
class DeliveryOptions:
    """How an export is delivered.

    Attributes:
        compression: ``gzip`` stores gzip whatever came, ``none`` stores plain.
        part_bytes: size of a part on its way, 5 MiB or more.
        max_concurrency: parts fetched at once, while one more is sent; memory is about as many times `part_bytes`.
            Also how many connections one large file, and how many small files, may use at once.
        verify_row_count: count the rows and compare them with SendGrid's count.
        write_manifest: write the manifest when all is done.
        replace: take the place of what an earlier manifest at this prefix names.
    """

    compression: str = "gzip"
    part_bytes: int = 8 * MIB
    max_concurrency: int = 8
    verify_row_count: bool = True
    write_manifest: bool = True
    replace: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be right.

        Raises:
            ValueError: says which and what it should be.
        """
        if self.compression not in ("gzip", "none"):
            raise ValueError(f"compression must be 'gzip' or 'none', not {self.compression!r}.")
        if not 5 * MIB <= self.part_bytes <= 1024 * MIB:
            raise ValueError(f"part_size must be from 5 MiB to 1 GiB, in bytes, not {self.part_bytes!r}.")
        if not 1 <= self.max_concurrency <= 64:
            raise ValueError(f"max_concurrency must be from 1 to 64, not {self.max_concurrency!r}.")


@dataclass(frozen=True, slots=True)
class Desk:
    """What all files of one delivery share.

    Attributes:
        export_id: of the export.
        storage: where the files go.
        options: how.
        buffers: memory for parts.
        uploads: its threads send parts.
    """

    export_id: str
    storage: Storage
    options: DeliveryOptions
    buffers: PartBuffers
    uploads: Executor


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that is whole and published.

    Attributes:
        name: of its object, below the prefix.
        facts: what was found out about it.
        has_receipt: whether these stand in a receipt.
        connections: opened to fetch it, this time.
    """

    name: str
    facts: FileFacts
    has_receipt: bool = False
    connections: int = 0

    def delete(self, storage: Storage) -> None:
        """Remove it, and its receipt."""
        self.delete_receipt(storage)
        storage.delete(self.name)

    def delete_receipt(self, storage: Storage) -> None:
        """Remove its receipt."""
        if self.has_receipt:
            storage.delete(_receipt_name(self.name))


def find_stored(desk: Desk, stem: str, url_path: str, known: KnownManifest | None) -> StoredFile | None:
    """What an earlier try, or another task, stored of this export: whole, for only what is whole is published.

    Args:
        desk: what all files share.
        stem: of the object's name, without its ending.
        url_path: the path of the file's URL, which ends in its type.
        known: the manifest of this export, where one stands already.
    """
    name = stem + _ending("json" if ".json" in url_path else "csv", desk.options.compression == "gzip")
    info = desk.storage.head(name)
    if info is None or info.metadata.get(EXPORT_ID_KEY) != desk.export_id:
        return None
    facts, has_receipt = FileFacts.from_metadata(info.metadata), False
    if facts is None and known is not None and name in known.facts:
        # A delivery that was cut short after its manifest may have left the receipt.
        facts, has_receipt = known.facts[name], desk.storage.head(_receipt_name(name)) is not None
    if facts is None:
        facts, has_receipt = _read_receipt(desk.storage, name), True
    if facts is None or facts.size != info.size or (facts.records is None and desk.options.verify_row_count):
        return None
    return StoredFile(name, facts, has_receipt)


def store_file(
    desk: Desk, stem: str, download: FileDownload, reader: RangeReader, progress: FileProgress
) -> StoredFile:
    """Move one file, from its first byte on, and publish it.

    Args:
        desk: what all files share.
        stem: of the object's name, without its ending.
        download: the file, opened.
        reader: of the whole file, nothing of it read yet.
        progress: is told of every byte.

    Raises:
        ExportIncompleteError: it could not be had whole, or is damaged; nothing of it is left behind.
    """
    with _named(download.name):
        plan = _Plan.of(_read_head(reader), download.path, desk.options)
        name = stem + plan.ending
        if abandoned := desk.storage.abort_uploads(name):
            log.info("%s: %s uploads that an earlier try left open were ended.", name, abandoned)
        with closing(_Counting(plan, desk.options)) as counting:
            writer = _writer(desk, name, plan, download, counting)
            with _nothing_left_behind(writer):
                _move(plan, download, reader, writer, counting, progress, desk.options.max_concurrency)
                writer.finish()
                facts = _facts(writer, counting.finish())
                has_receipt = not writer.is_small
                writer.complete(facts.to_metadata())
    if has_receipt:
        _write_receipt(desk.storage, name, facts)
    _log_stored(download, name, facts, progress)
    return StoredFile(name, facts, has_receipt, download.connections)


def _writer(desk: Desk, name: str, plan: _Plan, download: FileDownload, counting: _Counting) -> PartWriter:
    metadata = {EXPORT_ID_KEY: desk.export_id, "sendgrid-etag": (download.etag or "").strip('"')}
    return PartWriter(
        desk.storage,
        name,
        ObjectInfo(plan.content_type, metadata),
        buffers=desk.buffers,
        executor=desk.uploads,
        part_bytes=desk.options.part_bytes,
        expected_bytes=download.length if plan.passes_through else None,
        tap=counting.tap,
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    """What becomes of one file, decided by its first bytes.

    Attributes:
        head: its first bytes as they came, two or more unless it is shorter.
        file_type: ``csv`` or ``json``.
        came_gzip: whether it came as gzip.
        wants_gzip: whether it is stored as gzip.
    """

    head: bytes
    file_type: str
    came_gzip: bool
    wants_gzip: bool

    @classmethod
    def of(cls, head: bytes, path: str, options: DeliveryOptions) -> _Plan:
        """Decide.

        Raises:
            ExportIncompleteError: these are no contacts, but what a proxy or a storage says instead of them.
        """
        came_gzip = is_gzip(head)
        plain = next(Gunzip().feed(memoryview(head)), b"") if came_gzip else head
        first = plain.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
        if first == b"<":
            raise ExportIncompleteError("What came is a page of HTML or XML in the place of the file.")
        is_json = first == b"{" or (not plain and ".json" in path)
        return cls(head, "json" if is_json else "csv", came_gzip, options.compression == "gzip")

    @property
    def passes_through(self) -> bool:
        return self.came_gzip == self.wants_gzip

    @property
    def ending(self) -> str:
        return _ending(self.file_type, self.wants_gzip)

    @property
    def content_type(self) -> str:
        return _CONTENT_TYPES[self.ending]


def _ending(file_type: str, is_compressed: bool) -> str:
    return f".{file_type}.gz" if is_compressed else f".{file_type}"


def _read_head(reader: RangeReader) -> bytes:
    """The first bytes; more than one, unless the file is shorter."""
    buffer = memoryview(bytearray(_PIECE_BYTES))
    filled = 0
    while filled < 2 and (count := reader.readinto(buffer[filled:])):
        filled += count
    return bytes(buffer[:filled])


def _move(
    plan: _Plan,
    download: FileDownload,
    reader: RangeReader,
    writer: PartWriter,
    counting: _Counting,
    progress: FileProgress,
    max_connections: int,
) -> None:
    """Move every byte of the file; through gunzip or gzip over one connection, for there the CPU is the bound."""
    progress.advance(len(plan.head))
    if plan.passes_through:
        writer.write(plan.head)
        with closing(fetch_parts(download, reader, writer.take, max_connections)) as parts:
            for part in parts:
                progress.advance(len(part.room))
                writer.send(part)
        return
    for chunk in _recoded(plan, _pieces(plan.head, reader, progress), counting):
        writer.write(chunk)


def _pieces(head: bytes, reader: RangeReader, progress: FileProgress) -> Iterator[memoryview]:
    yield memoryview(head)
    buffer = memoryview(bytearray(_PIECE_BYTES))
    while count := reader.readinto(buffer):
        progress.advance(count)
        yield buffer[:count]


def _recoded(plan: _Plan, pieces: Iterator[memoryview], counting: _Counting) -> Iterator[bytes]:
    """The bytes to store."""
    if plan.came_gzip:
        gunzip = Gunzip()
        for piece in pieces:
            yield from gunzip.feed(piece)
        gunzip.close()
        return
    gzip = Gzip()
    for piece in pieces:
        counting.count(piece)
        yield from gzip.feed(piece)
    yield gzip.close()


class _Counting:
    """Counts a file's rows: of the parts as they are stored, on threads of its own while the next ones arrive.

    One thread gunzips, another counts what came of it (measured with two cores: 1.4 times as fast as one thread for
    both). Where plain text is stored as gzip, rows are counted before that.
    """

    def __init__(self, plan: _Plan, options: DeliveryOptions) -> None:
        self._counter = record_counter(plan.file_type) if options.verify_row_count else None
        self._gunzip = Gunzip() if plan.passes_through and plan.came_gzip else None
        self._counts_stored = plan.came_gzip or not plan.wants_gzip
        self._gunzips = ThreadPoolExecutor(1, thread_name_prefix="sendgrid-gunzip")
        self._counts = ThreadPoolExecutor(1, thread_name_prefix="sendgrid-count")
        self._uncounted: deque[Future[None]] = deque()

    def close(self) -> None:
        """End the threads."""
        for each in (self._gunzips, self._counts):
            each.shutdown(cancel_futures=True)

    def tap(self, part: memoryview) -> Future[None] | None:
        """Count a part as it is stored; the future is done when its bytes may be used again."""
        if self._counter is None or not self._counts_stored:
            return None
        if self._gunzip is None:
            return self._counts.submit(self._count_pieces, self._counter, part)
        return self._gunzips.submit(self._gunzip_and_count, self._gunzip, self._counter, part)

    def count(self, plain: memoryview) -> None:
        """Count plain bytes that are stored as gzip."""
        if self._counter is not None:
            self._counter.feed(plain)

    def finish(self) -> RecordCount | None:
        """What was counted, once every part was; None where rows are not counted.

        Raises:
            ExportIncompleteError: the end is missing.
        """
        if self._counter is None:
            return None
        if self._gunzip is not None:
            self._gunzip.close()
        while self._uncounted:
            self._uncounted.popleft().result()
        count = self._counter.finish()
        if count.cut:
            raise ExportIncompleteError(f"The file is truncated: {count.cut}.")
        return count

    def _count_pieces(self, counter: RecordCounter, part: memoryview) -> None:
        for start in range(0, len(part), _PIECE_BYTES):
            counter.feed(part[start : start + _PIECE_BYTES])

    def _gunzip_and_count(self, gunzip: Gunzip, counter: RecordCounter, part: memoryview) -> None:
        for plain in gunzip.feed(part):
            self._uncounted.append(self._counts.submit(counter.feed, plain))
            if len(self._uncounted) > _PIECES_AHEAD:
                self._uncounted.popleft().result()


@contextmanager
def _named(title: str) -> Iterator[None]:
    """Say which file it was that is damaged or has no end."""
    try:
        yield
    except ExportIncompleteError as error:
        if "SendGrid export" in str(error):
            raise
        raise ExportIncompleteError(f"{title}: {error} Nothing of it was stored; run the task again.") from None


@contextmanager
def _nothing_left_behind(writer: PartWriter) -> Iterator[None]:
    """Abort the upload on every way out but the right one."""
    try:
        yield
    except BaseException:
        try:
            writer.abort()
        except Exception as error:  # noqa: BLE001 - what went wrong first is what must be told
            log.error(
                "The upload of %s could not be aborted (%s): the next try ends it, or a rule of the bucket that aborts "
                "incomplete multipart uploads.",
                writer.name,
                type(error).__name__,
            )
        raise


def _facts(writer: PartWriter, count: RecordCount | None) -> FileFacts:
    if count is None:
        return FileFacts(writer.size, writer.sha256)
    return FileFacts(writer.size, writer.sha256, count.records, count.first_record_sha256)


def _log_stored(download: FileDownload, name: str, facts: FileFacts, progress: FileProgress) -> None:
    seconds = progress.seconds
    log.info(
        "%s: stored as %s, %s bytes from %s, %s records, in %.1f s (%s) over %s connections.",
        download.name,
        name,
        facts.size,
        download.length,
        "uncounted" if facts.records is None else facts.records,
        seconds,
        speed(download.length / max(seconds, 1e-3)),
        download.connections,
    )


def _receipt_name(name: str) -> str:
    return f"_receipts/{name}.json"


def _write_receipt(storage: Storage, name: str, facts: FileFacts) -> None:
    content = json.dumps(facts.to_metadata()).encode()
    storage.put(_receipt_name(name), content, ObjectInfo("application/json", {}))


def _read_receipt(storage: Storage, name: str) -> FileFacts | None:
    try:
        receipt = json.loads(storage.read(_receipt_name(name)) or b"null")
    except ValueError:
        return None
    return FileFacts.from_metadata(receipt) if isinstance(receipt, dict) else None
