"""The signed URLs of an export's files: fresh, encrypted, renewed once for all who were refused.

A file is identified by the path of its URL, never by its place in the list. A signed URL is a credential to personal
data and lives about 300 s: only the download gets it.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import datetime, timedelta, timezone
from urllib.parse import parse_qsl, urlsplit

from airflow_provider_sendgrid.exceptions import (
    ExportExpiredError,
    ExportIncompleteError,
    SendGridNotFoundError,
    SendGridPermissionError,
    SendGridServerError,
)
from airflow_provider_sendgrid.exports.connection import is_loopback
from airflow_provider_sendgrid.exports.export import ContactExport, file_path
from airflow_provider_sendgrid.exports.protocol import RetryPolicy
from airflow_provider_sendgrid.stopping import StoppedError, StopSignal

log = logging.getLogger(__name__)

# For a response that does not fit the one before: single ones have been seen to be wrong.
RENEWAL_RETRY_POLICY = RetryPolicy(tries=4, longest_wait_seconds=10.0)
_STRAY_REFUSALS = (SendGridPermissionError, SendGridNotFoundError)
# Parameters of signed URLs of S3, CloudFront, Google Cloud Storage and Azure.
_OF_A_SIGNATURE = re.compile(
    r"x-(?:amz|goog)-.*|signature|expires|policy|key-pair-id|awsaccesskeyid|googleaccessid|hash-algorithm"
    r"|sig|se|st|sp|sv|sr|spr|sip|ske|skoid|sks|skt|sktid|skv",
    re.IGNORECASE,
)


class SignedUrls:
    """One export's URLs, requested again when they have aged or were refused; safe to share among threads.

    One thread asks SendGrid, and the others wait for its result. Once a response has named the files, a response that
    lacks one of them, or a refusal (403, 404), is not believed at once: SendGrid is asked again a few times.

    Args:
        get_export: asks SendGrid for the export's status; each answer signs the URLs again.
        allow_http: whether plain HTTP from this machine will do: only if the API itself is emulated on it.
        clock: seconds, from any moment on.
        max_age_seconds: URLs older than this are not used to begin a file.
        stop: ends all waits.
        sleep: how to wait, in seconds; by default until then, or until `stop` is set.
        retry_policy: how often SendGrid is asked when a response lacks files.

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
        stop: StopSignal | None = None,
        sleep: Callable[[float], object] | None = None,
        retry_policy: RetryPolicy = RENEWAL_RETRY_POLICY,
    ) -> None:
        self.renewals = 0
        self._get_export = get_export
        self._allow_http = allow_http
        self._clock = clock
        self._max_age_seconds = max_age_seconds
        self._stop = stop or StopSignal()
        self._sleep = sleep or self._stop.wait
        self._retry_policy = retry_policy
        self._lock = threading.Lock()  # held for moments only, never while SendGrid is asked
        self._asking: Future[ContactExport] | None = None
        self._export: ContactExport | None = None
        self._paths = frozenset[str]()  # of all files
        self._asked_at = 0.0

    def export(self) -> ContactExport:
        """The export as SendGrid describes it, requested again if the last response has aged.

        Raises:
            StoppedError: the task was stopped.
        """
        return self._current(refused=None)

    def url(self, path: str, *, refused: str | None = None) -> str:
        """A URL for the file whose URL has this path, other than the one that was `refused`.

        Raises:
            ExportExpiredError: the export names no such file any more, and has expired.
            ExportIncompleteError: it names no such file any more, or two of this path.
            SendGridServerError: the URL is not https.
            StoppedError: the task was stopped.
        """
        export = self._current(refused=refused)
        offered = [url for url in export.urls if file_path(url) == path]
        if offered:
            require_distinct_paths(export.id, offered)
            return self.checked(next((url for url in offered if url != refused), offered[0]))
        text = f"SendGrid export {export.id} no longer names the file {path}; it names {len(export.urls)} files."
        if self.has_expired():
            raise ExportExpiredError(f"{text} It expired at {export.expires_at}. Start another export.")
        raise ExportIncompleteError(f"{text} Run the task again.")

    def has_expired(self) -> bool:
        """Whether the export's `expires_at` has passed, by SendGrid's clock; False as long as nothing was asked."""
        with self._lock:
            export, age_seconds = self._export, self._clock() - self._asked_at
        if export is None:
            return False
        now = export.as_of + timedelta(seconds=age_seconds) if export.as_of else datetime.now(timezone.utc)
        return export.is_expired_at(now)

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

    def _current(self, refused: str | None) -> ContactExport:
        """The last response, if it has not aged and does not name the URL that was refused; else the next one."""
        with self._lock:
            export = self._export
            is_refused = export is not None and refused in export.urls
            if export and not is_refused and self._clock() - self._asked_at <= self._max_age_seconds:
                return export
            others = self._asking
            asking = self._asking = others or Future()
        return self._stop.result(others) if others else self._ask(asking, is_renewal=is_refused)

    def _ask(self, asking: Future[ContactExport], *, is_renewal: bool) -> ContactExport:
        try:
            export = self._ask_again_if_stray()
        except BaseException as error:
            with self._lock:
                self._asking = None
            # A time limit or an interrupt is this thread's own.
            asking.set_exception(error if isinstance(error, Exception) else StoppedError(type(error).__name__))
            raise
        with self._lock:
            self._export, self._asked_at, self._asking = export, self._clock(), None
            self._paths |= frozenset(export.paths)
            self.renewals += is_renewal
        asking.set_result(export)
        return export

    def _ask_again_if_stray(self) -> ContactExport:
        """SendGrid's response; the last one, if several in a row lack files that an earlier one named."""
        tried = 0
        while True:
            self._stop.raise_if_set()
            tried += 1
            is_last = tried >= self._retry_policy.tries or not self._paths or self.has_expired()
            try:
                export = self._get_export()
            except _STRAY_REFUSALS as error:
                if is_last:
                    raise
                cause = str(error)
            else:
                missing = self._paths - set(export.paths)
                if is_last or not missing:
                    return export
                cause = (
                    f"SendGrid export {export.id}: its status is {export.status!r}, without {len(missing)} of the "
                    f"{len(self._paths)} files that SendGrid named before."
                )
            wait = self._retry_policy.wait_seconds(tried)
            log.warning("%s Asking again in %.1f s.", cause, wait)
            self._sleep(wait)


