"""Any stream is stored in parts, completely or not at all, in bounded memory."""

from __future__ import annotations

import base64
import hashlib
import threading
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_sendgrid.storage.base import MIB, ObjectInfo, part_size
from airflow_provider_sendgrid.storage.buffers import PartBuffers
from airflow_provider_sendgrid.storage.multipart import PartWriter
from airflow_provider_sendgrid.storage.s3 import S3Storage
from tests.support.ceph import IS_WANTED as IS_CEPH
from tests.support.s3_client import with_own_client

PART = 5 * MIB
INFO = ObjectInfo("text/csv", {"export": "6f"})
DEADLINE_SECONDS = 20.0
CONTENT = bytes(range(251)) * (12 * MIB // 251)


@dataclass
class Memory:
    """A storage that keeps objects in memory and fails where a test says so."""

    failing: str = ""
    error: BaseException = field(default_factory=lambda: OSError("the disk is full"))
    objects: dict[str, bytes] = field(default_factory=dict)
    open_uploads: set[str] = field(default_factory=set)
    most_parts_at_once: int = 0
    gate: threading.Event | None = None

    def fail_in(self, step: str) -> None:
        if step == self.failing:
            raise self.error

    def put(self, name, content, info, over) -> str:
        self.fail_in("put")
        self.objects[name] = bytes(content)
        return "v1"

    def begin(self, name, info, over):
        self.fail_in("begin")
        self.open_uploads.add(name)
        return MemoryUpload(self, name)


class MemoryUpload:
    def __init__(self, storage: Memory, name: str) -> None:
        self.storage, self.name = storage, name
        self.parts: dict[int, bytes] = {}

    def write_part(self, number, part, crc32) -> None:
        if self.storage.gate is not None:
            assert self.storage.gate.wait(DEADLINE_SECONDS)
        self.storage.fail_in("write_part")
        assert zlib.crc32(part) == crc32
        self.parts[number] = bytes(part)

    def complete(self) -> None:
        self.storage.fail_in("complete")
        self.storage.objects[self.name] = b"".join(self.parts[number] for number in sorted(self.parts))
        self.storage.open_uploads.discard(self.name)

    def abort(self) -> None:
        self.storage.open_uploads.discard(self.name)


@pytest.fixture
def threads():
    with ThreadPoolExecutor(4) as executor:
        yield executor


def writer_to(storage, threads, buffers=None, name="contacts.csv", **options) -> PartWriter:
    buffers = buffers or PartBuffers(4 * PART)
    return PartWriter(storage, name, INFO, buffers=buffers, executor=threads, part_bytes=PART, **options)


def write_all(writer: PartWriter, content: bytes, chunk_bytes: int = 700_001) -> None:
    for start in range(0, len(content), chunk_bytes):
        writer.write(content[start : start + chunk_bytes])
    writer.finish()


# --- sizes


@given(size=st.integers(0, 5 * 1024**4), part_bytes=st.integers(1, 1024 * MIB))
@example(size=5 * 1024**4, part_bytes=5 * MIB)
@example(size=5 * 1024**4, part_bytes=700 * MIB)
def test_any_object_fits_ten_thousand_parts_of_allowed_sizes(size, part_bytes):
    """Up to 5 TiB, the largest object; each part but the last from 5 MiB to 5 GiB."""
    number = left = 0
    left = size
    while left > 0:
        number += 1
        part = part_size(number, part_bytes)
        assert 5 * MIB <= part <= 5 * 1024 * MIB
        left -= part
    assert number <= 10_000


def test_parts_of_an_object_of_unknown_size_are_equal_at_first():
    """The first 6,000; then they double with every 360."""
    assert {8 * MIB} == {part_size(number, 8 * MIB) for number in range(1, 6_001)}
    assert {16 * MIB} == {part_size(number, 8 * MIB) for number in range(6_001, 6_361)}
    assert 32 * MIB == part_size(6_361, 8 * MIB)


@given(size=st.integers(0, 5 * 1024**4), part_bytes=st.integers(1, 1024 * MIB), number=st.integers(1, 10_000))
@example(size=5 * 1024**4, part_bytes=5 * MIB, number=10_000)
def test_parts_of_an_object_of_known_size_are_equal(size, part_bytes, number):
    """Some storages require that; they are larger than requested only if 10,000 would not suffice."""
    part = part_size(number, part_bytes, size)
    assert part == part_size(1, part_bytes, size)
    assert 5 * MIB <= part <= 5 * 1024 * MIB
    assert part * 10_000 >= size
    assert part == max(part_bytes, 5 * MIB) or part * 9_999 < size


# --- buffers


def test_a_released_buffer_is_used_again():
    """Fresh memory is costly."""
    buffers = PartBuffers(2 * PART)
    first = buffers.acquire(PART)
    memory = first.unfilled.obj
    first.release()
    assert memory is buffers.acquire(PART).unfilled.obj


def test_memory_is_bounded_however_the_sizes_vary():
    """Free buffers count, too: they are dropped before more memory is allocated."""
    buffers = PartBuffers(100)
    for size in (100, 60, 40, 30, 70, 1, 99):
        part = buffers.acquire(size)
        held = size + sum(len(free) for free in buffers._free)
        assert held <= 100
        part.release()


def test_acquire_without_waiting_returns_none_if_memory_is_full():
    buffers = PartBuffers(10)
    part = buffers.acquire(6)
    assert None is buffers.acquire(6, wait=False)
    part.release()
    assert buffers.acquire(6, wait=False) is not None


def test_a_part_larger_than_all_memory_is_acquired_alone():
    """As when parts have doubled: slower, but never blocked."""
    buffers = PartBuffers(10)
    part = buffers.acquire(50, wait=False)
    assert part is not None
    assert None is buffers.acquire(1, wait=False)
    part.release()
    assert buffers.acquire(1, wait=False) is not None


def test_a_waiting_thread_gets_a_part_when_one_is_released(threads):
    buffers = PartBuffers(10)
    part = buffers.acquire(10)
    waiting = threads.submit(buffers.acquire, 10)
    part.release()
    assert 10 == len(waiting.result(DEADLINE_SECONDS).unfilled)


def test_a_part_is_free_when_the_last_of_its_users_is_done():
    """Uploading and counting, in whichever order they end."""
    buffers = PartBuffers(10)
    part = buffers.acquire(10)
    part.hold()
    part.release()
    assert None is buffers.acquire(10, wait=False)
    part.release()
    assert buffers.acquire(10, wait=False) is not None


# --- writing


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 2 * PART, len(CONTENT)])
@pytest.mark.parametrize("is_known", [True, False], ids=["length known", "length unknown"])
def test_a_stream_is_stored_completely(threads, size, is_known):
    """Whatever its length, and whether or not it is known before."""
    storage, content = Memory(), CONTENT[:size]
    writer = writer_to(storage, threads, max_bytes=size if is_known else None)
    write_all(writer, content)
    assert {} == storage.objects
    writer.complete({})
    assert {"contacts.csv": content} == storage.objects
    assert (size, hashlib.sha256(content).hexdigest()) == (writer.size, writer.sha256)


