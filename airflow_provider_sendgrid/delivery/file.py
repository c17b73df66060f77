"""One file of an export: found stored, or fetched, changed where it must be, counted, and published whole.

What is stored differs from what came only in its compression. Its first bytes decide what becomes of it. An object is
published when its length and checksums agree. What is known of it is in its metadata; where these have to be sent
before the last byte is known, in a receipt below ``_receipts/``, which is stored right before the object is published.

Knows one file and one storage. Knows nothing of the other files, nor when the export is whole: that is `delivery`.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import logging
import re
import secrets
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace

from airflow_provider_sendgrid.compression import GZIP_MAGIC, Gunzip, Gzip, is_gzip
from airflow_provider_sendgrid.delivery.manifest import FileFacts, to_json
from airflow_provider_sendgrid.delivery.progress import FileProgress, speed
from airflow_provider_sendgrid.delivery.publication import EXPORT_ID_KEY, Publication, is_of
from airflow_provider_sendgrid.exceptions import (
    DestinationChangedError,
    DestinationRefusedError,
    ExportIncompleteError,
)
from airflow_provider_sendgrid.exports.arguments import require_bool
from airflow_provider_sendgrid.files.download import FileDownload, RangeReader
from airflow_provider_sendgrid.files.parallel import fetch_parts
from airflow_provider_sendgrid.files.rows import RecordCount, RecordCounter, record_counter
from airflow_provider_sendgrid.stopping import StopSignal
from airflow_provider_sendgrid.storage.base import MIB, UPLOAD_KEY, ObjectInfo, Storage, StoredContent, StoredInfo
from airflow_provider_sendgrid.storage.buffers import PartBuffers
from airflow_provider_sendgrid.storage.multipart import PartWriter
from airflow_provider_sendgrid.threads import DaemonExecutor

log = logging.getLogger(__name__)

FILE_KEY = "sendgrid-file"
RECEIPTS = "_receipts/"
_PLAIN_TEXT = re.compile(r"[!-~]{1,512}")  # ASCII without spaces: it survives as metadata in any storage
_KNOWN_UPLOADS = 8  # in one receipt
_PIECE_BYTES = 256 * 1024
_PIECES_AHEAD = 2  # of gunzip's before the counting
WHO_ENDS_UPLOADS = (
    "The next try of the task ends it, or a lifecycle rule of the bucket that aborts incomplete multipart uploads."
)
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
        verify_row_count: count the rows and compare them with SendGrid's count; gzip is verified in any case.
        write_manifest: write the manifest when all is done.
        replace: replace what an earlier manifest at this prefix names, and what none names.
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
            TypeError: likewise.
        """
        for name in ("verify_row_count", "write_manifest", "replace"):
            require_bool(name, getattr(self, name))
        for name, number in (("part_size", self.part_bytes), ("max_concurrency", self.max_concurrency)):
            if isinstance(number, bool) or not isinstance(number, int):
                raise TypeError(f"{name} must be a whole number, not {number!r}.")
        if self.compression not in ("gzip", "none"):
            raise ValueError(f"compression must be 'gzip' or 'none', not {self.compression!r}.")
        if not 5 * MIB <= self.part_bytes <= 1024 * MIB:
            raise ValueError(f"part_size must be from 5 MiB to 1 GiB, in bytes, not {self.part_bytes!r}.")
        if not 1 <= self.max_concurrency <= 64:
            raise ValueError(f"max_concurrency must be from 1 to 64, not {self.max_concurrency!r}.")


