"""What both listeners share: account, files, keys, settings and the clock.

Knows an export's files and their URLs. Must not know sockets, nor the JSON of responses (`payloads.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from .account import Account
from .audience import Audience, Family
from .contacts import FileType
from .export import Export
from .settings import Key, Settings
from .signing import sign_path
from .spool import FileSpec, Spool, SpooledFile

USER_ID: Final = "8315072"
FOLDER: Final = f"/sg-contact-exports/{USER_ID}"
DEFAULT_MAX_FILE_SIZE: Final = 5_000
_MB: Final = 1_000_000
_SMALL_EXPORT_ROWS: Final = 5_000


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """The actual content of one exported file."""

    name: str
    rows: int
    plain_bytes: int
    stored_bytes: int
    stored: SpooledFile

    def read(self) -> bytes:
        """Return the uncompressed content."""
        return b"".join(self.stored.read_plain())

    def chunks(self) -> Iterator[bytes]:
        """Yield the uncompressed content in chunks."""
        return self.stored.read_plain()


@dataclass(slots=True)
class Backend:
    """The emulator's state, without its sockets."""

    account: Account
    spool: Spool
    keys: dict[str, Key]
    settings: Settings = field(default_factory=Settings)
    clock: Callable[[], float] = time.time
    _specs: dict[str, FileSpec] = field(default_factory=dict)

    def start_export(
        self,
        family: Family,
        audiences: Sequence[Audience] = (),
        file_type: FileType = "csv",
        max_file_size: int = DEFAULT_MAX_FILE_SIZE,
    ) -> Export:
        """Start an export and write its files in the background; a small export is complete on return."""
        export = self.account.start_export(
            family, tuple(audiences), file_type, now=self.clock(), ready_after=self.settings.ready_after
        )
        spec = self._spec(export, max_file_size)
        self._specs[export.id] = spec
        future = self.spool.request(spec)
        if spec.rows <= _SMALL_EXPORT_ROWS:
            future.result()
        return export

    def status(self, export: Export) -> str:
        """Return the current status of an export."""
        future = self.spool.request(self._specs[export.id])
        return export.status(self.clock(), is_spooled=future.done())

    def files(self, export: Export, version: int = 0) -> tuple[SpooledFile, ...]:
        """Return an export's files, waiting until they are written; another version holds other contacts."""
        spec = self._specs[export.id]
        return self.spool.request(replace(spec, version=version)).result()

    def count(self, export: Export) -> int:
        """Return the number of contacts in an export."""
        return self._specs[export.id].rows

    def file_names(self, export: Export) -> list[str]:
        """Return the names of an export's files in order, as in their URLs."""
        count = len(self.files(export))
        return [f"{export.id}-{n:05}.{export.file_type}.gzip" for n in range(1, count + 1)]

    def exported_files(self, export: Export) -> list[ExportedFile]:
        """Return the actual content of each file of an export."""
        named = zip(self.file_names(export), self.files(export), strict=True)
        return [ExportedFile(name, f.rows, f.plain_bytes, f.stored_bytes, f) for name, f in named]

    def signed_urls(self, export: Export, files_url: str) -> list[str]:
        """Return the URL of every file, newly signed."""
        now, lifetime = self.clock(), self.settings.url_lifetime
        paths = [f"{FOLDER}/{name}" for name in self.file_names(export)]
        return [files_url + sign_path(path, now, lifetime) for path in paths]

    def _spec(self, export: Export, max_file_size: int) -> FileSpec:
        return FileSpec(
            ranges=export.ranges,
            file_type=export.file_type,
            max_bytes=max_file_size * _MB,
            max_rows=self.settings.contacts_per_file,
            repeat_header=self.settings.repeat_header,
            encoding=self.settings.encoding,
            empty_encoding=self.settings.empty_encoding,
        )