def test_parts_filled_by_the_caller_follow_written_bytes(threads):
    """As for a file: its first bytes are written, the rest is downloaded in parts."""
    storage = Memory()
    writer = writer_to(storage, threads, max_bytes=len(CONTENT))
    writer.write(CONTENT[:1_000])
    position = 1_000
    while position < len(CONTENT):
        part = writer.next_part()
        part.unfilled[:] = CONTENT[position : position + len(part.unfilled)]
        position += len(part.unfilled)
        writer.submit(part)
    writer.finish()
    writer.complete({})
    assert {"contacts.csv": CONTENT} == storage.objects


def test_each_part_is_tapped_before_its_memory_is_reused(threads):
    """Counting may lag behind: the buffer is not reused until it is done."""
    tapped: list[bytes] = []
    released: list[Future[None]] = []
    with ThreadPoolExecutor(1) as counting:

        def tap(part):
            released.append(counting.submit(lambda: tapped.append(bytes(part))))
            return released[-1]

        writer = writer_to(Memory(), threads, PartBuffers(PART), tap=tap)
        write_all(writer, CONTENT)
        writer.complete({})
    assert b"".join(tapped) == CONTENT
    assert 3 == len(tapped)


@pytest.mark.parametrize("limit_bytes", [1, PART, 3 * PART])
def test_several_writers_share_one_pool_without_a_deadlock(threads, limit_bytes):
    """Even if there is memory for one part only."""
    storage, buffers = Memory(), PartBuffers(limit_bytes)

    def store(number: int) -> None:
        writer = writer_to(storage, threads, buffers, name=str(number))
        write_all(writer, CONTENT)
        writer.complete({})

    with ThreadPoolExecutor(3) as writers:
        stored = [writers.submit(store, number) for number in range(3)]
        for each in stored:
            each.result(DEADLINE_SECONDS)
    assert dict.fromkeys("012", CONTENT) == storage.objects
    assert 0 == buffers._used_bytes