@dataclass(frozen=True, slots=True)
class Context:
    """What all files of one delivery share.

    Attributes:
        export_id: of the export.
        storage: where the files go.
        options: how.
        publication: the manifest that was at the prefix when the delivery began.
        buffers: memory for parts.
        uploads: its threads send parts.
        stop: ends everything.
        stored_here: files that this delivery stored, by the names of their objects.
        distrusted: objects that do not count as stored, and their versions: their rows disagree.
        writers: of the objects that are being stored, for the code that stops the delivery.
        contact_count: SendGrid's, if the rows of all files will be compared with it.
        expected_count: SendGrid's, also if the rows are not compared with it.
        agreed: what is known of files that were fetched to be counted: with them the rows of all files agree.
    """

    export_id: str
    storage: Storage
    options: DeliveryOptions
    publication: Publication
    buffers: PartBuffers
    uploads: Executor
    stop: StopSignal
    stored_here: dict[str, StoredFile]
    distrusted: Mapping[str, str] = field(default_factory=dict)
    writers: set[PartWriter] = field(default_factory=set)
    contact_count: int | None = None
    expected_count: int | None = None
    agreed: Mapping[str, FileFacts] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FilePlace:
    """One file of an export, and the name of its object.

    Attributes:
        path: of the file's URL, which identifies it.
        stem: of the object's name, without its ending.
        title: the file in words, for messages.
        is_only: whether the export has no other file.
    """

    path: str
    stem: str
    title: str
    is_only: bool

    def names(self, options: DeliveryOptions) -> list[str]:
        """The names that its object may have, the likelier first: only its first bytes tell what type it is."""
        types = ("json", "csv") if _type_of_path(self.path) == "json" else ("csv", "json")
        return [self.stem + _ending(file_type, options.compression == "gzip") for file_type in types]

    @property
    def key(self) -> str:
        """The path as an object's metadata can hold it."""
        if _PLAIN_TEXT.fullmatch(self.path):
            return self.path
        return f"sha256:{hashlib.sha256(self.path.encode(errors='surrogatepass')).hexdigest()}"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that is whole and published.

    Attributes:
        name: of its object, below the prefix.
        facts: what is known of it.
        version: of the object.
        has_receipt: whether there is a receipt of it.
        is_new: whether it was stored just now.
        is_only_counted: whether an object that a manifest names is in its place still, at this version.
    """

    name: str
    facts: FileFacts
    version: str
    has_receipt: bool = False
    is_new: bool = False
    is_only_counted: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """What is stored in the place of a file.

    Attributes:
        file: what an earlier try, or another task, stored of it; None if nothing that counts.
        objects: what is under its names, whatever it is.
    """

    file: StoredFile | None
    objects: Mapping[str, StoredInfo]


def find_stored(context: Context, place: FilePlace, listed: Collection[str] | None = None) -> Look:
    """Look for what was stored of a file already: it is whole, for only what is whole is published.

    Args:
        context: what all files share.
        place: which file it is.
        listed: names of objects, if they were listed: no others need a look.
    """
    objects = dict[str, StoredInfo]()
    for name in place.names(context.options):
        if listed is not None and name not in listed:
            continue
        info = context.storage.head(name)
        if info is None:
            continue
        objects[name] = info
        if context.distrusted.get(name) == info.version:
            continue
        if context.publication.is_to_be_deleted(name, info) or not _is_place_of(context, place, name, info):
            continue
        for facts, has_receipt in _facts_of(context, name, info):
            if facts.records is not None or not context.options.verify_row_count:
                return Look(StoredFile(name, replace(facts, path=place.path), info.version, has_receipt), objects)
    return Look(None, objects)


def store_file(
    context: Context,
    place: FilePlace,
    objects: Mapping[str, StoredInfo],
    download: FileDownload,
    reader: RangeReader,
    progress: FileProgress,
) -> StoredFile:
    """Move one file, from its first byte on, and publish it.

    Args:
        context: what all files share.
        place: which file it is.
        objects: what `find_stored` saw.
        download: the file, opened.
        reader: of the whole file, nothing of it read yet.
        progress: of this file.

    Raises:
        ExportIncompleteError: it could not be fetched whole, is damaged, or is the only file and its rows disagree with
            SendGrid's count; nothing of it is left behind.
        DestinationChangedError: another run stored it meanwhile.
    """
    storage, options = context.storage, context.options
    with _named(place.title):
        plan = _Plan.of(
            reader,
            place.path,
            options,
            "" if context.contact_count else download.content_type,
            needs_header=place.is_only and (context.contact_count or 0) <= _MOST_LINES,
        )
        if place.is_only and not plan.head and context.expected_count:
            raise ExportIncompleteError(f"What came is empty, SendGrid counted {context.expected_count} contacts.")
        name = place.stem + plan.ending
        before = _without_what_is_to_be_deleted(context, name, objects.get(name))
        upload = secrets.token_hex(8)
        metadata = {EXPORT_ID_KEY: context.export_id, FILE_KEY: place.key, UPLOAD_KEY: upload}
        with closing(_Verification(plan, options)) as verification:
            writer = PartWriter(
                storage,
                name,
                ObjectInfo(plan.content_type, metadata),
                buffers=context.buffers,
                executor=context.uploads,
                part_bytes=options.part_bytes,
                at_most_bytes=plan.at_most_bytes(download.length),
                over=before.version if before else None,
                tap=verification.tap,
            )
            with _abort_on_error(context, writer):
                _move(plan, download, reader, writer, verification, options.max_concurrency)
                writer.finish()
                count = verification.finish()
                if place.is_only and count is not None:
                    _raise_if_rows_differ(context, count)
                facts = _facts(writer, count, upload, place.path)
                if before is not None and (same := _same(context, place, name, before, facts)) is not None:
                    writer.abort()
                    _write_receipt(storage, name, same)
                    return StoredFile(name, same, before.version, has_receipt=True)
                if before is not None:
                    if _must_be_counted_first(context, place, name, before, facts):
                        writer.abort()
                        return StoredFile(name, facts, before.version, is_only_counted=True)
                    context.publication.raise_unless_replaceable(name, before)
                if has_receipt := not writer.is_small:
                    _write_receipt(storage, name, facts)
                version = writer.complete(facts.to_metadata()) or _version(storage, name, upload)
    stored = StoredFile(name, facts, version, has_receipt, is_new=True)
    context.stored_here[name] = stored
    if before is not None:
        context.publication.withdraw_if_false({name: facts})
    _log_stored(download, place.title, name, facts, progress)
    return stored


def _raise_if_rows_differ(context: Context, count: RecordCount) -> None:
    """The rows of the only file are all: they are compared before it is published."""
    if difference := rows_difference(count.rows(count.first_record_sha256), context.contact_count):
        raise ExportIncompleteError(rows_message(context.export_id, difference, "This task stored nothing."))


def _must_be_counted_first(context: Context, place: FilePlace, name: str, before: StoredInfo, facts: FileFacts) -> bool:
    """Whether an object that the manifest names must stay until the rows of all files are known to agree.

    Raises:
        ExportIncompleteError: they agreed when the file was fetched before, and it holds other rows now.
    """
    is_kept = context.options.replace and context.publication.facts(name, before) is not None
    if context.contact_count is None or place.is_only or not is_kept:
        return False
    if (agreed := context.agreed.get(name)) is None:
        log.info("%s differs from what the manifest names: all rows are compared before it is replaced.", place.title)
        return True
    if (agreed.records, agreed.first_record_sha256) != (facts.records, facts.first_record_sha256):
        raise ExportIncompleteError(f"It holds {facts.records} records, and held {agreed.records} a moment ago.")
    return False


def _is_place_of(context: Context, place: FilePlace, name: str, info: StoredInfo) -> bool:
    """Whether an object is of this export and file.

    Earlier versions did not name the file: it is known if there is only one, or if the manifest names its path.
    """
    if info.metadata.get(EXPORT_ID_KEY) != context.export_id:
        return False
    if (key := info.metadata.get(FILE_KEY)) is not None:
        return key == place.key
    facts = context.publication.facts(name, info)
    return place.is_only or (facts is not None and facts.path == place.path)


def _facts_of(context: Context, name: str, info: StoredInfo) -> Iterator[tuple[FileFacts, bool]]:
    """What is known of a stored object, wherever it says so, and whether there is a receipt of it."""
    facts = FileFacts.from_metadata({**info.metadata, "upload": info.metadata.get(UPLOAD_KEY, "")})
    if facts is not None and is_of(facts, info):
        yield facts, False
    if (known := context.publication.facts(name, info)) is not None:
        # A delivery that was cut short after its manifest may have left the receipt.
        yield known, context.storage.head(receipt_name(name)) is not None
    for facts in _read_receipt(context.storage.read(receipt_name(name))).values():
        if is_of(facts, info):
            yield facts, True


def _same(context: Context, place: FilePlace, name: str, before: StoredInfo, facts: FileFacts) -> FileFacts | None:
    """These facts, as those of the object that is stored already with the very same bytes; None if there is none."""
    is_named = context.publication.facts(name, before) is not None
    if not is_named and not _is_place_of(context, place, name, before):
        return None
    for known, _ in _facts_of(context, name, before):
        if (known.size, known.sha256) == (facts.size, facts.sha256):
            return replace(facts, upload=known.upload)
    return None


def _without_what_is_to_be_deleted(context: Context, name: str, info: StoredInfo | None) -> StoredInfo | None:
    """What an own object is stored over: another run may delete its forerunner at any time."""
    if info is None or not context.publication.is_to_be_deleted(name, info):
        return info
    with suppress(DestinationRefusedError):
        context.storage.delete(name, info.version)
    return context.storage.head(name)


def _version(storage: Storage, name: str, upload: str) -> str:
    info = storage.head(name)
    if info is None or info.metadata.get(UPLOAD_KEY) != upload:
        raise DestinationChangedError(f"{storage.uri(name)} was changed by another run as soon as it was stored.")
    return info.version


@dataclass(frozen=True, slots=True)
class _Plan:
    """What becomes of one file, decided by its first bytes.

    Attributes:
        head: its first bytes as they came.
        file_type: ``csv`` or ``json``.
        came_gzip: whether it came as gzip.
        wants_gzip: whether it is stored as gzip.
    """

    head: bytes
    file_type: str
    came_gzip: bool
    wants_gzip: bool

    @classmethod
    def of(
        cls, reader: RangeReader, path: str, options: DeliveryOptions, content_type: str, *, needs_header: bool
    ) -> _Plan:
        """Read as much as it takes to decide; of a file without a character other than blanks, the path decides.

        The first line must not be a message of something in between. The content type, which may be wrong, is a hint
        where no count proves the rows. The header of an only CSV file must have a column of SendGrid's unless SendGrid
        counted more rows than a message has.

        Raises:
            ExportIncompleteError: these are no contacts, but what a proxy or a storage says instead of them, or they
                are of another type than the file's name says.
        """
        head, plain, is_line_whole = _read_head(reader, until=b"\n")
        first = plain[:1]
        if first == b"<":
            raise ExportIncompleteError("What came is a page of HTML or XML in the place of the file.")
        if binary := _binary(plain):
            raise ExportIncompleteError(f"What came is no text, but {binary} in the place of the file.")
        named_type = _type_of_path(path)
        file_type = {b"": named_type or "csv", b"{": "json"}.get(first, "csv")
        if named_type not in ("", file_type):
            what = "a JSON object" if file_type == "json" else "something else than JSON objects"
            raise ExportIncompleteError(f"What came is {what} in the place of the {named_type.upper()} file.")
        if is_line_whole and plain:
            named_by_sender = "" if is_gzip(head) else content_type
            line = plain.partition(b"\n")[0].rstrip()
            is_foreign = _is_foreign_json(line) if file_type == "json" else _is_foreign_csv(line, named_by_sender)
            if is_foreign or (needs_header and file_type == "csv" and not _may_be_header(line)):
                raise ExportIncompleteError(
                    "What came is a message in the place of the file: its first line is none of contacts."
                )
        return cls(head, file_type, is_gzip(head), options.compression == "gzip")

    @property
    def passes_through(self) -> bool:
        return self.came_gzip == self.wants_gzip

    def at_most_bytes(self, length: int) -> int | None:
        """How large the object can be; gzip adds a little to what it cannot compress."""
        if self.passes_through:
            return length
        return None if self.came_gzip else length + length // 50 + 1024

    @property
    def ending(self) -> str:
        return _ending(self.file_type, self.wants_gzip)

    @property
    def content_type(self) -> str:
        return _CONTENT_TYPES[self.ending]


def _type_of_path(path: str) -> str:
    """``csv`` or ``json`` if the file's name says so; else empty."""
    name = path.rpartition("/")[2].lower()
    named = [file_type for file_type in ("csv", "json") if f".{file_type}" in name]
    return named[0] if len(named) == 1 else ""


