"""Decides by the first bytes of a file how it is stored; refuses a file that holds no contacts."""

from __future__ import annotations

import codecs
import json
import re
from dataclasses import dataclass

from airflow_provider_sendgrid.compression import GZIP_MAGIC, Gunzip, is_gzip
from airflow_provider_sendgrid.delivery.options import DeliveryOptions
from airflow_provider_sendgrid.exceptions import ExportIncompleteError
from airflow_provider_sendgrid.files.range_reader import RangeReader

PIECE_BYTES = 256 * 1024
_CONTENT_TYPES = {
    ".csv": "text/csv; charset=utf-8",
    ".json": "application/x-ndjson",
    ".csv.gz": "application/gzip",
    ".json.gz": "application/gzip",
}


@dataclass(frozen=True, slots=True)
class FilePlan:
    """How one file is stored.

    Attributes:
        head: its first bytes, as downloaded.
        file_type: ``csv`` or ``json``.
        is_sent_as_gzip: whether it is downloaded as gzip.
        is_stored_as_gzip: whether it is stored as gzip.
    """

    head: bytes
    file_type: str
    is_sent_as_gzip: bool
    is_stored_as_gzip: bool

    @classmethod
    def of(
        cls, reader: RangeReader, path: str, options: DeliveryOptions, content_type: str, *, needs_header: bool
    ) -> FilePlan:
        """Read as many bytes as needed to decide; if a file has only whitespace, its path decides.

        The first line must not be the message of a proxy or a storage. The content type is only a hint.

        Args:
            reader: the opened file, before its first byte.
            path: path of its URL.
            options: the compression that is wanted.
            content_type: what the storage says; empty to ignore it.
            needs_header: whether a CSV file must begin with a header that has a column of SendGrid's.

        Raises:
            ExportIncompleteError: the file holds no contacts, or is of another type than its name says.
        """
        head, plain, is_line_whole = _read_head(reader, until=b"\n")
        first = plain[:1]
        if first == b"<":
            raise ExportIncompleteError("The content is an HTML or XML page instead of the file.")
        if binary := _binary(plain):
            raise ExportIncompleteError(f"The content is {binary} instead of the file.")
        named_type = file_type_of_path(path)
        file_type = {b"": named_type or "csv", b"{": "json"}.get(first, "csv")
        if named_type not in ("", file_type):
            what = "a JSON object" if file_type == "json" else "something other than JSON objects"
            raise ExportIncompleteError(f"The content is {what} instead of the {named_type.upper()} file.")
        if is_line_whole and plain:
            declared_type = "" if is_gzip(head) else content_type
            line = plain.partition(b"\n")[0].rstrip()
            is_foreign = _is_foreign_json(line) if file_type == "json" else _is_foreign_csv(line, declared_type)
            if is_foreign or (needs_header and file_type == "csv" and not _may_be_header(line)):
                raise ExportIncompleteError(
                    "The content is a message instead of the file: its first line is neither a header nor a contact."
                )
        return cls(head, file_type, is_gzip(head), options.compression == "gzip")

    @property
    def passes_through(self) -> bool:
        """Whether it is stored as it is downloaded."""
        return self.is_sent_as_gzip == self.is_stored_as_gzip

    def max_bytes(self, length: int) -> int | None:
        """The maximum size of the object, None if unknown; gzip adds a little to what it cannot compress."""
        if self.passes_through:
            return length
        return None if self.is_sent_as_gzip else length + length // 50 + 1024

    @property
    def extension(self) -> str:
        """The extension of the object's name."""
        return extension_of(self.file_type, self.is_stored_as_gzip)

    @property
    def content_type(self) -> str:
        """The content type of the object."""
        return _CONTENT_TYPES[self.extension]


def file_type_of_path(path: str) -> str:
    """``csv`` or ``json`` if the file's name contains one of them; otherwise empty."""
    name = path.rpartition("/")[2].lower()
    named = [file_type for file_type in ("csv", "json") if f".{file_type}" in name]
    return named[0] if len(named) == 1 else ""


def extension_of(file_type: str, is_compressed: bool) -> str:
    """The extension of an object's name, such as ``.csv.gz``."""
    return f".{file_type}.gz" if is_compressed else f".{file_type}"


