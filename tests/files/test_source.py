"""Signed URLs are fresh, encrypted, and renewed once for all who were refused."""

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
from airflow_provider_sendgrid.files.source import SignedUrls
from airflow_provider_sendgrid.stopping import StoppedError, StopSignal


class SendGrid:
    """Signs the URLs of so many files anew with each answer."""

    def __init__(self, files=2, scheme="https"):
        self.files = files
        self.scheme = scheme
        self.answers = 0
        self.now = 0.0
        self.stray = []

    def get_export(self):
        self.answers += 1
        if self.stray:
            stray = self.stray.pop(0)
            if isinstance(stray, Exception):
                raise stray
            return stray
        urls = tuple(f"{self.scheme}://files.example/{n}?X-Amz-Signature={self.answers}" for n in range(self.files))
        return ContactExport("6f0a2c5e", "ready", urls=urls)

    def urls(self, **options):
        options = {"sleep": self.sleep, "retry_policy": RetryPolicy(tries=4, jitter=lambda: 1.0)} | options
        return SignedUrls(self.get_export, clock=lambda: self.now, max_age_seconds=30.0, **options)

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def sendgrid():
    return SendGrid()


def test_nothing_is_asked_before_a_url_is_needed(sendgrid):
    sendgrid.urls()
    assert sendgrid.answers == 0


def test_one_answer_serves_all_files_that_are_begun_with_it(sendgrid):
    urls = sendgrid.urls()
    assert urls.export().id == "6f0a2c5e"
    assert urls.url("/0") == "https://files.example/0?X-Amz-Signature=1"
    assert urls.url("/1") == "https://files.example/1?X-Amz-Signature=1"
    assert sendgrid.answers == 1


@pytest.mark.parametrize(("age", "answers"), [(0.0, 1), (30.0, 1), (30.1, 2), (300.0, 2)])
def test_an_aged_url_begins_no_file(sendgrid, age, answers):
    """It lives about 300 s, and a file may take long."""
    urls = sendgrid.urls()
    urls.url("/0")
    sendgrid.now += age
    assert urls.url("/1") == f"https://files.example/1?X-Amz-Signature={answers}"
    urls.export()
    assert sendgrid.answers == answers
    assert urls.renewals == 0


def test_a_refused_url_is_renewed(sendgrid):
    urls = sendgrid.urls()
    refused = urls.url("/0")
    assert urls.url("/0", refused=refused) == "https://files.example/0?X-Amz-Signature=2"
    assert urls.renewals == 1


def test_a_url_that_was_renewed_for_another_is_not_renewed_again(sendgrid):
    urls = sendgrid.urls()
    refused = urls.url("/0"), urls.url("/1")
    renewed = [urls.url(f"/{index}", refused=refused[index]) for index in (0, 1)]
    assert renewed == [f"https://files.example/{index}?X-Amz-Signature=2" for index in (0, 1)]
    assert (urls.renewals, sendgrid.answers) == (1, 2)


def test_many_threads_that_are_refused_at_once_renew_once(sendgrid):
    """Each renewal is a request, and ten of them are SendGrid's limit."""
    urls = sendgrid.urls()
    refused, threads = urls.url("/0"), 8
    together = threading.Barrier(threads)

    def renew(_):
        together.wait(timeout=10)
        return urls.url("/0", refused=refused)

    with ThreadPoolExecutor(threads) as pool:
        renewed = set(pool.map(renew, range(threads)))
    assert renewed == {"https://files.example/0?X-Amz-Signature=2"}
    assert (urls.renewals, sendgrid.answers) == (1, 2)


def test_a_file_that_is_gone_is_named_by_its_path(sendgrid):
    urls = sendgrid.urls()
    refused = urls.url("/1")
    sendgrid.files = 1
    with pytest.raises(ExportIncompleteError, match="export 6f0a2c5e no longer names the file /1; it names 1 files"):
        urls.url("/1", refused=refused)


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
def test_a_stray_response_to_a_renewal_is_not_believed(sendgrid, stray):
    urls = sendgrid.urls()
    refused = urls.url("/1")
    sendgrid.stray = [stray] * 3
    assert urls.url("/1", refused=refused) == "https://files.example/1?X-Amz-Signature=5"
    assert (1.0 + 2.0 + 4.0, 1) == (sendgrid.now, urls.renewals)


