"""Any stream to any cloud: write a part, complete, abort.

Knows parts, the buffers they are filled in, and that nothing is published before it is whole. Knows neither
where the bytes come from nor how a certain cloud takes them: that is an `Upload`, three verbs.

Memory is what `PartBuffers` holds, whatever the size of the stream: buffers are filled, uploaded by threads
while the next is filled, and used again.
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

MIB = 1024 * 1024

# S3's limits, which the other clouds' contain: parts of 5 MiB or more but for the last, 10,000 of them.
MIN_PART_BYTES = 5 * MIB
_PARTS_PER_SIZE = 1000


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What an object carries beside its bytes.

    Attributes:
        content_type: its media type.
        metadata: short texts of ours, with names in lower case.
    """

    content_type: str
    metadata: Mapping[str, str]


class Upload(Protocol):
    """An object on its way: invisible until `complete`, gone without a trace after `abort`."""

    def write_part(self, number: int, part: bytearray, crc32: int) -> None:
        """Store part `number` (from 1); called by several threads at once."""

    def complete(self) -> None:
        """Publish the object: all parts were written."""

    def abort(self) -> None:
        """Leave nothing behind; safe after a failure of any kind."""


class Storage(Protocol):
    """A place for objects, named below one prefix."""

    def uri(self, name: str) -> str:
        """The full address of an object."""

    def put(self, name: str, content: bytes | bytearray, info: ObjectInfo) -> None:
        """Store a small object at once."""

    def begin(self, name: str, info: ObjectInfo) -> Upload:
        """Start to store an object in parts."""

    def read(self, name: str) -> bytes | None:
        """The content of a small object, None where there is none."""

    def delete(self, name: str) -> None:
        """Remove an object; nothing happens where there is none."""


