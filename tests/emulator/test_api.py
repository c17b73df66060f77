"""Every documented endpoint responds as documented, in both families."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from airflow_provider_sendgrid.emulator import Emulator, Key, Settings

MARKETING, LEGACY = "/v3/marketing/contacts/exports", "/v3/contactdb/exports"
OPENAPI = Path(__file__).parents[3] / "shared" / "openapi"
SPECS = {
    "/v3/scopes": "tsg_scopes_v3.json",
    "/v3/marketing/contacts": "tsg_mc_contacts_v3.json",
    "/v3/marketing/lists": "tsg_mc_lists_v3.json",
    "/v3/marketing/segments": "tsg_mc_segments_2.0_v3.json",
    "/v3/contactdb": "tsg_lmc_contactdb_v3.json",
}


@cache
def spec(path):
    [name] = [name for prefix, name in SPECS.items() if path.startswith(prefix)]
    return json.loads((OPENAPI / name).read_text())


def schema_of(method, path, status):
    """Return the schema of a response, with OpenAPI's `nullable` translated to JSON Schema."""
    document = spec(path)
    fitting = [t for t, offered in document["paths"].items() if fits(t, path) and method.lower() in offered]
    template = min(fitting, key=lambda t: t.count("{"))
    response = resolved(document, document["paths"][template][method.lower()]["responses"][str(status)])
    return response["content"]["application/json"]["schema"]


def fits(template, path):
    wanted, given = template.split("/"), path.split("/")
    return len(wanted) == len(given) and all(w == g or w.startswith("{") for w, g in zip(wanted, given, strict=True))


def resolved(document, value):
    if isinstance(value, list):
        return [resolved(document, each) for each in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        target = document
        for step in value["$ref"].removeprefix("#/").split("/"):
            target = target[step.replace("~1", "/")]
        return resolved(document, target)
    plain = {name: resolved(document, each) for name, each in value.items() if name != "example"}
    if plain.pop("nullable", False) is True:
        return {"anyOf": [plain, {"type": "null"}]}
    return plain


@pytest.fixture
def check_schema():
    """Validate a payload against a schema of the published description."""
    if not OPENAPI.exists():
        pytest.skip("the published OpenAPI descriptions are not beside this checkout")
    jsonschema = pytest.importorskip("jsonschema")
    return lambda payload, schema: jsonschema.Draft202012Validator(schema()).validate(payload)


@pytest.fixture
def check(check_schema):
    """Validate a response against the published description."""

    def check(method, url, response):
        check_schema(response.json, lambda: schema_of(method, urlsplit(url).path, response.status))
        return response

    return check


# --- published schemas


@pytest.mark.parametrize(("path", "family"), [(MARKETING, "marketing"), (LEGACY, "legacy")])
def test_an_export_conforms_to_the_published_schema(emulator, client, clock, check, path, family):
    """Started, pending, ready, failed, listed."""
    emulator.configure(ready_after=5)
    good, broken = (emulator.list_id(name, family) for name in ("Customers", "Broken list"))
    started = check("POST", path, client.ask("POST", path, {"list_ids": [good], "file_type": "csv"}))
    failing = check("POST", path, client.ask("POST", path, {"list_ids": [broken]}))
    for when, statuses in ((0, ["pending", "pending"]), (5, ["ready", "failure"])):
        clock.advance(when)
        for start, status in zip((started, failing), statuses, strict=True):
            url = start.json["_metadata"]["self"]
            assert status == check("GET", url, client.ask("GET", url)).json["status"]
        check("GET", path, client.ask("GET", path))


@pytest.mark.parametrize("path", ["/v3/scopes", "/v3/marketing/lists", "/v3/contactdb/lists", "/v3/contactdb/segments"])
def test_lists_and_scopes_conform_to_the_published_schema(client, check, path):
    assert check("GET", path, client.ask("GET", path)).status == 200


def test_a_marketing_segment_conforms_to_its_schema(client, check_schema):
    """The description shows one segment, though the endpoint returns a list."""
    path = "/v3/marketing/segments/2.0"
    for segment in client.ask("GET", path).json["results"]:
        check_schema(segment, lambda: schema_of("GET", path, 200))


def test_every_response_has_a_date(clock, client):
    """By the emulator's clock, like the times of its exports."""
    assert client.ask("GET", MARKETING).headers["Date"] == "Tue, 14 Nov 2023 22:13:20 GMT"
    clock.advance(60)
    assert client.ask("GET", "/v3/nothing").headers["Date"] == "Tue, 14 Nov 2023 22:14:20 GMT"


def test_a_segment_of_the_first_api_is_only_listed_there(emulator, client):
    """It can be exported nevertheless."""
    old = emulator.add_segment("Old buyers", contacts=3, first_api=True)
    assert [each["id"] for each in client.ask("GET", "/v3/marketing/segments").json["results"]] == [old]
    assert old not in [each["id"] for each in client.ask("GET", "/v3/marketing/segments/2.0").json["results"]]
    assert client.ask("POST", MARKETING, {"segment_ids": [old]}).status == 202


@pytest.mark.parametrize("path", [MARKETING, LEGACY])
def test_errors_conform_to_the_published_schema(client, check, path):
    assert check("GET", path, client.ask("GET", path, Authorization="")).status == 401
    assert check("GET", path, client.ask("GET", path, Authorization="Bearer SG.un.known")).status == 401
    assert check("GET", f"{path}/x", client.ask("GET", f"{path}/x")).status == 404
    assert check("POST", path, client.ask("POST", path, {"list_ids": "all"})).status == 400
    assert check("GET", path, client.ask("GET", path, on_behalf_of="unknown")).status == 403


# --- starting


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"list_ids": "x"}, "list_ids"),
        ({"list_ids": [7]}, "list_ids"),
        ({"list_ids": ["00000000-0000-0000-0000-000000000000"]}, "list_ids"),
        ({"segment_ids": [None]}, "segment_ids"),
        ({"segment_ids": ["x"]}, "segment_ids"),
        ({"file_type": "xlsx"}, "file_type"),
        ({"file_type": None}, "file_type"),
        ({"file_type": ["csv"]}, "file_type"),
        ({"max_file_size": 0}, "max_file_size"),
        ({"max_file_size": "5000"}, "max_file_size"),
        ({"max_file_size": True}, "max_file_size"),
        ({"notifications": True}, "notifications"),
        ({"notifications": {"email": "yes"}}, "notifications"),
    ],
)
def test_an_error_names_the_invalid_field(client, body, field):
    response = client.ask("POST", MARKETING, body)
    assert (400, field) == (response.status, response.json["errors"][0]["field"])
    assert client.ask("GET", MARKETING).json["result"] == []


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff"])
def test_a_body_that_is_not_an_object_is_refused(client, body):
    assert client.ask("POST", MARKETING, body).status == 400


