"""No query of a URL is in any log, at any level, of any library that sends requests here."""

from __future__ import annotations

import asyncio
import logging
import time
from base64 import b64encode

import pytest

from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.export import ContactExport
from airflow_provider_sendgrid.exports.sessions import new_async_client, new_download_session
from airflow_provider_sendgrid.files.range_reader import RangeReader
from airflow_provider_sendgrid.files.source import ExportFiles
from airflow_provider_sendgrid.redaction import redact, redact_logs_of_libraries
from tests.support.file_server import FileServer, redirecting
from tests.support.network import closed_port

QUERY = "?X-Goog-Thing=5ecret&upload_id=5ecret&page_token=5ecret"


@pytest.fixture(autouse=True)
def everything_is_logged(caplog):
    """Whatever the level of a library's own loggers is."""
    caplog.set_level(logging.DEBUG)
    names = ("urllib3", "requests", "httpx", "httpcore", "botocore", "s3transfer", "google", "azure")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.DEBUG)
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def server():
    with FileServer({"/file": b"content"}) as server:
        yield server


def logged_by(caplog, *names: str) -> None:
    """These have logged, and nothing that was logged holds the secret."""
    assert set(names) <= {record.name for record in caplog.records}
    texts = [record.getMessage() for record in caplog.records]
    assert not [text for text in texts if "5ecret" in text]
    assert "5ecret" not in caplog.text
    assert [text for text in texts if "?***" in text]


def test_requests_for_a_file_and_its_redirects_are_logged_without_queries(server, caplog):
    server.bend = redirecting(f"/file{QUERY}")
    with new_download_session(SendGridConnection("SG.key")) as session:
        export = ContactExport("6f", "ready", urls=(f"{server.url}/file{QUERY}",))
        source = ExportFiles(lambda: export, session, allow_http=True)
        with RangeReader(source.download("/file", "file")) as reader:
            reader.fill(memoryview(bytearray(7)))
    logged_by(caplog, "urllib3.connectionpool")


def test_retries_and_redirects_of_urllib3_are_logged_without_queries(server, caplog):
    import urllib3

    server.bend = redirecting(f"{server.url}/file{QUERY}")
    with urllib3.PoolManager() as pools:
        assert pools.request("GET", f"{server.url}/file{QUERY}").status == 200
        with closed_port() as port, pytest.raises(urllib3.exceptions.HTTPError):
            pools.request("GET", f"http://127.0.0.1:{port}/file{QUERY}", retries=urllib3.Retry(2))
    logged_by(caplog, "urllib3.connectionpool", "urllib3.util.retry", "urllib3.poolmanager")


def test_requests_of_a_triggerer_are_logged_without_queries(server, caplog):
    """Httpx logs URLs at level INFO, httpcore the headers of a response."""
    server.bend = redirecting(f"https://files.example/file{QUERY}")

    async def ask() -> None:
        async with new_async_client(SendGridConnection("SG.key", server.url)) as client:
            assert (await client.get(f"/file{QUERY}")).status_code == 302

    asyncio.run(ask())
    logged_by(caplog, "httpx", "httpcore.http11")


def test_requests_of_botocore_are_logged_without_queries(server, caplog):
    """Whether they are answered or fail; the text of an error names the URL, too."""
    boto3 = pytest.importorskip("boto3")
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    config = Config(retries={"max_attempts": 0}, s3={"addressing_style": "path"})
    for endpoint in (server.url, "http://127.0.0.1:1"):
        client = boto3.client("s3", endpoint_url=endpoint, config=config, **keys)
        with pytest.raises((ClientError, BotoCoreError)):
            client.upload_part(Bucket="b", Key="file", UploadId="5ecret", PartNumber=1, Body=b"x")
    assert {"botocore.auth", "botocore.endpoint", "urllib3.connectionpool"} <= {each.name for each in caplog.records}
    texts = [record.getMessage() for record in caplog.records]
    assert not [text for text in texts if "uploadId=5ecret" in text or "'uploadId': '5ecret'" in text]
    assert "uploadId=5ecret" not in caplog.text
    assert "Could not connect to the endpoint URL" in caplog.text


