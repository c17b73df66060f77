"""The endpoints below `/_emulator/`."""

from __future__ import annotations

import pytest


def admin(client, method, path, body=None):
    return client.ask(method, f"/_emulator/{path}", body, Authorization="")


def test_a_list_can_be_added(emulator, client):
    response = admin(client, "POST", "lists", {"name": "New", "contacts": 7, "outcome": "stuck"})
    assert (response.status, response.json["id"]) == (201, emulator.list_id("New"))


def test_a_segment_can_be_added(emulator, client):
    response = admin(client, "POST", "segments", {"name": "New", "family": "legacy"})
    assert response.json["id"] == emulator.segment_id("New", "legacy")


def test_an_export_can_be_started_without_the_api(emulator, client):
    """As from SendGrid's web app: it is listed, and no API request started it."""
    export_id = admin(client, "POST", "exports", {"list_ids": [emulator.list_id("Customers")]}).json["id"]
    assert client.ask("GET", "/v3/marketing/contacts/exports").json["result"][0]["id"] == export_id
    assert emulator.count("POST") == 0


def test_settings_can_be_changed(emulator, client):
    changed = admin(client, "PATCH", "settings", {"ready_after": 9, "subusers": ["a"]}).json
    assert (changed["ready_after"], emulator.settings.ready_after) == (9, 9)
    assert emulator.settings.subusers == ("a",)
    assert admin(client, "GET", "settings").json == changed


def test_faults_can_be_installed_and_cleared(client):
    assert admin(client, "POST", "faults", {"kind": "status", "status": 503}).json["faults"][0]["status"] == 503
    assert client.ask("GET", "/v3/scopes").status == 503
    assert admin(client, "DELETE", "faults").json == {"faults": []}
    assert client.ask("GET", "/v3/scopes").status == 200


def test_recorded_requests_can_be_listed_and_cleared(client):
    client.ask("GET", "/v3/scopes")
    client.ask("GET", "/v3/marketing/lists")
    found = admin(client, "GET", "requests?method=GET&path=/v3/sc").json["requests"]
    assert [(each["path"], each["status"]) for each in found] == [("/v3/scopes", 200)]
    assert admin(client, "DELETE", "requests").json == {"requests": []}


def test_the_state_lists_every_export(emulator, client):
    customers = emulator.list_id("Customers")
    export_id = emulator.start_export([customers], file_type="json")
    state = admin(client, "GET", "state").json
    assert state["exports"] == [
        {
            "id": export_id,
            "family": "marketing",
            "status": "ready",
            "created_at": "2023-11-14T22:13:20Z",
            "export_type": "list_export",
            "file_type": "json",
            "contacts": 500,
            "lists": [customers],
            "segments": [],
        }
    ]
    assert {"Newsletter", "Broken list"} <= {each["name"] for each in state["lists"]}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "lists", {"name": ""}),
        ("POST", "lists", {"name": "x", "contacts": "many"}),
        ("POST", "lists", {"name": "x", "family": "other"}),
        ("POST", "lists", [1]),
        ("POST", "exports", {"family": "other"}),
        ("POST", "exports", {"list_ids": ["unknown"]}),
        ("PATCH", "settings", {"encoding": "br"}),
        ("PATCH", "settings", {"colour": "blue"}),
        ("PATCH", "settings", {"ranges": 1}),
        ("POST", "faults", {"kind": "bad luck"}),
    ],
)
def test_invalid_input_is_refused(client, method, path, body):
    assert admin(client, method, path, body).status == 400


def test_an_unknown_endpoint_lists_the_known_ones(client):
    response = admin(client, "GET", "nothing")
    assert response.status == 404
    assert "POST /_emulator/lists" in response.json["errors"][0]["message"]


def test_the_file_storage_has_no_admin_endpoints(emulator, client):
    assert client.fetch(f"{emulator.files_url}/_emulator/state").status == 403
