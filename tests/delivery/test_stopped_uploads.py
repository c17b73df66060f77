"""A delivery that is stopped leaves no upload open at a real S3 server, or says which one may be."""

from __future__ import annotations

import json
import logging
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest

from airflow_provider_sendgrid.delivery.export import DeliveryOptions, deliver_export
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.export import ContactExport
from airflow_provider_sendgrid.exports.sessions import new_download_session
from airflow_provider_sendgrid.files.source import ExportFiles
from airflow_provider_sendgrid.stopping import StoppedError, StopSignal
from airflow_provider_sendgrid.storage.base import MIB, ObjectInfo
from airflow_provider_sendgrid.storage.s3 import S3Storage
from airflow_provider_sendgrid.transfers.sendgrid_to_s3 import SendGridToS3Operator
from tests.support.file_server import FileServer
from tests.support.holding_proxy import HoldingProxy
from tests.support.network import Server, read_request
from tests.support.seaweedfs import client_of

DEADLINE_SECONDS = 30.0
PART = 5 * MIB
FILE = b'"EMAIL","X"\n' + b'"somebody@example.com","1"\n' * (2 * PART // 27 + 1)


def begins_upload(method, target):
    return method == "POST" and "uploads" in parse_qs(urlsplit(target).query, keep_blank_values=True)


def completes_upload(method, target):
    return method == "POST" and "uploadId" in parse_qs(urlsplit(target).query)


def sends_part(method, target):
    return method == "PUT" and "partNumber" in parse_qs(urlsplit(target).query)


@contextmanager
def proxy_of(s3, is_held, **options):
    proxy = HoldingProxy(urlsplit(s3.url).port, is_held=is_held, **options)
    with proxy.running():
        try:
            yield proxy
        finally:
            proxy.release.set()


@contextmanager
def delivery_of(s3, proxy, stop):
    """A delivery of one large file through the proxy, in a thread; yields its future."""
    with (
        FileServer({"/file.csv": FILE}) as server,
        new_download_session(SendGridConnection("SG.key")) as session,
        ThreadPoolExecutor(1) as threads,
    ):
        export = ContactExport("6f", "ready", urls=(f"{server.url}/file.csv",), contact_count=FILE.count(b"\n") - 1)
        source = ExportFiles(lambda: export, session, allow_http=True, stop=stop)
        storage = S3Storage(client_of(proxy.url, login="test"), s3.bucket, "in/", stop=stop)
        options = DeliveryOptions(part_bytes=PART, compression="none", max_concurrency=2)
        try:
            yield threads.submit(deliver_export, source, storage, options, None, stop)
        finally:
            stop.set()
            proxy.release.set()


def assert_stopped(running: Future[object]) -> None:
    with pytest.raises(StoppedError):
        running.result(DEADLINE_SECONDS)


def test_an_upload_that_begins_after_the_stop_is_aborted(s3, caplog):
    """S3 has begun it, and only the response has its ID."""
    stop = StopSignal(DEADLINE_SECONDS)
    with proxy_of(s3, begins_upload) as proxy, delivery_of(s3, proxy, stop) as running:
        assert proxy.held.wait(DEADLINE_SECONDS)
        assert len(s3.open_uploads()) == 1
        stop.set()
        proxy.release.set()
        assert_stopped(running)
        assert s3.open_uploads() == []
    assert "may stay open" not in caplog.text


def test_an_upload_whose_begin_is_not_answered_in_time_is_named(s3, caplog):
    """The bucket, the key, and how the upload ends."""
    stop = StopSignal(grace_seconds=0.2)
    with proxy_of(s3, begins_upload) as proxy, delivery_of(s3, proxy, stop) as running:
        assert proxy.held.wait(DEADLINE_SECONDS)
        stop.set()
        assert_stopped(running)
        [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert f"s3://{s3.bucket}/in/6f-00001-of-00001.csv may stay open" in line
        assert "next try of the task aborts it, or a lifecycle rule" in line


def test_an_upload_whose_abort_is_not_answered_in_time_is_named(s3, caplog):
    stop = StopSignal(grace_seconds=0.2)
    with (
        proxy_of(s3, lambda *asked: sends_part(*asked) or asked[0] == "DELETE") as proxy,
        delivery_of(s3, proxy, stop) as running,
    ):
        assert proxy.held.wait(DEADLINE_SECONDS)
        stop.set()
        assert_stopped(running)
        [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert f"s3://{s3.bucket}/in/6f-00001-of-00001.csv may stay open" in line


@pytest.mark.parametrize("holds_requests", [True, False])
def test_a_hanging_complete_leaves_no_upload_and_no_delay(s3, caplog, holds_requests):
    """Whether S3 has it, or not yet."""
    stop = StopSignal()
    with (
        proxy_of(s3, completes_upload, holds_requests=holds_requests) as proxy,
        delivery_of(s3, proxy, stop) as running,
    ):
        assert proxy.held.wait(DEADLINE_SECONDS)
        stop.set()
        assert_stopped(running)
        assert s3.open_uploads() == []
        assert not proxy.release.is_set()
    assert "may stay open" not in caplog.text


def test_a_part_that_hangs_leaves_no_upload(s3, caplog):
    stop = StopSignal()
    with proxy_of(s3, sends_part) as proxy, delivery_of(s3, proxy, stop) as running:
        assert proxy.held.wait(DEADLINE_SECONDS)
        stop.set()
        assert_stopped(running)
        assert s3.open_uploads() == []
    assert "may stay open" not in caplog.text


class Busy(Server):
    """Refuses each request for now, and stops the task while it does."""

    stop: StopSignal

    def serve(self, connection) -> None:
        while request := read_request(connection):
            self.requests.append(request.split(b"\r\n")[0].decode())
            if request.startswith((b"POST", b"PUT")):
                self.stop.set()
            connection.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize("mode", ["legacy", "standard", "adaptive"])
@pytest.mark.parametrize("is_part", [False, True])
def test_boto3_sends_nothing_again_after_a_stop(monkeypatch, mode, is_part):
    """The client waits between its attempts; by then the upload is aborted."""
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda _seconds: None))
    server, stop = Busy(), StopSignal()
    server.stop = stop
    with server.running():
        client = client_of(server.url, retries={"mode": mode, "total_max_attempts": 3})
        storage = S3Storage(client, "lake", "in/", stop=stop)
        if is_part:
            ask = lambda: storage._upload("a.csv", "1").write_part(1, bytearray(b"x"), 0)  # noqa: E731
        else:
            ask = lambda: storage.begin("a.csv", ObjectInfo("text/csv", {}))  # noqa: E731
        with pytest.raises(StoppedError):
            ask()
    made = [line for line in server.requests if line.startswith(("POST", "PUT"))]
    assert len(made) == 1


def test_a_stopped_storage_begins_no_upload(s3):
    stop = StopSignal()
    stop.set()
    with pytest.raises(StoppedError):
        S3Storage(client_of(s3.url), s3.bucket, "in/", stop=stop).begin("a.csv", ObjectInfo("text/csv", {}))
    assert s3.open_uploads() == []


def test_waiting_for_credentials_does_not_delay_a_stop(s3, sendgrid_emulator, monkeypatch):
    """STS accepts the connection and does not answer; Airflow 3 calls `on_kill` and nothing else."""
    asked = threading.Event()

    class Silent(Server):
        def serve(self, connection) -> None:
            read_request(connection)
            asked.set()
            read_request(connection)

    with Silent().running() as sts, ThreadPoolExecutor(1) as threads:
        connection = json.loads(os.environ["AIRFLOW_CONN_AWS_DEFAULT"])
        connection["extra"] |= {
            "role_arn": "arn:aws:iam::123456789012:role/lake",
            "service_config": {"sts": {"endpoint_url": sts.url}},
        }
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
        export_id = sendgrid_emulator.start_export([sendgrid_emulator.add_list("Some", contacts=10)])
        operator = SendGridToS3Operator(task_id="store", export_id=export_id, s3_key_prefix=f"s3://{s3.bucket}/in/")
        running = threads.submit(operator.execute, {})
        assert asked.wait(DEADLINE_SECONDS)
        operator.on_kill()
        assert_stopped(running)
    assert s3.stored_keys() == []


def test_a_stop_knows_what_is_left_of_its_time():
    stop = StopSignal(grace_seconds=300.0)
    assert stop.seconds_left() == 300.0
    assert stop.child().grace_seconds == 300.0
    stop.set()
    assert 0.0 < stop.seconds_left(0.5) <= 150.0
    gone = StopSignal(grace_seconds=0.0)
    gone.set()
    assert gone.seconds_left() == 0.0