@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt(), SystemExit(1)], ids=repr)
@pytest.mark.parametrize("failing", ["begin", "write_part", "complete", "put"])
def test_no_upload_and_no_memory_is_left_after_any_end(threads, failing, error):
    """Others that wait for a part of the same pool would never get one."""
    storage, buffers = Memory(failing, error), PartBuffers(2 * PART)
    writer = writer_to(storage, threads, buffers)

    def store() -> None:
        write_all(writer, CONTENT[:100] if failing == "put" else CONTENT)
        writer.complete({})

    with pytest.raises(type(error)):
        store()
    writer.abort()
    assert ({}, set(), 0) == (storage.objects, storage.open_uploads, buffers._used_bytes)


def test_all_acquired_parts_are_released(threads):
    """The upload of the first cannot begin; the second was not submitted, so its caller releases it."""
    storage, buffers = Memory("begin"), PartBuffers(2 * PART)
    writer = writer_to(storage, threads, buffers)
    parts = [writer.next_part(), writer.next_part()]
    with pytest.raises(OSError, match="the disk is full"):
        writer.submit(parts[0])
    parts[1].release()
    writer.abort()
    assert 0 == buffers._used_bytes


def test_a_tap_that_fails_ends_the_writing_and_leaves_nothing(threads):
    """Damage is detected while the file is uploaded."""
    storage, buffers = Memory(), PartBuffers(2 * PART)

    def tap(_part) -> Future[None]:
        future: Future[None] = Future()
        future.set_exception(ValueError("damaged"))
        return future

    writer = writer_to(storage, threads, buffers, tap=tap)
    with pytest.raises(ValueError, match="damaged"):
        write_all(writer, CONTENT)
    writer.abort()
    assert ({}, set(), 0) == (storage.objects, storage.open_uploads, buffers._used_bytes)


def test_a_tap_that_cannot_begin_leaves_nothing(threads):
    storage, buffers = Memory(), PartBuffers(2 * PART)

    def tap(_part) -> None:
        raise RuntimeError("no more threads")

    writer = writer_to(storage, threads, buffers, tap=tap)
    with pytest.raises(RuntimeError, match="no more threads"):
        write_all(writer, CONTENT)
    writer.abort()
    assert ({}, set(), 0) == (storage.objects, storage.open_uploads, buffers._used_bytes)


def test_an_abort_waits_for_parts_that_are_being_written(threads):
    """A part that is written after the abort would remain and be billed."""
    storage = Memory(gate=threading.Event())
    buffers = PartBuffers(4 * PART)
    writer = writer_to(storage, threads, buffers)
    for start in range(0, len(CONTENT), PART):
        writer.write(CONTENT[start : start + PART])
    aborting = threads.submit(writer.abort)
    assert {"contacts.csv"} == storage.open_uploads
    storage.gate.set()
    aborting.result(DEADLINE_SECONDS)
    assert (set(), 0) == (storage.open_uploads, buffers._used_bytes)


