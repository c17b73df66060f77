"""Whether a start may have been accepted, for every network error of both clients, against real sockets."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

import pytest

from airflow_provider_sendgrid.exceptions import (
    SendGridAuthError,
    SendGridError,
    SendGridServerError,
    SendGridUnavailableError,
)
from airflow_provider_sendgrid.exports import client as client_module
from airflow_provider_sendgrid.exports import protocol
from airflow_provider_sendgrid.exports.client import AsyncSendGridClient, SendGridClient
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.export import ExportFamily, ExportSelection
from airflow_provider_sendgrid.exports.network import resolve_network
from airflow_provider_sendgrid.exports.protocol import Request, RetryPolicy
from airflow_provider_sendgrid.exports.sending import ERRORS, RequestCancelledError, SendState, When, when_raised
from tests.support.network import Proxy, Server, closed_port, make_certificate, reset, response

KINDS = ("requests", "httpx")
ONCE = RetryPolicy(tries=1)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def start(kind, connection, *, times=1):
    """Start an export by one client, `times` in a row; the last id."""

    def flow():
        return protocol.start_export(ExportFamily.MARKETING, ExportSelection(), ONCE)

    async def on_a_loop():
        async with AsyncSendGridClient(connection) as client:
            return [await client.run_flow(flow()) for _ in range(times)][-1]

    if kind == "httpx":
        return asyncio.run(on_a_loop())
    with SendGridClient(connection) as client:
        return [client.run_flow(flow()) for _ in range(times)][-1]


@dataclass(frozen=True)
class Way:
    """From client to server."""

    name: str
    tls: bool = False
    proxy: bool = False


DIRECT, TLS = Way("direct"), Way("TLS", tls=True)
FORWARD, TUNNEL = Way("forwarding proxy", proxy=True), Way("CONNECT proxy", tls=True, proxy=True)

# The way, the fault (of the server; of the proxy, where it begins with "proxy "), and whether the start may have been
# accepted: None where it is.
SITUATIONS = [
    *((way, "", None) for way in (DIRECT, TLS, FORWARD, TUNNEL)),
    # No connection to the first host.
    (DIRECT, "refused", False),
    (TLS, "refused", False),
    (FORWARD, "proxy refused", False),
    (TUNNEL, "proxy refused", False),
    (DIRECT, "unknown name", False),
    (TLS, "unknown name", False),
    # TLS that fails.
    (TLS, "reset", False),
    (TLS, "cut handshake", False),
    (TLS, "hang", False),
    (TLS, "distrusted", False),
    (TUNNEL, "reset", False),
    (TUNNEL, "cut handshake", False),
    (TUNNEL, "hang", False),
    (TUNNEL, "distrusted", False),
    # Tunnels that are not made.
    *(
        (TUNNEL, f"proxy {fault}", False)
        for fault in ("403", "407", "502", "garbage", "closed", "lost", "reset", "hang")
    ),
    (TUNNEL, "proxy tunnel", False),
    # The request was on its way, or arrived.
    *((way, fault, True) for way in (DIRECT, TLS, FORWARD, TUNNEL) for fault in ("middle", "lost", "closed")),
    *((way, fault, True) for way in (DIRECT, TLS, TUNNEL) for fault in ("silent", "half", "garbage")),
    (TLS, "broken tls", True),
    (TUNNEL, "broken tls", True),
    (FORWARD, "proxy lost", True),
    (FORWARD, "proxy closed", True),
    (FORWARD, "proxy hang", True),
    (FORWARD, "proxy garbage", True),
    (FORWARD, "proxy 502", True),
    (FORWARD, "proxy 504 after", True),
    (FORWARD, "proxy cut answer", True),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("way", "fault", "expected"), SITUATIONS, ids=[f"{way.name} {fault or 'fine'}" for way, fault, _ in SITUATIONS]
)
def test_each_network_error_says_whether_the_start_was_sent(kind, way, fault, expected, certificate):
    waits = fault.endswith(("hang", "silent"))
    with ExitStack() as stack:
        at_proxy = fault.startswith("proxy ")
        server = stack.enter_context(Server("" if at_proxy else fault, certificate if way.tls else None).running())
        url, proxy_url = server.url, None
        if way.proxy:
            proxy = stack.enter_context(Proxy(fault.removeprefix("proxy ") if at_proxy else "").running())
            proxy_url = proxy.url
        if way is FORWARD:  # never used for this machine
            url = url.replace("localhost", "api.test")
        if fault == "refused":
            url = f"{'https' if way.tls else 'http'}://localhost:{stack.enter_context(closed_port())}"
        if fault == "proxy refused":
            proxy_url = f"http://localhost:{stack.enter_context(closed_port())}"
        if fault == "unknown name":
            url = url.replace("localhost", "nowhere.invalid")
        connection = SendGridConnection(
            "SG.key",
            url,
            timeout_seconds=0.3 if waits else 10,
            verify=True if fault == "distrusted" else str(certificate),
            proxy=proxy_url,
        )
        if expected is None:
            assert start(kind, connection) == "export-1"
            return
        with pytest.raises(SendGridError) as caught:
            start(kind, connection)
        assert caught.value.may_have_been_accepted is expected, str(caught.value)
        assert server.count("POST") <= 1
        if not expected:
            assert server.count("POST") == 0
            assert "no connection (" in str(caught.value)


# --- responses that cannot be read


def redirect(location):
    return b"HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % location


NO_URLS = (b"https://[login.example/", b"http://\xfc.example/", "http://a\u2100b/".encode(), b"http://a:99999/")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("location", NO_URLS)
def test_a_start_redirected_to_no_url_is_in_doubt(kind, location):
    """Requests parses the target of a redirect, followed or not."""
    with Server(answers=[redirect(location)]).running() as server:
        with pytest.raises(SendGridError) as caught:
            start(kind, SendGridConnection("SG.key", server.url))
        assert caught.value.may_have_been_accepted is True
        assert server.count("POST") == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("location", NO_URLS)
def test_a_get_redirected_to_no_url_is_retried(kind, location):
    retry_policy = RetryPolicy(tries=2, first_wait_seconds=0.0)
    with Server(answers=[redirect(location)]).running() as server:
        assert run_flow(kind, SendGridConnection("SG.key", server.url), protocol.get_scopes(retry_policy)) == []
        assert server.count("GET") == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [ValueError("secret"), UnicodeDecodeError("utf-8", b"", 0, 1, ""), RuntimeError()])
def test_an_unexpected_error_while_reading_is_unreadable(kind, error, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(client_module._Body, "add", fail)
    with Server().running() as server:
        with pytest.raises(SendGridServerError, match=r"the response cannot be read \(\w+Error\)") as caught:
            start(kind, SendGridConnection("SG.key", server.url))
        assert caught.value.may_have_been_accepted is True
        assert "secret" not in str(caught.value)


# --- interim responses

HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"
INTERIM = [HINTS, HINTS * 3, b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + HINTS]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("interim", INTERIM)
def test_an_interim_response_is_skipped(kind, interim):
    """Nor is the response taken for that of the next request on the connection."""
    with Server(answers=[interim + response(), interim + response(body=b'{"id": "export-2"}')]).running() as server:
        assert start(kind, SendGridConnection("SG.key", server.url), times=2) == "export-2"
        assert (server.connections, server.count("POST")) == (1, 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", [HINTS, HINTS[:-2], b"HTTP/1.1 101 Switching Protocols\r\n\r\n"])
def test_a_start_with_only_an_interim_response_is_in_doubt(kind, answer):
    with Server("stale", answers=[answer]).running() as server:
        with pytest.raises(SendGridError) as caught:
            start(kind, SendGridConnection("SG.key", server.url, timeout_seconds=10))
        assert caught.value.may_have_been_accepted is True
        assert server.count("POST") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_after_an_interim_response_is_definite(kind):
    with Server(answers=[HINTS + response("403 Forbidden", b"{}")] * 9).running() as server:
        with pytest.raises(SendGridError) as caught:
            start(kind, SendGridConnection("SG.key", server.url))
        assert (caught.value.status_code, caught.value.may_have_been_accepted) == (403, False)


# --- tunnels that the proxy refuses


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_proxy_password_is_an_error_without_retry(kind, certificate):
    with Server("", certificate).running() as server, Proxy("407").running() as proxy:
        connection = SendGridConnection("SG.key", server.url, proxy=f"http://user:p4ss@localhost:{proxy.port}")
        retry_policy = RetryPolicy(tries=3, first_wait_seconds=0.0)
        with pytest.raises(
            SendGridAuthError, match=r"with 407\)\. Check the user and the password in the proxy"
        ) as caught:
            run_flow(kind, connection, protocol.get_scopes(retry_policy))
        assert caught.value.status_code == 407
        assert "p4ss" not in str(caught.value)
        assert proxy.count("CONNECT") == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", ["403", "502"])
def test_a_refused_tunnel_names_the_proxys_status(kind, status, certificate):
    with Server("", certificate).running() as server, Proxy(status).running() as proxy:
        connection = SendGridConnection("SG.key", server.url, proxy=proxy.url)
        with pytest.raises(SendGridUnavailableError, match=rf"the proxy refused the tunnel with {status}\)"):
            start(kind, connection)


# --- connections that are reset


def test_a_reset_before_tls_leaves_no_socket_open():
    """The `ssl` module raises without closing it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        reset(accepted)
        assert select.select([client], [], [], 10)[0]
        number = client.fileno()
        with pytest.raises(ConnectionResetError):
            resolve_network(SendGridConnection("SG.key"), {}).tls.wrap_socket(client, server_hostname="localhost")
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)


