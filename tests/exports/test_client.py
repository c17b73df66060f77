"""Both clients run flows alike over real connections, and send the key to the API only."""

from __future__ import annotations

import asyncio
import inspect
import logging
import socket
import traceback
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from airflow_provider_sendgrid.emulator import Emulator, Fault, Key, Settings
from airflow_provider_sendgrid.exceptions import (
    SendGridAuthError,
    SendGridBadRequestError,
    SendGridError,
    SendGridNotFoundError,
    SendGridPermissionError,
    SendGridRateLimitError,
    SendGridServerError,
    SendGridUnavailableError,
)
from airflow_provider_sendgrid.exports import client as client_module
from airflow_provider_sendgrid.exports import protocol
from airflow_provider_sendgrid.exports.client import AsyncSendGridClient, SendGridClient
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.export import ExportFamily, ExportSelection
from airflow_provider_sendgrid.exports.protocol import Request, RetryPolicy
from airflow_provider_sendgrid.exports.sessions import new_download_session, new_session
from tests.support.clock import FakeClock

MARKETING = ExportFamily.MARKETING
EXPORTS = "/v3/marketing/contacts/exports"
CALM = RetryPolicy(tries=3, jitter=lambda: 0.0)
NOW = 1_767_323_045.0


@dataclass
class FlowRunner:
    """Runs flows with a new client of one kind each time."""

    kind: str
    connection: SendGridConnection
    clock: FakeClock = field(default_factory=lambda: FakeClock(NOW))

    def run_flow(self, *flows) -> Any:
        """Run flows one after another and return the last result."""
        if self.kind == "httpx":
            return asyncio.run(self._run_async(*flows))
        with SendGridClient(self.connection, sleep=self.clock.sleep, clock=self.clock) as client:
            return [client.run_flow(each) for each in flows][-1]

    async def _run_async(self, *flows) -> Any:
        async def sleep(seconds):
            self.clock.sleep(seconds)

        async with AsyncSendGridClient(self.connection, sleep=sleep, clock=self.clock) as client:
            return [await client.run_flow(each) for each in flows][-1]

    def send(self, request=None):
        """Send one request and return its response."""

        def flow():
            return (yield request or Request("GET", "/v3/scopes"))

        return self.run_flow(flow())

    def get_export(self, export_id="6f0a2c5e", retry_policy=CALM):
        return self.run_flow(protocol.get_export(MARKETING, export_id, retry_policy))

    def start_export(self, retry_policy=CALM, **selection):
        return self.run_flow(protocol.start_export(MARKETING, ExportSelection(**selection), retry_policy))


@pytest.fixture
def clock():
    return FakeClock(NOW)


@pytest.fixture
def emulator(clock):
    with Emulator(clock=clock) as running:
        yield running


@pytest.fixture(params=["requests", "httpx"])
def runner(request, emulator, clock):
    """The client under test, with a connection to the emulator and waits that are noted, not waited."""
    return FlowRunner(request.param, SendGridConnection(emulator.api_key, emulator.url, timeout_seconds=10.0), clock)


def changed(runner, **changes):
    return replace(runner, connection=replace(runner.connection, **changes))


def story(error):
    """All that a log could show of an error."""
    return "\n".join([str(error), repr(error), *traceback.format_exception(error)])


# --- what goes well


def test_an_export_is_started_and_found_ready(runner, emulator):
    export_id = runner.start_export(list_ids=[emulator.list_id("Customers")])
    export = runner.get_export(export_id)
    assert (export.id, export.status, export.contact_count, len(export.urls)) == (export_id, "ready", 500, 1)
    assert runner.clock.slept == []


@pytest.mark.parametrize("spelling", ["snake_case", "camelCase"])
def test_the_legacy_family_works_as_well(runner, emulator, spelling):
    emulator.configure(spelling=spelling)
    selection = ExportSelection(list_ids=[emulator.list_id("Customers", "legacy")])
    export_id = runner.run_flow(protocol.start_export(ExportFamily.LEGACY, selection, CALM))
    export = runner.run_flow(protocol.get_export(ExportFamily.LEGACY, export_id, CALM))
    assert (export.status, export.contact_count) == ("ready", 500)