def test_legacy_ids_are_integers(client, emulator):
    marketing_id, legacy_id = emulator.list_id("Customers"), emulator.list_id("Customers", "legacy")
    assert client.ask("POST", LEGACY, {"list_ids": [marketing_id]}).status == 400
    assert client.ask("POST", LEGACY, {"list_ids": [str(legacy_id)]}).status == 400
    assert client.ask("POST", LEGACY, {"list_ids": [legacy_id]}).status == 202


@pytest.mark.parametrize("body", [None, {}, {"list_ids": [], "segment_ids": []}])
def test_an_empty_selection_exports_every_contact(client, body):
    url = client.ask("POST", MARKETING, body).json["_metadata"]["self"]
    assert client.ask("GET", url).json["contact_count"] == 2_510


# --- the status


def test_a_status_has_only_the_fields_with_a_value(emulator, client, clock):
    """Pending: no files. Ready: files and a count, no message."""
    emulator.configure(ready_after=5)
    url = client.start(list_ids=[emulator.list_id("Customers")])
    pending = client.ask("GET", url).json
    assert {"id", "status", "created_at", "updated_at", "expires_at", "_metadata"} == set(pending)
    clock.advance(5)
    ready = client.ask("GET", url).json
    assert {*pending, "completed_at", "urls", "contact_count"} == set(ready)
    assert (ready["created_at"], ready["completed_at"]) == ("2023-11-14T22:13:20Z", "2023-11-14T22:13:25Z")
    assert ready["expires_at"] == "2023-11-15T10:13:20Z"


def test_a_failed_export_has_a_message(emulator, client):
    broken = emulator.add_list("Odd", outcome="failure", message="no space left")
    status = client.ask("GET", client.start(list_ids=[broken])).json
    assert (status["status"], status["message"]) == ("failure", "no space left")
    assert "urls" not in status


def test_an_export_can_have_an_unknown_status(emulator, client):
    odd = emulator.add_list("Odd", outcome="unknown:archived")
    assert client.ask("GET", client.start(list_ids=[odd])).json["status"] == "archived"


def test_optional_fields_can_be_null(emulator, client):
    emulator.configure(ready_after=5, optional_fields="null")
    status = client.ask("GET", client.start()).json
    names = ("completed_at", "urls", "message", "contact_count")
    assert [status[name] for name in names] == [None] * 4


def test_legacy_fields_can_be_in_camel_case(emulator, client):
    """As on one of Twilio's pages; marketing fields never are."""
    emulator.configure(spelling="camelCase")
    status = client.ask("GET", client.start(LEGACY)).json
    assert {"createdAt", "updatedAt", "completedAt", "expiresAt", "recipientCount", "Metadata"} <= set(status)
    assert "created_at" in client.ask("GET", client.start(MARKETING)).json


def test_urls_are_signed_again_for_each_response(client):
    url = client.start()
    first, second = (client.ask("GET", url).json["urls"][0] for _ in range(2))
    assert first != second
    assert first.partition("?")[0] == second.partition("?")[0]


def test_a_large_export_is_pending_until_it_is_written(emulator, client):
    """The files are written in the background; the POST does not wait."""
    large = emulator.add_list("Large", contacts=60_000)
    url = client.start(list_ids=[large])
    assert client.ask("GET", url).json["status"] == "pending"
    assert [file.rows for file in emulator.export_files(url.rpartition("/")[2])] == [60_000]
    assert client.ask("GET", url).json["status"] == "ready"


