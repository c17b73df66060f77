"""Fixtures of the emulator's tests: a fake clock, and a plain HTTP client."""

from __future__ import annotations

import gzip
import http.client
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest

from airflow_provider_sendgrid.emulator import Emulator
from tests.support.clock import FakeClock


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def content(self) -> bytes:
        """The uncompressed body."""
        return gzip.decompress(self.body) if self.body[:2] == b"\x1f\x8b" else self.body


def request(
    url: str, method: str = "GET", headers: dict[str, str] | None = None, body: bytes | None = None
) -> Response:
    """Send one request on a new connection."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    try:
        connection.request(method, url[url.index("/", 8) :], body, headers or {})
        with connection.getresponse() as response:
            return Response(response.status, dict(response.getheaders()), response.read())
    finally:
        connection.close()


@dataclass
class Client:
    """A client of one emulator."""

    emulator: Emulator
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Response:
        """Send a request to the API, with the key unless other headers are given."""
        url = path if path.startswith("http") else self.emulator.url + path
        sent = {"Authorization": f"Bearer {self.emulator.api_key}", **headers}
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        return request(url, method, {name.replace("_", "-"): v for name, v in sent.items() if v}, raw)

    def fetch(self, url: str, method: str = "GET", **headers: str) -> Response:
        """Send a request to the file storage."""
        return request(url, method, {name.replace("_", "-"): value for name, value in headers.items()})

    def start(self, path: str = "/v3/marketing/contacts/exports", **body: Any) -> str:
        """Start an export and return the URL of its status."""
        response = self.ask("POST", path, body)
        assert response.status == 202, response
        return response.json["_metadata"]["self"]

    def urls(self, **body: Any) -> list[str]:
        """Start an export and return its file URLs."""
        return self.ask("GET", self.start(**body)).json["urls"]

    def list_url(self, name: str = "Customers") -> str:
        """Start an export of a list and return the URL of its only file."""
        [url] = self.urls(list_ids=[self.emulator.list_id(name)])
        return url


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1_700_000_000.0)


@pytest.fixture
def emulator(clock: FakeClock) -> Iterator[Emulator]:
    with Emulator(clock=clock) as running:
        yield running


@pytest.fixture
def client(emulator: Emulator) -> Client:
    return Client(emulator)


@pytest.fixture
def client_of() -> Callable[[Emulator], Client]:
    return Client
