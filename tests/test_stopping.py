"""A stop ends every wait at once: pauses, connections that are being made, responses, and reads from a socket."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass

import pytest

from airflow_provider_sendgrid.delivery.export import DeliveryOptions, deliver_export
from airflow_provider_sendgrid.exports import protocol
from airflow_provider_sendgrid.exports.client import SendGridClient
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.export import ContactExport, ExportFamily
from airflow_provider_sendgrid.exports.sessions import new_download_session
from airflow_provider_sendgrid.files.download import DownloadLimits, FileDownload
from airflow_provider_sendgrid.files.parallel import fetch_parts
from airflow_provider_sendgrid.files.range_reader import RangeReader
from airflow_provider_sendgrid.files.source import ExportFiles
from airflow_provider_sendgrid.stopping import StoppedError, StopSignal
from airflow_provider_sendgrid.storage.base import ObjectInfo
from airflow_provider_sendgrid.storage.s3 import S3Storage
from airflow_provider_sendgrid.storage.stoppable import StoppableStorage
from tests.support.memory_storage import MemoryStorage
from tests.support.network import Server, make_certificate, read_request
from tests.support.seaweedfs import client_of

DEADLINE_SECONDS = 20.0  # of the tests; what is waited for here would take 300
LONG_SECONDS = 300.0
HEAD = b'HTTP/1.1 %s\r\nETag: "1"\r\nAccept-Ranges: bytes\r\nContent-Length: %d\r\n%s\r\n'


@dataclass
class Scripted(Server):
    """Responds to each request as `answer` says, then keeps the connection open until the end."""

    answer: Callable[[bytes], bytes] = lambda _: b""
    certificate: object = None

    def __post_init__(self) -> None:
        self.asked = threading.Event()

    def serve(self, connection) -> None:
        if self.certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate)
            connection = context.wrap_socket(connection, server_side=True)
            self._open.append(connection)
        while request := read_request(connection):
            self.requests.append(request.split(b"\r\n")[0].decode())
            connection.sendall(self.answer(request))
            self.asked.set()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("right"))


@pytest.fixture(params=["plain", "tls"])
def server_certificate(request, certificate):
    return certificate if request.param == "tls" else None


def connection_to(server: Server) -> SendGridConnection:
    verify = str(server.certificate) if server.certificate else True
    return SendGridConnection("SG.key", server.url, timeout_seconds=LONG_SECONDS, verify=verify)


def ends_when_stopped(work: Callable[[], object], stop: StopSignal, under_way: threading.Event) -> None:
    """Run `work` in threads, stop it while it runs, and check that it ends with `StoppedError`."""
    outcomes: list[BaseException | object] = []

    def run() -> None:
        try:
            outcomes.append(work())
        except BaseException as error:  # noqa: BLE001 - that is what is looked at
            outcomes.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert under_way.wait(DEADLINE_SECONDS)
    stop.set()
    thread.join(DEADLINE_SECONDS)
    assert [type(each) for each in outcomes] == [StoppedError]


def download_from(server: Server, session, stop: StopSignal, **changes) -> FileDownload:
    options = {"limits": DownloadLimits(first_wait_seconds=LONG_SECONDS, longest_wait_seconds=LONG_SECONDS)} | changes
    export = ContactExport("6f", "ready", urls=(f"{server.url}/file",))
    source = ExportFiles(lambda: export, session, allow_http=True, timeout_seconds=LONG_SECONDS, stop=stop, **options)
    return source.download("/file", "file")


# --- the signal


def test_a_pause_ends_when_stopped():
    stop, begun = StopSignal(), threading.Event()
    ends_when_stopped(lambda: (begun.set(), stop.wait(LONG_SECONDS)), stop, begun)


def test_a_pause_without_a_stop_takes_its_time():
    StopSignal().wait(0.0)
    with pytest.raises(TimeoutError):
        StopSignal().result(Future(), 0.0)


def test_a_result_is_waited_for_until_stopped():
    stop, begun = StopSignal(), threading.Event()
    ends_when_stopped(lambda: (begun.set(), stop.result(Future())), stop, begun)
    done: Future[int] = Future()
    done.set_result(7)
    assert stop.result(done) == 7


def test_a_child_is_stopped_with_its_parent_and_alone():
    parent = StopSignal()
    one, other = parent.child(), parent.child()
    one.set()
    assert (parent.is_set, one.is_set, other.is_set) == (False, True, False)
    parent.set()
    assert other.is_set
    assert parent.child().is_set


def test_children_that_are_gone_leave_nothing_behind():
    """One signal serves a delivery of any number of files."""
    parent = StopSignal()
    for _ in range(10):
        parent.child()
    assert not parent._callbacks


def test_a_stopped_call_passes_on_its_late_result():
    stop, begun, release, late = StopSignal(), threading.Event(), threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        release.wait(DEADLINE_SECONDS)
        return "late"

    def note(result: str) -> None:
        assert result == "late"
        late.set()

    ends_when_stopped(lambda: stop.call(work, late=note), stop, begun)
    release.set()
    assert late.wait(DEADLINE_SECONDS)


def test_a_call_returns_and_raises_what_its_function_does():
    assert StopSignal().call(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        StopSignal().call(lambda: 1 / 0)


def test_a_stop_may_come_while_the_same_thread_waits_or_stops():
    """As from a signal handler: neither may deadlock."""
    stop = StopSignal()
    stop.on_set(stop.set)
    with stop._changed:
        stop.set()
    with pytest.raises(StoppedError):
        stop.wait(LONG_SECONDS)


# --- downloads


def half_a_file(_request: bytes) -> bytes:
    return HEAD % (b"200 OK", 1_000, b"") + b"x" * 500


def test_a_read_that_waits_for_bytes_ends_when_stopped(server_certificate):
    with (
        Scripted(certificate=server_certificate, answer=half_a_file).running() as server,
        new_download_session(connection_to(server)) as session,
    ):
        stop = StopSignal()
        reader = RangeReader(download_from(server, session, stop)).open()
        reader.fill(memoryview(bytearray(500)))
        with closing(reader):
            begun = threading.Event()
            ends_when_stopped(lambda: (begun.set(), reader.readinto(memoryview(bytearray(10)))), stop, begun)
    assert len(server.requests) == 1


@pytest.mark.parametrize("length", [b"Content-Length: 1000", b"Transfer-Encoding: chunked"])
def test_a_range_that_waits_for_bytes_ends_when_stopped(server_certificate, length):
    """Also if urllib3 reads it, because it is chunked."""

    def answer(request: bytes) -> bytes:
        if b"range:" not in request.lower():
            return half_a_file(request)
        head = b'HTTP/1.1 206 Partial\r\nETag: "1"\r\nContent-Range: bytes 0-999/1000\r\n%s\r\n\r\n' % length
        return head + (b"1f4\r\n" if b"chunked" in length else b"") + b"x" * 500

    with (
        Scripted(certificate=server_certificate, answer=answer).running() as server,
        new_download_session(connection_to(server)) as session,
    ):
        stop, begun = StopSignal(), threading.Event()
        download = download_from(server, session, stop)
        RangeReader(download).open().close()
        with RangeReader(download, 0, 1_000) as reader:
            reader.fill(memoryview(bytearray(500)))
            ends_when_stopped(lambda: (begun.set(), reader.fill(memoryview(bytearray(500)))), stop, begun)


def test_a_response_that_does_not_come_ends_when_stopped(server_certificate):
    with (
        Scripted(certificate=server_certificate).running() as server,
        new_download_session(connection_to(server)) as session,
    ):
        stop = StopSignal()
        ends_when_stopped(RangeReader(download_from(server, session, stop)).open, stop, server.asked)


def test_an_error_body_that_does_not_come_ends_when_stopped():
    with (
        Scripted(answer=lambda _: HEAD % (b"403 No", 1_000, b"")).running() as server,
        new_download_session(connection_to(server)) as session,
    ):
        stop = StopSignal()
        ends_when_stopped(RangeReader(download_from(server, session, stop)).open, stop, server.asked)


def test_a_pending_connection_ends_when_stopped(certificate):
    """The server accepts the connection, and sends nothing of TLS."""
    with Server("hang", certificate).running() as server, new_download_session(connection_to(server)) as session:
        stop = StopSignal()
        ends_when_stopped(RangeReader(download_from(server, session, stop)).open, stop, server.accepted)
        assert_threads_end("sendgrid-connect")


def assert_threads_end(name: str) -> None:
    """A connection that the task does not wait for is closed at once, long before its timeout."""
    for thread in [each for each in threading.enumerate() if each.name == name]:
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive()


def test_a_pause_between_attempts_ends_when_stopped():
    with (
        Scripted(answer=lambda _: HEAD % (b"503 Slow Down", 0, b"")).running() as server,
        new_download_session(connection_to(server)) as session,
    ):
        stop = StopSignal()
        ends_when_stopped(RangeReader(download_from(server, session, stop)).open, stop, server.asked)


def test_a_url_that_is_waited_for_ends_when_one_file_is_stopped():
    """The failure of another part stops the file; requests for other files go on."""
    stop, begun, release = StopSignal(), threading.Event(), threading.Event()

    def get_export() -> ContactExport:
        begun.set()
        release.wait(DEADLINE_SECONDS)
        return ContactExport("6f", "ready")

    with new_download_session(SendGridConnection("SG.key")) as session:
        download = ExportFiles(get_export, session, stop=stop).download("/file", "file")
        ends_when_stopped(RangeReader(download).open, download.stop, begun)
    release.set()
    assert not stop.is_set


def test_running_parts_end_when_stopped(server_certificate):
    @dataclass
    class Part:
        unfilled: memoryview

        def release(self) -> None:
            released.append(self)

    def answer(_request: bytes) -> bytes:
        return HEAD % (b"200 OK", 4_000, b"") + b"x" * 1_500

    taken: list[Part] = []
    released: list[Part] = []

    def take(_wait: bool) -> Part:
        taken.append(Part(memoryview(bytearray(1_000))))
        return taken[-1]

    with (
        Scripted(certificate=server_certificate, answer=answer).running() as server,
        new_download_session(connection_to(server)) as session,
    ):
        stop = StopSignal()
        download = download_from(server, session, stop)
        parts = fetch_parts(download, RangeReader(download).open(), take, 4)
        next(parts).release()
        ends_when_stopped(lambda: next(parts), stop, server.asked)
    assert len(released) == len(taken)


# --- SendGrid's API


def get_export(server: Server, stop: StopSignal) -> ContactExport:
    with SendGridClient(connection_to(server), stop=stop) as client:
        return client.run_flow(protocol.get_export(ExportFamily.MARKETING, "6f"))


@pytest.mark.parametrize("retry_after", [b"", b"Retry-After: 100\r\n"])
def test_the_wait_after_a_rate_limit_ends_when_stopped(retry_after):
    with Scripted(answer=lambda _: HEAD % (b"429 No", 0, retry_after)).running() as server:
        stop = StopSignal()
        ends_when_stopped(lambda: get_export(server, stop), stop, server.asked)


def test_the_wait_for_a_response_of_the_api_ends_when_stopped(server_certificate):
    with Scripted(certificate=server_certificate).running() as server:
        stop = StopSignal()
        ends_when_stopped(lambda: get_export(server, stop), stop, server.asked)


def test_a_pending_connection_to_the_api_ends_when_stopped(certificate):
    with Server("hang", certificate).running() as server:
        stop = StopSignal()
        ends_when_stopped(lambda: get_export(server, stop), stop, server.accepted)
        assert_threads_end("sendgrid-api")


def test_a_stopped_client_sends_nothing():
    stop = StopSignal()
    stop.set()
    with Scripted().running() as server, pytest.raises(StoppedError):
        get_export(server, stop)
    assert server.connections == 0


def test_all_threads_that_wait_for_urls_end_when_stopped():
    """They do not send requests one after the other, each as slow as SendGrid."""
    stop, asked, questions = StopSignal(), threading.Event(), []

    def ask() -> ContactExport:
        questions.append(1)
        asked.set()
        stop.wait(LONG_SECONDS)
        raise AssertionError

    source, outcomes = ExportFiles(ask, session=None, stop=stop), []

    def run() -> None:
        try:
            source.url("/0")
        except StoppedError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert asked.wait(DEADLINE_SECONDS)
    stop.set()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert len(outcomes) == 8
    assert len(questions) == 1


# --- the storage


@pytest.mark.parametrize("method", ["read", "head", "versions", "delete", "put"])
def test_a_storage_that_does_not_answer_keeps_no_stopped_task(method):
    """The client's request is left running; Airflow 3 calls `on_kill` and nothing else."""
    with Scripted().running() as server:
        stop = StopSignal()
        arguments = {"versions": (), "put": ("a.csv", b"1", ObjectInfo("text/csv", {}))}.get(method, ("a.csv",))

        def ask():
            storage = StoppableStorage(S3Storage(client_of(server.url), "lake", "in/"), stop)
            return getattr(storage, method)(*arguments)

        ends_when_stopped(ask, stop, server.asked)


def test_threads_of_files_ask_the_storage_themselves():
    """The main thread does not wait for them, and their uploads are aborted."""
    threads = []

    class Noting(MemoryStorage):
        def head(self, name):
            threads.append(threading.get_ident())

    storage = StoppableStorage(Noting(), StopSignal())
    file_thread = threading.Thread(target=storage.head, args=("a.csv",))
    file_thread.start()
    ident = file_thread.ident
    file_thread.join()
    assert threads == [ident]


def test_a_delivery_stops_while_the_storage_keeps_it_waiting():
    stop, asked = StopSignal(), threading.Event()

    class Silent(MemoryStorage):
        def read(self, name):
            asked.set()
            threading.Event().wait(LONG_SECONDS)

    export = ContactExport("6f", "ready", urls=("https://files.example/a?X=1",), contact_count=1)
    source = ExportFiles(lambda: export, session=None, stop=stop)
    ends_when_stopped(lambda: deliver_export(source, Silent(), DeliveryOptions(), None, stop), stop, asked)