def test_listings_are_read_to_their_last_page(runner, emulator):
    emulator.configure(page_size=2)
    started = {emulator.start_export() for _ in range(5)}
    exports = runner.run_flow(protocol.list_exports(MARKETING, CALM))
    assert {export.id for export in exports} == started
    assert emulator.count("GET", EXPORTS) == 3


def test_lists_segments_and_scopes_are_read(runner, emulator):
    lists = runner.run_flow(protocol.get_lists(MARKETING, CALM))
    segments = runner.run_flow(protocol.get_segments(MARKETING, CALM))
    scopes = runner.run_flow(protocol.get_scopes(CALM))
    assert {each["id"] for each in lists} == {each.id for each in emulator.lists()}
    assert emulator.segment_id("Active in the last month") in {each["id"] for each in segments}
    assert "marketing.read" in scopes


def test_a_response_has_status_headers_and_body(runner):
    """Names of headers are in lower case, the body is decoded, and the time is recorded."""
    response = runner.send()
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("application/json")
    assert response.body.startswith(b'{"scopes":')
    assert response.received_at == NOW


@pytest.mark.parametrize("export_id", ["../lists", "a/../../x", "?x=y", "a b"])
def test_an_id_is_sent_as_one_path_segment(runner, emulator, export_id):
    with pytest.raises(SendGridNotFoundError):
        runner.get_export(export_id, replace(CALM, tries=1))
    [request] = emulator.requests()
    assert request.path.startswith(EXPORTS + "/")
    assert request.path.count("/") == EXPORTS.count("/") + 1


def test_the_user_agent_names_the_provider(runner, emulator):
    runner.send()
    [request] = emulator.requests()
    assert request.headers["user-agent"].startswith("airflow-provider-sendgrid/")
    assert "on-behalf-of" not in request.headers


def test_the_subuser_is_sent_as_a_header(runner, emulator):
    emulator.configure(subusers=("subuser",))
    changed(runner, on_behalf_of="subuser").send()
    [request] = emulator.requests()
    assert request.headers["on-behalf-of"] == "subuser"


# --- refusals


def test_an_unknown_key_is_refused(runner):
    with pytest.raises(SendGridAuthError, match="grant is invalid"):
        changed(runner, api_key="SG.unknown.key").get_export()


@pytest.mark.parametrize(
    ("settings", "api_key", "subuser"),
    [({}, "SG.scopeless.key", None), ({"product": "legacy"}, None, None), ({}, None, "stranger")],
)
def test_a_403_names_its_causes(request, runner, settings, api_key, subuser):
    del request
    keys = [Key("SG.scopeless.key", frozenset())]
    with Emulator(Settings(**settings), keys=keys) as emulator:
        elsewhere = changed(runner, base_url=emulator.url, api_key=api_key or emulator.api_key, on_behalf_of=subuser)
        with pytest.raises(SendGridPermissionError, match=r"access forbidden.*scope.*product.*IP Access"):
            elsewhere.get_export()


def test_a_bad_request_names_the_field(runner):
    with pytest.raises(SendGridBadRequestError, match=r"list_ids: no list has the id") as caught:
        runner.start_export(list_ids=["00000000-0000-0000-0000-000000000000"])
    assert caught.value.errors[0]["field"] == "list_ids"


def test_an_unknown_export_is_requested_again(runner, emulator):
    with pytest.raises(SendGridNotFoundError, match="export not found"):
        runner.get_export("unknown")
    assert emulator.count("GET", EXPORTS) == 3
    assert runner.clock.slept == [0.5, 1.0]


