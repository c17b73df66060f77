"""What happens on the wire: kept alive, slow, cut, or not HTTP at all."""

from __future__ import annotations

import http.client
import socket
import time
from urllib.parse import urlsplit

import pytest

from airflow_provider_sendgrid.emulator import Emulator


def raw(url, text):
    """Send bytes, return all that comes back until the connection ends."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


def test_a_connection_carries_many_requests(emulator):
    """HTTP/1.1 keeps it alive."""
    connection = http.client.HTTPConnection(urlsplit(emulator.url).netloc, timeout=10)
    connection.connect()
    local = connection.sock.getsockname()
    for _ in range(3):
        connection.request("GET", "/v3/scopes", headers={"Authorization": f"Bearer {emulator.api_key}"})
        with connection.getresponse() as answer:
            assert answer.read()
        assert connection.sock.getsockname() == local
    connection.close()


def test_a_client_may_ask_to_close(emulator):
    answer = raw(emulator.url, b"GET /v3/scopes HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 401 Unauthorized\r\n")


def test_a_large_body_is_waited_for(emulator):
    """As curl does: it asks before it sends."""
    lines = ["POST /v3/scopes HTTP/1.1", "Expect: 100-continue", "Content-Length: 2", "Connection: close"]
    head = "\r\n".join([*lines, "", "{}"]).encode()
    assert raw(emulator.url, head).startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 401")


@pytest.mark.parametrize(
    "noise",
    [b"\r\n", b"hello\r\n\r\n", b"\x16\x03\x01\x02\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n"],
)
def test_what_is_not_http_ends_the_connection(emulator, client, noise):
    """And nothing else."""
    assert raw(emulator.url, noise) == b""
    assert client.ask("GET", "/v3/scopes").status == 200


def test_a_client_that_goes_away_harms_nobody(client):
    url = urlsplit(client.list_url("Newsletter"))
    for _ in range(3):
        with socket.create_connection((url.hostname, url.port)) as connection:
            connection.sendall(f"GET {url.path}?{url.query} HTTP/1.1\r\n\r\n".encode())
    assert client.fetch(url.geturl()).status == 200


def test_a_connection_may_carry_only_so_many_bytes(emulator, client):
    """Then it ends, and the file goes on over another one, by range."""
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


def test_a_worn_out_connection_is_closed_at_once(emulator, client):
    """Not when the next request is on its way."""
    url = urlsplit(client.list_url())
    emulator.configure(bytes_per_connection=100)
    line = f"GET {url.path}?{url.query} HTTP/1.1\r\nRange: bytes=0-99\r\n\r\n".encode()
    with socket.create_connection((url.hostname, url.port), timeout=10) as connection:
        connection.sendall(line)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert len(answer.partition(b"\r\n\r\n")[2]) == 100


def test_a_connection_may_be_slow(emulator, client):
    url = client.list_url()
    emulator.configure(bytes_per_second=100_000)
    began = time.monotonic()
    assert client.fetch(url, range="bytes=0-9999").status == 206
    assert time.monotonic() - began >= 0.07


def test_bytes_sent_are_counted(emulator, client):
    body = client.fetch(client.list_url()).body
    assert emulator.requests(listener="files")[0].bytes_sent == len(body)


def test_closing_ends_connections_that_idle():
    """A client that keeps its connection does not keep the emulator."""
    with Emulator() as emulator:
        parts = urlsplit(emulator.url)
        idle = socket.create_connection((parts.hostname, parts.port), timeout=10)
    assert idle.recv(1) == b""
    idle.close()