# --- connections that are used again


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_tls", [False, True])
def test_a_start_on_a_closed_connection_is_sent_once(kind, is_tls, certificate):
    """The connection seems open for a moment; neither client sends the request a second time by itself."""
    with Server("stale", certificate if is_tls else None).running() as server:
        connection = SendGridConnection("SG.key", server.url, verify=str(certificate), timeout_seconds=10)
        with suppress(SendGridUnavailableError):
            start(kind, connection, times=4)
        assert server.count("POST") <= 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_lost_on_a_reused_connection_is_in_doubt(kind):
    with Server().running() as server:
        connection = SendGridConnection("SG.key", server.url, timeout_seconds=10)

        def flow():
            yield Request("GET", "/v3/scopes")
            server.fault = "closed"
            yield Request("POST", "/v3/marketing/contacts/exports", {})

        with pytest.raises(SendGridUnavailableError) as caught:
            run_flow(kind, connection, flow())
        assert caught.value.may_have_been_accepted is True
        assert (server.connections, server.count("POST")) == (1, 1)


def run_flow(kind, connection, flow):
    async def on_a_loop():
        async with AsyncSendGridClient(connection) as client:
            return await client.run_flow(flow)

    if kind == "httpx":
        return asyncio.run(on_a_loop())
    with SendGridClient(connection) as client:
        return client.run_flow(flow)