# --- transient failures


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", status=500),
        Fault("status", status=503),
        Fault("html", status=200),
        Fault("html", status=502),
        Fault("broken_json"),
        Fault("empty"),
        Fault("cut"),
        Fault("cut", with_reset=True),
        Fault("refuse"),
        Fault("reset"),
        Fault("lost"),
        Fault("redirect", location="/v3/scopes"),
    ],
    ids=lambda fault: f"{fault.kind}{fault.status or ''}{'-reset' * fault.with_reset}",
)
def test_a_get_is_retried_after_two_failures(runner, emulator, caplog, fault):
    """The log gives the reason."""
    export_id = emulator.start_export()
    emulator.inject(replace(fault, first=2, path=f"{EXPORTS}/*"))
    assert runner.get_export(export_id).status == "ready"
    assert runner.clock.slept == [0.5, 1.0]
    assert len([each for each in caplog.messages if "Trying again" in each]) == 2


@pytest.mark.parametrize("kind", ["refuse", "reset", "lost", "cut"])
def test_a_get_without_a_response_ends_in_time(runner, emulator, kind):
    emulator.inject(Fault(kind))
    with pytest.raises(SendGridUnavailableError, match="the connection broke"):
        runner.get_export()
    assert emulator.count() == CALM.tries


def test_a_missing_response_times_out(runner, emulator):
    emulator.inject(Fault("hang"))
    with pytest.raises(SendGridUnavailableError, match=r"timed out.*timeout 0\.05 s"):
        changed(runner, timeout_seconds=0.05).get_export()
    assert emulator.count() == CALM.tries


@pytest.fixture
def closed_url():
    """A URL without a listener; its port stays reserved."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_a_refused_connection_says_what_to_check(runner, closed_url):
    with pytest.raises(SendGridUnavailableError, match=r"no connection .*Check the host") as caught:
        changed(runner, base_url=closed_url).get_export()
    assert caught.value.may_have_been_accepted is False
    assert closed_url in str(caught.value)


@pytest.mark.parametrize("kind", ["html", "broken_json", "empty"])
def test_a_response_of_another_server_is_never_a_success(runner, emulator, kind):
    emulator.inject(Fault(kind))
    with pytest.raises(SendGridServerError, match="not a JSON object"):
        runner.run_flow(protocol.get_scopes(CALM))


@pytest.mark.parametrize("kind", ["html", "endless"])
def test_an_endless_response_is_aborted(runner, emulator, monkeypatch, kind):
    monkeypatch.setattr(client_module, "MAX_RESPONSE_BYTES", 50)
    emulator.inject(Fault(kind))
    with pytest.raises(SendGridServerError, match=r"GET /v3/scopes: the response is larger than 50 bytes"):
        runner.run_flow(protocol.get_scopes(CALM))


@pytest.mark.parametrize("faults", [("trickle",), ("endless_header", "trickle")], ids=" ".join)
def test_a_trickling_response_is_limited_in_time(runner, emulator, monkeypatch, faults):
    """A byte comes in time for every read, in the body or in the header, and none of these reads is the last."""
    monkeypatch.setattr(client_module, "_RESPONSE_TIMEOUTS", 0.05)
    emulator.inject(*(Fault(kind, bytes_per_second=50) for kind in faults))
    with pytest.raises(SendGridUnavailableError, match=r"timed out \(TimeoutError, .*0\.5 s in all"):
        runner.get_export(retry_policy=RetryPolicy(tries=1))


def test_a_start_with_a_trickling_response_is_in_doubt(runner, emulator, monkeypatch):
    monkeypatch.setattr(client_module, "_RESPONSE_TIMEOUTS", 0.05)
    emulator.inject(Fault("trickle", bytes_per_second=50))
    with pytest.raises(SendGridUnavailableError) as caught:
        runner.start_export()
    assert caught.value.may_have_been_accepted is True
    assert emulator.count("POST") == 1


def test_an_endless_header_is_aborted(runner, emulator):
    emulator.inject(Fault("endless_header"))
    with pytest.raises(SendGridUnavailableError, match="the connection broke"):
        runner.get_export(retry_policy=RetryPolicy(tries=1))


def test_a_gzip_response_is_limited_in_its_decompressed_size(runner, emulator, monkeypatch):
    """A few kilobytes that would become megabytes."""
    monkeypatch.setattr(client_module, "MAX_RESPONSE_BYTES", 5 * 1024 * 1024)
    emulator.inject(Fault("bomb", at=20))
    with pytest.raises(SendGridServerError, match="the response is larger than 5242880 bytes"):
        runner.get_export(retry_policy=RetryPolicy(tries=1))


def test_a_gzip_response_is_decompressed(runner, emulator):
    emulator.inject(Fault("bomb", at=2))
    assert runner.send().body == b" " * 2 * 1024 * 1024


def test_an_invalid_gzip_response_is_an_error(runner, emulator):
    emulator.inject(Fault("bomb", at=2), Fault("corrupt", at=0))
    with pytest.raises(SendGridServerError, match="the response is not valid gzip"):
        runner.get_export(retry_policy=RetryPolicy(tries=1))


def test_a_response_of_exactly_the_limit_is_read(runner, monkeypatch):
    size = len(runner.send().body)
    monkeypatch.setattr(client_module, "MAX_RESPONSE_BYTES", size)
    assert len(runner.send().body) == size


def test_redirects_are_not_followed(runner, emulator):
    """SendGrid's API knows none; another host would get the key."""
    emulator.inject(Fault("redirect", path="/v3/scopes", location=f"{emulator.files_url}/stolen"))
    assert runner.send().status_code == 302
    assert emulator.count(listener="files") == 0


