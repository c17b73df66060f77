"""One file of an export: found stored, or fetched, changed where it must be, counted, and published whole.

What is stored differs from what came only in its compression. Its first bytes decide what becomes of it. An object is
published when its length and checksums agree. What is known of it is in its metadata; where these have to be sent
before the last byte is known, in a receipt below ``_receipts/``, which is stored right before the object is published.

Knows one file and one storage. Knows nothing of the other files, nor when the export is whole: that is `delivery`.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace

from airflow_provider_sendgrid.compression import Gunzip, Gzip
from airflow_provider_sendgrid.delivery.first_bytes import (
    MOST_LINES_OF_A_MESSAGE,
    PIECE_BYTES,
    FilePlan,
    ending_of,
    file_type_of_path,
)
from airflow_provider_sendgrid.delivery.manifest import FileFacts
from airflow_provider_sendgrid.delivery.options import DeliveryOptions
from airflow_provider_sendgrid.delivery.progress import FileProgress, speed
from airflow_provider_sendgrid.delivery.publication import EXPORT_ID_KEY, Publication, is_of
from airflow_provider_sendgrid.delivery.receipts import read_receipt, receipt_name, write_receipt
from airflow_provider_sendgrid.delivery.verification import Verification
from airflow_provider_sendgrid.exceptions import (
    DestinationChangedError,
    DestinationRefusedError,
    ExportIncompleteError,
)
from airflow_provider_sendgrid.files.download import FileDownload, RangeReader
from airflow_provider_sendgrid.files.parallel import fetch_parts
from airflow_provider_sendgrid.files.rows import RecordCount
from airflow_provider_sendgrid.stopping import StopSignal
from airflow_provider_sendgrid.storage.base import UPLOAD_KEY, ObjectInfo, Storage, StoredInfo
from airflow_provider_sendgrid.storage.buffers import PartBuffers
from airflow_provider_sendgrid.storage.multipart import PartWriter

log = logging.getLogger(__name__)

FILE_KEY = "sendgrid-file"
_PLAIN_TEXT = re.compile(r"[!-~]{1,512}")  # ASCII without spaces: it survives as metadata in any storage
WHO_ENDS_UPLOADS = (
    "The next try of the task ends it, or a lifecycle rule of the bucket that aborts incomplete multipart uploads."
)


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
        types = ("json", "csv") if file_type_of_path(self.path) == "json" else ("csv", "json")
        return [self.stem + ending_of(file_type, options.compression == "gzip") for file_type in types]

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
        plan = FilePlan.of(
            reader,
            place.path,
            options,
            "" if context.contact_count else download.content_type,
            needs_header=place.is_only and (context.contact_count or 0) <= MOST_LINES_OF_A_MESSAGE,
        )
        if place.is_only and not plan.head and context.expected_count:
            raise ExportIncompleteError(f"What came is empty, SendGrid counted {context.expected_count} contacts.")
        name = place.stem + plan.ending
        before = _without_what_is_to_be_deleted(context, name, objects.get(name))
        upload = secrets.token_hex(8)
        metadata = {EXPORT_ID_KEY: context.export_id, FILE_KEY: place.key, UPLOAD_KEY: upload}
        with closing(Verification(plan, options)) as verification:
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
                    write_receipt(storage, name, same)
                    return StoredFile(name, same, before.version, has_receipt=True)
                if before is not None:
                    if _must_be_counted_first(context, place, name, before, facts):
                        writer.abort()
                        return StoredFile(name, facts, before.version, is_only_counted=True)
                    context.publication.raise_unless_replaceable(name, before)
                if has_receipt := not writer.is_small:
                    write_receipt(storage, name, facts)
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
    for facts in read_receipt(context.storage.read(receipt_name(name))).values():
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


def _move(
    plan: FilePlan,
    download: FileDownload,
    reader: RangeReader,
    writer: PartWriter,
    verification: Verification,
    max_connections: int,
) -> None:
    """Move every byte of the file; through gunzip or gzip over one connection, for there the CPU is the bound."""
    if plan.passes_through:
        writer.write(plan.head)
        with closing(fetch_parts(download, reader, writer.next_part, max_connections)) as parts:
            for part in parts:
                writer.submit(part)
        return
    for chunk in _recoded(plan, _pieces(plan.head, reader), verification):
        writer.write(chunk)


def _pieces(head: bytes, reader: RangeReader) -> Iterator[memoryview]:
    yield memoryview(head)
    buffer = memoryview(bytearray(PIECE_BYTES))
    while count := reader.readinto(buffer):
        yield buffer[:count]


def _recoded(plan: FilePlan, pieces: Iterator[memoryview], verification: Verification) -> Iterator[bytes]:
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
