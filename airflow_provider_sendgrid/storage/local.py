"""A folder on this machine, or one that is mounted here.

A file is written beside its place, under a name that begins with a dot and ends in ``.part``, and renamed when all of
it is on the disk. What other storages keep in an object's metadata lies in ``_metadata/``, written before the file is
renamed; it counts only for a file of the very size and time of change that stand in it.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

from airflow_provider_sendgrid.exceptions import DestinationError, DestinationRefusedError
from airflow_provider_sendgrid.storage.in_order import InOrderUpload
from airflow_provider_sendgrid.storage.multipart import ObjectInfo, StoredInfo

_UNFINISHED = ".part"


class LocalStorage:
    """The files of one folder; it is made when the first one comes.

    Args:
        folder: its absolute path.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def uri(self, name: str) -> str:
        """The file's ``file://`` URI, not quoted, as `ObjectStoragePath` takes it."""
        return f"file://{self._folder}/{name}"

    def put(self, name: str, content: bytes | bytearray, info: ObjectInfo) -> None:
        """Store a small file at once."""
        upload = self.begin(name, info)
        try:
            upload.write_part(1, bytearray(content), 0)
            upload.complete()
        except BaseException:
            upload.abort()
            raise

    def begin(self, name: str, info: ObjectInfo) -> LocalUpload:
        """Start to write a file."""
        return LocalUpload(self._folder / name, info)

    def read(self, name: str) -> bytes | None:
        """The content of a small file, None where there is none."""
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def head(self, name: str) -> StoredInfo | None:
        """What is known of a file without reading it, None where there is none."""
        path = self._folder / name
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        return StoredInfo(status.st_size, _read_metadata(path, status))

    def abort_uploads(self, name: str) -> int:
        """Remove what a killed worker left of a file; answer how many times it had begun one."""
        path = self._folder / name
        left_over = list(path.parent.glob(f".{escape(path.name)}.*{_UNFINISHED}"))
        for unfinished in left_over:
            unfinished.unlink(missing_ok=True)
        return len(left_over)

    def delete(self, name: str) -> None:
        """Remove a file and its metadata; nothing happens where there is none."""
        path = self._folder / name
        path.unlink(missing_ok=True)
        _metadata_path(path).unlink(missing_ok=True)
        for folder in (_metadata_path(path).parent, path.parent):
            if folder != self._folder:
                _remove_if_empty(folder)


class LocalUpload(InOrderUpload):
    """A file on its way, under another name."""

    def __init__(self, path: Path, info: ObjectInfo) -> None:
        super().__init__()
        self._path = path
        self._metadata = info.metadata
        self._unfinished = path.with_name(f".{path.name}.{secrets.token_hex(6)}{_UNFINISHED}")
        with _told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._unfinished.open("xb", buffering=0)

    def complete(self) -> None:
        """Have the disk hold all of it, then give it its name."""
        with _told(self._path):
            os.fsync(self._file.fileno())
            status = os.fstat(self._file.fileno())
            self._file.close()
            if self._metadata:
                _write_metadata(self._path, status, self._metadata)
            self._unfinished.replace(self._path)
            _sync_folder(self._path.parent)

    def abort(self) -> None:
        """Leave nothing behind."""
        self._file.close()
        self._unfinished.unlink(missing_ok=True)

    def _append(self, part: bytearray) -> None:
        rest = memoryview(part)
        with _told(self._path):
            while rest:
                rest = rest[self._file.write(rest) :]


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Tell of the disk's errors as ours."""
    try:
        yield
    except PermissionError as error:
        raise DestinationRefusedError(
            f"write of {path}: {error}. Mend the folder's permissions or the path."
        ) from error
    except OSError as error:
        raise DestinationError(f"write of {path}: {error}. Make room or mend the disk; run the task again.") from error


def _metadata_path(path: Path) -> Path:
    return path.parent / "_metadata" / f"{path.name}.json"


def _write_metadata(path: Path, status: os.stat_result, metadata: Mapping[str, str]) -> None:
    """Write down what is to be known of the file that `status` describes, before it gets its name."""
    place = _metadata_path(path)
    place.parent.mkdir(exist_ok=True)
    unfinished = place.with_name(f".{place.name}.{secrets.token_hex(6)}{_UNFINISHED}")
    unfinished.write_text(json.dumps({**_identity(status), "metadata": dict(metadata)}), encoding="utf-8")
    unfinished.replace(place)


def _read_metadata(path: Path, status: os.stat_result) -> Mapping[str, str]:
    """What was written down of this very file; nothing of one that was changed or put there since."""
    try:
        told = json.loads(_metadata_path(path).read_text(encoding="utf-8"))
        described = {name: told[name] for name in _identity(status)}
        return dict(told["metadata"]) if described == _identity(status) else {}
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
    """Have the disk hold the new name, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