def _ending(file_type: str, is_compressed: bool) -> str:
    return f".{file_type}.gz" if is_compressed else f".{file_type}"


def _read_head(reader: RangeReader, until: bytes) -> tuple[bytes, bytes, bool]:
    """The first bytes as they came; their plain text from its first character on; whether it holds `until` or is all.

    Blanks and a byte order mark at the start are left out; the text is empty if the file has only these.

    Raises:
        ExportIncompleteError: the file is long, and begins with nothing else.
    """
    buffer = memoryview(bytearray(_PIECE_BYTES))
    filled, plain = 0, b""
    while filled < len(buffer) and not (plain and until in plain):
        count = reader.readinto(buffer[filled:])
        if not count:
            return bytes(buffer[:filled]), plain, until in plain or len(plain) < _PIECE_BYTES
        filled += count
        plain = _plain_start(buffer[:filled])
    if not plain:
        raise ExportIncompleteError("What came is nothing but blanks in the place of the file.")
    return bytes(buffer[:filled]), plain, until in plain


def _plain_start(head: memoryview) -> bytes:
    """Empty if it has not come yet."""
    if len(head) < 2 and GZIP_MAGIC.startswith(bytes(head)):
        return b""
    if not is_gzip(head):
        return _without_start(bytes(head))
    plain = b""
    for piece in Gunzip().feed(head):  # a line may go on in the next member
        plain += piece
        if len(plain) >= _PIECE_BYTES or b"\n" in _without_start(plain):
            break
    return _without_start(plain)


