"""What SendGrid says of an export is read in every spelling; what we say of it holds no URL."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_sendgrid.exports.export import (
    FAMILIES,
    ContactExport,
    ExportFamily,
    ExportSelection,
    parse_export_id,
)

OPENAPI = Path(__file__).parents[3] / "shared" / "openapi"
DESCRIPTIONS = {
    ExportFamily.MARKETING: "tsg_mc_contacts_v3.json",
    ExportFamily.LEGACY: "tsg_lmc_contactdb_v3.json",
}
BOTH_FAMILIES = pytest.mark.parametrize("family", list(ExportFamily))
SIGNED_URL = "https://exports.s3.amazonaws.com/contacts-1.csv.gzip?X-Amz-Signature=5ecret"
UTC = timezone.utc


@pytest.mark.parametrize("url", ["n/a", "/contacts.csv.gzip", "s3://bucket/contacts.csv.gzip", " ", 7, None])
def test_a_file_without_a_url_is_not_dropped(url):
    assert ContactExport.from_payload({"urls": [SIGNED_URL, url]}).urls == (SIGNED_URL, "")


def status_page(spelling, count_field="contact_count"):
    """A status response with every documented field."""
    page = {
        "id": "6f0a2c5e",
        "status": "ready",
        "created_at": "2026-01-02T03:04:05Z",
        "updated_at": "2026-01-02T03:04:06Z",
        "completed_at": "2026-01-02T03:04:07Z",
        "expires_at": "2026-01-02T15:04:05Z",
        "urls": [SIGNED_URL, SIGNED_URL.replace("-1", "-2")],
        "message": "a word",
        "_metadata": {"self": "https://api.sendgrid.com/v3/…", "count": 1},
        count_field: 70,
    }
    return {spelling.get(name, name): value for name, value in page.items()}


SNAKE_CASE: dict[str, str] = {}
# As one of Twilio's pages for the legacy status shows it.
CAMEL_CASE = {
    "created_at": "createdAt",
    "updated_at": "updatedAt",
    "completed_at": "completedAt",
    "expires_at": "expiresAt",
    "recipient_count": "recipientCount",
    "contact_count": "contactCount",
    "_metadata": "Metadata",
}
OPTIONAL = ("completed_at", "urls", "message", "_metadata", "contact_count")


# --- read


@pytest.mark.parametrize("spelling", [SNAKE_CASE, CAMEL_CASE])
@pytest.mark.parametrize("count_field", ["contact_count", "recipient_count"])
def test_every_documented_field_is_read_in_both_spellings(spelling, count_field):
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert ContactExport.from_payload(status_page(spelling, count_field)) == ContactExport(
        id="6f0a2c5e",
        status="ready",
        created_at=at,
        updated_at=at + timedelta(seconds=1),
        completed_at=at + timedelta(seconds=2),
        expires_at=at + timedelta(hours=12),
        urls=(SIGNED_URL, SIGNED_URL.replace("-1", "-2")),
        message="a word",
        contact_count=70,
        metadata={"self": "https://api.sendgrid.com/v3/…", "count": 1},
    )


def test_an_item_of_a_listing_names_what_was_exported():
    """Listings spell ids as `ID`; the legacy ones are numbers."""
    item = {
        "id": "6f0a2c5e",
        "status": "pending",
        "user_id": "1",
        "export_type": "list_export",
        "lists": [{"ID": "ca1d", "Name": "News"}, {"id": 7}, {"Name": "nameless"}, "plain", {"ID": None}, 1.5],
        "segments": [{"ID": 8, "Name": "Active"}],
    }
    export = ContactExport.from_payload(item)
    assert export.export_type == "list_export"
    assert export.list_ids == ("ca1d", "7", "plain")
    assert export.segment_ids == ("8",)


@pytest.mark.parametrize(
    ("fields", "is_known"),
    [
        ({"lists": [], "segments": []}, True),
        ({"lists": [{"ID": "ca1d"}]}, True),
        ({"lists": ["ca1d"], "segments": None}, True),
        ({"export_type": "contacts_export"}, True),
        ({"export_type": "contacts_export", "lists": None, "segments": None}, True),
        ({}, False),
        ({"lists": []}, False),
        ({"lists": None, "segments": None}, False),
        ({"lists": [], "segments": [], "export_type": "list_export"}, False),
        ({"export_type": "segment_export", "lists": None}, False),
    ],
)
def test_no_ids_alone_do_not_mean_all_contacts(fields, is_known):
    assert ContactExport.from_payload({"id": "6f0a2c5e", **fields}).is_selection_known is is_known


@pytest.mark.parametrize("name", OPTIONAL)
@pytest.mark.parametrize("nothing", [{}, {"null": None}])
def test_an_optional_field_may_be_missing_or_null(name, nothing):
    page = {key: value for key, value in status_page(SNAKE_CASE).items() if key != name}
    page |= dict.fromkeys((name for _ in nothing), None)
    export = ContactExport.from_payload(page)
    absent = {"urls": (), "_metadata": {}}.get(name)
    assert getattr(export, name.removeprefix("_")) == absent
    assert export.id == "6f0a2c5e"


def test_a_null_in_one_spelling_does_not_hide_the_other():
    export = ContactExport.from_payload({"contact_count": None, "recipientCount": 3})
    assert export.contact_count == 3


def test_a_response_without_an_id_gets_the_requested_id():
    assert ContactExport.from_payload({"status": "ready"}, export_id="asked").id == "asked"
    assert ContactExport.from_payload({"id": "returned"}, export_id="asked").id == "returned"


def test_an_empty_response_has_no_status():
    """Which no one takes for a success."""
    assert ContactExport.from_payload({}) == ContactExport(id="", status="")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(status_page(SNAKE_CASE) | {"lists": 0, "segments": 0}, JSON)))
def test_any_payload_can_be_parsed(payload):
    """Whatever comes is read, and its summary is JSON."""
    export = ContactExport.from_payload(payload)
    json.dumps(export.summary(), allow_nan=False)
    export.is_expired_at(datetime(2026, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (0, 0),
        (70, 70),
        ("70", 70),
        (70.0, 70),
        ("70.0", 70),
        (10**12, 10**12),
        (-1, None),
        (1.5, None),
        ("many", None),
        (True, None),
        (float("nan"), None),
        (float("inf"), None),
        ([70], None),
    ],
)
def test_a_count_is_a_whole_number_or_absent(value, count):
    assert ContactExport.from_payload({"contact_count": value}).contact_count == count


@pytest.mark.parametrize(
    ("value", "urls"),
    [
        ([], ()),
        ("", ()),
        (SIGNED_URL, (SIGNED_URL,)),
        ({"0": SIGNED_URL}, ()),
        (7, ()),
        ([SIGNED_URL, None, 7], (SIGNED_URL, "", "")),
    ],
)
def test_no_file_is_dropped_silently(value, urls):
    """An odd item keeps its place: its file can then be missed instead of forgotten."""
    assert ContactExport.from_payload({"urls": value}).urls == urls


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02t03:04:05z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        (" 2026-01-02 03:04:05 Z ", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05+00:00", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05+05:30", datetime(2026, 1, 1, 21, 34, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05-0800", datetime(2026, 1, 2, 11, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05.5Z", datetime(2026, 1, 2, 3, 4, 5, 500_000, tzinfo=UTC)),
        ("2026-01-02T03:04:05.123456789Z", datetime(2026, 1, 2, 3, 4, 5, 123_456, tzinfo=UTC)),
        ("2026-01-02T03:04:05.000001+01:00", datetime(2026, 1, 2, 2, 4, 5, 1, tzinfo=UTC)),
        ("2026-01-02T03:04:05.1234567890123456789Z", datetime(2026, 1, 2, 3, 4, 5, 123_456, tzinfo=UTC)),
        ("2026-01-02T03:04:05 UTC", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02 03:04:05 +0000 UTC", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02 03:04:05.5 -0800 PST", datetime(2026, 1, 2, 11, 4, 5, 500_000, tzinfo=UTC)),
        ("2026-01-02T03:04:05+02", datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05-00:00", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2016-12-31T23:59:60Z", datetime(2017, 1, 1, tzinfo=UTC)),
        ("Fri, 02 Jan 2026 03:04:05 GMT", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("Fri, 02 Jan 2026 03:04:05 +0100", datetime(2026, 1, 2, 2, 4, 5, tzinfo=UTC)),
        ("1767323045", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        (1_767_323_045_500, datetime(2026, 1, 2, 3, 4, 5, 500_000, tzinfo=UTC)),
        (1_767_323_045, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        (1_767_323_045.5, datetime(2026, 1, 2, 3, 4, 5, 500_000, tzinfo=UTC)),
    ],
)
def test_a_time_is_parsed_in_every_format(text, moment):
    """Aware, and UTC where no zone is named."""
    read = ContactExport.from_payload({"created_at": text}).created_at
    assert read == moment
    assert read.tzinfo is not None


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        "soon",
        "2026-01-02",
        "2026-13-02T03:04:05Z",
        "2026-02-30T03:04:05Z",
        "2026-01-02T25:04:05Z",
        "2026-01-02T03:04:05+99:00",
        "2026-01-02T03:04:05Zulu",
        "2026-01-02T03:04:05 CEST",
        "Fri, 02 Jan 2026 03:04:05 CEST",
        "2026-01-02T03:04:61Z",
        "٢٠٢٦-01-02T03:04:05Z",
        "0001-01-01T00:00:00Z",
        "1970-01-01T00:00:00Z",
        0,
        True,
        [],
        {},
        float("nan"),
        1e300,
    ],
)
def test_an_invalid_time_is_absent(garbage):
    """So is the zero of Go and of Unix: a time that was never set, not an export that expired long ago."""
    assert ContactExport.from_payload({"expires_at": garbage}).expires_at is None


# --- summaries


def test_an_export_expires_at_its_time():
    at = datetime(2026, 1, 2, tzinfo=UTC)
    export = ContactExport("6f0a2c5e", "ready", expires_at=at)
    expired = [export.is_expired_at(at + timedelta(seconds=offset)) for offset in (-1, 0, 1)]
    assert expired == [False, True, True]
    assert ContactExport("6f0a2c5e", "ready").is_expired_at(at) is False


def test_a_summary_is_json_without_urls():
    """It goes into XComs, logs and manifests."""
    summary = ContactExport.from_payload(status_page(SNAKE_CASE) | {"message": f"see {SIGNED_URL}"}).summary()
    assert summary == {
        "id": "6f0a2c5e",
        "status": "ready",
        "created_at": "2026-01-02T03:04:05+00:00",
        "updated_at": "2026-01-02T03:04:06+00:00",
        "completed_at": "2026-01-02T03:04:07+00:00",
        "expires_at": "2026-01-02T15:04:05+00:00",
        "message": "see https://exports.s3.amazonaws.com/contacts-1.csv.gzip?***",
        "contact_count": 70,
        "file_count": 2,
    }
    assert json.loads(json.dumps(summary)) == summary


def test_an_empty_summary_is_json():
    assert json.loads(json.dumps(ContactExport("6f0a2c5e", "pending").summary()))["file_count"] == 0


def test_a_repr_contains_no_url():
    """Reprs end up in logs; a signed URL is a credential to personal data."""
    shown = repr(ContactExport.from_payload(status_page(SNAKE_CASE)))
    assert "6f0a2c5e" in shown
    assert "http" not in shown


def test_an_export_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ContactExport("6f0a2c5e", "ready").status = "failure"


# --- selections


def test_no_lists_and_no_segments_mean_all_contacts():
    assert ExportSelection().to_payload(ExportFamily.MARKETING) == {
        "file_type": "csv",
        "notifications": {"email": False},
    }


def test_an_iterator_of_ids_is_never_read_as_all_contacts():
    selection = ExportSelection(list_ids=(each for each in ["ca1d"]))  # type: ignore[arg-type]
    for _ in range(2):
        assert selection.to_payload(ExportFamily.MARKETING)["list_ids"] == ["ca1d"]


@pytest.mark.parametrize("odd", ["007", "1_2", "+5", "-5", "0", "\u0663", "7.0"])
def test_a_legacy_id_is_written_as_sendgrid_writes_it(odd):
    """Else the export would never be found in the list of exports."""
    with pytest.raises(ValueError, match="list_ids"):
        ExportSelection(list_ids=[odd]).to_payload(ExportFamily.LEGACY)


@pytest.mark.parametrize("odd", ["['a', 'b']", "[None]", "\u200b", "a b", "a,b"])
def test_a_list_rendered_as_text_is_not_an_id(odd):
    with pytest.raises(ValueError, match="segment_ids"):
        ExportSelection(segment_ids=[odd]).to_payload(ExportFamily.MARKETING)


@pytest.mark.parametrize("odd", [b"12", bytearray(b"12"), memoryview(b"12"), "12", {"a": 1}])
def test_bytes_are_not_a_list_of_ids(odd):
    with pytest.raises(TypeError, match="list_ids"):
        ExportSelection(list_ids=odd)


@pytest.mark.parametrize(
    ("family", "given_ids", "sent_ids"),
    [
        (ExportFamily.MARKETING, ["ca1d", "ca1e"], ["ca1d", "ca1e"]),
        (ExportFamily.MARKETING, (7,), ["7"]),
        (ExportFamily.LEGACY, [7, 8], [7, 8]),
        (ExportFamily.LEGACY, ["7", " 8 "], [7, 8]),
    ],
)
@pytest.mark.parametrize("name", ["list_ids", "segment_ids"])
def test_ids_are_sent_in_the_type_of_the_family(family, given_ids, sent_ids, name):
    """Templates always render to text."""
    assert ExportSelection(**{name: given_ids}).to_payload(family)[name] == sent_ids


@BOTH_FAMILIES
def test_every_option_is_sent(family):
    selection = ExportSelection(
        list_ids=[1], segment_ids=[2], file_type="json", max_file_size=100, notify_by_email=True
    )
    one, two = (FAMILIES[family].id_type(each) for each in (1, 2))
    assert selection.to_payload(family) == {
        "list_ids": [one],
        "segment_ids": [two],
        "file_type": "json",
        "max_file_size": 100,
        "notifications": {"email": True},
    }


@pytest.mark.parametrize("name", ["list_ids", "segment_ids"])
@pytest.mark.parametrize("ids", ["ca1d", "", b"", b"7", 7, 0, None, {}, {"ca1d": 1}])
@BOTH_FAMILIES
def test_ids_that_are_not_a_list_are_refused(family, name, ids):
    """Above all the empty text that a template may render to: it must not mean every contact."""
    with pytest.raises(TypeError, match=rf"{name} must be a list of ids"):
        ExportSelection(**{name: ids}).to_payload(family)


@pytest.mark.parametrize("odd", ["", "  ", None, 1.5, True, ["ca1d"], "None", "null", "nan", "undefined"])
@BOTH_FAMILIES
def test_an_invalid_id_is_refused(family, odd):
    """SendGrid might ignore it and export every contact, or another list's."""
    with pytest.raises(ValueError, match="list_ids"):
        ExportSelection(list_ids=[odd]).to_payload(family)


