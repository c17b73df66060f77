"""Connections: kept open, slow, cut, or not HTTP."""

from __future__ import annotations

import http.client
import socket
import time
from urllib.parse import urlsplit

import pytest

from airflow_provider_sendgrid.emulator import Emulator


def raw(url, text):
    """Send bytes; return everything received until the connection is closed."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


def test_a_connection_carries_many_requests(emulator):
    """HTTP/1.1 keeps it open."""
    connection = http.client.HTTPConnection(urlsplit(emulator.url).netloc, timeout=10)
    connection.connect()
    local = connection.sock.getsockname()
    for _ in range(3):
        connection.request("GET", "/v3/scopes", headers={"Authorization": f"Bearer {emulator.api_key}"})
        with connection.getresponse() as response:
            assert response.read()
        assert connection.sock.getsockname() == local
    connection.close()


def test_a_client_can_request_to_close_the_connection(emulator):
    response = raw(emulator.url, b"GET /v3/scopes HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 401 Unauthorized\r\n")


def test_expect_100_continue_is_supported(emulator):
    """As curl sends it."""
    lines = ["POST /v3/scopes HTTP/1.1", "Expect: 100-continue", "Content-Length: 2", "Connection: close"]
    head = "\r\n".join([*lines, "", "{}"]).encode()
    assert raw(emulator.url, head).startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 401")


@pytest.mark.parametrize(
    "noise",
    [b"\r\n", b"hello\r\n\r\n", b"\x16\x03\x01\x02\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n"],
)
def test_input_that_is_not_http_closes_the_connection(emulator, client, noise):
    """Other connections are not affected."""
    assert raw(emulator.url, noise) == b""
    assert client.ask("GET", "/v3/scopes").status == 200


def test_a_disconnected_client_affects_no_others(client):
    url = urlsplit(client.list_url("Newsletter"))
    for _ in range(3):
        with socket.create_connection((url.hostname, url.port)) as connection:
            connection.sendall(f"GET {url.path}?{url.query} HTTP/1.1\r\n\r\n".encode())
    assert client.fetch(url.geturl()).status == 200


def test_bytes_per_connection_can_be_limited(emulator, client):
    """Then it is closed, and a range continues the file on another one."""
    url = client.list_url()
    whole = client.fetch(url).body
    emulator.configure(bytes_per_connection=10_000)
    got, cuts = b"", 0
    while len(got) < len(whole):
        try:
            got += client.fetch(url, range=f"bytes={len(got)}-").body
        except http.client.IncompleteRead as cut:
            got += cut.partial
            cuts += 1
    assert got == whole
    assert cuts == len(whole) // 10_000


def test_a_connection_at_its_limit_is_closed_at_once(emulator, client):
    """Not only with the next request."""
    url = urlsplit(client.list_url())
    emulator.configure(bytes_per_connection=100)
    line = f"GET {url.path}?{url.query} HTTP/1.1\r\nRange: bytes=0-99\r\n\r\n".encode()
    with socket.create_connection((url.hostname, url.port), timeout=10) as connection:
        connection.sendall(line)
        response = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert len(response.partition(b"\r\n\r\n")[2]) == 100


def test_a_connection_can_be_slow(emulator, client):
    url = client.list_url()
    emulator.configure(bytes_per_second=100_000)
    began = time.monotonic()
    assert client.fetch(url, range="bytes=0-9999").status == 206
    assert time.monotonic() - began >= 0.07


def test_bytes_sent_are_counted(emulator, client):
    body = client.fetch(client.list_url()).body
    assert emulator.requests(listener="files")[0].bytes_sent == len(body)


def test_closing_the_emulator_closes_idle_connections():
    """A client that keeps its connection open does not keep the emulator running."""
    with Emulator() as emulator:
        parts = urlsplit(emulator.url)
        idle = socket.create_connection((parts.hostname, parts.port), timeout=10)
    assert idle.recv(1) == b""
    idle.close()