def test_an_abort_after_a_stop_does_not_wait_for_a_hanging_part(threads):
    """The upload is aborted while the part is still being written."""
    storage = Memory(gate=threading.Event())
    buffers = PartBuffers(4 * PART)
    writer = writer_to(storage, threads, buffers)
    for start in range(0, len(CONTENT), PART):
        writer.write(CONTENT[start : start + PART])
    buffers.stop.set()
    writer.abort()
    assert set() == storage.open_uploads
    storage.gate.set()


# --- to S3


def test_an_abort_cancels_the_last_part_first():
    """No part begins if the one before it never will: a sequential upload would wait for that."""
    cancelled = []

    class Queued(Future):
        def cancel(self) -> bool:
            cancelled.append(self.part)
            return super().cancel() and not self.set_running_or_notify_cancel()

    class NeverBegun(ThreadPoolExecutor):
        def submit(self, _function, _upload, number, part) -> Future:
            future = Queued()
            future.part = number
            return future

    with NeverBegun() as executor:
        writer = writer_to(Memory(), executor)
        writer.write(bytes(3 * PART))
        writer.next_part()
        writer.abort()
    assert [3, 2, 1] == cancelled


def test_an_object_of_one_part_takes_one_request(s3, threads):
    """And carries the metadata that is known only at its end."""
    calls, s3 = [], with_own_client(s3)
    s3.client.meta.events.register("before-call.s3", lambda model, **_: calls.append(model.name))
    writer = writer_to(S3Storage(s3.client, s3.bucket, "in/"), threads)
    write_all(writer, b"a,b\n")
    writer.complete({"records": "1"})
    assert ["PutObject", "HeadObject"] == calls, "S3Storage looks at what it stored"
    assert b"a,b\n" == s3.read("in/contacts.csv")
    assert {"export": "6f", "records": "1"} == s3.head("in/contacts.csv")["Metadata"]


@pytest.mark.skipif(IS_CEPH, reason="Ceph RGW returns no checksums")
def test_a_large_object_is_sent_in_parts_with_checksums(s3, threads):
    """S3 keeps the CRC32 of all CRC32s."""
    writer = writer_to(S3Storage(s3.client, s3.bucket, "in/"), threads)
    write_all(writer, CONTENT)
    assert 1 == len(s3.open_uploads())
    writer.complete({})
    assert CONTENT == s3.read("in/contacts.csv")
    head = s3.client.head_object(Bucket=s3.bucket, Key="in/contacts.csv", ChecksumMode="ENABLED")
    assert ("text/csv", {"export": "6f"}) == (head["ContentType"], head["Metadata"])
    parts = [CONTENT[start : start + PART] for start in range(0, len(CONTENT), PART)]
    checksums = b"".join(zlib.crc32(part).to_bytes(4, "big") for part in parts)
    expected = base64.b64encode(zlib.crc32(checksums).to_bytes(4, "big")).decode()
    assert expected == head["ChecksumCRC32"].partition("-")[0]
    assert [] == s3.open_uploads()


@pytest.mark.parametrize("error", [OSError("gone"), KeyboardInterrupt()], ids=repr)
def test_an_aborted_upload_leaves_nothing_in_the_bucket(s3, threads, error):
    """However writing ended."""
    s3 = with_own_client(s3)
    writer = writer_to(S3Storage(s3.client, s3.bucket, "in/"), threads)

    def interrupt(**_) -> None:
        raise error

    s3.client.meta.events.register("before-call.s3.CompleteMultipartUpload", interrupt)
    write_all(writer, CONTENT)
    with pytest.raises(type(error)):
        writer.complete({})
    writer.abort()
    assert ([], []) == (s3.stored_keys(), s3.open_uploads())


def test_a_part_is_uploaded_when_the_next_one_is_acquired(threads):
    """Not only when that one is filled, which may take long."""
    storage, buffers = Memory(), PartBuffers(2 * PART)
    writer = writer_to(storage, threads, buffers)
    first, second = writer.next_part(), writer.next_part()
    writer.submit(first)
    assert not writer.is_small
    second.release()
    writer.abort()