def test_loggers_that_are_made_later_are_redacted_too(caplog):
    logging.getLogger("google.made.later").debug("GET %s", f"/upload{QUERY}")
    logging.getLogger("azure.core.made.later").info("Location: 'https://h/c%s'", QUERY)
    logged_by(caplog, "google.made.later", "azure.core.made.later")


def test_a_library_that_logs_an_error_does_not_log_its_query(caplog):
    def fail() -> None:
        raise ValueError(f"Could not connect to https://h/c{QUERY}")

    try:
        fail()
    except ValueError:
        logging.getLogger("botocore.endpoint").debug("Exception received", exc_info=True)
    logged_by(caplog, "botocore.endpoint")
    assert "in fail" in caplog.text


def test_a_library_whose_format_is_wrong_is_not_stopped_by_that(caplog):
    logging.getLogger("urllib3").debug("/c?token=5ecret %s %s", "one")  # noqa: PLE1206
    logged_by(caplog, "urllib3")


def test_logs_of_others_are_left_as_they_are(caplog):
    logging.getLogger("airflow.task").info("see /docs?page=%s", 7)
    logging.getLogger("urllib3_but_not_it").info("see /docs?page=%s", 7)
    assert [record.args for record in caplog.records] == [(7,), (7,)]
    assert caplog.text.count("/docs?page=7") == 2


def test_another_factory_that_replaced_ours_is_wrapped_again(caplog):
    before = logging.getLogRecordFactory()
    try:
        logging.setLogRecordFactory(logging.LogRecord)
        redact_logs_of_libraries()
        ours = logging.getLogRecordFactory()
        redact_logs_of_libraries()
        assert logging.getLogRecordFactory() is ours
        logging.getLogger("urllib3").debug("/c%s", QUERY)
        logged_by(caplog, "urllib3")
    finally:
        logging.setLogRecordFactory(before)


def test_every_session_sees_to_it(caplog, server):
    before = logging.getLogRecordFactory()
    try:
        logging.setLogRecordFactory(logging.LogRecord)
        with new_download_session(SendGridConnection("SG.key")) as session:
            session.get(f"{server.url}/file{QUERY}", timeout=10)
        logged_by(caplog, "urllib3.connectionpool")
    finally:
        logging.setLogRecordFactory(before)


def test_a_record_without_a_name_can_be_copied():
    """The formatter of Airflow 3 copies each record so."""
    record = logging.LogRecord("airflow", logging.INFO, "", 0, "all %s", ("is well",), None)
    assert logging.makeLogRecord(record.__dict__).getMessage() == "all is well"


def test_bodies_that_botocore_sends_are_in_no_log(server, caplog):
    """Nor are customers' keys; a log of a delivery at this level would hold all contacts."""
    boto3 = pytest.importorskip("boto3")
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
    config = Config(retries={"max_attempts": 0}, s3={"addressing_style": "path"})
    client = boto3.client("s3", endpoint_url=server.url, config=config, **keys)
    encryption = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "customerkeycustomerkeycustomerkey"[:32]}
    for body in (b"ada@example.com," * 100, bytearray(b"ada@example.com," * 100)):
        with pytest.raises((ClientError, BotoCoreError)):
            client.put_object(Bucket="b", Key="file", Body=body, **encryption)
    texts = [record.getMessage() for record in caplog.records]
    assert [text for text in texts if "<1600 bytes>" in text]
    encoded = b64encode(encryption["SSECustomerKey"].encode()).decode()
    assert not [text for text in texts if "ada@" in text or "customerkeycust" in text or encoded in text]


@pytest.mark.parametrize("part", ["'", "'a", "x-amz-", "a?", "'?", "/'?'"])
def test_a_long_text_is_redacted_at_once(part):
    """An interpreter that searches a text for minutes runs no other thread, and stops for no signal."""
    began = time.monotonic()
    redact(part * 20_000)
    assert time.monotonic() - began < 5


def test_a_question_mark_before_a_url_does_not_show_its_query():
    assert redact("retry?https://files.example/b?sig=abc") == "retry?https://files.example/b?***"
    assert redact("why? a?b c?d/e") == "why? a?b c?d/e"
