"""A folder on this machine, or one that is mounted here.

A file is written in the same folder, under a name that begins with a dot and ends in ``.part``. When all of it is on
the disk, it gets its final name: by a hard link if no file may be replaced, otherwise by a rename. What other storages
keep in an object's metadata is written to ``_metadata/`` right before. It is valid only for a file with the size and
modification time that it names. During both steps the folder is locked, if the file system has locks.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import secrets
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from airflow_provider_sendgrid.exceptions import DestinationChangedError
from airflow_provider_sendgrid.storage.base import ANY_VERSION, ObjectInfo, StoredContent, StoredInfo
from airflow_provider_sendgrid.storage.local_errors import translated
from airflow_provider_sendgrid.storage.sequential import SequentialUpload

log = logging.getLogger(__name__)

_UNFINISHED = ".part"
_NO_HARD_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}


class LocalStorage:
    """The files of one folder, which is created with the first one.

    Args:
        folder: its absolute path.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own_unfinished: set[Path] = set()
        self._logged: set[str] = set()

    def uri(self, name: str) -> str:
        """The file's ``file://`` URI, not quoted, as in `ObjectStoragePath`."""
        return f"file://{self._folder}/{name}"

    def put(self, name: str, content: bytes | bytearray, info: ObjectInfo, over: str | None = ANY_VERSION) -> str:
        """Store a small file at once; return its version."""
        upload = self.begin(name, info, over)
        try:
            upload.write_part(1, bytearray(content), 0)
            return upload.publish()
        except BaseException:
            upload.abort()
            raise

    def begin(self, name: str, info: ObjectInfo, over: str | None = ANY_VERSION) -> LocalUpload:
        """Start to write a file."""
        return LocalUpload(self._folder, name, info, over, self._own_unfinished)

    def read(self, name: str) -> StoredContent | None:
        """A small file, None if there is none."""
        path = self._folder / name
        with translated("read", path):
            try:
                with path.open("rb") as file:
                    return StoredContent(file.read(), _version(os.fstat(file.fileno())))
            except FileNotFoundError:
                return None

    def head(self, name: str) -> StoredInfo | None:
        """What is known of a file without reading it, None if there is none."""
        path = self._folder / name
        with translated("head", path), _locked(self._folder):
            status = _status(path)
            if status is None:
                return None
            return StoredInfo(status.st_size, _read_metadata(path, status), _version(status))

    def versions(self, beginning: str = "") -> Mapping[str, str] | None:
        """The versions of all files of one folder that begin like this; None if it may not be listed."""
        found = {}
        parent, slash, start = beginning.rpartition("/")
        folder = self._folder / parent
        with translated("list", folder):
            try:
                for entry in folder.iterdir():
                    if not entry.name.startswith(start):
                        continue
                    status = None if _is_unfinished(entry) or _is_loop(entry) else _status(entry)
                    if status is not None and stat.S_ISREG(status.st_mode):
                        found[parent + slash + entry.name] = _version(status)
            except FileNotFoundError:
                return {}
            except PermissionError as error:
                self._log_once("list", error)
                return None
        return found

    def abort_uploads(self, names: Collection[str]) -> int:
        """Delete the unfinished files of other runs; return how many there were."""
        return sum(self._delete_unfinished(self._folder / name) for name in names)

    def _delete_unfinished(self, path: Path) -> int:
        count = 0
        # While the lock is held, no other run writes metadata.
        with translated("clean-up", path), _locked(self._folder):
            for unfinished in {
                *_unfinished_files(path),
                *_unfinished_files(_metadata_path(path)),
            } - self._own_unfinished:
                try:
                    unfinished.unlink(missing_ok=True)
                except PermissionError as error:
                    self._log_once("delete unfinished files in", error)
                else:
                    count += unfinished.parent == path.parent
        return count

    def delete(self, name: str, version: str = ANY_VERSION) -> None:
        """Delete a file and its metadata if it has this version."""
        path = self._folder / name
        with translated("delete", path), _locked(self._folder):
            status = _status(path)
            if status is None or version not in (ANY_VERSION, _version(status)):
                return
            path.unlink(missing_ok=True)
            _metadata_path(path).unlink(missing_ok=True)
            for folder in (_metadata_path(path).parent, path.parent):
                if folder != self._folder:
                    _remove_if_empty(folder)

    def _log_once(self, what: str, error: OSError) -> None:
        if what not in self._logged:
            log.warning("Could not %s %s (%s); the delivery continues without that.", what, self._folder, error)
        self._logged.add(what)