@pytest.mark.parametrize("stray", STRAY, ids=AS_TEXT)
def test_a_stray_response_after_urls_aged_is_not_believed(sendgrid, stray):
    urls = sendgrid.urls()
    urls.export()
    sendgrid.now, sendgrid.stray = 31.0, [stray]
    assert urls.url("/1") == "https://files.example/1?X-Amz-Signature=3"


@pytest.mark.parametrize("stray", STRAY, ids=AS_TEXT)
def test_the_first_response_is_believed_at_once(sendgrid, stray):
    """Nothing shows that it is a stray one; the caller says what is wrong."""
    sendgrid.stray = [stray]
    with pytest.raises(SendGridError):
        sendgrid.urls().url("/1")
    assert (1, 0.0) == (sendgrid.answers, sendgrid.now)


@pytest.mark.parametrize("stray", STRAY, ids=AS_TEXT)
def test_a_response_that_stays_wrong_is_believed(sendgrid, stray):
    urls = sendgrid.urls()
    refused = urls.url("/1")
    sendgrid.stray = [stray] * 20
    with pytest.raises(SendGridError, match=r"access forbidden|no such export|no longer names the file /1"):
        urls.url("/1", refused=refused)
    assert 1 + 4 == sendgrid.answers


def test_files_that_are_still_named_are_fetched_though_others_are_missing(sendgrid):
    urls = sendgrid.urls()
    refused = urls.url("/0")
    sendgrid.files = 1
    assert urls.url("/0", refused=refused) == "https://files.example/0?X-Amz-Signature=5"


def test_an_export_that_has_expired_is_not_asked_for_again(sendgrid):
    expired = ContactExport("6f", "ready", urls=("https://f/0?s=1",), expires_at=NOW, as_of=NOW)
    sendgrid.stray = [expired, ContactExport("6f", "ready", urls=(), expires_at=NOW, as_of=NOW)]
    urls = sendgrid.urls()
    with pytest.raises(ExportExpiredError):
        urls.url("/0", refused=urls.url("/0"))
    assert 2 == sendgrid.answers


def test_a_stop_ends_the_pause_before_a_stray_response_is_checked(sendgrid):
    stop = StopSignal()
    urls = sendgrid.urls(stop=stop, sleep=lambda _: stop.set())
    refused = urls.url("/1")
    sendgrid.stray = [STRAY[0]] * 3
    with pytest.raises(StoppedError):
        urls.url("/1", refused=refused)
    assert 2 == sendgrid.answers


def test_a_file_is_found_by_its_path_whatever_the_order():
    """Nothing promises an order, or that a file is named once."""
    orders = iter([("/a", "/b"), ("/b", "/a"), ("/b", "/b", "/a"), ("/c", "/b", "/a", "/a")])

    def get_export():
        return ContactExport("6f", "ready", urls=tuple(f"https://files.example{path}?s=1" for path in next(orders)))

    urls = SignedUrls(get_export, max_age_seconds=-1.0)
    for _ in range(4):
        assert urls.url("/a") == "https://files.example/a?s=1"


def test_of_a_file_named_twice_the_url_that_was_not_refused_is_taken():
    one, other = (f"https://files.example/a?X-Amz-Signature={n}" for n in (1, 2))
    urls = SignedUrls(lambda: ContactExport("6f", "ready", urls=(one, other)))
    assert urls.url("/a") == one
    assert urls.url("/a", refused=one) == other


NOW = datetime(2026, 1, 2, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("expires_in", "waited", "has_expired"), [(60, 59, False), (60, 60, True), (-1, 0, True), (None, 1e6, False)]
)
def test_an_export_expires_by_the_clock_of_sendgrid(expires_in, waited, has_expired):
    """A worker's clock may be years off; what passed since the response is added."""
    expires_at = NOW + timedelta(seconds=expires_in) if expires_in is not None else None
    now = [0.0]
    export = ContactExport("6f", "ready", urls=(), expires_at=expires_at, as_of=NOW)
    urls = SignedUrls(lambda: export, clock=lambda: now[0])
    assert not urls.has_expired()
    urls.export()
    now[0] = waited
    assert urls.has_expired() is has_expired


