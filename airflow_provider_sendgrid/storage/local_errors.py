"""Translates the errors of the operating system."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from airflow_provider_sendgrid.exceptions import DestinationError, DestinationRefusedError
from airflow_provider_sendgrid.storage.errors import Meaning, find_meaning, storage_error

_PERMISSIONS = Meaning(DestinationRefusedError, "Correct the folder's permissions or the path.")
_ERRORS = {
    errno.EACCES: _PERMISSIONS,
    errno.EPERM: _PERMISSIONS,
    errno.EROFS: Meaning(
        DestinationRefusedError, "The file system is read-only: mount it writable, or correct the path."
    ),
    errno.ENOTDIR: Meaning(DestinationRefusedError, "Something on the path is a file: correct the path."),
    errno.EISDIR: Meaning(DestinationRefusedError, "A folder has the file's name: correct the path."),
    errno.ENAMETOOLONG: Meaning(DestinationRefusedError, "Shorten the path."),
    errno.ELOOP: Meaning(DestinationRefusedError, "The path's symbolic links form a loop: correct them."),
    errno.EEXIST: Meaning(
        DestinationRefusedError,
        "Something else has this name, such as a symbolic link that leads nowhere: delete it.",
    ),
    errno.ENOSPC: Meaning(DestinationError, "Free some disk space and run the task again."),
    errno.EDQUOT: Meaning(DestinationError, "Free some disk space or raise the quota, and run the task again."),
}
_OTHER_ERROR = Meaning(DestinationError, "Run the task again; if that does not help, check the disk.")


@contextmanager
def translated(operation: str, path: Path) -> Iterator[None]:
    """Raise errors of the operating system as this package's."""
    try:
        yield
    except OSError as error:
        meaning = find_meaning([error.errno], _ERRORS, default=_OTHER_ERROR)
        raise storage_error(f"{operation} of {path}: {error}", meaning) from error
