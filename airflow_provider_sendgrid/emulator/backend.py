"""The pieces behind both listeners together: account, files, keys, settings and the clock.

Knows what an export's files are and where they may be fetched. Must not know how an answer is written (that
is `payloads.py`), nor sockets.
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
from .spool import Recipe, Spool, SpooledFile

USER_ID: Final = "8315072"
FOLDER: Final = f"/sg-contact-exports/{USER_ID}"
DEFAULT_MAX_FILE_SIZE: Final = 5_000
_MB: Final = 1_000_000
_MADE_AT_ONCE_ROWS: Final = 5_000


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """What one file of an export truly holds."""

    name: str
    rows: int
    plain_bytes: int
    stored_bytes: int
    stored: SpooledFile

    def read(self) -> bytes:
        """Return the content as meant."""
        return b"".join(self.stored.read_plain())

    def chunks(self) -> Iterator[bytes]:
        """Give the content as meant, in chunks."""
        return self.stored.read_plain()


@dataclass(slots=True)
class Backend:
    """What the emulator is about, without its sockets."""

    account: Account
    spool: Spool
    keys: dict[str, Key]
    settings: Settings = field(default_factory=Settings)
    clock: Callable[[], float] = time.time
    _recipes: dict[str, Recipe] = field(default_factory=dict)

    def start_export(
        self,
        family: Family,
        audiences: Sequence[Audience] = (),
        file_type: FileType = "csv",
        max_file_size: int = DEFAULT_MAX_FILE_SIZE,
    ) -> Export:
        """Start an export and the making of its files; a small one's files are there when this returns."""
        export = self.account.start_export(
            family, tuple(audiences), file_type, now=self.clock(), ready_after=self.settings.ready_after
        )
        recipe = self._recipe(export, max_file_size)
        self._recipes[export.id] = recipe
        making = self.spool.request(recipe)
        if recipe.rows <= _MADE_AT_ONCE_ROWS:
            making.result()
        return export

    def status(self, export: Export) -> str:
        """Return what has become of an export by now."""
        making = self.spool.request(self._recipes[export.id])
        return export.status(self.clock(), is_spooled=making.done())

    def files(self, export: Export, edition: int = 0) -> tuple[SpooledFile, ...]:
        """Return an export's files, waiting until they are made; another edition is other people's data."""
        recipe = self._recipes[export.id]
        return self.spool.request(replace(recipe, edition=edition)).result()

    def count(self, export: Export) -> int:
        """Return how many contacts an export holds."""
        return self._recipes[export.id].rows

    def file_names(self, export: Export) -> list[str]:
        """Return the names of an export's files in order, as in their URLs."""
        count = len(self.files(export))
        return [f"{export.id}-{n:05}.{export.file_type}.gzip" for n in range(1, count + 1)]

    def exported_files(self, export: Export) -> list[ExportedFile]:
        """Return what each file of an export truly holds."""
        named = zip(self.file_names(export), self.files(export), strict=True)
        return [ExportedFile(name, f.rows, f.plain_bytes, f.stored_bytes, f) for name, f in named]

    def signed_urls(self, export: Export, files_url: str) -> list[str]:
        """Return the URL of every file, signed now."""
        now, lifetime = self.clock(), self.settings.url_lifetime
        paths = [f"{FOLDER}/{name}" for name in self.file_names(export)]
        return [files_url + sign_path(path, now, lifetime) for path in paths]

    def _recipe(self, export: Export, max_file_size: int) -> Recipe:
        return Recipe(
            ranges=export.ranges,
            file_type=export.file_type,
            max_bytes=max_file_size * _MB,
            max_rows=self.settings.contacts_per_file,
            repeat_header=self.settings.repeat_header,
            encoding=self.settings.encoding,
            empty_encoding=self.settings.empty_encoding,
        )