def _without_start(plain: bytes) -> bytes:
    """Without blanks and a byte order mark at the start."""
    if codecs.BOM_UTF8.startswith(plain):
        return b""
    return plain.removeprefix(codecs.BOM_UTF8).lstrip()


# Formats that begin like text, or that people know by name.
_BINARY_FORMATS = {
    "gzip within gzip": re.compile(rb"\x1f\x8b"),
    "a ZIP archive": re.compile(rb"PK(\x03\x04|\x05\x06|\x07\x08)"),
    "bzip2": re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
    "xz": re.compile(rb"\xfd7zXZ\x00"),
    "a 7z archive": re.compile(rb"7z\xbc\xaf\x27\x1c"),
    "a PDF": re.compile(rb"%PDF-"),
    "UTF-16": re.compile(rb"\xff\xfe|\xfe\xff"),
    "no UTF-8": re.compile(rb"[\xfe\xff]"),
}
_QUOTED_VALUES = re.compile(rb'(?:^|[,\r\n])(?:"[^"]*"?)+')
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def _binary(plain: bytes) -> str:
    """What a file is if it is no text, by its first bytes; empty if it may be text.

    Text has no control characters in its first line, and no NUL, except within quotes: values may contain anything.
    """
    for name, pattern in _BINARY_FORMATS.items():
        if pattern.match(plain):
            return f"binary data ({name})"
    unquoted = _QUOTED_VALUES.sub(b"", plain)
    is_binary = b"\0" in unquoted or _CONTROL.search(unquoted.partition(b"\n")[0])
    return "binary data" if is_binary else ""


