"""Google's resumable uploads: failures beyond those that `test_promises` covers."""

from __future__ import annotations

import io
import logging
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import google_crc32c
import pytest

from airflow_provider_sendgrid.exceptions import DestinationChangedError, DestinationError
from airflow_provider_sendgrid.storage.base import ANY_VERSION, MIB, ObjectInfo, StoredContent
from airflow_provider_sendgrid.storage.gcs_upload import GcsUpload
from dev.services.gcs import fake_gcs_server, gcs_server
from tests.support.destinations import Destination
from tests.support.losing_proxy import LosingProxy

NOT_QUICK = pytest.mark.skipif(not os.environ.get("TEST_CLOUDS"), reason="make test-clouds runs it")
CONTENT = bytes(range(251)) * (9 * MIB // 251)


class Session:
    """A resumable session that responds as Google documents it, and fails where a test says so."""

    def __init__(self, *faults):
        self.faults = list(faults)  # of each request: None, a status, "cut", or how many bytes to keep
        self.held = b""
        self.published = None
        self.ranges = []
        session = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                session.ranges.append(self.headers["Content-Range"])
                fault = session.faults.pop(0) if session.faults else None
                if fault == "cut":
                    self.close_connection = True
                    return
                if isinstance(fault, tuple):
                    session.take(self.headers["Content-Range"], body[: fault[0]], None)
                    self.answer(503)
                elif fault:
                    self.answer(fault)
                else:
                    session.take(self.headers["Content-Range"], body, self.headers.get("x-goog-hash"))
                    self.answer(200 if session.published is not None else 308)

            def do_DELETE(self):
                session.held = b""
                self.answer(499)

            def answer(self, status):
                self.send_response(status)
                if status == 308 and session.held:
                    self.send_header("Range", f"bytes=0-{len(session.held) - 1}")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/upload?upload_id=secret"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, span, body, checksum):
        start, total = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", span).groups()
        if start is not None:
            assert int(start) <= len(self.held), "a gap"
            self.held = self.held[: int(start)] + body
        if total not in (None, "*") and len(self.held) == int(total):
            assert checksum is None or checksum.startswith("crc32c=")
            self.published = self.held


@pytest.fixture
def session_with():
    started = []

    def start(*faults):
        started.append(Session(*faults))
        return started[-1]

    yield start
    for session in started:
        session.server.shutdown()
        session.server.server_close()


def upload_to(session, waits=None):
    return GcsUpload(session.url, "gs://lake/a.csv", (waits if waits is not None else []).append)


def write_all(upload):
    for number, start in enumerate(range(0, len(CONTENT), 4 * MIB), 1):
        upload.write_part(number, bytearray(CONTENT[start : start + 4 * MIB]), 0)
    upload.complete()


@pytest.mark.parametrize(
    "faults",
    [
        [],
        [503],
        [None, 503, None, 502, 503],
        ["cut"],
        [None, "cut", None, "cut"],
        [(1 * MIB,)],
        [None, (256 * 1024,), None, (0,)],
        [None, None, None, "cut"],
        [429, 429, 429],
    ],
    ids=str,
)
def test_an_upload_resumes_after_the_last_byte_that_google_has(session_with, faults):
    """Whether requests, responses or parts of a request were lost."""
    session = session_with(*faults)
    waits = []
    write_all(upload_to(session, waits))
    assert CONTENT == session.published
    assert bool(faults) == bool(waits)


def test_every_request_but_the_last_is_of_whole_units(session_with):
    """Of 256 KiB, as Google requires; the last one is never empty."""
    session = session_with()
    write_all(upload_to(session))
    *chunks, last = [re.fullmatch(r"bytes (\d+)-(\d+)/(.*)", span).groups() for span in session.ranges]
    assert all((int(end) + 1 - int(start)) % (256 * 1024) == 0 and total == "*" for start, end, total in chunks)
    assert str(len(CONTENT)) == last[2]


@pytest.mark.parametrize(("faults", "tries"), [([404], 1), ([410], 1), ([503] * 20, 12)])
def test_googles_refusal_is_reported_without_the_secret_url(session_with, faults, tries):
    session = session_with(*faults)
    with pytest.raises(DestinationError, match=r"upload of gs://lake/a\.csv") as caught:
        write_all(upload_to(session))
    assert "secret" not in str(caught.value)
    assert None is session.published
    assert len(session.ranges) <= tries


def test_the_last_request_carries_the_checksum_of_all(session_with, monkeypatch):
    session = session_with()
    seen = []
    monkeypatch.setattr(
        session,
        "take",
        lambda span, body, checksum: seen.append(checksum) or Session.take(session, span, body, checksum),
    )
    write_all(upload_to(session))
    import base64

    expected = base64.b64encode(google_crc32c.Checksum(CONTENT).digest()).decode()
    assert [f"crc32c={expected}"] == [each for each in seen if each]


def test_parts_that_wait_fail_with_the_one_before_them(session_with):
    """No part waits without end."""
    upload = upload_to(session_with(404))
    failures = []

    def write(number):
        try:
            upload.write_part(number, bytearray(4 * MIB), 0)
        except DestinationError as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in (3, 2, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert 3 == len(failures)
    assert 1 == len(set(map(id, failures)))


@pytest.fixture
def everything_logged():
    """All that loggers of this process write at DEBUG, as one text."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(logging.Formatter("%(name)s %(message)s %(args)s"))
    # Records that the libraries put together for structured logs, too.
    everything = logging.StreamHandler(text)
    everything.setFormatter(Attributes())
    loggers = [logging.getLogger(), *(each for each in logging.Logger.manager.loggerDict.values() if is_logger(each))]
    before = [(logger, logger.level, logger.disabled, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.disabled, logger.propagate = False, True
    for each in (handler, everything):
        each.addFilter(is_of_a_client)
        logging.getLogger().addHandler(each)
    yield text
    logging.getLogger().removeHandler(handler)
    logging.getLogger().removeHandler(everything)
    for logger, level, disabled, propagate in before:
        logger.setLevel(level)
        logger.disabled, logger.propagate = disabled, propagate


def is_of_a_client(record):
    """The server for tests runs in this process, and logs the requests that it gets."""
    return not record.name.startswith(("gcp_storage_emulator", "api."))


class Attributes(logging.Formatter):
    def format(self, record):
        return repr(vars(record))


def is_logger(each):
    return isinstance(each, logging.Logger)


def test_the_url_of_an_upload_is_in_no_log_of_any_library(session_with, everything_logged):
    """At DEBUG, while it succeeds, is repeated, cut off, and cancelled."""
    session = session_with(None, 503, "cut")
    write_all(upload_to(session))
    cancelled = upload_to(session_with(404))
    with pytest.raises(DestinationError):
        write_all(cancelled)
    cancelled.abort()
    away = GcsUpload("http://127.0.0.1:9/upload?upload_id=secret", "gs://lake/a.csv", lambda _: None)
    with pytest.raises(DestinationError):
        write_all(away)
    away.abort()

    assert "PUT /upload" in everything_logged.getvalue(), "urllib3 logs each request"
    assert "secret" not in everything_logged.getvalue()


def test_the_url_of_an_upload_is_in_no_log(everything_logged):
    with gcs_server() as url:
        place = Destination.fresh("gs", url)
        storage = place.storage()
        upload = storage.begin("a.csv", ObjectInfo("text/csv", {}))
        upload.write_part(1, bytearray(1 * MIB), 0)
        upload.complete()
        secret = upload._session_url.partition("upload_id=")[2]
    assert secret
    assert secret not in everything_logged.getvalue()


@pytest.fixture(scope="module")
def checking_server():
    """It checks the conditions of small writes itself."""
    with fake_gcs_server() as url:
        yield url


@NOT_QUICK
def test_the_server_refuses_a_change_that_the_look_missed(checking_server, monkeypatch):
    """Another run may store the object between the check and the write."""
    storage = Destination.fresh("gs", checking_server).storage()
    info = ObjectInfo("text/csv", {"made-by": "us"})
    first = storage.put("a.csv", b"first", info, None)
    second = storage.put("a.csv", b"second", info, first)
    monkeypatch.setattr(storage, "_raise_if_changed", lambda *_: None)

    for over in (None, first):
        with pytest.raises(DestinationChangedError):
            storage.put("a.csv", b"third", info, over)

    assert StoredContent(b"second", second) == storage.read("a.csv")


@pytest.mark.parametrize(("over", "condition"), [(None, "0"), ("17", "17"), (ANY_VERSION, None)])
def test_the_condition_of_an_upload_is_sent_when_it_begins(over, condition):
    """Google compares then, and when the upload is complete; no server for tests does."""
    with gcs_server() as url, LosingProxy(urlsplit(url).port, lambda *_: False).running() as proxy:
        place = Destination.fresh("gs", proxy.url)
        place.storage().begin("a.csv", ObjectInfo("text/csv", {}), over).abort()
    [begin] = [target for method, target in proxy.requests if method == "POST" and "uploadType=resumable" in target]
    assert [condition] == parse_qs(urlsplit(begin).query).get("ifGenerationMatch", [None])


def test_the_condition_of_a_delete_is_sent():
    with gcs_server() as url, LosingProxy(urlsplit(url).port, lambda *_: False).running() as proxy:
        storage = Destination.fresh("gs", proxy.url).storage()
        version = storage.put("a.csv", b"1", ObjectInfo("text/csv", {}))
        storage.delete("a.csv", version)
    [delete] = [target for method, target in proxy.requests if method == "DELETE"]
    assert [version] == parse_qs(urlsplit(delete).query)["ifGenerationMatch"]