class LocalUpload(SequentialUpload):
    """A file that has another name until it is published."""

    def __init__(self, root: Path, name: str, info: ObjectInfo, over: str | None, own_unfinished: set[Path]) -> None:
        super().__init__()
        self._root = root
        self._path = root / name
        self._metadata = info.metadata
        self._over = over
        self._own_unfinished = own_unfinished
        self._unfinished = self._path.with_name(f".{self._path.name}.{secrets.token_hex(6)}{_UNFINISHED}")
        own_unfinished.add(self._unfinished)
        with translated("write", self._path):
            root.mkdir(parents=True, exist_ok=True)
            with _locked(root):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._unfinished.open("xb", buffering=0)

    def complete(self) -> None:
        """Wait until all of it is on the disk, then give it its name."""
        self.publish()

    def publish(self) -> str:
        """Complete; return the file's version."""
        with translated("write", self._path):
            with suppress(OSError):  # Clocks of file systems are coarse; two files of one tick must differ.
                os.utime(self._file.fileno(), ns=(time.time_ns(), time.time_ns()))
            os.fsync(self._file.fileno())
            status = os.fstat(self._file.fileno())
            with _locked(self._root):
                self._raise_if_changed()
                if self._metadata:
                    _write_metadata(self._path, status, self._metadata)
                self._give_name(_version(status))
            _sync_folder(self._path.parent)
        self.abort()
        return _version(status)

    def abort(self) -> None:
        """Leave nothing unfinished behind."""
        self.end()
        with suppress(OSError):
            self._unfinished.unlink(missing_ok=True)

    def _release(self) -> None:
        self._file.close()
        self._own_unfinished.discard(self._unfinished)

    def _append(self, part: bytearray) -> None:
        rest = memoryview(part)
        with translated("write", self._path):
            while rest:
                self.raise_if_ended()
                rest = rest[self._file.write(rest) :]

    def _raise_if_changed(self) -> None:
        status = _status(self._path)
        if self._over not in (ANY_VERSION, None if status is None else _version(status)):
            raise self._changed_error("stored this file")
        if not self._unfinished.exists():
            raise self._changed_error("deleted the unfinished file")

    def _changed_error(self, what: str) -> DestinationChangedError:
        return DestinationChangedError(f"write of {self._path}: another run {what} meanwhile. Run the task again.")

    def _give_name(self, version: str) -> None:
        """Publish; an error counts only if the file is not there, because a network may lose only the response."""
        try:
            if self._over is None and self._is_linked():
                return
            self._unfinished.replace(self._path)
        except (FileExistsError, FileNotFoundError) as error:
            status = _status(self._path)
            if status is None and self._path.is_symlink():
                raise
            if status is None or _version(status) != version:
                is_deleted = isinstance(error, FileNotFoundError)
                what = "deleted the unfinished file" if is_deleted else "stored this file"
                raise self._changed_error(what) from error

    def _is_linked(self) -> bool:
        """Whether a hard link published this file, which never replaces another; some file systems have no links."""
        try:
            os.link(self._unfinished, self._path)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            return False
        return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on the folder; does nothing without the folder or if the file system has no locks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _version(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns}-{status.st_size}-{status.st_ino}"


def _unfinished_files(path: Path) -> Iterator[Path]:
    return path.parent.glob(f".{escape(path.name)}.*{_UNFINISHED}")


def _is_unfinished(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(_UNFINISHED)


def _is_loop(path: Path) -> bool:
    """Whether it is a symbolic link that leads to itself."""
    try:
        path.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _metadata_path(path: Path) -> Path:
    return path.parent / "_metadata" / f"{path.name}.json"


def _write_metadata(path: Path, status: os.stat_result, metadata: Mapping[str, str]) -> None:
    """Store the metadata of the file that `status` describes, before it gets its name."""
    target = _metadata_path(path)
    target.parent.mkdir(exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(6)}{_UNFINISHED}")
    try:
        unfinished.write_text(json.dumps({**_identity(status), "metadata": dict(metadata)}), encoding="utf-8")
        unfinished.replace(target)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


def _read_metadata(path: Path, status: os.stat_result) -> Mapping[str, str]:
    """The metadata of this very file; empty if the file was changed or replaced since."""
    try:
        stored = json.loads(_metadata_path(path).read_text(encoding="utf-8"))
        described = {name: stored[name] for name in _identity(status)}
        return dict(stored["metadata"]) if described == _identity(status) else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _identity(status: os.stat_result) -> dict[str, Any]:
    return {"size": status.st_size, "changed_ns": status.st_mtime_ns}


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return


def _sync_folder(folder: Path) -> None:
    """Wait until the new name is on the disk, too; some file systems do not offer that, such as older SMB mounts."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)