# --- what was given up


@pytest.fixture
def slow(certificate):
    """A server whose TLS, and a proxy whose tunnel, come when `held` is set."""
    with Server("", certificate).running() as server, Proxy("").running() as proxy:
        connection = SendGridConnection(
            "SG.key", server.url, verify=str(certificate), timeout_seconds=10, proxy=proxy.url
        )
        yield server, proxy, connection


def let_pass(server, proxy):
    """The connection that was waited for is made at last; all that could come of it has come."""
    for each in (server, proxy):
        each.fault = ""
        each.held.set()
    # What server and proxy do with a connection is over when its thread is.
    for each in (*proxy._threads, *server._threads):
        each.join(10)
        assert not each.is_alive()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", ["proxy", "TLS", "TLS without proxy"])
def test_a_start_cancelled_while_connecting_is_never_sent(kind, at, slow, monkeypatch):
    """The whole response's time is over before the connection is made; it is made all the same."""
    server, proxy, connection = slow
    monkeypatch.setattr(client_module, "_RESPONSE_TIMEOUTS", 0.05)
    (proxy if at == "proxy" else server).fault = "slow"
    connection = replace(connection, proxy=None) if at == "TLS without proxy" else connection
    with pytest.raises(SendGridUnavailableError, match="no connection") as caught:
        start(kind, connection)
    assert caught.value.may_have_been_accepted is False
    let_pass(server, proxy)
    assert server.count("POST") == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_interrupted_while_connecting_sends_no_start(kind, slow):
    """By a time limit of Airflow's or Ctrl-C, which are raised in the main thread."""
    server, proxy, connection = slow
    server.fault = "slow"

    def interrupt(*_):
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            start(kind, connection)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    let_pass(server, proxy)
    assert server.count("POST") == 0


