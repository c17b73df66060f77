"""The files of one export: signed URLs, renewed when they age or are refused, and downloads.

A file is identified by the path of its URL, never by its position in the list. A signed URL is a credential for
personal data and is valid for about 300 s; only downloads get it.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from airflow_provider_sendgrid.exceptions import (
    ExportExpiredError,
    ExportIncompleteError,
    SendGridNotFoundError,
    SendGridPermissionError,
    SendGridServerError,
)
from airflow_provider_sendgrid.exports.export import ContactExport, file_path
from airflow_provider_sendgrid.exports.hosts import is_loopback
from airflow_provider_sendgrid.exports.protocol import RetryPolicy
from airflow_provider_sendgrid.files.download import DownloadLimits, FileDownload
from airflow_provider_sendgrid.stopping import StoppedError, StopSignal

if TYPE_CHECKING:
    import requests

log = logging.getLogger(__name__)

DOWNLOAD_LIMITS = DownloadLimits()
# For a response that contradicts an earlier one: SendGrid has sent single wrong responses.
RENEWAL_RETRY_POLICY = RetryPolicy(tries=4, longest_wait_seconds=10.0)
_DOUBTFUL_REFUSALS = (SendGridPermissionError, SendGridNotFoundError)
# Query parameters of signatures: S3, CloudFront, Google Cloud Storage, Azure.
_SIGNATURE_PARAMETERS = re.compile(
    r"x-(?:amz|goog)-.*|signature|expires|policy|key-pair-id|awsaccesskeyid|googleaccessid|hash-algorithm"
    r"|sig|se|st|sp|sv|sr|spr|sip|ske|skoid|sks|skt|sktid|skv",
    re.IGNORECASE,
)


class ExportFiles:
    """The files of one export; safe to share among threads.

    When URLs have to be renewed, one thread requests the export and the others wait for its result. Once a response has
    listed the files, a response that lacks one of them, or a refusal (403, 404), is checked by further requests.

    Args:
        get_export: requests the export's status from SendGrid; each response has newly signed URLs.
        session: for downloads; it must not send the API key.
        allow_http: allow unencrypted URLs of this machine; only for an emulator.
        timeout_seconds: the timeout of downloads, for a connection and for the next bytes.
        limits: when a download retries and gives up.
        max_age_seconds: older URLs are renewed before they are used.
        retry_policy: for responses that contradict an earlier one.
        clock: a monotonic clock, in seconds.
        sleep: waits for seconds; by default until `stop` is set at the latest.
        stop: ends all waits and downloads.

    Attributes:
        downloads: all downloads that were begun.
        renewals: how often URLs were renewed because one was refused.
    """

    def __init__(
        self,
        get_export: Callable[[], ContactExport],
        session: requests.Session,
        *,
        allow_http: bool = False,
        timeout_seconds: float = 30.0,
        limits: DownloadLimits = DOWNLOAD_LIMITS,
        max_age_seconds: float = 30.0,
        retry_policy: RetryPolicy = RENEWAL_RETRY_POLICY,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
        stop: StopSignal | None = None,
    ) -> None:
        self.session = session
        self.timeout_seconds = timeout_seconds
        self.limits = limits
        self.clock = clock
        self.sleep = sleep
        self.stop = stop or StopSignal()
        self.downloads: list[FileDownload] = []
        self.renewals = 0
        self._get_export = get_export
        self._allow_http = allow_http
        self._max_age_seconds = max_age_seconds
        self._retry_policy = retry_policy
        self._lock = threading.Lock()  # never held during a request
        self._request: Future[ContactExport] | None = None
        self._export: ContactExport | None = None
        self._paths = frozenset[str]()  # of all files that SendGrid has listed
        self._received_at = 0.0

    def download(self, path: str, title: str) -> FileDownload:
        """A download of the file whose URL has this path; `title` is the file in messages."""
        download = FileDownload(self, path, title)
        self.downloads.append(download)
        return download

    def export(self) -> ContactExport:
        """The export, requested again if the last response is too old.

        Raises:
            StoppedError: the task was stopped.
        """
        return self._current_export(refused=None)

    def url(self, path: str, *, refused: str | None = None) -> str:
        """A signed URL with this path, other than the one that was `refused`.

        Raises:
            ExportExpiredError: the export lists no such file any more, and has expired.
            ExportIncompleteError: it lists no such file any more, or two different ones.
            SendGridServerError: the URL is not encrypted.
            StoppedError: the task was stopped.
        """
        export = self._current_export(refused=refused)
        urls = [url for url in export.urls if file_path(url) == path]
        if urls:
            require_distinct_paths(export.id, urls)
            return self.require_encrypted(next((url for url in urls if url != refused), urls[0]))
        text = f"SendGrid export {export.id} no longer lists the file {path}; it lists {len(export.urls)} files."
        if self.has_expired():
            raise ExportExpiredError(f"{text} It expired at {export.expires_at}. Start another export.")
        raise ExportIncompleteError(f"{text} Run the task again.")

    def has_expired(self) -> bool:
        """Whether the export has expired, by SendGrid's clock; False before the first response."""
        with self._lock:
            export, age_seconds = self._export, self.clock() - self._received_at
        if export is None:
            return False
        now = export.as_of + timedelta(seconds=age_seconds) if export.as_of else datetime.now(timezone.utc)
        return export.is_expired_at(now)

    def require_encrypted(self, url: str) -> str:
        """`url` itself, if contacts may be downloaded from it.

        Raises:
            SendGridServerError: it is not https, or not a URL.
        """
        origin = _origin(url)
        scheme, _, host = origin.partition("://")
        if scheme == "https" or (scheme == "http" and self._allow_http and is_loopback(host)):
            return url
        raise SendGridServerError(
            f"The URL of a file of the export is not encrypted ({origin or 'not a URL'}); nothing was fetched. Check "
            "the connection's host, and proxies on the way."
        )

    def _current_export(self, refused: str | None) -> ContactExport:
        """The last response, if it is recent and does not contain the refused URL; else a new one."""
        with self._lock:
            export = self._export
            is_refused = export is not None and refused in export.urls
            if export and not is_refused and self.clock() - self._received_at <= self._max_age_seconds:
                return export
            others_request = self._request
            request = self._request = others_request or Future()
        return self.stop.result(others_request) if others_request else self._fulfil(request, is_renewal=is_refused)

    def _fulfil(self, request: Future[ContactExport], *, is_renewal: bool) -> ContactExport:
        try:
            export = self._request_until_plausible()
        except BaseException as error:
            with self._lock:
                self._request = None
            # A time limit or an interrupt concerns this thread only.
            request.set_exception(error if isinstance(error, Exception) else StoppedError(type(error).__name__))
            raise
        with self._lock:
            self._export, self._received_at, self._request = export, self.clock(), None
            self._paths |= frozenset(export.paths)
            self.renewals += is_renewal
        request.set_result(export)
        return export

    def _request_until_plausible(self) -> ContactExport:
        """A response with all files that were listed before; else the last of several responses in a row."""
        sleep, tried = self.sleep or self.stop.wait, 0
        while True:
            self.stop.raise_if_set()
            tried += 1
            is_last = tried >= self._retry_policy.tries or not self._paths or self.has_expired()
            try:
                export = self._get_export()
            except _DOUBTFUL_REFUSALS as error:
                if is_last:
                    raise
                cause = str(error)
            else:
                missing = self._paths - set(export.paths)
                if is_last or not missing:
                    return export
                cause = (
                    f"SendGrid export {export.id}: its status is {export.status!r}, without {len(missing)} of the "
                    f"{len(self._paths)} files that SendGrid listed before."
                )
            wait = self._retry_policy.wait_seconds(tried)
            log.warning("%s Requesting it again in %.1f s.", cause, wait)
            sleep(wait)


