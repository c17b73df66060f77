"""Which requests a fault applies to, and faults without a response."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from urllib.parse import urlsplit

import pytest

from airflow_provider_sendgrid.emulator import Emulator, Fault

EXPORTS = "/v3/marketing/contacts/exports"
SCOPES = "/v3/scopes"
NO_RESPONSE = (http.client.RemoteDisconnected, ConnectionResetError)


def statuses(client, times, path=SCOPES):
    return [client.ask("GET", path).status for _ in range(times)]


# --- matching


def test_a_fault_applies_until_it_is_cleared(emulator, client):
    emulator.inject(Fault("status", status=503))
    assert statuses(client, 3) == [503, 503, 503]
    emulator.clear_faults()
    assert statuses(client, 1) == [200]


def test_a_fault_can_apply_to_the_nth_or_first_requests(emulator, client):
    """Matching requests are counted from when the fault was installed."""
    emulator.inject(Fault("status", path=SCOPES, nth=3), Fault("status", path=SCOPES, first=1, status=502))
    client.ask("GET", "/v3/marketing/lists")
    assert statuses(client, 4) == [502, 200, 500, 200]


def test_a_fault_applies_only_to_matching_requests(emulator, client):
    url = client.list_url()
    emulator.inject(
        Fault("status", method="POST"),
        Fault("status", path="/v3/marketing/li*"),
        Fault("status", path="*-00001.csv.gzip"),
    )
    assert statuses(client, 1) == [200]
    assert client.ask("POST", EXPORTS, {}).status == 500
    assert client.ask("GET", "/v3/marketing/lists").status == 500
    assert client.fetch(url).status == 500


def test_a_fault_can_apply_to_one_listener(emulator, client):
    url = client.list_url()
    emulator.inject(Fault("status", listener="files"))
    assert (statuses(client, 1), client.fetch(url).status) == ([200], 500)


def test_faults_can_be_combined(emulator, client):
    """For example, a truncated file from a storage that ignores ranges."""
    url = client.list_url()
    emulator.inject(Fault("no_ranges"), Fault("truncate", at=50))
    response = client.fetch(url, range="bytes=10-")
    assert (response.status, len(response.body)) == (200, 50)


@pytest.mark.parametrize("wrong", [{"kind": "unknown"}, {}, {"kind": "cut", "at": "5"}, {"kind": "cut", "byte": 5}])
def test_an_invalid_fault_is_refused(wrong):
    with pytest.raises(ValueError, match=r"there is no|must be"):
        Fault.from_payload(wrong)


def test_a_fault_survives_a_json_round_trip():
    fault = Fault("cut", at=5, nth=2, with_reset=True)
    assert Fault.from_payload(json.loads(json.dumps(fault.as_json()))) == fault


# --- no response


@pytest.mark.parametrize("kind", ["refuse", "reset"])
def test_a_refused_request_has_no_effect(emulator, client, kind):
    emulator.inject(Fault(kind, method="POST"))
    with pytest.raises(NO_RESPONSE):
        client.ask("POST", EXPORTS, {})
    assert client.ask("GET", EXPORTS).json["result"] == []
    assert emulator.requests("POST")[0].status == 0


@pytest.mark.parametrize("with_reset", [False, True])
def test_a_request_with_a_lost_response_has_its_effect(emulator, client, with_reset):
    """The export was started, though there was no response."""
    emulator.inject(Fault("lost", method="POST", with_reset=with_reset))
    with pytest.raises(NO_RESPONSE):
        client.ask("POST", EXPORTS, {})
    assert len(client.ask("GET", EXPORTS).json["result"]) == 1


def test_a_reset_sends_rst(emulator):
    emulator.inject(Fault("reset"))
    parts = urlsplit(emulator.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.sendall(b"GET /v3/scopes HTTP/1.1\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_a_hanging_request_ends_when_faults_are_cleared(emulator, client):
    emulator.inject(Fault("hang"))
    outcome: list[object] = []

    def ask():
        with pytest.raises(NO_RESPONSE) as ended:
            client.ask("GET", SCOPES)
        outcome.append(ended.value)

    thread = threading.Thread(target=ask)
    thread.start()
    assert emulator.wait_for_requests(1)
    assert outcome == []
    emulator.clear_faults()
    thread.join()
    assert len(outcome) == 1
    assert statuses(client, 1) == [200]


def test_closing_the_emulator_ends_hanging_requests():
    """A failing test must not hang."""
    with Emulator() as emulator:
        emulator.inject(Fault("hang"))
        parts = urlsplit(emulator.url)
        waiting = socket.create_connection((parts.hostname, parts.port), timeout=10)
        waiting.sendall(b"GET /v3/scopes HTTP/1.1\r\n\r\n")
        assert emulator.wait_for_requests(1)
    assert waiting.recv(1) == b""
    waiting.close()


def test_a_delayed_response_arrives(emulator, client):
    emulator.inject(Fault("delay", seconds=0.01))
    assert statuses(client, 1) == [200]