# --- limits


@pytest.mark.parametrize("reset", ["epoch", "seconds"])
def test_both_forms_of_the_reset_header_are_waited_for(runner, emulator, reset):
    export_id = emulator.start_export()
    emulator.inject(Fault("status", status=429, rate_limit_reset=reset, seconds=18, first=1))
    assert runner.get_export(export_id).status == "ready"
    assert runner.clock.slept == [18.0]


def test_retry_after_is_waited_for(runner, emulator):
    export_id = emulator.start_export()
    emulator.inject(Fault("status", status=429, retry_after=7, rate_limit_reset="seconds", seconds=18, first=1))
    assert runner.get_export(export_id).status == "ready"
    assert runner.clock.slept == [7.0]


def test_a_rate_limit_that_lasts_too_long_is_an_error(runner, emulator):
    emulator.inject(Fault("status", status=429, message="too many requests", retry_after=3600))
    with pytest.raises(SendGridRateLimitError, match="too many requests") as caught:
        runner.get_export()
    assert caught.value.retry_after_seconds == 3600
    assert emulator.count() == 1


@pytest.mark.parametrize("reset", ["epoch", "seconds"])
def test_a_used_up_rate_limit_delays_the_next_request(runner, emulator, reset, caplog):
    """Ten requests a window are little: a refusal would use up one of the next."""
    caplog.set_level(logging.INFO, logger=client_module.__name__)
    emulator.configure(rate_limit=2, rate_limit_window=60.0, rate_limit_reset=reset)
    runner.run_flow(*(protocol.get_scopes(CALM) for _ in range(5)))
    assert [each.status for each in emulator.requests()] == [200] * 5
    assert runner.clock.slept == [60.0, 60.0]
    assert "rate limit leaves no request" in caplog.text


# --- starting once


@pytest.mark.parametrize("fault", [Fault("lost"), Fault("lost", with_reset=True), Fault("cut"), Fault("broken_json")])
def test_a_start_whose_response_is_lost_is_not_repeated(runner, emulator, fault):
    """It was accepted: a second POST would start a second export."""
    emulator.inject(replace(fault, method="POST"))
    with pytest.raises(SendGridError) as caught:
        runner.start_export()
    assert caught.value.may_have_been_accepted is True
    assert emulator.count("POST") == 1
    emulator.clear_faults()
    assert len(runner.run_flow(protocol.list_exports(MARKETING, CALM))) == 1


