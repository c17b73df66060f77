"""The class `Emulator`."""

from __future__ import annotations

import csv
import io
import json
import socket
import threading
from urllib.parse import urlsplit

import pytest

from airflow_provider_sendgrid.emulator import DEFAULT_LISTS, Emulator, Settings


def test_connection_json_has_host_and_key(emulator):
    connection = json.loads(emulator.connection_json(on_behalf_of="berlin"))
    assert (connection["conn_type"], connection["host"]) == ("sendgrid", emulator.url)
    assert (connection["password"], connection["extra"]) == (emulator.api_key, {"on_behalf_of": "berlin"})


def test_the_key_has_the_length_of_sendgrids_keys(emulator):
    assert len(emulator.api_key) == 69
    assert emulator.api_key.startswith("SG.")


def test_api_and_files_have_different_origins(emulator):
    assert emulator.url != emulator.files_url


@pytest.mark.parametrize("family", ["marketing", "legacy"])
def test_a_new_account_has_default_lists(emulator, family):
    assert [(each.name, each.contacts) for each in emulator.lists(family)] == list(DEFAULT_LISTS)


def test_an_account_can_start_empty():
    assert Emulator(populate=False).lists() == []


def test_export_files_returns_the_actual_content(emulator):
    emulator.configure(contacts_per_file=300)
    files = emulator.export_files(emulator.start_export([emulator.list_id("Customers")]))
    assert [file.rows for file in files] == [300, 200]
    for file in files:
        rows = csv.reader(io.StringIO(file.read().decode(), newline=""))
        assert sum(1 for _ in rows) == file.rows + 1
        assert sum(map(len, file.chunks())) == file.plain_bytes


def test_an_export_keeps_the_settings_of_its_start(emulator, client):
    """A changed setting does not change files that are being downloaded."""
    status = client.start(list_ids=[emulator.list_id("Customers")])
    emulator.configure(contacts_per_file=100)
    assert len(client.ask("GET", status).json["urls"]) == 1


def test_unknown_names_and_ids_raise_key_error(emulator):
    for ask in (emulator.list_id, emulator.segment_id, emulator.export_files):
        with pytest.raises(KeyError):
            ask("nothing")
    with pytest.raises(KeyError):
        emulator.start_export(["nothing"])


@pytest.mark.parametrize(
    "wrong", [{"encoding": "br"}, {"no_such": 1}, {"ready_after": "5"}, {"ranges": 1}, {"rate_limit": True}]
)
def test_an_invalid_setting_is_refused(emulator, wrong):
    before = emulator.settings
    with pytest.raises(ValueError, match=next(iter(wrong))):
        emulator.configure(**wrong)
    assert emulator.settings == before


def test_settings_are_checked_at_construction():
    with pytest.raises(ValueError, match="product"):
        Settings(product="marketing-campaigns")


def test_no_thread_or_port_is_left_after_close():
    before = set(threading.enumerate())
    with Emulator() as emulator:
        emulator.start_export()
        ports = [urlsplit(url).port for url in (emulator.url, emulator.files_url)]
    assert set(threading.enumerate()) <= before
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=1)


def test_a_port_in_use_raises_an_error(emulator):
    port = urlsplit(emulator.url).port
    with pytest.raises(OSError, match="in use"):
        Emulator(port=port).start()


def test_many_clients_are_served_concurrently(client):
    """Each gets the whole file."""
    url = client.list_url("Newsletter")
    whole = client.fetch(url).body
    got: list[bool] = []
    threads = [threading.Thread(target=lambda: got.append(client.fetch(url).body == whole)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [True] * 20