def test_an_export_of_the_other_family_is_not_found(client):
    export_id = client.start(LEGACY).rpartition("/")[2]
    assert client.ask("GET", f"{MARKETING}/{export_id}").status == 404


# --- the listings


def test_the_listing_is_read_page_by_page(emulator, client):
    """Following `next` finds every export once, even when more are started meanwhile."""
    ids = [emulator.start_export() for _ in range(5)]
    page = client.ask("GET", f"{MARKETING}?page_size=2").json
    seen = [each["id"] for each in page["result"]]
    emulator.start_export()
    while "next" in page["_metadata"]:
        page = client.ask("GET", page["_metadata"]["next"]).json
        seen += [each["id"] for each in page["result"]]
    assert ids[::-1] == seen
    assert emulator.count("GET", MARKETING) == 3


def test_the_page_size_is_a_setting(emulator, client):
    for _ in range(3):
        emulator.start_export()
    emulator.configure(page_size=2)
    assert len(client.ask("GET", MARKETING).json["result"]) == 2


def test_the_listing_shows_the_selection(emulator, client):
    newsletter = emulator.list_id("Newsletter")
    segment = emulator.segment_id("Customers in Germany")
    emulator.start_export([newsletter])
    emulator.start_export([], [segment])
    emulator.start_export()
    everyone, of_segment, of_list = client.ask("GET", MARKETING).json["result"]
    assert [{"ID": newsletter, "Name": "Newsletter"}] == of_list["lists"]
    assert [{"ID": segment, "Name": "Customers in Germany"}] == of_segment["segments"]
    types = [each["export_type"] for each in (everyone, of_segment, of_list)]
    assert types == ["contacts_export", "segment_export", "list_export"]
    assert all(each["urls"] and "updated_at" not in each for each in (everyone, of_segment, of_list))


def test_lists_are_read_page_by_page(client):
    page = client.ask("GET", "/v3/marketing/lists?page_size=3").json
    rest = client.ask("GET", page["_metadata"]["next"]).json
    names = [each["name"] for each in page["result"] + rest["result"]]
    assert names == ["Newsletter", "Customers", "Empty list", "Broken list"]


@pytest.mark.parametrize("query", ["page_size=0", "page_size=x", "page_size=1001", "page_token=nonsense"])
def test_invalid_page_parameters_are_refused(client, query):
    assert client.ask("GET", f"/v3/marketing/lists?{query}").status == 400


# --- authorisation


def test_a_key_without_the_scope_is_refused(client_of):
    """`marketing.read` is for marketing, `marketing_campaigns.read` for legacy."""
    keys = [
        Key("SG.m.1", frozenset({"marketing.read"})),
        Key("SG.l.1", frozenset({"marketing_campaigns.read"})),
    ]
    with Emulator(keys=keys) as emulator:
        client = client_of(emulator)
        responses = [
            client.ask("GET", path, Authorization=f"Bearer {key.secret}")
            for key in keys
            for path in (MARKETING, LEGACY)
        ]
        scopes = client.ask("GET", "/v3/scopes", Authorization="Bearer SG.m.1").json
    assert [response.status for response in responses] == [200, 403, 403, 200]
    assert responses[1].json["errors"][0]["message"] == "access forbidden"
    assert scopes == {"scopes": ["marketing.read"]}


@pytest.mark.parametrize(("product", "statuses"), [("marketing", [200, 403]), ("legacy", [403, 200])])
def test_an_account_can_have_only_one_product(client_of, product, statuses):
    with Emulator(Settings(product=product)) as emulator:
        client = client_of(emulator)
        assert statuses == [client.ask("GET", path).status for path in (MARKETING, LEGACY)]


def test_a_known_subuser_is_accepted(emulator, client):
    emulator.configure(subusers=["berlin"])
    assert client.ask("GET", MARKETING, on_behalf_of="berlin").status == 200
    assert {"on-behalf-of": "berlin"}.items() <= emulator.requests()[-1].headers.items()


@pytest.mark.parametrize("method", ["DELETE", "PUT", "PATCH"])
def test_exports_cannot_be_cancelled_or_deleted(client, method):
    assert client.ask(method, MARKETING).status == 405


def test_an_unknown_path_is_404(client):
    response = client.ask("GET", "/v3/marketing/nothing")
    assert (response.status, response.json["errors"][0]["field"]) == (404, None)


def test_urls_have_the_host_name_that_the_client_used(emulator, client):
    """As needed from a container."""
    response = client.ask("POST", MARKETING, {}, Host="sendgrid:8025")
    assert response.json["_metadata"]["self"].startswith("http://sendgrid:8025/v3/")
    path = urlsplit(response.json["_metadata"]["self"]).path
    [url] = client.ask("GET", path, Host="sendgrid:8025").json["urls"]
    assert url.startswith(f"http://sendgrid:{urlsplit(emulator.files_url).port}/")