def require_distinct_paths(export_id: str, urls: Sequence[str]) -> None:
    """Raise if paths do not identify files.

    Raises:
        ExportIncompleteError: a URL cannot be parsed, or two have the same path but different hosts or queries.
    """
    known = dict[str, tuple[str, ...]]()
    for number, url in enumerate(urls, 1):
        identity = _identity(url)
        if identity is None:
            raise ExportIncompleteError(
                f"SendGrid export {export_id}: the URL of file {number} of {len(urls)} cannot be parsed; nothing was "
                "fetched. Run the task again; if that does not help, start another export."
            )
        path, *_ = identity
        if known.setdefault(path, identity) != identity:
            names = " and ".join(_shown(each) for each in (known[path], identity))
            raise ExportIncompleteError(
                f"SendGrid export {export_id}: files are identified by the paths of their URLs, but two different URLs "
                f"have the same path: {names}. Nothing was fetched. Start another export."
            )


def _identity(url: str) -> tuple[str, ...] | None:
    """Path, host and query of a URL without its signature; None if it cannot be parsed."""
    try:
        parts = urlsplit(url)
        url.encode()
        host, port = parts.hostname or "", parts.port
        query = parse_qsl(parts.query, keep_blank_values=True, max_num_fields=1000)
    except ValueError:
        return None
    unsigned = sorted(f"{name}={value}" for name, value in query if not _SIGNATURE_PARAMETERS.fullmatch(name))
    return parts.path, host if port is None else f"{host}:{port}", *unsigned


def _shown(identity: tuple[str, ...]) -> str:
    """Host, path and the names of query parameters: the values may be secrets."""
    path, host, *query = identity
    names = ", ".join(sorted({each.partition("=")[0] for each in query}))
    return f"{host}{path}" + (f" (query: {names})" if names else "")


def _origin(url: str) -> str:
    """Scheme and host, which are no secrets; empty if there are none."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.hostname}" if parts.scheme and parts.hostname else ""
