"""Signed URLs are recent, encrypted, and renewed once for all downloads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

import pytest

from airflow_provider_sendgrid.exceptions import (
    ExportExpiredError,
    ExportIncompleteError,
    SendGridError,
    SendGridNotFoundError,
    SendGridPermissionError,
    SendGridServerError,
)
from airflow_provider_sendgrid.exports.export import ContactExport
from airflow_provider_sendgrid.exports.protocol import RetryPolicy
from airflow_provider_sendgrid.files.source import ExportFiles
from airflow_provider_sendgrid.stopping import StoppedError, StopSignal


class SendGrid:
    """Signs the URLs of its files again for each response."""

    def __init__(self, files=2, scheme="https"):
        self.files = files
        self.scheme = scheme
        self.responses = 0
        self.now = 0.0
        self.stray = []

    def get_export(self):
        self.responses += 1
        if self.stray:
            stray = self.stray.pop(0)
            if isinstance(stray, Exception):
                raise stray
            return stray
        urls = tuple(f"{self.scheme}://files.example/{n}?X-Amz-Signature={self.responses}" for n in range(self.files))
        return ContactExport("6f0a2c5e", "ready", urls=urls)

    def export_files(self, **options):
        options = {"sleep": self.sleep, "retry_policy": RetryPolicy(tries=4, jitter=lambda: 1.0)} | options
        return ExportFiles(self.get_export, session=None, clock=lambda: self.now, max_age_seconds=30.0, **options)

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def sendgrid():
    return SendGrid()


def test_nothing_is_requested_before_a_url_is_needed(sendgrid):
    sendgrid.export_files()
    assert sendgrid.responses == 0


def test_one_response_serves_all_files(sendgrid):
    files = sendgrid.export_files()
    assert files.export().id == "6f0a2c5e"
    assert files.url("/0") == "https://files.example/0?X-Amz-Signature=1"
    assert files.url("/1") == "https://files.example/1?X-Amz-Signature=1"
    assert sendgrid.responses == 1


@pytest.mark.parametrize(("age", "responses"), [(0.0, 1), (30.0, 1), (30.1, 2), (300.0, 2)])
def test_an_old_url_is_not_used(sendgrid, age, responses):
    """It is valid for about 300 s, and a file may take long."""
    files = sendgrid.export_files()
    files.url("/0")
    sendgrid.now += age
    assert files.url("/1") == f"https://files.example/1?X-Amz-Signature={responses}"
    files.export()
    assert sendgrid.responses == responses
    assert files.renewals == 0


def test_a_refused_url_is_renewed(sendgrid):
    files = sendgrid.export_files()
    refused = files.url("/0")
    assert files.url("/0", refused=refused) == "https://files.example/0?X-Amz-Signature=2"
    assert files.renewals == 1


def test_a_renewal_serves_all_files(sendgrid):
    files = sendgrid.export_files()
    refused = files.url("/0"), files.url("/1")
    renewed = [files.url(f"/{index}", refused=refused[index]) for index in (0, 1)]
    assert renewed == [f"https://files.example/{index}?X-Amz-Signature=2" for index in (0, 1)]
    assert (files.renewals, sendgrid.responses) == (1, 2)


def test_threads_that_are_refused_together_renew_once(sendgrid):
    """Each renewal is a request, and ten of them are SendGrid's limit."""
    files = sendgrid.export_files()
    refused, threads = files.url("/0"), 8
    together = threading.Barrier(threads)

    def renew(_):
        together.wait(timeout=10)
        return files.url("/0", refused=refused)

    with ThreadPoolExecutor(threads) as pool:
        renewed = set(pool.map(renew, range(threads)))
    assert renewed == {"https://files.example/0?X-Amz-Signature=2"}
    assert (files.renewals, sendgrid.responses) == (1, 2)


def test_a_missing_file_is_named_by_its_path(sendgrid):
    files = sendgrid.export_files()
    refused = files.url("/1")
    sendgrid.files = 1
    with pytest.raises(ExportIncompleteError, match="export 6f0a2c5e no longer lists the file /1; it lists 1 files"):
        files.url("/1", refused=refused)