def test_an_id_of_the_other_family_is_refused_by_its_name():
    with pytest.raises(ValueError, match=r"list_ids of the legacy family must be numbers.*family='marketing'"):
        ExportSelection(list_ids=["ca1d"]).to_payload(ExportFamily.LEGACY)


@pytest.mark.parametrize("file_type", ["CSV", "xlsx", "", None])
def test_another_file_type_is_refused(file_type):
    with pytest.raises(ValueError, match="file_type must be 'csv' or 'json'"):
        ExportSelection(file_type=file_type).to_payload(ExportFamily.MARKETING)


def test_a_size_may_be_text():
    """Templates always render to text."""
    payload = ExportSelection(max_file_size="100").to_payload(ExportFamily.MARKETING)
    assert payload["max_file_size"] == 100


@pytest.mark.parametrize("size", [0, -1, "big", 1.5, float("inf"), float("nan"), True, [100]])
def test_a_size_must_be_a_whole_number_of_megabytes(size):
    with pytest.raises(ValueError, match=r"max_file_size must be a whole number of MB"):
        ExportSelection(max_file_size=size).to_payload(ExportFamily.MARKETING)


# --- as published


def body_schema(family):
    """The schema of the POST's body in Twilio's OpenAPI description."""
    document = json.loads((OPENAPI / DESCRIPTIONS[family]).read_text())
    body = document["paths"][FAMILIES[family].exports_path]["post"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]
    return schema | {"components": document["components"], "additionalProperties": False}