def _read_head(reader: RangeReader, until: bytes) -> tuple[bytes, bytes, bool]:
    """Read the beginning of a file.

    Returns:
        The first bytes as they are downloaded; the same as plain text, without whitespace and a byte order mark at the
        start; and whether that text contains `until` or is the whole file.

    Raises:
        ExportIncompleteError: the file is long, and begins with whitespace only.
    """
    buffer = memoryview(bytearray(PIECE_BYTES))
    filled, plain = 0, b""
    while filled < len(buffer) and not (plain and until in plain):
        count = reader.readinto(buffer[filled:])
        if not count:
            return bytes(buffer[:filled]), plain, until in plain or len(plain) < PIECE_BYTES
        filled += count
        plain = _plain_start(buffer[:filled])
    if not plain:
        raise ExportIncompleteError("The content is only whitespace instead of the file.")
    return bytes(buffer[:filled]), plain, until in plain


def _plain_start(head: memoryview) -> bytes:
    """Plain text of the first bytes; empty if more bytes are needed."""
    if len(head) < 2 and GZIP_MAGIC.startswith(bytes(head)):
        return b""
    if not is_gzip(head):
        return _strip_start(bytes(head))
    plain = b""
    for piece in Gunzip().feed(head):  # a line may continue in the next gzip member
        plain += piece
        if len(plain) >= PIECE_BYTES or b"\n" in _strip_start(plain):
            break
    return _strip_start(plain)


def _strip_start(plain: bytes) -> bytes:
    """Remove whitespace and a byte order mark at the start."""
    if codecs.BOM_UTF8.startswith(plain):
        return b""
    return plain.removeprefix(codecs.BOM_UTF8).lstrip()


# Formats that begin like text, or that are named in the message.
_BINARY_FORMATS = {
    "gzip within gzip": re.compile(rb"\x1f\x8b"),
    "a ZIP archive": re.compile(rb"PK(\x03\x04|\x05\x06|\x07\x08)"),
    "bzip2": re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
    "xz": re.compile(rb"\xfd7zXZ\x00"),
    "a 7z archive": re.compile(rb"7z\xbc\xaf\x27\x1c"),
    "a PDF": re.compile(rb"%PDF-"),
    "UTF-16": re.compile(rb"\xff\xfe|\xfe\xff"),
    "not UTF-8": re.compile(rb"[\xfe\xff]"),
}
_QUOTED_VALUES = re.compile(rb'(?:^|[,\r\n])(?:"[^"]*"?)+')
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def _binary(plain: bytes) -> str:
    """The name of a binary format that the file begins with; empty if it may be text.

    Text has no control characters in its first line, and no NUL, except within quotes: values may contain anything.
    """
    for name, pattern in _BINARY_FORMATS.items():
        if pattern.match(plain):
            return f"binary data ({name})"
    unquoted = _QUOTED_VALUES.sub(b"", plain)
    is_binary = b"\0" in unquoted or _CONTROL.search(unquoted.partition(b"\n")[0])
    return "binary data" if is_binary else ""


# In every export: columns of CSV in upper case, keys of JSON in lower case.
_COLUMNS = {b"EMAIL", b"CONTACT_ID"}
_CONTACT_KEYS = {"email", "contact_id"}
_ERROR_KEYS = {"error", "errors", "message", "detail", "code", "fault"}
# An object with only these keys is an error, too; RFC 9457 requires none of its keys.
_ERROR_DETAIL_KEYS = {"type", "title", "status", "instance", "reason", "msg", "description", "timestamp", "path"}
_MESSAGE_TYPES = ("text/html", "xml", "json")
# SendGrid has 18 reserved columns; a message has few commas, and no more lines than a page.
_MIN_COLUMNS, MAX_MESSAGE_LINES = 3, 100


def _may_be_header(line: bytes) -> bool:
    """Whether a first line has a column of SendGrid's, or continues in the next line: a name may have a line break."""
    # In a sentence, these words follow a space.
    return bool(_COLUMNS & {field.strip(b'"').upper() for field in line.split(b",")}) or line.count(b'"') % 2 == 1


def _is_foreign_csv(line: bytes, content_type: str) -> bool:
    """Whether a first line is clearly neither a header nor a row; a file after the first may have no header."""
    if _may_be_header(line):
        return False
    if line[:1] in b"[{" or content_type.endswith(_MESSAGE_TYPES):
        return True
    fields = line.split(b",")
    return len(fields) < _MIN_COLUMNS and not any(b"@" in field and len(field.split()) == 1 for field in fields)


def _is_foreign_json(line: bytes) -> bool:
    """Whether a first line is clearly not a contact: no object, or an error."""
    try:
        record = json.loads(line.decode(errors="replace"), strict=False)
    except (ValueError, RecursionError):
        return True
    if not isinstance(record, dict):
        return True
    keys = {key.lower() for key in record}
    return not keys & _CONTACT_KEYS and (bool(keys & _ERROR_KEYS) or keys <= _ERROR_DETAIL_KEYS)
