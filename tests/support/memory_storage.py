"""A storage in memory, with conditional writes and deletes, uploads of which only what is complete can be seen."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from airflow_provider_sendgrid.exceptions import DestinationChangedError, DestinationError
from airflow_provider_sendgrid.storage.base import ANY_VERSION, ObjectInfo, StoredContent, StoredInfo

_UPLOADS, _VERSIONS = itertools.count(1), itertools.count(1)


@dataclass(frozen=True)
class StoredObject:
    content: bytes
    info: ObjectInfo
    version: str


class MemoryStorage:
    """One prefix; `objects` and `uploads` can be looked into, and shared by several."""

    def __init__(self, prefix: str = "memory://lake/in/") -> None:
        self.prefix = prefix
        self.objects: dict[str, StoredObject] = {}
        self.uploads: dict[int, MemoryUpload] = {}
        self.lock = threading.RLock()

    def uri(self, name: str) -> str:
        return f"{self.prefix}{name}"

    def put(self, name: str, content: bytes | bytearray, info: ObjectInfo, over: str | None = ANY_VERSION) -> str:
        with self.lock:
            stored = self.objects.get(name)
            if over not in (ANY_VERSION, stored.version if stored else None):
                raise DestinationChangedError(f"put of {self.uri(name)}: it was changed meanwhile.")
            self.objects[name] = StoredObject(bytes(content), info, f"v{next(_VERSIONS)}")
            return self.objects[name].version

    def begin(self, name: str, info: ObjectInfo, over: str | None = ANY_VERSION) -> MemoryUpload:
        return MemoryUpload(self, name, info, over)

    def read(self, name: str) -> StoredContent | None:
        stored = self.objects.get(name)
        return StoredContent(stored.content, stored.version) if stored else None

    def head(self, name: str) -> StoredInfo | None:
        stored = self.objects.get(name)
        return StoredInfo(len(stored.content), stored.info.metadata, stored.version) if stored else None

    def versions(self, beginning: str = "") -> Mapping[str, str] | None:
        with self.lock:
            listed = (name for name in self.objects if name.startswith(beginning))
            return {name: self.objects[name].version for name in listed if "/" not in name.removeprefix(beginning)}

    def abort_uploads(self, names: Collection[str]) -> int:
        with self.lock:
            left_over = [key for key, upload in self.uploads.items() if upload.name in names]
            for key in left_over:
                del self.uploads[key]
            return len(left_over)

    def delete(self, name: str, version: str = ANY_VERSION) -> None:
        with self.lock:
            stored = self.objects.get(name)
            if stored and version in (ANY_VERSION, stored.version):
                del self.objects[name]


class MemoryUpload:
    def __init__(self, storage: MemoryStorage, name: str, info: ObjectInfo, over: str | None) -> None:
        self.name = name
        self._storage, self._info, self._over = storage, info, over
        self._parts: dict[int, bytes] = {}
        self._key = next(_UPLOADS)
        storage.uploads[self._key] = self

    def write_part(self, number: int, part: bytearray, crc32: int) -> None:
        self._raise_if_ended()
        self._parts[number] = bytes(part)

    def complete(self) -> None:
        self._raise_if_ended()
        content = b"".join(self._parts[number] for number in sorted(self._parts))
        self._storage.put(self.name, content, self._info, self._over)
        self.abort()

    def abort(self) -> None:
        self._storage.uploads.pop(self._key, None)

    def _raise_if_ended(self) -> None:
        if self._key not in self._storage.uploads:
            error = DestinationError(f"upload of {self.name}: there is no such upload.")
            error.code = "NoSuchUpload"
            raise error