@BOTH_FAMILIES
@pytest.mark.parametrize(
    "selection",
    [
        ExportSelection(),
        ExportSelection(list_ids=["1"], segment_ids=[2]),
        ExportSelection(file_type="json", max_file_size=1, notify_by_email=True),
    ],
)
def test_the_request_matches_the_published_schema(family, selection):
    jsonschema = pytest.importorskip("jsonschema")
    if not OPENAPI.exists():
        pytest.skip("the published OpenAPI descriptions are not beside this checkout")
    jsonschema.Draft202012Validator(body_schema(family)).validate(selection.to_payload(family))


@BOTH_FAMILIES
def test_endpoints_match_the_published_ones(family):
    if not OPENAPI.exists():
        pytest.skip("the published OpenAPI descriptions are not beside this checkout")
    paths = json.loads((OPENAPI / DESCRIPTIONS[family]).read_text())["paths"]
    traits = FAMILIES[family]
    assert set(paths[traits.exports_path]) >= {"get", "post"}
    assert "get" in paths[traits.exports_path + "/{id}"]


# --- an export's id, as it was rendered


@pytest.mark.parametrize(("value", "expected"), [("6f-0a", "6f-0a"), (" 6f0a\n", "6f0a"), (42, "42")])
def test_an_id_may_be_digits_or_have_blanks_around_it(value, expected):
    """Native rendering turns digits into a number."""
    assert parse_export_id(value) == expected


