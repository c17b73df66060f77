"""The order in which files are transferred, and their threads."""

from __future__ import annotations

import threading

import pytest

from airflow_provider_sendgrid.delivery.progress import Progress
from airflow_provider_sendgrid.delivery.queue import FileQueue
from airflow_provider_sendgrid.delivery.stored_file import StoredFile
from airflow_provider_sendgrid.exceptions import DestinationChangedError, DestinationError, ExportIncompleteError
from airflow_provider_sendgrid.stopping import StoppedError, StopSignal

LARGE_BYTES = 100


class Transfer:
    """A file that is stored when the test says so; `story` is what happened to all files of a test."""

    def __init__(self, index, story, *, size=1, is_stored=False, error=None, at_open=None, before=lambda: None):
        self.index = index
        self.is_open = False
        self.story = story
        self.size = size
        self.is_stored = is_stored
        self.error = error
        self.at_open = at_open or (lambda: None)
        self.before = before

    def store_if_small(self):
        if not self.is_stored:
            self.at_open()
            self.is_open = True
            self.story.append(f"open {self.index}")
            if self.size > LARGE_BYTES:
                return None
        return self.store()

    def store(self):
        if not self.is_open and not self.is_stored:
            self.story.append(f"open {self.index}")
        self.before()
        self.is_open = False
        if self.error is not None:
            self.story.append(f"fail {self.index}")
            raise self.error
        self.story.append(f"store {self.index}")
        return StoredFile(f"file {self.index}", self.size, "")

    def close(self):
        if self.is_open:
            self.story.append(f"close {self.index}")
        self.is_open = False


@pytest.fixture
def stop():
    return StopSignal()


@pytest.fixture
def queue(stop):
    queue = FileQueue(4, LARGE_BYTES, Progress("6f", 9), stop)
    yield queue
    stop.set()
    queue.close()


def test_small_files_are_stored_side_by_side(queue):
    story, all_begun = [], threading.Barrier(4)
    transfers = [Transfer(0, story), *(Transfer(index, story, before=all_begun.wait) for index in range(1, 5))]
    assert [f"file {index}" for index in range(5)] == [file.name for file in queue.store_all(transfers)]
    assert ["open 0", "store 0"] == story[:2]


def test_large_files_are_opened_and_stored_one_after_the_other(queue):
    story = []
    queue.store_all([Transfer(index, story, size=101) for index in range(3)])
    assert ["open 0", "store 0", "open 1", "store 1", "open 2", "store 2"] == story


def test_no_file_is_begun_before_a_large_one_is_stored(queue):
    story, is_large = [], {0: True, 3: True}
    queue.store_all([Transfer(index, story, size=101 if is_large.get(index) else 1) for index in range(5)])
    assert [f"{what} {index}" for index in range(5) for what in ("open", "store")] == story


def test_a_large_file_among_small_ones_is_opened_once(queue):
    story = []
    files = queue.store_all([Transfer(index, story, size=101 if index == 2 else 1) for index in range(9)])
    assert list(range(9)) == [int(file.name.removeprefix("file ")) for file in files]
    assert sorted(f"open {index}" for index in range(9)) == sorted(each for each in story if "open" in each)


def test_a_large_file_that_is_stored_already_counts_as_large(queue):
    story = []
    queue.store_all([Transfer(0, story, size=101, is_stored=True), Transfer(1, story), Transfer(2, story)])
    assert ["store 0", "open 1", "store 1", "open 2", "store 2"] == story


def test_files_before_one_that_fails_are_stored(queue):
    """Also a large file, which is only open by then."""
    story, is_begun = [], threading.Event()
    large = Transfer(2, story, size=101, at_open=is_begun.wait)
    failing = Transfer(3, story, error=ExportIncompleteError("file 3"), at_open=is_begun.set)
    with pytest.raises(ExportIncompleteError, match="file 3"):
        queue.store_all([Transfer(0, story), Transfer(1, story), large, failing, Transfer(4, story, size=101)])
    assert {"store 0", "store 1", "store 2"} <= set(story)
    assert "store 4" not in story


def test_no_further_file_is_begun_after_one_that_fails(queue):
    story = []
    with pytest.raises(ExportIncompleteError):
        queue.store_all([Transfer(0, story, error=ExportIncompleteError("file 0")), Transfer(1, story)])
    assert ["open 0", "fail 0"] == story


def test_a_storage_error_does_not_wait_for_earlier_files(queue):
    story, is_over = [], threading.Event()
    slow = Transfer(1, story, before=lambda: is_over.wait(30))
    with pytest.raises(DestinationError, match="file 2"):
        queue.store_all([Transfer(0, story), slow, Transfer(2, story, error=DestinationError("file 2"))])
    assert "store 1" not in story
    assert 1 == len(queue.running(0.0))
    is_over.set()
    assert [] == queue.running(10.0)


def test_a_round_ends_when_no_transfer_is_running(queue):
    """Another run changed something: all decisions are made again."""
    story, has_failed = [], threading.Event()
    error = DestinationChangedError("file 2")
    slow = Transfer(1, story, before=lambda: has_failed.wait(0.5))
    with pytest.raises(DestinationChangedError):
        queue.store_all([Transfer(0, story), slow, Transfer(2, story, error=error), Transfer(3, story, size=101)])
    assert "store 1" in story
    assert ("open 3" in story) is ("close 3" in story)
    assert ["file 0"] == [file.name for file in queue.store_all([Transfer(0, story)])]


def test_a_stopped_queue_waits_for_no_file(queue, stop):
    is_over = threading.Event()
    timer = threading.Timer(0.1, stop.set)
    timer.start()
    with pytest.raises(StoppedError):
        queue.store_all([Transfer(0, [], size=101, before=lambda: is_over.wait(30))])
    is_over.set()
