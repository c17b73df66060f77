"""Recorded requests, without secrets."""

from __future__ import annotations

import threading

import pytest


def test_a_request_is_recorded(emulator, client, clock):
    client.ask("GET", "/v3/marketing/lists?page_size=3", User_Agent="test")
    [entry] = emulator.requests()
    assert (entry.time, entry.listener, entry.method) == (clock(), "api", "GET")
    assert (entry.path, entry.status, entry.key_id) == ("/v3/marketing/lists", 200, "emulatoremulatoremulat")
    assert entry.headers["user-agent"] == "test"


def test_neither_key_nor_signature_is_recorded(emulator, client):
    client.fetch(client.list_url(), range="bytes=0-4")
    kept = repr(emulator.requests())
    assert emulator.api_key not in kept
    assert "X-Amz" not in kept
    assert "bytes=0-4" in kept


def test_requests_are_counted_by_method_path_and_listener(emulator, client):
    client.fetch(client.list_url())
    client.ask("GET", "/v3/scopes")
    assert emulator.count() == 4
    assert emulator.count("POST") == 1
    assert emulator.count("GET", "/v3/marketing/contacts/exports") == 1
    assert emulator.count(listener="files") == 1


def test_a_test_can_wait_for_requests(emulator, client):
    """Instead of sleeping."""
    thread = threading.Thread(target=lambda: [client.ask("GET", "/v3/scopes") for _ in range(3)])
    thread.start()
    assert emulator.wait_for_requests(3, "GET", "/v3/scopes")
    thread.join()
    assert not emulator.wait_for_requests(4, timeout=0.01)


@pytest.mark.parametrize("authorization", ["", "Bearer wrong", "Basic abc"])
def test_an_unknown_key_has_no_id(emulator, client, authorization):
    client.ask("GET", "/v3/scopes", Authorization=authorization)
    assert [(entry.status, entry.key_id) for entry in emulator.requests()] == [(401, "")]