@pytest.mark.parametrize(("seconds", "error"), [(60, ExportIncompleteError), (-60, ExportExpiredError)])
def test_a_file_that_is_gone_has_expired_only_with_its_export(seconds, error):
    export = ContactExport("6f", "ready", urls=(), expires_at=NOW + timedelta(seconds=seconds), as_of=NOW)
    with pytest.raises(error, match="export 6f no longer names the file /a"):
        SignedUrls(lambda: export).url("/a")


def test_threads_that_wait_get_the_error_of_the_one_that_asks():
    """Were each to ask in its turn, the last would wait for all tries of the others."""
    begun, release, questions = threading.Event(), threading.Event(), []

    def get_export():
        questions.append(1)
        begun.set()
        assert release.wait(20)
        raise SendGridServerError("it broke")

    urls = SignedUrls(get_export)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(urls.url, "/a")
        assert begun.wait(20)
        together = threading.Barrier(8)

        def ask():
            together.wait(20)
            return urls.url("/a")

        others = [pool.submit(ask) for _ in range(7)]
        together.wait(20)
        release.set()
        for future in (first, *others):
            with pytest.raises(SendGridServerError, match="it broke"):
                future.result(20)
    assert len(questions) <= 8  # a thread that comes later asks again


def test_a_thread_that_is_interrupted_while_it_asks_blocks_no_later_one(sendgrid):
    """A time limit is raised in one thread; the next to need a URL asks itself."""
    interruptions = iter([KeyboardInterrupt()])

    def get_export():
        for error in interruptions:
            raise error
        return sendgrid.get_export()

    urls = SignedUrls(get_export)
    with pytest.raises(KeyboardInterrupt):
        urls.export()
    assert urls.export().id == "6f0a2c5e"


def test_what_asking_raises_is_passed_on_and_asked_anew_next_time(sendgrid):
    answers = iter([SendGridError("it broke")])

    def get_export():
        for error in answers:
            raise error
        return sendgrid.get_export()

    urls = SignedUrls(get_export)
    with pytest.raises(SendGridError, match="it broke"):
        urls.url("/0")
    assert urls.url("/0") == "https://files.example/0?X-Amz-Signature=1"


@pytest.mark.parametrize(
    "url", ["", "http://files.example/1?s=5ecret", "ftp://f/1", "file:///etc/passwd", "https://[5ecret", "/1"]
)
def test_contacts_are_fetched_encrypted_or_not_at_all(sendgrid, url):
    """What is no URL is refused too, without being told: it may be most of one."""
    with pytest.raises(SendGridServerError, match="nothing was fetched") as caught:
        sendgrid.urls().checked(url)
    assert "5ecret" not in str(caught.value)


def test_an_unencrypted_url_is_refused_before_it_is_handed_out():
    with pytest.raises(SendGridServerError, match="not encrypted"):
        SendGrid(scheme="http").urls().url("/0")


def test_an_emulator_on_this_machine_may_serve_plain_http():
    urls = SendGrid(scheme="http").urls(allow_http=True)
    for url in ("http://localhost:9000/1", "http://127.0.0.1/1", "http://[::1]:9000/1", "https://files.example/1"):
        assert urls.checked(url) == url
    with pytest.raises(SendGridServerError):
        urls.checked("ftp://files.example/1")


@pytest.mark.parametrize("host", ["files.example", "localhost.example", "127.0.0.1.example", "10.0.0.1"])
def test_an_emulator_leads_nobody_to_plain_http_elsewhere(host):
    with pytest.raises(SendGridServerError, match=f"offered by http://{host}, not encrypted; nothing was fetched"):
        SendGrid().urls(allow_http=True).checked(f"http://{host}/1?X-Amz-Signature=1")