@pytest.mark.parametrize("kind", ["hang", "reset", "endless", "redirect"])
def test_a_start_with_an_unreadable_response_is_not_repeated(runner, emulator, monkeypatch, kind):
    monkeypatch.setattr(client_module, "MAX_RESPONSE_BYTES", 100_000)
    emulator.inject(Fault(kind, location="/v3/scopes"))
    with pytest.raises(SendGridError) as caught:
        changed(runner, timeout_seconds=0.2).start_export()
    assert caught.value.may_have_been_accepted is True
    assert emulator.count() == 1


def test_a_start_that_was_never_sent_is_retried(runner, closed_url):
    with pytest.raises(SendGridUnavailableError) as caught:
        changed(runner, base_url=closed_url).start_export()
    assert caught.value.may_have_been_accepted is False
    assert runner.clock.slept == [0.5, 1.0]


def test_a_rate_limited_start_is_retried(runner, emulator):
    emulator.inject(Fault("status", status=429, retry_after=2, first=1))
    assert runner.start_export()
    assert emulator.count("POST") == 2
    assert runner.clock.slept == [2.0]


# --- secrets

FAULTS = [
    Fault("status", status=500, message="the key was {key}"),
    Fault("status", status=400, message="see https://x.example/a?X-Amz-Signature={key}"),
    Fault("refuse"),
    Fault("html"),
    Fault("redirect", location="https://x.example/"),
    Fault("endless"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.kind}{fault.status or ''}")
def test_no_error_or_log_contains_the_key(runner, emulator, caplog, monkeypatch, fault):
    """Neither its text, nor its traceback, nor the log."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(client_module, "MAX_RESPONSE_BYTES", 100_000)
    key = emulator.api_key
    emulator.inject(replace(fault, message=fault.message.format(key=key), location=fault.location.format(key=key)))
    with pytest.raises(SendGridError) as caught:
        runner.get_export()
    assert key not in story(caught.value)
    assert key not in caplog.text


@pytest.mark.parametrize("kind", ["refuse", "hang", "html", "endless"])
def test_no_error_or_log_contains_a_query(runner, emulator, caplog, monkeypatch, kind):
    """The queries of SendGrid's pages may contain tokens; errors of httpx and requests contain whole URLs."""
    monkeypatch.setattr(client_module, "MAX_RESPONSE_BYTES", 100_000)
    emulator.inject(Fault(kind))
    with pytest.raises(SendGridError) as caught:
        changed(runner, timeout_seconds=0.05).run_flow(protocol.get_lists(MARKETING, CALM))
    assert "page_size" not in story(caught.value)
    assert "page_size" not in "".join(
        each.getMessage() for each in caplog.records if each.name == client_module.__name__
    )


def test_no_connection_error_contains_a_query(runner, closed_url):
    with pytest.raises(SendGridUnavailableError) as caught:
        changed(runner, base_url=closed_url).run_flow(protocol.get_lists(MARKETING, CALM))
    assert "page_size" not in story(caught.value)


def test_no_repr_contains_the_key(emulator):
    connection = SendGridConnection(emulator.api_key, emulator.url)
    with SendGridClient(connection) as client, new_session(connection) as session:
        for shown in (client, session, vars(client), session.auth):
            assert emulator.api_key not in repr(shown)


@pytest.fixture
def netrc(tmp_path, monkeypatch):
    """A ~/.netrc with a password for this machine."""
    path = tmp_path / ".netrc"
    path.write_text("machine 127.0.0.1 login someone password netrc-secret\n")
    path.chmod(0o600)
    monkeypatch.setenv("NETRC", str(path))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.usefixtures("netrc")
def test_netrc_does_not_replace_the_key(runner):
    assert runner.send().status_code == 200


@pytest.mark.usefixtures("netrc")
def test_downloads_do_not_read_netrc(emulator):
    """S3 refuses a request with two kinds of signature, and the password is not ours to give."""
    [url] = emulator_urls(emulator)
    with new_download_session(SendGridConnection(emulator.api_key, emulator.url)) as session:
        assert session.get(url, timeout=10).status_code == 200
    assert emulator.leaks() == []


def emulator_urls(emulator):
    connection = SendGridConnection(emulator.api_key, emulator.url)
    with SendGridClient(connection) as client:
        return client.run_flow(protocol.get_export(MARKETING, emulator.start_export(), CALM)).urls


def test_a_session_sends_the_key_to_the_api_only(emulator):
    """`SendGridHook.get_conn` hands it out."""
    connection = SendGridConnection(emulator.api_key, emulator.url, on_behalf_of="subuser")
    emulator.configure(subusers=("subuser",))
    [url] = emulator_urls(emulator)
    with new_session(connection) as session:
        assert session.get(f"{emulator.url}/v3/scopes", timeout=10).status_code == 200
        assert session.get(url, timeout=10).status_code == 200
        session.get(f"{emulator.files_url}/v3/scopes", timeout=10)
        another_name = emulator.url.replace("127.0.0.1", "localhost")
        assert session.get(f"{another_name}/v3/scopes", timeout=10).status_code == 401
        decorated = emulator.url.replace("//", "//api.sendgrid.com@")
        assert session.get(f"{decorated}/v3/scopes", timeout=10).status_code == 401
    assert emulator.leaks() == []


@pytest.mark.usefixtures("netrc")
def test_a_session_drops_the_key_on_a_redirect_elsewhere(emulator):
    """Neither the key, nor what requests finds in ~/.netrc, nor whom it acts for."""
    connection = SendGridConnection(emulator.api_key, emulator.url, on_behalf_of="subuser")
    emulator.inject(Fault("redirect", path="/v3/scopes", location=f"{emulator.files_url}/elsewhere"))
    with new_session(connection) as session:
        session.get(f"{emulator.url}/v3/scopes", timeout=10)
    [arrived] = emulator.requests(listener="files")
    assert arrived.path == "/elsewhere"
    assert arrived.leaked is False
    assert "on-behalf-of" not in arrived.headers


# --- settings of the connection


def test_requests_go_through_the_proxy_of_the_connection(runner, emulator, closed_url, monkeypatch):
    """The emulator acts as a proxy for plain HTTP; the environment's proxy is not used."""
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, closed_url)
    changed(runner, base_url="http://api.example", proxy=emulator.url).send()
    assert emulator.count() == 1