# What is in every export: columns of CSV in capitals, keys of JSON in lower case.
_COLUMNS = {b"EMAIL", b"CONTACT_ID"}
_KEYS_OF_A_CONTACT = {"email", "contact_id"}
_KEYS_OF_AN_ERROR = {"error", "errors", "message", "detail", "code", "fault"}
# An object with no others is one, too; RFC 9457 requires none of its keys.
_KEYS_BESIDE_AN_ERROR = {"type", "title", "status", "instance", "reason", "msg", "description", "timestamp", "path"}
_TYPES_OF_MESSAGES = ("text/html", "xml", "json")
# SendGrid's own columns are 18; a message has no more commas than a sentence, and no more lines than a page.
_FEWEST_COLUMNS, _MOST_LINES = 3, 100


def _may_be_header(line: bytes) -> bool:
    """Whether a first line has a column of SendGrid's, or goes on in the next: a name may have a line break."""
    # A word of a sentence follows a blank.
    return bool(_COLUMNS & {field.strip(b'"').upper() for field in line.split(b",")}) or line.count(b'"') % 2 == 1


def _is_foreign_csv(line: bytes, content_type: str) -> bool:
    """Whether a first line is clearly neither a header nor a row; a file after the first may have no header."""
    if _may_be_header(line):
        return False
    if line[:1] in b"[{" or content_type.endswith(_TYPES_OF_MESSAGES):
        return True
    fields = line.split(b",")
    return len(fields) < _FEWEST_COLUMNS and not any(b"@" in field and len(field.split()) == 1 for field in fields)


