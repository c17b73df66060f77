"""The signed URLs of an export's files: fresh, encrypted, renewed once for all who were refused.

A signed URL is a credential to personal data and lives about 300 s: it is handed to the download, and to
nobody else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from airflow_provider_sendgrid.exceptions import ExportIncompleteError, SendGridServerError
from airflow_provider_sendgrid.exports.connection import is_loopback
from airflow_provider_sendgrid.exports.export import ContactExport


class SignedUrls:
    """One export's URLs, asked for anew when they have aged or were refused; safe to share among threads.

    Args:
        get_export: asks SendGrid for the export's status; each answer signs anew.
        allow_http: whether plain HTTP from this machine will do: only where the API itself is played on it.
        clock: seconds, from any moment on.
        max_age_seconds: URLs older than this are not used to begin a file.

    Attributes:
        renewals: how often URLs had to be renewed because one was refused.
    """

    def __init__(
        self,
        get_export: Callable[[], ContactExport],
        *,
        allow_http: bool = False,
        clock: Callable[[], float] = time.monotonic,
        max_age_seconds: float = 30.0,
    ) -> None:
        self.renewals = 0
        self._get_export = get_export
        self._allow_http = allow_http
        self._clock = clock
        self._max_age_seconds = max_age_seconds
        self._lock = threading.Lock()
        self._export: ContactExport | None = None
        self._asked_at = 0.0

    def export(self) -> ContactExport:
        """The export as SendGrid describes it, asked for anew where the last answer has aged."""
        with self._lock:
            return self._fresh_export()

    def url(self, index: int, *, refused: str | None = None) -> str:
        """A URL for file `index` (from 0), other than the one that was `refused`.

        Raises:
            ExportIncompleteError: the export has no such file any more.
            SendGridServerError: the URL is not https.
        """
        with self._lock:
            export = self._fresh_export()
            if refused is not None and export.urls[index : index + 1] == (refused,):
                export = self._ask()
                self.renewals += 1
        if index >= len(export.urls):
            raise ExportIncompleteError(
                f"SendGrid export {export.id} now has {len(export.urls)} files; file {index + 1} is gone."
            )
        return self.checked(export.urls[index])

    def checked(self, url: str) -> str:
        """`url`, if contacts may be fetched from it.

        Raises:
            SendGridServerError: it is not https, or no URL at all.
        """
        origin = _origin(url)
        scheme, _, host = origin.partition("://")
        if scheme == "https" or (scheme == "http" and self._allow_http and is_loopback(host)):
            return url
        raise SendGridServerError(
            f"A file of the export is offered by {origin or 'what is no URL'}, not encrypted; nothing was fetched. "
            "Check the connection's host, and what stands in between."
        )

    def _fresh_export(self) -> ContactExport:
        if self._export is None or self._clock() - self._asked_at > self._max_age_seconds:
            return self._ask()
        return self._export

    def _ask(self) -> ContactExport:
        self._export = self._get_export()
        self._asked_at = self._clock()
        return self._export


def _origin(url: str) -> str:
    """Scheme and host of `url`, which may be shown; empty where it has none."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.hostname}" if parts.scheme and parts.hostname else ""