@pytest.mark.asyncio
async def test_a_trigger_cancelled_while_connecting_sends_no_start(slow):
    server, proxy, connection = slow
    server.fault = "slow"
    async with AsyncSendGridClient(connection) as client:
        task = asyncio.ensure_future(
            client.run_flow(protocol.start_export(ExportFamily.MARKETING, ExportSelection(), ONCE))
        )
        while not server.connections:  # noqa: ASYNC110 - the server is another thread
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.to_thread(let_pass, server, proxy)
    assert server.count("POST") == 0


# --- the record


def test_nothing_is_sent_after_a_cancellation():
    send_state = SendState()
    send_state.record_connecting()
    send_state.cancel()
    with pytest.raises(RequestCancelledError):
        send_state.record_sending()
    assert send_state.may_have_been_accepted(TimeoutError()) is False


def test_a_cancelled_request_may_have_been_accepted():
    """SendGrid probably does not accept a request whose body is incomplete, but that is not certain."""
    send_state = SendState()
    send_state.record_sending()
    send_state.cancel()
    with pytest.raises(RequestCancelledError):
        send_state.record_sending()
    assert send_state.may_have_been_accepted(TimeoutError()) is True


def test_an_unknown_error_may_have_been_accepted():
    class StrangeError(Exception):
        pass

    send_state = SendState()
    send_state.record_connecting()
    assert send_state.may_have_been_accepted(StrangeError()) is True


def test_an_ambiguous_error_without_a_record_is_in_doubt():
    """Where a client's way of connecting is not recorded, nothing is taken for unsent."""
    import httpx

    assert SendState().may_have_been_accepted(httpx.ReadError("")) is True
    assert SendState().may_have_been_accepted(httpx.ConnectError("")) is False


def test_recorded_sending_wins_over_any_error():
    import httpx

    send_state = SendState()
    send_state.record_sending()
    assert all(send_state.may_have_been_accepted(each("")) for each in (httpx.ConnectError, httpx.PoolTimeout))


def test_a_failed_socks_handshake_sends_nothing():
    """Httpx lets the errors of its SOCKS library through, which need not be installed."""
    error = socks_error()("the proxy closed the connection")
    send_state = SendState()
    send_state.record_connecting()
    assert send_state.may_have_been_accepted(error) is False
    send_state.record_sending()
    assert send_state.may_have_been_accepted(error) is True


def socks_error():
    base = type("SOCKSError", (Exception,), {"__module__": "socksio.exceptions"})
    return type("ProtocolError", (base,), {"__module__": "socksio.exceptions"})


def every_error():
    import http.client

    import httpx
    import requests
    import urllib3

    return {
        **{f"requests.{name}": each for name, each in vars(requests.exceptions).items()},
        **{f"httpx.{name}": each for name, each in vars(httpx).items()},
        "urllib3.HTTPError": urllib3.exceptions.HTTPError,
        "http.HTTPException": http.client.HTTPException,
        "socksio.SOCKSError": socks_error(),
        "builtins.TimeoutError": TimeoutError,
        "builtins.OSError": OSError,
    }


@pytest.mark.parametrize("name", ERRORS)
def test_the_table_names_errors_that_exist(name):
    assert when_raised(every_error()[name]) is ERRORS[name]


def test_every_network_error_of_httpx_is_in_the_table():
    import httpx

    leaves = [each for each in subclasses(httpx.TransportError) if not each.__subclasses__()]
    assert {f"httpx.{each.__name__}" for each in leaves} <= ERRORS.keys()


def test_every_connection_error_of_requests_is_in_the_table():
    import requests

    for each in (requests.exceptions.ConnectionError, *subclasses(requests.exceptions.ConnectionError)):
        assert when_raised(each) is not When.AFTER


def subclasses(parent):
    for each in parent.__subclasses__():
        yield each
        yield from subclasses(each)


def test_a_502_of_a_forwarding_proxy_is_in_doubt():
    with Server().running() as server, Proxy("502").running() as proxy:
        connection = SendGridConnection(
            "SG.key", server.url.replace("localhost", "api.test"), proxy=proxy.url, timeout_seconds=10
        )
        for kind in KINDS:
            with pytest.raises(SendGridServerError) as caught:
                start(kind, connection)
            assert caught.value.may_have_been_accepted is True