def _is_foreign_json(line: bytes) -> bool:
    """Whether a first line is clearly not a contact: no object, or an error."""
    try:
        record = json.loads(line.decode(errors="replace"), strict=False)
    except (ValueError, RecursionError):
        return True
    if not isinstance(record, dict):
        return True
    keys = {key.lower() for key in record}
    return not keys & _KEYS_OF_A_CONTACT and (bool(keys & _KEYS_OF_AN_ERROR) or keys <= _KEYS_BESIDE_AN_ERROR)


def _move(
    plan: _Plan,
    download: FileDownload,
    reader: RangeReader,
    writer: PartWriter,
    verification: _Verification,
    max_connections: int,
) -> None:
    """Move every byte of the file; through gunzip or gzip over one connection, for there the CPU is the bound."""
    if plan.passes_through:
        writer.write(plan.head)
        with closing(fetch_parts(download, reader, writer.take, max_connections)) as parts:
            for part in parts:
                writer.send(part)
        return
    for chunk in _recoded(plan, _pieces(plan.head, reader), verification):
        writer.write(chunk)


def _pieces(head: bytes, reader: RangeReader) -> Iterator[memoryview]:
    yield memoryview(head)
    buffer = memoryview(bytearray(_PIECE_BYTES))
    while count := reader.readinto(buffer):
        yield buffer[:count]


def _recoded(plan: _Plan, pieces: Iterator[memoryview], verification: _Verification) -> Iterator[bytes]:
    """The bytes to store."""
    if plan.came_gzip:
        gunzip = Gunzip()
        for piece in pieces:
            yield from gunzip.feed(piece)
        gunzip.close()
        return
    gzip = Gzip()
    for piece in pieces:
        verification.count(piece)
        yield from gzip.feed(piece)
    yield gzip.close()


class _Verification:
    """Gunzips a file to its end, and counts its rows: of the parts as they are stored, while the next ones arrive.

    One thread gunzips, another counts what came of it (measured with two cores: 1.4 times as fast as one thread for
    both). Where plain text is stored as gzip, rows are counted before that. Gzip is verified even if rows are not
    counted.
    """

    def __init__(self, plan: _Plan, options: DeliveryOptions) -> None:
        self._counter = record_counter(plan.file_type) if options.verify_row_count else None
        self._gunzip = Gunzip() if plan.passes_through and plan.came_gzip else None
        self._counts_stored = plan.came_gzip or not plan.wants_gzip
        self._gunzips = DaemonExecutor(1, "sendgrid-gunzip")
        self._counts = DaemonExecutor(1, "sendgrid-count")
        self._uncounted: deque[Future[None]] = deque()

    def close(self) -> None:
        """End the threads."""
        for each in (self._gunzips, self._counts):
            each.shutdown(wait=False, cancel_futures=True)

    def tap(self, part: memoryview) -> Future[None] | None:
        """Verify a part as it is stored; the future is done when its bytes may be used again."""
        if self._gunzip is not None:
            return self._gunzips.submit(self._gunzip_and_count, self._gunzip, part)
        if self._counter is None or not self._counts_stored:
            return None
        return self._counts.submit(self._count_pieces, self._counter, part)

    def count(self, plain: memoryview) -> None:
        """Count plain bytes that are stored as gzip."""
        if self._counter is not None:
            self._counter.feed(plain)

    def finish(self) -> RecordCount | None:
        """What was counted, once every part was; None if rows are not counted.

        Raises:
            ExportIncompleteError: the end is missing, or these are no contacts.
        """
        if self._gunzip is not None:
            self._gunzip.close()
        if self._counter is None:
            return None
        while self._uncounted:
            self._uncounted.popleft().result()
        count = self._counter.finish()
        if count.damage:
            raise ExportIncompleteError(count.damage)
        return count

    def _count_pieces(self, counter: RecordCounter, part: memoryview) -> None:
        for start in range(0, len(part), _PIECE_BYTES):
            counter.feed(part[start : start + _PIECE_BYTES])

    def _gunzip_and_count(self, gunzip: Gunzip, part: memoryview) -> None:
        for plain in gunzip.feed(part):
            if self._counter is None:
                continue
            self._uncounted.append(self._counts.submit(self._counter.feed, plain))
            if len(self._uncounted) > _PIECES_AHEAD:
                self._uncounted.popleft().result()