STRAY = [
    ContactExport("6f0a2c5e", "pending"),
    ContactExport("6f0a2c5e", "ready"),
    ContactExport("6f0a2c5e", ""),
    ContactExport("6f0a2c5e", "ready", urls=("https://files.example/0?s=1", "")),
    SendGridPermissionError("access forbidden", status_code=403),
    SendGridNotFoundError("no such export", status_code=404),
]
AS_TEXT = [getattr(stray, "status_code", None) or f"{stray.status}-{len(stray.urls)}" for stray in STRAY]


@pytest.mark.parametrize("stray", STRAY, ids=AS_TEXT)
def test_a_single_wrong_response_to_a_renewal_is_ignored(sendgrid, stray):
    files = sendgrid.export_files()
    refused = files.url("/1")
    sendgrid.stray = [stray] * 3
    assert files.url("/1", refused=refused) == "https://files.example/1?X-Amz-Signature=5"
    assert (1.0 + 2.0 + 4.0, 1) == (sendgrid.now, files.renewals)


@pytest.mark.parametrize("stray", STRAY, ids=AS_TEXT)
def test_a_single_wrong_response_for_old_urls_is_ignored(sendgrid, stray):
    files = sendgrid.export_files()
    files.export()
    sendgrid.now, sendgrid.stray = 31.0, [stray]
    assert files.url("/1") == "https://files.example/1?X-Amz-Signature=3"


@pytest.mark.parametrize("stray", STRAY, ids=AS_TEXT)
def test_the_first_response_is_not_checked(sendgrid, stray):
    """Nothing shows that it is wrong; the caller reports it."""
    sendgrid.stray = [stray]
    with pytest.raises(SendGridError):
        sendgrid.export_files().url("/1")
    assert (1, 0.0) == (sendgrid.responses, sendgrid.now)


@pytest.mark.parametrize("stray", STRAY, ids=AS_TEXT)
def test_a_response_that_stays_wrong_counts(sendgrid, stray):
    files = sendgrid.export_files()
    refused = files.url("/1")
    sendgrid.stray = [stray] * 20
    with pytest.raises(SendGridError, match=r"access forbidden|no such export|no longer lists the file /1"):
        files.url("/1", refused=refused)
    assert 1 + 4 == sendgrid.responses


def test_listed_files_are_available_if_others_are_missing(sendgrid):
    files = sendgrid.export_files()
    refused = files.url("/0")
    sendgrid.files = 1
    assert files.url("/0", refused=refused) == "https://files.example/0?X-Amz-Signature=5"


def test_an_expired_export_is_not_requested_again(sendgrid):
    expired = ContactExport("6f", "ready", urls=("https://f/0?s=1",), expires_at=NOW, as_of=NOW)
    sendgrid.stray = [expired, ContactExport("6f", "ready", urls=(), expires_at=NOW, as_of=NOW)]
    files = sendgrid.export_files()
    with pytest.raises(ExportExpiredError):
        files.url("/0", refused=files.url("/0"))
    assert 2 == sendgrid.responses


def test_a_stop_ends_the_wait_before_another_request(sendgrid):
    stop = StopSignal()
    files = sendgrid.export_files(stop=stop, sleep=lambda _: stop.set())
    refused = files.url("/1")
    sendgrid.stray = [STRAY[0]] * 3
    with pytest.raises(StoppedError):
        files.url("/1", refused=refused)
    assert 2 == sendgrid.responses


def test_a_file_is_found_by_its_path_in_any_order():
    """SendGrid documents neither an order nor that a file is listed once."""
    orders = iter([("/a", "/b"), ("/b", "/a"), ("/b", "/b", "/a"), ("/c", "/b", "/a", "/a")])

    def get_export():
        return ContactExport("6f", "ready", urls=tuple(f"https://files.example{path}?s=1" for path in next(orders)))

    files = ExportFiles(get_export, session=None, max_age_seconds=-1.0)
    for _ in range(4):
        assert files.url("/a") == "https://files.example/a?s=1"


def test_of_two_urls_the_one_that_was_not_refused_is_used():
    one, other = (f"https://files.example/a?X-Amz-Signature={n}" for n in (1, 2))
    files = ExportFiles(lambda: ContactExport("6f", "ready", urls=(one, other)), session=None)
    assert files.url("/a") == one
    assert files.url("/a", refused=one) == other


