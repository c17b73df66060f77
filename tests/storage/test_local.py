"""Folders: their metadata, and what is left over in them, beyond what `test_promises` covers."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from airflow_provider_sendgrid.exceptions import (
    DestinationChangedError,
    DestinationError,
    DestinationRefusedError,
)
from airflow_provider_sendgrid.stopping import StoppedError
from airflow_provider_sendgrid.storage.base import ANY_VERSION, ObjectInfo
from airflow_provider_sendgrid.storage.local import LocalStorage

INFO = ObjectInfo("text/csv", {"sendgrid-export-id": "6f"})


@pytest.fixture
def storage(tmp_path):
    return LocalStorage(tmp_path)


def test_metadata_counts_only_for_its_own_file(storage, tmp_path):
    """It is not used for a file that was put there by others, even if it has the same size."""
    storage.put("a.csv", b"12345", INFO)
    assert INFO.metadata == storage.head("a.csv").metadata
    (tmp_path / "a.csv").write_bytes(b"54321")
    os.utime(tmp_path / "a.csv", ns=(1, 1))
    assert (5, {}) == (storage.head("a.csv").size, storage.head("a.csv").metadata)


def test_dangling_links_are_no_files(storage, tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    storage.put("a.csv", b"12345", INFO)
    assert ["a.csv"] == list(storage.versions())


def test_a_folder_that_cannot_be_read_now_is_a_destination_error(storage, monkeypatch):
    def stale(_path):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(Path, "iterdir", stale)
    with pytest.raises(DestinationError, match=r"list of .*Stale file handle"):
        storage.versions()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_syncs_no_folders_can_be_used(storage, monkeypatch, code):
    """As SMB mounts of older kernels, and folders of VirtualBox."""
    sync = os.fsync

    def files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    version = storage.put("a.csv", b"12345", INFO)
    assert version == storage.head("a.csv").version


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"size": 5}'])
def test_metadata_that_cannot_be_read_is_none(storage, tmp_path, content):
    storage.put("a.csv", b"12345", INFO)
    (tmp_path / "_metadata" / "a.csv.json").write_text(content)
    assert {} == storage.head("a.csv").metadata


def test_a_crash_before_publishing_leaves_the_old_file(storage, monkeypatch):
    """The metadata of the new file was written already; it does not count for the old one."""
    storage.put("a.csv", b"12345", ObjectInfo("text/csv", {"made-by": "them"}))
    upload = storage.begin("a.csv", INFO)
    upload.write_part(1, bytearray(b"54321"), 0)
    monkeypatch.setattr(upload, "_give_name", crash)
    with pytest.raises(KeyboardInterrupt):
        upload.complete()
    assert b"12345" == storage.read("a.csv").content
    assert {} == storage.head("a.csv").metadata
    upload.abort()


def crash(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("over", [None, ANY_VERSION])
def test_an_upload_that_another_run_ended_fails_with_the_reason(storage, tmp_path, over):
    """Its unfinished file was deleted; no part of a file may appear."""
    upload = storage.begin("a.csv", INFO, over)
    upload.write_part(1, bytearray(b"54321"), 0)
    assert 1 == LocalStorage(tmp_path).abort_uploads(["a.csv"])
    with pytest.raises(DestinationChangedError, match="another run deleted the unfinished file"):
        upload.complete()
    upload.abort()
    assert ({}, None) == (storage.versions(), storage.head("a.csv"))


def test_only_unfinished_uploads_of_this_file_are_removed(storage, tmp_path):
    """Names with characters of a pattern in them, too."""
    other_run = LocalStorage(tmp_path)
    uploads = [other_run.begin(name, INFO) for name in ("a[1].csv", "a[1].csv", "a1.csv", "b.csv")]
    own = storage.begin("a[1].csv", INFO)
    assert 2 == storage.abort_uploads(["a[1].csv"])
    assert 3 == len(list(tmp_path.glob(".*.part")))
    for upload in (own, uploads[3]):
        upload.complete()
    assert b"" == storage.read("b.csv").content == storage.read("a[1].csv").content
    for upload in uploads[:3]:
        upload.abort()
    assert [] == list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_file_systems_without_hard_links_refuse_to_overwrite(storage, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    storage.put("a.csv", b"first", INFO, None)
    with pytest.raises(DestinationChangedError):
        storage.put("a.csv", b"second", INFO, None)
    assert (b"first", INFO.metadata) == (storage.read("a.csv").content, storage.head("a.csv").metadata)


def test_a_file_stored_between_the_look_and_the_link_is_kept(storage, tmp_path, monkeypatch):
    """On file systems without locks."""
    link = os.link

    def rival_first(source, target):
        Path(target).write_bytes(b"theirs")
        return link(source, target)

    monkeypatch.setattr(os, "link", rival_first)
    with pytest.raises(DestinationChangedError, match="another run stored this file"):
        storage.put("a.csv", b"ours", INFO, None)
    assert b"theirs" == (tmp_path / "a.csv").read_bytes()
    assert {} == storage.head("a.csv").metadata


def test_a_link_whose_response_was_lost_is_a_success(storage, monkeypatch):
    """As on NFS: the repeated call finds the file of the first one."""
    link = os.link

    def twice(source, target):
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    version = storage.put("a.csv", b"ours", INFO, None)
    assert (version, INFO.metadata) == (storage.head("a.csv").version, storage.head("a.csv").metadata)


@pytest.mark.parametrize("name", ["a.csv", "_metadata", "_receipts"])
def test_a_symbolic_link_that_leads_nowhere_is_named(storage, tmp_path, name):
    """No other run stored a file, and no further try helps."""
    (tmp_path / name).symlink_to("nowhere")
    with pytest.raises(DestinationRefusedError, match="a symbolic link that leads nowhere: delete it"):
        storage.put("_receipts/a.json" if name == "_receipts" else "a.csv", b"1", INFO, None)
    assert [path for path in tmp_path.rglob("*") if path.name.endswith(".part")] == []


def test_metadata_that_cannot_be_stored_leave_nothing_unfinished(storage, tmp_path):
    (tmp_path / "_metadata" / "a.csv.json").mkdir(parents=True)
    with pytest.raises(DestinationRefusedError, match="A folder has the file's name"):
        storage.put("a.csv", b"1", INFO)
    assert [path.name for path in tmp_path.rglob("*")] == ["_metadata", "a.csv.json"]


def test_runs_that_store_and_delete_in_one_folder_do_not_fail(tmp_path):
    """A subfolder that one run deletes when it is empty is where another one writes."""
    errors = []

    def run(number):
        storage = LocalStorage(tmp_path)
        try:
            for _ in range(50):
                version = storage.put(f"_receipts/{number}.json", b"{}", INFO)
                storage.delete(f"_receipts/{number}.json", version)
        except DestinationError as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [] == errors
    assert [] == list(tmp_path.iterdir())


def test_an_abort_does_not_wait_for_a_part_that_is_being_written(storage, tmp_path, monkeypatch):
    """Waiting parts fail at once, and the file is closed when the running part is done."""
    upload = storage.begin("a.csv", INFO)
    begun, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(upload, "_append", lambda _part: begun.set() or go_on.wait(30))
    failures = []

    def write(number):
        try:
            upload.write_part(number, bytearray(1), 0)
        except StoppedError as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in (1, 2)]
    threads[0].start()
    assert begun.wait(30)
    threads[1].start()
    upload.abort()
    threads[1].join(30)
    assert ([], 1, False) == (list(tmp_path.iterdir()), len(failures), upload._file.closed)
    go_on.set()
    threads[0].join(30)
    assert upload._file.closed


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
def test_a_folder_that_may_not_be_written_is_refused(storage, tmp_path):
    storage.put("a.csv", b"1", INFO)
    tmp_path.chmod(0o500)
    try:
        for use in (lambda: storage.delete("a.csv"), lambda: storage.put("b.csv", b"1", INFO)):
            with pytest.raises(DestinationRefusedError, match="Correct the folder's permissions"):
                use()
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.EACCES, DestinationRefusedError),
        (errno.EROFS, DestinationRefusedError),
        (errno.EIO, DestinationError),
        (errno.ESTALE, DestinationError),
    ],
)
def test_a_failed_delete_is_an_error(storage, monkeypatch, code, expected):
    storage.put("a.csv", b"1", INFO)

    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "unlink", fail)
    with pytest.raises(expected, match=r"delete of .*a\.csv"):
        storage.delete("a.csv")


def test_a_folder_that_may_not_be_listed_has_no_known_versions(storage, monkeypatch, caplog):
    """Logged once."""

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert (None, None) == (storage.versions(), storage.versions())
    assert 1 == len(caplog.records)


def test_neither_unfinished_files_nor_folders_have_versions(storage, tmp_path):
    storage.put("sub/b.csv", b"1", INFO)
    version = storage.put("a.csv", b"1", INFO)
    upload = storage.begin("c.csv", INFO)
    assert {"a.csv": version} == storage.versions()
    upload.abort()
    assert {} == LocalStorage(tmp_path / "nothing").versions()


def test_a_disk_that_is_full_leaves_nothing(storage, tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DestinationError, match=r"No space left on device.*run the task again"):
        storage.put("a.csv", b"12345", INFO)
    assert [] == list(tmp_path.iterdir())


def test_a_delete_removes_the_metadata_and_keeps_other_files(storage, tmp_path):
    storage.put("_receipts/a.json", b"{}", INFO)
    storage.put("a.csv", b"12345", INFO)
    storage.delete("_receipts/a.json")
    assert {"a.csv", "_metadata"} == {path.name for path in tmp_path.iterdir()}
    storage.delete("a.csv")
    assert [] == list(tmp_path.iterdir())
