"""Uploads a stream in parts, to any storage.

Nothing is published before it is complete. Memory is bounded by `PartBuffers`, whatever the size of the stream: threads
upload a buffer while the next is filled, and buffers are recycled.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, wait
from importlib import import_module
from typing import Any

from airflow_provider_sendgrid.stopping import StoppedError
from airflow_provider_sendgrid.storage.base import ANY_VERSION, ObjectInfo, Storage, Upload, part_size
from airflow_provider_sendgrid.storage.buffers import Part, PartBuffers

# Stopped uploads are aborted after this share of the grace period, even if threads still write parts.
_ABORT_AFTER_SHARE = 0.2
_CHECK_EVERY_SECONDS = 0.2


class PartWriter:
    """Writes one object from a stream: bytes, or parts that the caller fills, in order.

    `write` bytes, or fill parts from `next_part` and `submit` them; at the end `finish`, then `complete`; or `abort` at
    any time.

    Args:
        storage: where the object goes.
        name: name of the object.
        info: what the object carries.
        buffers: memory for the parts.
        executor: its threads upload the parts.
        part_bytes: size of a part, see `part_size`.
        max_bytes: the object is not larger, None if that is not known. Small objects then need small buffers, and
            large ones get parts of one size.
        over: the version that may be replaced, see `Storage`.
        tap: called with each part's bytes; returns a future that is done when they are no longer needed, or None.

    Attributes:
        name: name of the object.
        size: bytes submitted so far.
        may_be_open: whether the storage may hold an upload that is neither complete nor aborted.
    """

    def __init__(
        self,
        storage: Storage,
        name: str,
        info: ObjectInfo,
        *,
        buffers: PartBuffers,
        executor: Executor,
        part_bytes: int,
        max_bytes: int | None = None,
        over: str | None = ANY_VERSION,
        tap: Callable[[memoryview], Future[None] | None] | None = None,
    ) -> None:
        self.name = name
        self.size = 0
        self.may_be_open = False
        self._storage = storage
        self._info = info
        self._buffers = buffers
        self._executor = executor
        self._part_bytes = part_bytes
        self._max_bytes = max_bytes
        self._over = over
        self._tap = tap
        self._digest = hashlib.sha256()
        self._acquired_parts = self._acquired_bytes = 0
        self._open_part: Part | None = None
        self._kept_parts: list[Part] = []
        self._upload: Upload | None = None
        self._is_aborted = False
        self._submitted_parts = 0
        self._pending: list[Future[None]] = []

    @property
    def sha256(self) -> str:
        """The digest of all bytes of the object, in hexadecimal; known after `finish`."""
        return self._digest.hexdigest()

    @property
    def uri(self) -> str:
        """The URI of the object."""
        return self._storage.uri(self.name)

    @property
    def is_small(self) -> bool:
        """Whether the object is stored at once by `complete`, and carries the metadata given there."""
        return self._upload is None

    def write(self, chunk: bytes) -> None:
        """Copy `chunk` into parts, and submit those that are full."""
        rest = memoryview(chunk)
        while rest:
            if self._open_part is None:
                self._open_part = self._acquire_part(wait=True)
            part = self._open_part
            if part is None:
                raise RuntimeError("no part was acquired")
            count = min(len(part.unfilled), len(rest))
            part.unfilled[:count] = rest[:count]
            part.filled += count
            rest = rest[count:]
            if not part.unfilled:
                self._open_part = None
                self._submit_filled(part)

    def next_part(self, wait: bool = True) -> Part | None:
        """The next part to fill: the rest of the one that `write` started, or a new one.

        None if there is no memory for it and `wait` is off.
        """
        part, self._open_part = self._open_part, None
        return part or self._acquire_part(wait=wait)

    def submit(self, part: Part) -> None:
        """Upload a filled part; parts are submitted in the order of `next_part`."""
        part.filled += len(part.unfilled)
        self._submit_filled(part)

    def finish(self) -> None:
        """End the stream: afterwards all parts are uploaded and all taps done, but nothing is published.

        Raises:
            StoppedError: the task was stopped.
            Exception: the failure of a part or a tap.
        """
        part, self._open_part = self._open_part, None
        if part is not None:
            self._submit_filled(part)
        if self._upload is not None:
            self._submit_kept()
        for pending in self._pending:
            self._buffers.stop.result(pending)

    def complete(self, metadata: Mapping[str, str]) -> str | None:
        """Publish the object, after `finish`; a small one is stored only now, in one request, with `metadata` added.

        Returns:
            Its version, None after a multipart upload.

        Raises:
            DestinationChangedError: another run stored it meanwhile.
        """
        upload = self._upload  # read before the check: after an abort by another thread the object would look small
        if self._is_aborted:
            raise StoppedError(f"the upload of {self.name} was aborted")
        if upload is not None:
            upload.complete()
            self._upload, self.may_be_open = None, False
            return None
        content = self._kept_parts[0].content if self._kept_parts else bytearray()
        info = ObjectInfo(self._info.content_type, {**self._info.metadata, **metadata})
        version = self._storage.put(self.name, content, info, self._over)
        self._release_all()
        return version

    def abort(self) -> None:
        """Leave nothing behind; does nothing after `complete`.

        Waits for parts that are being written, but not for long if the task was stopped.
        """
        # The last first: in a sequential upload, a part that has started may wait for the ones before it.
        running = [pending for pending in reversed(self._pending) if not pending.cancel()]
        stop = self._buffers.stop
        while wait(running, _CHECK_EVERY_SECONDS).not_done:
            if stop.is_set and not stop.seconds_left(_ABORT_AFTER_SHARE):
                break
        self._release_all()
        self.abort_upload()

    def abort_upload(self) -> None:
        """Abort the upload at once, even if other threads still write its parts; does nothing after `complete`."""
        self._is_aborted = True  # another thread may continue for a moment and must not start a second upload
        for pending in reversed(list(self._pending)):
            if not pending.done():
                pending.cancel()
        upload, self._upload = self._upload, None
        if upload is not None:
            try:
                upload.abort()
            finally:
                self.may_be_open = False

    def _acquire_part(self, *, wait: bool) -> Part | None:
        self._submit_kept()
        self._raise_failure()
        size = part_size(self._acquired_parts + 1, self._part_bytes, self._max_bytes)
        if self._max_bytes is not None:
            size = min(size, max(1, self._max_bytes - self._acquired_bytes))
        if (part := self._buffers.acquire(size, wait=wait)) is not None:
            self._acquired_parts += 1
            self._acquired_bytes += size
        return part

    def _submit_filled(self, part: Part) -> None:
        """Keep the last part until another follows: an object of one part needs no multipart upload."""
        self._kept_parts.append(part)
        self.size += part.filled
        self._digest_and_tap(part)
        is_followed = self._acquired_parts > self._submitted_parts + len(self._kept_parts)
        self._submit_kept(all_but=0 if is_followed else 1)

    def _submit_kept(self, all_but: int = 0) -> None:
        """Upload the kept parts; one that cannot be uploaded stays kept, and `abort` releases it."""
        while len(self._kept_parts) > all_but:
            upload = self._upload or self._begin()
            written = self._executor.submit(_write_part, upload, self._submitted_parts + 1, self._kept_parts[0])
            self._submitted_parts += 1
            self._pending.append(written)
            written.add_done_callback(self._kept_parts.pop(0).release)

    def _begin(self) -> Upload:
        self._buffers.stop.raise_if_set()
        if not self._is_aborted:
            self.may_be_open = True
            try:
                self._upload = self._storage.begin(self.name, self._info, self._over)
            except BaseException:
                self.may_be_open = False
                raise
        if self._upload is None:
            raise StoppedError(f"the upload of {self.name} was aborted")
        if self._is_aborted:
            self.abort_upload()
            raise StoppedError(f"the upload of {self.name} was aborted")
        return self._upload

    def _digest_and_tap(self, part: Part) -> None:
        if self._tap is not None and (tapped := self._tap(part.view)) is not None:
            part.hold()
            tapped.add_done_callback(part.release)
            self._pending.append(tapped)
        self._digest.update(part.view)

    def _raise_failure(self) -> None:
        self._pending = [pending for pending in self._pending if not pending.done() or pending.exception()]
        for pending in self._pending:
            if pending.done():
                pending.result()

    def _release_all(self) -> None:
        kept = [*self._kept_parts, *([self._open_part] if self._open_part is not None else [])]
        self._kept_parts, self._open_part = [], None
        for part in kept:
            part.release()


def _write_part(upload: Upload, number: int, part: Part) -> None:
    content = part.content
    upload.write_part(number, content, crc32(content))


def _fastest_crc32() -> Any:
    """The function of isal (10 GB/s), or the standard library's (2 GB/s)."""
    try:
        return import_module("isal.isal_zlib").crc32
    except ImportError:
        return zlib.crc32


crc32: Callable[[bytes | bytearray], int] = _fastest_crc32()