NOW = datetime(2026, 1, 2, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("expires_in", "waited", "has_expired"), [(60, 59, False), (60, 60, True), (-1, 0, True), (None, 1e6, False)]
)
def test_an_export_expires_by_sendgrids_clock(expires_in, waited, has_expired):
    """A worker's clock may be wrong by years; only the time since the response is measured with it."""
    expires_at = NOW + timedelta(seconds=expires_in) if expires_in is not None else None
    now = [0.0]
    export = ContactExport("6f", "ready", urls=(), expires_at=expires_at, as_of=NOW)
    files = ExportFiles(lambda: export, session=None, clock=lambda: now[0])
    assert not files.has_expired()
    files.export()
    now[0] = waited
    assert files.has_expired() is has_expired


@pytest.mark.parametrize(("seconds", "error"), [(60, ExportIncompleteError), (-60, ExportExpiredError)])
def test_a_missing_file_has_expired_only_with_its_export(seconds, error):
    export = ContactExport("6f", "ready", urls=(), expires_at=NOW + timedelta(seconds=seconds), as_of=NOW)
    with pytest.raises(error, match="export 6f no longer lists the file /a"):
        ExportFiles(lambda: export, session=None).url("/a")


def test_waiting_threads_get_the_error_of_the_request():
    """Otherwise the last thread would wait for the attempts of all others."""
    begun, release, questions = threading.Event(), threading.Event(), []

    def get_export():
        questions.append(1)
        begun.set()
        assert release.wait(20)
        raise SendGridServerError("it broke")

    files = ExportFiles(get_export, session=None)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(files.url, "/a")
        assert begun.wait(20)
        together = threading.Barrier(8)

        def ask():
            together.wait(20)
            return files.url("/a")

        others = [pool.submit(ask) for _ in range(7)]
        together.wait(20)
        release.set()
        for future in (first, *others):
            with pytest.raises(SendGridServerError, match="it broke"):
                future.result(20)
    assert len(questions) <= 8  # a thread that comes later asks again


def test_an_interrupted_request_blocks_no_later_one(sendgrid):
    """A time limit is raised in one thread; the next one sends its own request."""
    interruptions = iter([KeyboardInterrupt()])

    def get_export():
        for error in interruptions:
            raise error
        return sendgrid.get_export()

    files = ExportFiles(get_export, session=None)
    with pytest.raises(KeyboardInterrupt):
        files.export()
    assert files.export().id == "6f0a2c5e"


def test_an_error_is_passed_on_and_not_cached(sendgrid):
    errors = iter([SendGridError("it broke")])

    def get_export():
        for error in errors:
            raise error
        return sendgrid.get_export()

    files = ExportFiles(get_export, session=None)
    with pytest.raises(SendGridError, match="it broke"):
        files.url("/0")
    assert files.url("/0") == "https://files.example/0?X-Amz-Signature=1"


@pytest.mark.parametrize(
    "url", ["", "http://files.example/1?s=5ecret", "ftp://f/1", "file:///etc/passwd", "https://[5ecret", "/1"]
)
def test_only_encrypted_urls_are_accepted(sendgrid, url):
    """A text that is not a URL is refused and not shown: it may be part of one."""
    with pytest.raises(SendGridServerError, match="nothing was fetched") as caught:
        sendgrid.export_files().require_encrypted(url)
    assert "5ecret" not in str(caught.value)


def test_an_unencrypted_url_is_never_returned():
    with pytest.raises(SendGridServerError, match="not encrypted"):
        SendGrid(scheme="http").export_files().url("/0")


def test_an_emulator_on_this_machine_may_use_http():
    files = SendGrid(scheme="http").export_files(allow_http=True)
    for url in ("http://localhost:9000/1", "http://127.0.0.1/1", "http://[::1]:9000/1", "https://files.example/1"):
        assert files.require_encrypted(url) == url
    with pytest.raises(SendGridServerError):
        files.require_encrypted("ftp://files.example/1")


@pytest.mark.parametrize("host", ["files.example", "localhost.example", "127.0.0.1.example", "10.0.0.1"])
def test_an_emulator_allows_no_http_elsewhere(host):
    with pytest.raises(SendGridServerError, match=f"not encrypted \\(http://{host}\\); nothing was fetched"):
        SendGrid().export_files(allow_http=True).require_encrypted(f"http://{host}/1?X-Amz-Signature=1")
