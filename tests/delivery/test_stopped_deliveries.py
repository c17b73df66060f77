"""A delivery that is stopped ends within seconds."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from airflow_provider_sendgrid.stopping import StoppedError, StopSignal
from tests.support.delivery_runs import DEADLINE_SECONDS, csv, deliver, exports, large_csv
from tests.support.memory_storage import MemoryStorage


def test_a_stopped_delivery_ends_soon_and_leaves_no_upload():
    """Even if the storage does not respond: a thread hangs in a request for a minute."""
    hang, is_writing = threading.Event(), threading.Event()
    stop = StopSignal()

    class Hanging(MemoryStorage):
        def begin(self, name, info, over="*"):
            upload = super().begin(name, info, over)

            def write_part(*_) -> None:
                is_writing.set()
                hang.wait(DEADLINE_SECONDS)

            upload.write_part = write_part
            return upload

    storage = Hanging()
    with exports({"/a": large_csv("a")}, stop) as source, ThreadPoolExecutor(1) as threads:
        running = threads.submit(deliver, source("6f", ["/a"], None), storage, None, stop, compression="none")
        assert is_writing.wait(DEADLINE_SECONDS)
        assert 1 == len(storage.uploads)
        began = time.monotonic()
        stop.set()
        with pytest.raises(StoppedError):
            running.result(DEADLINE_SECONDS)
        assert time.monotonic() - began < 5
        assert {} == storage.uploads
        hang.set()


def test_a_thread_that_waits_for_memory_is_stopped():
    from airflow_provider_sendgrid.storage.buffers import PartBuffers

    stop = StopSignal()
    buffers = PartBuffers(10, stop)
    buffers.acquire(10)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(buffers.acquire, 10)
        stop.set()
        with pytest.raises(StoppedError):
            waiting.result(DEADLINE_SECONDS)


def test_a_hanging_request_at_the_end_does_not_delay_a_stop():
    """Threads look at the objects once more when the manifest is written."""
    stop, is_released = StopSignal(), threading.Event()

    class Hanging(MemoryStorage):
        def head(self, name):
            if "_manifest.json" in self.objects and name.startswith("6f"):
                stop.set()
                is_released.wait(DEADLINE_SECONDS)
            return super().head(name)

    began = time.monotonic()
    with exports({"/a": csv("a", 5)}, stop) as source, pytest.raises(StoppedError):
        deliver(source("6f", ["/a"], 5), Hanging(), stop=stop)
    is_released.set()
    assert time.monotonic() - began < DEADLINE_SECONDS / 2