@pytest.mark.parametrize(
    ("value", "error_class", "cure"),
    [
        (None, TypeError, "task that starts the export ran"),
        (True, TypeError, "not an id"),
        (1.5, TypeError, "not an id"),
        ("", ValueError, "task that starts the export ran"),
        ("  ", ValueError, "cannot be the id"),
        ("None", ValueError, "cannot be the id"),
        ("..", ValueError, "cannot be the id"),
        ("['a', 'b']", ValueError, "cannot be the id"),
        ("{'id': 'a'}", ValueError, "cannot be the id"),
        (["a"], TypeError, "expand"),
        (iter(["a"]), TypeError, "expand"),
        (object(), TypeError, "operator's argument"),
        ({"id": "a", "status": "ready"}, TypeError, '["id"]'),
    ],
)
def test_an_invalid_export_id_is_refused_with_the_fix(value, error_class, cure):
    with pytest.raises(error_class) as caught:
        parse_export_id(value)
    assert cure in str(caught.value)


@pytest.mark.parametrize(
    "value", ["True", "nan", "undefined", "../x", "?x=1", "a/b", "a%2Fb", "a\u200bb", "a\x00b", "...", "x" * 201]
)
def test_an_invalid_text_is_refused_as_an_export_id(value):
    with pytest.raises(ValueError, match="cannot be the id of an export"):
        parse_export_id(value)


def test_a_url_that_is_listed_twice_counts_as_one_file():
    urls = ("https://f/a?X-Amz-Signature=1", "https://f/b", "https://f/a?X-Amz-Signature=2")
    assert 2 == ContactExport("6f", "ready", urls=urls).summary()["file_count"]