def test_a_proxy_error_does_not_contain_the_password(runner, closed_url, caplog):
    caplog.set_level(logging.DEBUG, logger="airflow_provider_sendgrid")
    proxy = closed_url.replace("//", "//user:p4ssw0rd@")
    with pytest.raises(SendGridUnavailableError, match="no connection") as caught:
        changed(runner, base_url="http://api.example", proxy=proxy).start_export()
    assert caught.value.may_have_been_accepted is False
    assert "p4ssw0rd" not in story(caught.value)
    assert "p4ssw0rd" not in caplog.text


# --- flows


@pytest.mark.parametrize("kind", ["requests", "httpx"])
def test_a_flow_without_requests_sends_nothing(kind):
    def flow():
        yield from ()
        return "done"

    assert FlowRunner(kind, SendGridConnection("SG.key")).run_flow(flow()) == "done"


def test_a_flow_that_fails_is_closed(runner):
    closed = []

    def flow():
        try:
            yield Request("GET", "/v3/scopes")
            raise KeyError("a mistake")
        finally:
            closed.append(True)

    with pytest.raises(KeyError):
        runner.run_flow(flow())
    assert closed == [True]


def test_both_clients_have_the_same_methods():
    """What one offers, the other does too."""
    clients = [inspect.signature(each).parameters for each in (SendGridClient, AsyncSendGridClient)]
    assert list(clients[0]) == [*clients[1], "stop"]  # what runs on an event loop is cancelled
    assert clients[0]["sleep"].kind is clients[1]["sleep"].kind is inspect.Parameter.KEYWORD_ONLY
