"""What a folder needs beyond what every storage promises: its own metadata, and an eye for what is left over."""

from __future__ import annotations

import os

import pytest

from airflow_provider_sendgrid.exceptions import DestinationError
from airflow_provider_sendgrid.storage.local import LocalStorage
from airflow_provider_sendgrid.storage.multipart import ObjectInfo

INFO = ObjectInfo("text/csv", {"sendgrid-export-id": "6f"})


@pytest.fixture
def storage(tmp_path):
    return LocalStorage(tmp_path)


def test_metadata_counts_for_the_very_file_alone(storage, tmp_path):
    """Not for one that somebody put in its place, though it be of the same size."""
    storage.put("a.csv", b"12345", INFO)
    assert INFO.metadata == storage.head("a.csv").metadata
    (tmp_path / "a.csv").write_bytes(b"54321")
    os.utime(tmp_path / "a.csv", ns=(1, 1))
    assert (5, {}) == (storage.head("a.csv").size, storage.head("a.csv").metadata)


@pytest.mark.parametrize("told", ["", "{", "[]", "null", '{"size": 5}'])
def test_metadata_that_cannot_be_read_is_none(storage, tmp_path, told):
    storage.put("a.csv", b"12345", INFO)
    (tmp_path / "_metadata" / "a.csv.json").write_text(told)
    assert {} == storage.head("a.csv").metadata


def test_metadata_of_a_file_that_never_got_its_name_describes_no_other(storage):
    """Killed between the two: the old file stands, the new metadata says what it does not hold."""
    storage.put("a.csv", b"12345", ObjectInfo("text/csv", {"made-by": "them"}))
    upload = storage.begin("a.csv", INFO)
    upload.write_part(1, bytearray(b"54321"), 0)
    upload._unfinished.unlink()
    with pytest.raises(DestinationError):
        upload.complete()
    assert b"12345" == storage.read("a.csv")
    assert {} == storage.head("a.csv").metadata


def test_only_this_files_left_overs_are_removed(storage, tmp_path):
    """Names with characters of a pattern in them, too."""
    uploads = [storage.begin(name, INFO) for name in ("a[1].csv", "a[1].csv", "a1.csv", "b.csv")]
    assert 2 == storage.abort_uploads("a[1].csv")
    assert 2 == len(list(tmp_path.glob(".*.part")))
    with pytest.raises(DestinationError):
        uploads[0].complete()
    uploads[3].complete()
    assert b"" == storage.read("b.csv")
    for upload in uploads[1:3]:
        upload.abort()


def test_a_disk_that_is_full_leaves_nothing(storage, tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DestinationError, match=r"No space left on device.*run the task again"):
        storage.put("a.csv", b"12345", INFO)
    assert [] == list(tmp_path.iterdir())


def test_deleting_takes_the_metadata_along_and_leaves_other_files(storage, tmp_path):
    storage.put("_receipts/a.json", b"{}", INFO)
    storage.put("a.csv", b"12345", INFO)
    storage.delete("_receipts/a.json")
    assert {"a.csv", "_metadata"} == {path.name for path in tmp_path.iterdir()}
    storage.delete("a.csv")
    assert [] == list(tmp_path.iterdir())
