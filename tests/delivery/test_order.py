"""Files keep their numbers, in whatever order SendGrid lists them, and each is requested once."""

from __future__ import annotations

import gzip
from dataclasses import replace

import pytest

from tests.support.delivery_runs import csv, data, deliver, exports, large_csv, manifest, named
from tests.support.memory_storage import MemoryStorage


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_retry_finds_files_that_are_listed_in_another_order(size):
    make = large_csv if size == "large" else lambda tag: csv(tag, 10)
    files = {"/x/one.csv": make("a"), "/x/two.csv": make("b")}
    rows = sum(content.count(b"\n") - 1 for content in files.values())
    storage = MemoryStorage()
    with exports(files) as source:
        deliver(source("6f", list(files), rows), storage, 0, compression="none")
        delivery = deliver(source("6f", list(files)[::-1], rows), storage, compression="none")
    assert list(files.values()) == [storage.objects[file.name].content for file in delivery.files]
    assert 1 == len(delivery.new_files)
    assert rows == delivery.rows
    assert {*named(storage), "_manifest.json"} == set(storage.objects), "neither receipts nor the order remain"
    assert list(files) == [facts["path"] for facts in manifest(storage)["facts"].values()]


def test_a_cleared_task_numbers_files_by_its_manifest():
    files = {"/x/one.csv": csv("a", 10), "/x/two.csv": csv("b", 20)}
    storage = MemoryStorage()
    with exports(files) as source:
        first = deliver(source("6f", list(files), 30), storage)
        again = deliver(source("6f", list(files)[::-1], 30), storage)
    assert (first.files, 0) == (again.files, again.fetched_bytes)


def test_a_url_that_is_listed_twice_is_one_file():
    files = {"/x/one.csv": csv("a", 10), "/x/two.csv": csv("b", 20)}
    storage = MemoryStorage()
    with exports(files) as source:
        delivery = deliver(source("6f", ["/x/one.csv", "/x/two.csv", "/x/one.csv"], 30), storage)
    assert (2, 30) == (len(delivery.files), delivery.rows)
    assert 2 == manifest(storage)["sendgrid_export"]["file_count"]


def test_mapped_tasks_with_different_orders_deliver_all_files():
    files = {f"/x/{letter}.csv": csv(letter, 10) for letter in "abc"}
    orders = [list("abc"), list("cab"), list("bca")]
    storage = MemoryStorage()
    with exports(files) as source:
        for index, order in enumerate(orders):
            deliver(source("6f", [f"/x/{letter}.csv" for letter in order], 30), storage, index)
        delivery = deliver(source("6f", list(files)[::-1], 30), storage)
    assert 0 == delivery.fetched_bytes
    stored = [gzip.decompress(storage.objects[file.name].content) for file in delivery.files]
    assert list(files.values()) == stored


def test_a_file_whose_path_changed_keeps_its_number():
    files = {"/x/a": csv("a", 10), "/x/b": csv("b", 10), "/x/c": csv("c", 10)}
    storage = MemoryStorage()
    with exports(files) as source:
        deliver(source("6f", ["/x/a", "/x/b"], 20), storage, 0, compression="none")
        delivery = deliver(source("6f", ["/x/c", "/x/a"], 20), storage, compression="none")
    assert [files["/x/a"], files["/x/c"]] == [storage.objects[file.name].content for file in delivery.files]


@pytest.mark.parametrize("path", ["/é/a.csv", "/x/" + "a" * 600, "/a b.csv"])
def test_a_path_that_is_no_plain_text_is_kept_as_a_digest(path):
    from urllib.parse import quote

    storage = MemoryStorage()
    with exports({quote(path): csv("a", 1)}) as source:
        deliver(source("6f", [path if "é" not in path and " " not in path else quote(path)], 1), storage)
    [name] = named(storage)
    key = storage.objects[name].info.metadata["sendgrid-file"]
    assert key.isascii()
    assert len(key) <= 512


def test_an_object_of_an_earlier_version_without_a_path_counts():
    storage = MemoryStorage()
    with exports({"/x/a": csv("a", 10)}) as source:
        deliver(source("6f", ["/x/a"], 10), storage, 0)
        [name] = data(storage)
        kept = storage.objects[name]
        metadata = {key: value for key, value in kept.info.metadata.items() if key != "sendgrid-file"}
        storage.objects[name] = replace(kept, info=replace(kept.info, metadata=metadata))
        assert 0 == deliver(source("6f", ["/x/a"], 10), storage).fetched_bytes


def test_a_large_file_is_requested_once():
    files = {"/a": large_csv("a"), "/b": large_csv("b"), "/c": csv("c", 1)}
    with exports(files) as source:
        deliver(source("6f", list(files), None), MemoryStorage(), compression="gzip", max_concurrency=1)
        assert 3 == len(source.server.headers_seen)