def rows_difference(rows: int, contact_count: int | None) -> str:
    """How the rows of all files disagree with SendGrid's count; empty if they do not, or if there is no count."""
    if contact_count in (None, rows):
        return ""
    return f"its files hold {rows} rows, SendGrid counted {contact_count} contacts"


def rows_message(export_id: str, difference: str, what_is_stored: str) -> str:
    """Why the delivery is refused, what is there now, and what to do."""
    return (
        f"SendGrid export {export_id}: {difference}. {what_is_stored} Run the task again; if the counts still differ, "
        "start another export, or set verify_row_count=False to take the files as they are."
    )


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
def _abort_on_error(context: Context, writer: PartWriter) -> Iterator[None]:
    """Abort the upload unless the object was published."""
    context.writers.add(writer)
    try:
        yield
    except BaseException as error:
        abort_quietly(writer)
        if getattr(error, "code", None) == "NoSuchUpload":
            raise DestinationChangedError(f"{error} Another run has ended this upload.") from error
        raise
    finally:
        context.writers.discard(writer)


def abort_quietly(writer: PartWriter, *, at_once: bool = False) -> None:
    """Abort an upload; an error is logged only, for the one that came first must be raised."""
    try:
        if at_once:
            writer.abort_upload()
        else:
            writer.abort()
    except Exception as error:  # noqa: BLE001 - see above
        log.error(
            "The upload of %s could not be aborted (%s). %s",
            writer.uri,
            type(error).__name__,
            WHO_ENDS_UPLOADS,
        )


def _facts(writer: PartWriter, count: RecordCount | None, upload: str, path: str) -> FileFacts:
    facts = FileFacts(writer.size, writer.sha256, upload=upload, path=path)
    if count is None:
        return facts
    return replace(
        facts,
        records=count.records,
        first_record_sha256=count.first_record_sha256,
        has_header=count.has_header,
    )


def _log_stored(download: FileDownload, title: str, name: str, facts: FileFacts, progress: FileProgress) -> None:
    seconds = progress.seconds
    log.info(
        "%s: stored as %s, %s bytes from %s, %s records, in %.1f s (%s) over %s connections.",
        title,
        name,
        facts.size,
        download.length,
        "uncounted" if facts.records is None else facts.records,
        seconds,
        speed(download.length / max(seconds, 1e-3)),
        download.connections,
    )


def receipt_name(name: str) -> str:
    """The name of the receipt of an object."""
    return f"{RECEIPTS}{name}.json"


def _write_receipt(storage: Storage, name: str, facts: FileFacts) -> None:
    """Add facts to a receipt, beside those of other uploads: which of them publishes the object is not known yet."""
    for _ in range(_KNOWN_UPLOADS):
        stored = storage.read(receipt_name(name))
        known = {upload: each.to_json() for upload, each in _read_receipt(stored).items() if upload != facts.upload}
        uploads = [*known.items(), (facts.upload, facts.to_json())][-_KNOWN_UPLOADS:]
        content = to_json({"uploads": dict(uploads), "digest": _digest(dict(uploads))})
        try:
            over = stored.version if stored else None
            storage.put(receipt_name(name), content, ObjectInfo("application/json", {}), over)
        except DestinationChangedError:
            continue
        return
    raise DestinationChangedError(f"Other runs keep changing {storage.uri(receipt_name(name))}. Run the task again.")


def _digest(uploads: object) -> str:
    """What shows that a receipt was damaged: what it says of a file becomes the manifest's SHA-256."""
    return hashlib.sha256(json.dumps(uploads, sort_keys=True).encode()).hexdigest()


def _read_receipt(stored: StoredContent | None) -> dict[str, FileFacts]:
    """Facts by the ids of uploads; those of earlier versions have the id ''. None if the receipt is damaged."""
    try:
        receipt = json.loads(stored.content) if stored else None
    except (ValueError, RecursionError):
        return {}
    if not isinstance(receipt, dict) or ("uploads" in receipt and receipt.get("digest") != _digest(receipt["uploads"])):
        return {}
    uploads = receipt.get("uploads") if "uploads" in receipt else {"": receipt}
    found = {
        str(upload): FileFacts.from_metadata(facts)
        for upload, facts in (uploads.items() if isinstance(uploads, dict) else ())
        if isinstance(facts, dict)
    }
    return {upload: facts for upload, facts in found.items() if facts is not None and facts.upload == upload}