def require_distinct_paths(export_id: str, urls: Sequence[str]) -> None:
    """Raise unless each URL is one, and URLs with the same path are of the same file.

    Raises:
        ExportIncompleteError: a URL cannot be read, or two have one path but different hosts or queries.
    """
    known = dict[str, tuple[str, ...]]()
    for number, url in enumerate(urls, 1):
        identity = _identity(url)
        if identity is None:
            raise ExportIncompleteError(
                f"SendGrid export {export_id}: the URL of file {number} of {len(urls)} cannot be read; nothing was "
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
    """Path, host and query of a URL, without what its signature consists of; None if it cannot be read."""
    try:
        parts = urlsplit(url)
        url.encode()
        host, port = parts.hostname or "", parts.port
        query = parse_qsl(parts.query, keep_blank_values=True, max_num_fields=1000)
    except ValueError:
        return None
    left = sorted(f"{name}={value}" for name, value in query if not _OF_A_SIGNATURE.fullmatch(name))
    return parts.path, host if port is None else f"{host}:{port}", *left


def _shown(identity: tuple[str, ...]) -> str:
    """The host, path and names of the query's parameters; their values may be secrets."""
    path, host, *query = identity
    names = ", ".join(sorted({each.partition("=")[0] for each in query}))
    return f"{host}{path}" + (f" (query: {names})" if names else "")


def _origin(url: str) -> str:
    """Scheme and host of `url`, which may be shown; empty where it has none."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.hostname}" if parts.scheme and parts.hostname else ""
