"""A storage whose requests do not delay a stopped task.

Clients of storages cannot be interrupted: they wait for a response, or before a retry, for minutes. Airflow 3 ends a
task only by `on_kill`, which runs in the task's main thread and then returns to what that thread did.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from airflow_provider_sendgrid.stopping import StopSignal
from airflow_provider_sendgrid.storage.base import ANY_VERSION, ObjectInfo, Storage, StoredContent, StoredInfo, Upload

T = TypeVar("T")


class StoppableStorage:
    """Wraps a storage: requests of the thread that makes this object raise `StoppedError` when `stop` is set.

    They run in separate threads, which are then left running. Other threads call the storage directly, because the main
    thread does not wait for them.
    """

    def __init__(self, storage: Storage, stop: StopSignal) -> None:
        self._storage = storage
        self._stop = stop
        self._thread_id = threading.get_ident()

    def uri(self, name: str) -> str:
        """See `Storage`, as for all methods."""
        return self._storage.uri(name)

    def put(self, name: str, content: bytes | bytearray, info: ObjectInfo, over: str | None = ANY_VERSION) -> str:
        """Store a small object at once."""
        return self._call(lambda: self._storage.put(name, content, info, over))

    def begin(self, name: str, info: ObjectInfo, over: str | None = ANY_VERSION) -> Upload:
        """Start an upload; only the thread of its file calls this."""
        return self._storage.begin(name, info, over)

    def read(self, name: str) -> StoredContent | None:
        """A small object."""
        return self._call(lambda: self._storage.read(name))

    def head(self, name: str) -> StoredInfo | None:
        """What is known of an object."""
        return self._call(lambda: self._storage.head(name))

    def versions(self, beginning: str = "") -> Mapping[str, str] | None:
        """The versions of all objects at the prefix."""
        return self._call(lambda: self._storage.versions(beginning))

    def abort_uploads(self, names: Collection[str]) -> int:
        """End other uploads of objects."""
        return self._call(lambda: self._storage.abort_uploads(names))

    def delete(self, name: str, version: str = ANY_VERSION) -> None:
        """Delete an object."""
        self._call(lambda: self._storage.delete(name, version))

    def _call(self, function: Callable[[], T]) -> T:
        if threading.get_ident() != self._thread_id:
            return function()
        return self._stop.call(function, name="sendgrid-storage")