def part_size(number: int, part_bytes: int) -> int:
    """How large part `number` (from 1) is, in bytes.

    It doubles with every 1,000 parts, so that even 5 MiB to begin with fill 5 TiB, the largest object, before
    the 10,000th part; most objects never see the first doubling.
    """
    return max(part_bytes, MIN_PART_BYTES) << ((number - 1) // _PARTS_PER_SIZE)


class PartBuffers:
    """Recycled memory for parts, `limit_bytes` at once; safe to share among threads and files.

    Fresh memory is costly (measured: up to 25 times slower to write to than memory used before).
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._used_bytes = 0
        self._free: list[bytearray] = []
        self._changed = threading.Condition()

    def take(self, size: int) -> bytearray:
        """A buffer of `size` bytes; waits until there is room for it."""
        with self._changed:
            self._changed.wait_for(lambda: self._used_bytes == 0 or self._used_bytes + size <= self._limit_bytes)
            self._used_bytes += size
            for index, buffer in enumerate(self._free):
                if len(buffer) == size:
                    return self._free.pop(index)
            free_bytes = sum(map(len, self._free))
            if self._free and self._used_bytes + free_bytes > self._limit_bytes:
                self._free.clear()
        return bytearray(size)

    def give(self, buffer: bytearray) -> None:
        """Return a buffer that was taken."""
        with self._changed:
            self._used_bytes -= len(buffer)
            self._free.append(buffer)
            self._changed.notify_all()


class _Part:
    """A filled buffer that returns to its pool when the last of its users is done with it."""

    def __init__(self, buffers: PartBuffers, size: int) -> None:
        self.buffer = buffers.take(size)
        self.size = size
        self.filled = 0
        self._buffers = buffers
        self._users = 1
        self._lock = threading.Lock()

    def content(self) -> bytearray:
        """The bytes put there; a copy only where the buffer is not full, as in a last part."""
        return self.buffer if self.filled == self.size else self.buffer[: self.filled]

    def hold(self) -> None:
        with self._lock:
            self._users += 1

    def release(self, _: object = None) -> None:
        with self._lock:
            self._users -= 1
            is_free = self._users == 0
        if is_free:
            self._buffers.give(self.buffer)


class PartWriter:
    """Writes one object from a stream: fill `room`, `advance`, at the end `finish`, then `complete` or `abort`.

    Args:
        storage: where to.
        name: of the object.
        info: what the object carries; a small one also carries its ``sha256``.
        buffers: memory for the parts.
        executor: its threads upload the parts.
        part_bytes: size of a part, see `part_size`.
        expected_bytes: how long the object will be, where that is known: small ones need small buffers.
        tap: is given each filled part; answers a future that is done when it needs the part no more, or None.

    Attributes:
        name: of the object.
        size: bytes written so far.
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
        expected_bytes: int | None = None,
        tap: Callable[[memoryview], Future[None] | None] | None = None,
    ) -> None:
        self.name = name
        self.size = 0
        self._storage = storage
        self._info = info
        self._buffers = buffers
        self._executor = executor
        self._part_bytes = part_bytes
        self._expected_bytes = expected_bytes
        self._tap = tap
        self._digest = hashlib.sha256()
        self._part: _Part | None = None
        self._upload: Upload | None = None
        self._pending: list[Future[None]] = []
        self._parts = 0

    @property
    def sha256(self) -> str:
        """Of all bytes of the object; known once it is complete."""
        return self._digest.hexdigest()

    def room(self) -> memoryview:
        """Where the next bytes go; never empty. Say how many were put there with `advance`."""
        if self._part is not None and self._part.filled == self._part.size:
            self._send_part(self._part)
            self._part = None
        if self._part is None:
            self._raise_failure()
            self._part = _Part(self._buffers, self._next_part_size())
        return memoryview(self._part.buffer)[self._part.filled :]

    def advance(self, count: int) -> None:
        """Say that `count` bytes were put into `room`."""
        if self._part is not None:
            self._part.filled += count
        self.size += count

    def write(self, chunk: bytes) -> None:
        """Copy `chunk` into `room`, and on."""
        rest = memoryview(chunk)
        while rest:
            room = self.room()
            count = min(len(room), len(rest))
            room[:count] = rest[:count]
            self.advance(count)
            rest = rest[count:]

    def finish(self) -> None:
        """Say that this was all; afterwards all parts were sent and all taps are done, nothing is published."""
        part = self._part
        if part is not None and self._upload is None:
            self._digest_and_tap(part)
        elif part is not None and part.filled:
            self._send_part(part)
            self._part = None
        for pending in self._pending:
            pending.result()

    def complete(self) -> None:
        """Publish the object, after `finish`; a small one is stored only now, at once."""
        if self._upload is not None:
            self._upload.complete()
            self._upload = None
            return
        content = self._part.content() if self._part is not None else b""
        metadata = {**self._info.metadata, "sha256": self.sha256}
        self._storage.put(self.name, content, ObjectInfo(self._info.content_type, metadata))
        self._release_part()

    def abort(self) -> None:
        """Leave nothing behind; does nothing after `complete`."""
        for pending in self._pending:
            pending.cancel()
        wait(self._pending)
        self._release_part()
        if self._upload is not None:
            self._upload.abort()
            self._upload = None

    def _release_part(self) -> None:
        if self._part is not None:
            self._part.release()
            self._part = None

    def _next_part_size(self) -> int:
        size = part_size(self._parts + 1, self._part_bytes)
        if self._expected_bytes is not None:
            size = min(size, max(1, self._expected_bytes - self.size))
        return size

    def _send_part(self, part: _Part) -> None:
        if self._upload is None:
            self._upload = self._storage.begin(self.name, self._info)
        self._parts += 1
        self._digest_and_tap(part)
        upload = self._executor.submit(self._write_part, self._upload, self._parts, part)
        upload.add_done_callback(part.release)
        self._pending.append(upload)

    def _write_part(self, upload: Upload, number: int, part: _Part) -> None:
        content = part.content()
        upload.write_part(number, content, crc32(content))

    def _digest_and_tap(self, part: _Part) -> None:
        filled = memoryview(part.buffer)[: part.filled]
        if self._tap is not None and (tapped := self._tap(filled)) is not None:
            part.hold()
            tapped.add_done_callback(part.release)
            self._pending.append(tapped)
        self._digest.update(filled)

    def _raise_failure(self) -> None:
        self._pending = [pending for pending in self._pending if not pending.done() or pending.exception()]
        for pending in self._pending:
            if pending.done():
                pending.result()


def _fastest_crc32() -> Any:
    """The one of isal (10 GB/s), or the standard library's (2 GB/s)."""
    try:
        return import_module("isal.isal_zlib").crc32
    except ImportError:
        return zlib.crc32


crc32: Callable[[bytes | bytearray], int] = _fastest_crc32()
