"""Flows driven by hand: their requests, how they read responses, and when they retry."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_sendgrid.exceptions import (
    SendGridAuthError,
    SendGridBadRequestError,
    SendGridError,
    SendGridNotFoundError,
    SendGridPermissionError,
    SendGridRateLimitError,
    SendGridServerError,
    SendGridUnavailableError,
)
from airflow_provider_sendgrid.exports import protocol
from airflow_provider_sendgrid.exports.export import FAMILIES, ExportFamily, ExportSelection
from airflow_provider_sendgrid.exports.protocol import Request, Response, RetryPolicy

NOW = 1_767_323_045.0
MARKETING, LEGACY = ExportFamily.MARKETING, ExportFamily.LEGACY
BOTH_FAMILIES = pytest.mark.parametrize("family", list(ExportFamily))
# No jitter: each wait is half of its full length, and 429s are obeyed to the second.
CALM = RetryPolicy(jitter=lambda: 0.0)
READY = {"id": "6f0a2c5e", "status": "ready", "urls": ["https://files.example/1"]}


def response(status=200, payload=None, **headers):
    """A response; a body that is not bytes is sent as JSON."""
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return Response(status, {name.replace("_", "-"): value for name, value in headers.items()}, body, NOW)


def refusal(status, message="no", **fields):
    return response(status, {"errors": [{"message": message, **fields}]})


def walk(flow, *events):
    """Run a flow with these responses and failures, in this order; return its requests and its result.

    The result is the error itself where the flow ends with one; None where it goes on asking.
    """
    requests = [next(flow)]
    for event in events:
        try:
            step = flow.throw if isinstance(event, Exception) else flow.send
            requests.append(step(event))
        except StopIteration as end:
            return requests, end.value
        except SendGridError as error:
            return requests, error
    return requests, None


def get_export(*events, retry_policy=CALM, family=MARKETING, export_id="6f0a2c5e"):
    return walk(protocol.get_export(family, export_id, retry_policy), *events)


def start_export(*events, retry_policy=CALM, family=MARKETING, **selection):
    return walk(protocol.start_export(family, ExportSelection(**selection), retry_policy), *events)


def waits(requests):
    return [request.delay_seconds for request in requests]


def unsent():
    return SendGridUnavailableError("no connection")


def unanswered():
    return SendGridUnavailableError("the connection broke", may_have_been_accepted=True)


def entry(export_id="6f0a2c5e", **fields):
    """An entry of a listing of exports."""
    return {"id": export_id, "status": "pending", "created_at": "2026-01-02T03:04:05Z"} | fields


# --- asking


@BOTH_FAMILIES
def test_the_status_of_an_export_is_requested_by_id(family):
    requests, export = get_export(response(200, READY), family=family)
    assert requests == [Request("GET", f"{FAMILIES[family].exports_path}/6f0a2c5e")]
    assert (export.id, export.status, export.urls) == ("6f0a2c5e", "ready", ("https://files.example/1",))


@pytest.mark.parametrize("export_id", ["../lists", "a/b", "a?b=c", "a#b", "a b", "%2e%2e", "..", ".", "a\nb", "ü"])
def test_an_id_stays_one_path_segment(export_id):
    """An id comes from another task: no id may lead to another endpoint."""
    try:
        [request], _ = get_export(export_id=export_id)
    except ValueError:
        assert export_id in {".", ".."}
        return
    path, _, last = request.target.rpartition("/")
    assert path == FAMILIES[MARKETING].exports_path
    assert unquote(last) == export_id
    assert urlsplit(request.target).path == request.target


@pytest.mark.parametrize("export_id", ["", " ", "\n", None, ".", ".."])
def test_an_invalid_id_is_refused_without_a_request(export_id):
    """An empty id would request the list, and clients resolve dots in paths."""
    with pytest.raises(ValueError, match="export_id"):
        get_export(export_id=export_id)


@BOTH_FAMILIES
def test_a_start_sends_the_selection(family):
    requests, export_id = start_export(response(202, {"id": "6f0a2c5e"}), family=family, list_ids=["7"])
    body = {"list_ids": [FAMILIES[family].id_type(7)], "file_type": "csv", "notifications": {"email": False}}
    assert requests == [Request("POST", FAMILIES[family].exports_path, body)]
    assert export_id == "6f0a2c5e"


def test_an_invalid_selection_is_refused_without_a_request():
    with pytest.raises(ValueError, match="file_type"):
        start_export(file_type="xlsx")


@pytest.mark.parametrize(
    "export_id", [None, "", " ", ["6f0a2c5e"], {"id": "x"}, True, 1.5, "..", "a b", "a\nb", "a\x00", "x" * 201]
)
def test_a_start_with_an_unusable_id_is_an_error(export_id):
    """The description does not mark the id as required."""
    [_], error = start_export(response(202, {"id": export_id}))
    assert type(error) is SendGridServerError
    assert error.may_have_been_accepted is True
    assert "list of exports" in str(error)


@pytest.mark.parametrize("odd", ["null", "None", "undefined", "0", "[x]", "a,b", '"'])
def test_a_malformed_id_of_a_start_is_unusable(odd):
    [_], error = start_export(response(202, {"id": odd}))
    assert "no usable id" in str(error)
    assert error.may_have_been_accepted is True


def test_a_start_without_an_id_is_an_error():
    [_], error = start_export(response(202, {"_metadata": {}}))
    assert error.may_have_been_accepted is True


@pytest.mark.parametrize(("sent", "export_id"), [(7, "7"), (" 6f0a2c5e\n", "6f0a2c5e")])
def test_the_id_of_a_started_export_is_stripped(sent, export_id):
    assert start_export(response(202, {"id": sent}))[1] == export_id


def test_scopes_are_texts():
    requests, scopes = walk(protocol.get_scopes(CALM), response(200, {"scopes": ["marketing.read", 7]}))
    assert requests == [Request("GET", "/v3/scopes")]
    assert scopes == ["marketing.read", "7"]


@pytest.mark.parametrize(
    ("list_items", "family", "target", "field"),
    [
        (protocol.list_exports, MARKETING, "/v3/marketing/contacts/exports", "result"),
        (protocol.list_exports, LEGACY, "/v3/contactdb/exports", "result"),
        (protocol.get_lists, MARKETING, "/v3/marketing/lists?page_size=1000", "result"),
        (protocol.get_lists, LEGACY, "/v3/contactdb/lists", "lists"),
        (protocol.get_segments, MARKETING, "/v3/marketing/segments/2.0", "results"),
        (protocol.get_segments, LEGACY, "/v3/contactdb/segments", "segments"),
    ],
)
def test_every_listing_has_its_own_key(list_items, family, target, field):
    requests, items = walk(list_items(family, CALM), response(200, {field: [entry("a"), entry("b")]}))
    assert requests == [Request("GET", target)]
    assert [item.id if list_items is protocol.list_exports else item["id"] for item in items] == ["a", "b"]


# --- pages


def page(*ids, following=None, metadata="_metadata"):
    return response(200, {"result": [entry(each) for each in ids], metadata: {"next": following}})


def list_exports(*events, retry_policy=CALM):
    return walk(protocol.list_exports(MARKETING, retry_policy), *events)


PATH = "/v3/marketing/contacts/exports"


@pytest.mark.parametrize("metadata", ["_metadata", "Metadata"])
def test_pages_are_followed_to_the_end(metadata):
    """Or the rest is silently lost; in both spellings."""
    requests, exports = list_exports(
        page("a", following=f"https://api.sendgrid.com{PATH}?page_token=2", metadata=metadata),
        page("b", "c", following=f"{PATH}?page_token=3", metadata=metadata),
        page("d", metadata=metadata),
    )
    assert [each.target for each in requests] == [PATH, f"{PATH}?page_token=2", f"{PATH}?page_token=3"]
    assert [each.id for each in exports] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("host", ["https://evil.example", "//evil.example", "http://user@evil.example:80", "evil:"])
def test_the_next_page_is_never_requested_from_another_host(host):
    """The target names none, so the key goes where it always goes."""
    requests, _ = list_exports(page("a", following=f"{host}{PATH}?page_token=2"))
    assert requests[-1].target == f"{PATH}?page_token=2"


@pytest.mark.parametrize(
    "following",
    ["/v3/user/profile", f"{PATH}/../lists", f"{PATH}/", "https://evil.example", "?page_token=2", "http://[evil", "x"],
)
def test_the_next_page_must_have_the_same_path(following):
    requests, error = list_exports(page("a", following=following))
    assert len(requests) == 1
    assert type(error) is SendGridServerError
    assert "next page" in str(error)


@pytest.mark.parametrize("nothing", [None, ""])
def test_a_page_without_a_next_one_is_the_last(nothing):
    _, exports = list_exports(page("a", following=nothing))
    assert [each.id for each in exports] == ["a"]


def test_a_cycle_of_pages_is_an_error():
    requests, error = list_exports(
        page("a", following=f"{PATH}?page_token=2"), page("b", following=f"{PATH}?page_token=2")
    )
    assert len(requests) == 2
    assert "loop" in str(error)


def test_endless_pages_are_an_error():
    endless = [page("a", following=f"{PATH}?page_token={number}") for number in range(2000)]
    requests, error = list_exports(*endless)
    assert len(requests) == 1000
    assert "more than 1000 pages" in str(error)


def test_each_page_has_its_own_tries():
    """One that fails now and then must not end a long listing."""
    hiccups = [refusal(500)] * (CALM.tries - 1)
    requests, exports = list_exports(*hiccups, page("a", following=f"{PATH}?page_token=2"), *hiccups, page("b"))
    assert [each.id for each in exports] == ["a", "b"]
    assert len(requests) == 2 * CALM.tries


def test_an_empty_account_has_no_exports():
    assert list_exports(response(200, {"result": []}))[1] == []


def test_a_listing_needs_no_metadata():
    _, exports = list_exports(response(200, {"result": [entry()], "_metadata": None}))
    assert len(exports) == 1


def test_an_entry_on_two_pages_is_returned_once():
    """Others may be added while pages are read; the later page is the newer description."""
    following = f"{PATH}?page_token=2"
    first = response(200, {"result": [entry("a"), entry("b")], "_metadata": {"next": following}})
    _, exports = list_exports(first, response(200, {"result": [entry("b", status="ready"), entry("c")]}))
    assert [(each.id, each.status) for each in exports] == [("a", "pending"), ("b", "ready"), ("c", "pending")]


# --- broken listings

GOOD_PAGES = {
    protocol.list_exports: {"result": [entry()]},
    protocol.get_lists: {"result": [{"id": "6f0a2c5e", "name": "News"}]},
    protocol.get_segments: {"results": [{"id": "6f0a2c5e", "name": "Active"}]},
    protocol.get_first_segments: {"results": [{"id": "6f0a2c5e", "name": "Old"}]},
}
EVERY_LISTING = pytest.mark.parametrize("list_items", GOOD_PAGES)


@EVERY_LISTING
@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ({"result": None}, "'result' is null"),
        ({"result": None, "_metadata": {"count": 1}}, "'result' is null"),
        ({"results": None}, "'results' is null"),
        ({"result": {}}, "'result' is not a list"),
        ({"result": "none"}, "'result' is not a list"),
        ({}, "none of the keys"),
        ({"message": "service degraded"}, "none of the keys"),
        ({"items": []}, "none of the keys"),
        ({"result": [], "results": []}, "several of"),
        ({"result": [], "errors": [{"message": "shard down"}]}, "errors (shard down)"),
        ({"result": [None]}, "an entry is not an object"),
        ({"result": ["6f0a2c5e"]}, "an entry is not an object"),
        ({"result": [{"status": "pending"}]}, "an entry has no id"),
        ({"result": [{"id": None}]}, "an entry has no id"),
        ({"result": [{"id": " "}]}, "an entry has no id"),
        ({"result": [{"id": {"id": "x"}}]}, "an entry has no id"),
        ({"result": [], "_metadata": {"count": 1}}, "0 entries, but reports a count of 1"),
        ({"result": [], "_metadata": "odd"}, "'_metadata' is not an object"),
        ({"result": [], "_metadata": {"next": 7}}, "'_metadata.next' is not a text"),
    ],
)
def test_a_listing_of_unknown_shape_is_repeated_then_an_error(list_items, payload, reason):
    """Never "there are none": a second export would be started, or a name would be called unknown."""
    good = response(200, GOOD_PAGES[list_items])
    requests, found = walk(list_items(MARKETING, CALM), response(200, payload), good)
    assert (len(requests), len(found)) == (2, 1)

    requests, error = walk(list_items(MARKETING, CALM), *[response(200, payload)] * CALM.tries)
    assert len(requests) == CALM.tries
    assert type(error) is SendGridServerError
    assert "SendGrid answered 200, but" in str(error)
    assert reason in str(error)
    assert "Run the task again" in str(error)


@pytest.mark.parametrize("payload", [{}, {"scopes": None}, {"scopes": "all"}])
def test_scopes_of_unknown_shape_are_repeated_then_an_error(payload):
    """A key without scopes and a broken response are two things."""
    requests, error = walk(protocol.get_scopes(CALM), *[response(200, payload)] * CALM.tries)
    assert len(requests) == CALM.tries
    assert type(error) is SendGridServerError
    assert walk(protocol.get_scopes(CALM), response(200, payload), response(200, {"scopes": []}))[1] == []


@pytest.mark.parametrize(
    "change",
    [
        {"created_at": None},
        {"created_at": ""},
        {"created_at": "soon"},
        {"created_at": "0001-01-01T00:00:00Z"},
        {"completed_at": "soon"},
        {"expires_at": {}},
        {"status": None},
        {"status": 7},
        {"lists": "ca1d"},
        {"lists": {"ID": "ca1d"}},
        {"lists": [{"Name": "News"}]},
        {"segments": [None]},
        {"segments": [["ca1d"]]},
    ],
)
def test_an_export_that_cannot_be_read_breaks_the_listing(change):
    broken = response(200, {"result": [entry("a"), entry("b", **change)]})
    requests, exports = list_exports(broken, page("a", "b"))
    assert (len(requests), len(exports)) == (2, 2)
    _, error = list_exports(*[broken] * CALM.tries)
    assert type(error) is SendGridServerError
    assert next(iter(change)) in str(error)


@pytest.mark.parametrize("status", [201, 202, 203, 206])
def test_a_listing_that_may_be_incomplete_is_repeated(status):
    requests, exports = list_exports(response(status, {"result": []}), page("a"))
    assert (len(requests), len(exports)) == (2, 1)


def test_zero_times_are_accepted():
    never = {"completed_at": "0001-01-01T00:00:00Z", "expires_at": None, "updated_at": ""}
    _, [export] = list_exports(response(200, {"result": [entry(**never)]}))
    assert (export.completed_at, export.expires_at) == (None, None)


def lists(count, *ids, following=None):
    entries = [{"id": each, "name": each} for each in ids]
    return response(200, {"result": entries, "_metadata": {"count": count, "next": following}})


def test_lists_fewer_than_their_count_are_repeated():
    """SendGrid documents that it counts the lists of all pages."""
    requests, found = walk(protocol.get_lists(MARKETING, CALM), lists(2, "a"), lists(2, "a", "b"))
    assert (len(requests), len(found)) == (2, 2)


def test_the_smallest_count_of_all_pages_is_used():
    """Lists are added and removed while pages are read."""
    following = f"{FAMILIES[MARKETING].lists_path}?page_token=2"
    for first, last in ((2, 3), (3, 2)):
        pages = lists(first, "a", following=following), lists(last, "b")
        assert len(walk(protocol.get_lists(MARKETING, CALM), *pages)[1]) == 2


@pytest.mark.parametrize("count", [1, 3, 0, -1, None, "2", True, 1e300, float("nan")])
def test_the_count_of_exports_is_ignored(count):
    """SendGrid does not document one."""
    assert len(list_exports(response(200, {"result": [entry()], "_metadata": {"count": count}}))[1]) == 1


# --- broken statuses


@pytest.mark.parametrize(
    "change",
    [{"status": None}, {"status": ["ready"]}, {"id": "another"}, {"id": ["6f0a2c5e"]}, {"urls": {}}],
)
def test_a_status_of_unknown_shape_is_repeated_then_an_error(change):
    """Or a mixed-up response delivers the contacts of another export."""
    requests, export = get_export(response(200, READY | change), response(200, READY))
    assert (len(requests), export.id, len(export.urls)) == (2, "6f0a2c5e", 1)
    _, error = get_export(*[response(200, READY | change)] * CALM.tries)
    assert type(error) is SendGridServerError
    assert "Run the task again" in str(error)


@pytest.mark.parametrize("sent", ["6F0A2C5E", " 6f0a2c5e", None])
def test_an_id_in_another_case_is_the_same_export(sent):
    assert get_export(response(200, READY | {"id": sent}))[1].status == "ready"


@pytest.mark.parametrize("status", [204, 205, 206, 226])
def test_a_success_without_the_whole_body_is_broken(status):
    requests, export = get_export(response(status, READY), response(200, READY))
    assert (len(requests), export.status) == (2, "ready")


@pytest.mark.parametrize("status", [200, 202, 203])
def test_a_success_with_the_whole_body_is_read(status):
    assert get_export(response(status, READY))[1].status == "ready"


# --- an empty export

EMPTY = {"id": "6f0a2c5e", "status": "ready", "contact_count": 0, "urls": None}


def test_an_empty_export_is_checked_once_more():
    """The status may be ready a moment before its count and its URLs."""
    filled = EMPTY | {"contact_count": 3, "urls": ["https://files.example/1"]}
    requests, export = get_export(response(200, EMPTY), response(200, filled))
    assert waits(requests) == [0.0, 5.0]
    assert "count of 0 and no files" in requests[1].reason
    assert (export.contact_count, len(export.urls)) == (3, 1)


@pytest.mark.parametrize("second", [EMPTY, EMPTY | {"status": "pending"}, EMPTY | {"status": "failure"}])
def test_the_second_response_is_final(second):
    requests, export = get_export(response(200, EMPTY), refusal(500), response(200, second))
    assert (len(requests), export.status) == (3, second["status"])


@pytest.mark.parametrize(
    "change", [{"contact_count": None}, {"urls": ["https://files.example/1"]}, {"status": "pending"}]
)
def test_only_a_count_of_zero_without_files_is_checked(change):
    requests, _ = get_export(response(200, EMPTY | change))
    assert len(requests) == 1


# --- what is no success

ERRORS = [
    (400, SendGridBadRequestError, "arguments"),
    (401, SendGridAuthError, "API key"),
    (403, SendGridPermissionError, "scope"),
    (404, SendGridNotFoundError, "family"),
    (429, SendGridRateLimitError, "Poll less often"),
    (500, SendGridServerError, "later"),
    (503, SendGridServerError, "later"),
    (302, SendGridServerError, "host"),
    (405, SendGridServerError, "host"),
]


@pytest.mark.parametrize(("status", "error_class", "next_step"), ERRORS)
def test_every_documented_error_becomes_its_exception(status, error_class, next_step):
    """With the operation, SendGrid's message and the next step."""
    answer = refusal(status, "it is so", field="list_ids", error_id="e1", parameter=None, help=None)
    _, error = get_export(*[answer] * CALM.tries)
    assert type(error) is error_class
    assert error.status_code == status
    assert error.errors == ({"message": "it is so", "field": "list_ids", "error_id": "e1"},)
    message = str(error)
    assert message.startswith("status of marketing export 6f0a2c5e: ")
    assert f"SendGrid answered {status} (list_ids: it is so)" in message
    assert next_step in message


def test_a_403_names_its_three_causes():
    _, error = get_export(*[refusal(403, "access forbidden")] * 3)
    for cause in ("scope", "marketing.read", "marketing_campaigns.read", "other product", "IP Access Management"):
        assert cause in str(error)


def test_all_errors_are_in_the_message():
    answer = response(
        400, {"errors": [{"message": "one", "parameter": "p"}, {"message": "two"}, {"field": "f"}, "odd"]}
    )
    _, error = get_export(answer)
    assert "(p: one; two; f: no message; odd)" in str(error)


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xff\xfe", b'{"errors": ', {}, [], None, 7, {"errors": None}, {"errors": [7]}, {"errors": {"a": None}}],
)
def test_an_error_without_a_text_says_so(payload):
    _, error = get_export(response(400, payload))
    assert type(error) is SendGridBadRequestError
    assert "(no message)" in str(error)
    assert error.errors == ()


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({"errors": ["bad list", "bad size"]}, "bad list; bad size"),
        (
            {"errors": {"list_ids": ["bad", "worse"], "size": "too big"}},
            "list_ids: bad; list_ids: worse; size: too big",
        ),
        ({"errors": {"message": "x", "field": "f"}}, "f: x"),
        ({"errors": "bad list"}, "bad list"),
        ({"errors": [{"message": None, "field": "list_ids"}]}, "list_ids: no message"),
        ({"errors": [], "message": "bad list"}, "bad list"),
        ({"errors": {"list_ids": {"0": ["bad"]}}}, "0: bad"),
        ({"errors": [["bad list"]]}, "bad list"),
        ({"error": "bad list"}, "bad list"),
        ({"error": {"message": "bad list", "code": 7}}, "bad list"),
        ({"message": "bad list"}, "bad list"),
        ({"detail": "bad list"}, "bad list"),
        ("bad list", "bad list"),
        (["bad list"], "bad list"),
        (b"upstream\r\n  connect\x1b[31m error ", "upstream connect [31m error"),
        ("bad list".encode("utf-8-sig"), "bad list"),
        (b"<html><body>nginx</body></html>", "an HTML page"),
        (b" <!DOCTYPE html><p>", "an HTML page"),
    ],
)
def test_an_error_body_of_another_shape_is_shown(payload, said):
    _, error = get_export(response(400, payload))
    assert f"SendGrid answered 400 ({said})." in str(error)


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_page_is_named_by_its_content_type(status):
    """A proxy sent it, so neither the arguments nor the key nor the id are the reason."""
    _, error = get_export(*[response(status, b"", content_type="text/html; charset=utf-8")] * 3)
    assert "(an HTML page). Check the connection's host" in str(error)


def test_a_404_mentions_an_id_only_if_there_is_one():
    assert "Check the id" in str(get_export(*[refusal(404)] * 3)[1])
    for _, error in (start_export(refusal(404)), list_exports(refusal(404))):
        assert "Check the family" in str(error)


@pytest.mark.parametrize(
    "payload",
    [
        b"x" * 10_000_000,
        b"[" * 100_000,
        {"errors": {"a" * 9999: ["b" * 9999] * 9999}},
        {"errors": [{"message": "x", **{f"{number}{'a' * 999}": "b" for number in range(9999)}}]},
    ],
)
def test_an_error_body_is_always_shortened(payload):
    _, error = get_export(response(400, payload))
    assert len(str(error)) < 20_000
    assert len(json.dumps(error.to_event())) < 50_000


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda each: (
            st.lists(each) | st.dictionaries(st.sampled_from(["errors", "error", "message", "field", "x"]), each)
        ),
    )
)
def test_any_error_body_can_be_parsed(payload):
    _, error = get_export(response(400, payload))
    assert type(error) is SendGridBadRequestError


@pytest.mark.parametrize("key", ["SG." + "a" * 22 + "." + "b" * 43])
@pytest.mark.parametrize("offset", [0, 300, 390, 395])
def test_a_truncated_secret_is_not_shown(key, offset):
    for payload in (f"{'x' * offset} {key}".encode(), {"errors": [f"{'x' * offset} {key}"]}):
        _, error = get_export(response(400, payload))
        assert "aaaaa" not in str(error)
        assert "aaaaa" not in str(error.errors)


@pytest.mark.parametrize("said", ["authorization required", "Permission denied", "access forbidden"])
def test_a_400_about_permission_names_plan_and_permission(said):
    _, error = get_export(refusal(400, said))
    assert type(error) is SendGridBadRequestError
    for part in ("plan", "permission", "marketing.read", "marketing_campaigns.read"):
        assert part in str(error)
    assert "arguments" not in str(error)


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ("additional property 'file_typ' is not allowed", "file_typ"),
        ("additional property is not allowed", None),
        ("value 9000 is not allowed, the maximum is 5000", "max_file_size"),
        ("invalid list id: 'Authorised buyers'", None),
        ("no such list: 'not authorized'", None),
        ("permission denied", "list_ids"),
    ],
)
def test_a_400_about_an_argument_does_not_name_the_plan(said, field):
    _, error = get_export(refusal(400, said, field=field))
    assert "Correct the arguments" in str(error)
    assert "plan" not in str(error)


@pytest.mark.parametrize("status", [402, 409, 422])
def test_refusals_in_sendgrids_own_words_are_not_retried(status):
    requests, error = get_export(refusal(status, "no"))
    assert type(error) is SendGridBadRequestError
    assert len(requests) == 1
    assert "not a response of SendGrid" not in str(error)


@pytest.mark.parametrize("status", [402, 409, 422])
def test_the_same_statuses_without_sendgrids_words_are_unexpected(status):
    _, error = get_export(response(status, b"no"))
    assert type(error) is SendGridServerError


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_refusal_names_the_subuser_that_the_connection_acts_for(status):
    refused = replace(refusal(status, "subuser not found"), on_behalf_of="branch")
    _, error = get_export(*[refused] * 3)
    assert "acts for the subuser 'branch' (on_behalf_of)" in str(error)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"Access denied by policy. Squid/5.7", {}),
        (b"", {"x_squid_error": "ERR_ACCESS_DENIED 0"}),
        (b"", {"via": "1.1 squid"}),
        (b"{}", {"via": "1.1 squid"}),
    ],
)
def test_a_403_of_a_proxy_names_the_proxy(body, headers):
    _, error = get_export(*[response(403, body, **headers)] * 3)
    assert type(error) is SendGridPermissionError
    assert "A proxy on the way" in str(error)
    assert "scope" not in str(error)


@pytest.mark.parametrize("headers", [{}, {"via": "1.1 proxy"}])
def test_a_403_in_sendgrids_words_names_the_scope(headers):
    _, error = get_export(*[response(403, {"errors": [{"message": "access forbidden"}]}, **headers)] * 3)
    assert "lacks the scope" in str(error)


def test_a_401_names_both_regions():
    _, error = get_export(refusal(401, "authorization required"))
    for part in ("'global' (api.sendgrid.com)", "'eu' (api.eu.sendgrid.com)", "account's region only"):
        assert part in str(error)


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://api.eu.sendgrid.com/v3/x?secret=1", "to https://api.eu.sendgrid.com."),
        ("http://user:pass@proxy.example:8080/login", "to http://proxy.example:8080."),
        ("//other.example/x", "to https://other.example."),
        ("/v3/other", "to the same host."),
        ("", "to the same host."),
        ("http://[bad", "not a URL"),
        ("http://x:99999/", "not a URL"),
    ],
)
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_names_its_host_and_is_not_followed(status, location, shown):
    requests, error = get_export(*[response(status, b"", location=location)] * CALM.tries)
    assert {each.target for each in requests} == {f"{PATH}/6f0a2c5e"}
    assert shown in str(error)
    assert "not followed" in str(error)
    assert "secret" not in str(error)
    assert "pass@" not in str(error)


@pytest.mark.parametrize(
    ("status", "error_class", "next_step"),
    [
        (407, SendGridAuthError, "proxy's URL"),
        (413, SendGridBadRequestError, "fewer lists and segments"),
        (451, SendGridPermissionError, "legal reasons"),
    ],
)
def test_a_refusal_by_a_gateway_names_the_next_step(status, error_class, next_step):
    requests, error = start_export(response(status, b""))
    assert len(requests) == 1
    assert type(error) is error_class
    assert next_step in str(error)
    assert error.may_have_been_accepted is False


@pytest.mark.parametrize("status", [403, 404])
def test_a_missing_legacy_export_api_mentions_the_upgrade(status):
    """Its lists may work all the same."""
    refused = [refusal(status, "not found")] * 3
    for _, error in (start_export(*refused, family=LEGACY), walk(protocol.list_exports(LEGACY, CALM), *refused)):
        assert error.status_code == status
        assert "upgraded in 2025" in str(error)
    for _, error in (start_export(*refused), walk(protocol.get_lists(LEGACY, CALM), *refused)):
        assert "2025" not in str(error)


def test_a_long_error_is_shortened():
    """It goes into logs, events and the database."""
    huge = [{"message": "m" * 10_000, "field": "f" * 10_000, "help": {"text": "h" * 10_000}}] * 1_000
    _, error = get_export(response(400, {"errors": huge}))
    assert len(str(error)) < 20_000
    assert len(json.dumps(error.to_event())) < 50_000


def test_no_secret_of_a_response_is_shown():
    _, error = get_export(
        refusal(400, "bad key SG.abcdefghijklmnop.qrstuvwxyz and https://x.example/?X-Amz-Signature=5e")
    )
    assert "abcdefghij" not in str(error)
    assert "5e" not in str(error).replace("6f0a2c5e", "")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"text"', b"null", b"7", b"<html>login</html>", b"\xff", b"[" * 100_000]
)
def test_a_response_must_be_a_json_object(body):
    """Never an empty success."""
    requests, error = get_export(*[response(200, body)] * CALM.tries)
    assert type(error) is SendGridServerError
    assert len(requests) == CALM.tries
    assert "not a JSON object" in str(error)


# --- asking again


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(lambda: refusal(429), id="429"),
        pytest.param(lambda: refusal(500), id="500"),
        pytest.param(lambda: refusal(503), id="503"),
        pytest.param(lambda: response(200, b'{"id": '), id="broken JSON"),
        pytest.param(unsent, id="no connection"),
        pytest.param(lambda: SendGridUnavailableError("the connection broke"), id="no answer"),
    ],
)
def test_a_get_is_retried_after_a_transient_error(event):
    requests, export = get_export(event(), event(), response(200, READY))
    assert export.status == "ready"
    assert [(each.method, each.target) for each in requests] == [("GET", f"{PATH}/6f0a2c5e")] * 3
    assert waits(requests) == [0.0, 0.5, 1.0]
    assert requests[1].reason


@pytest.mark.parametrize("status", [400, 401, 407, 413, 451])
def test_a_refusal_is_final(status):
    requests, error = get_export(refusal(status))
    assert len(requests) == 1
    assert error.status_code == status


@pytest.mark.parametrize("tries", [1, 2, 6])
def test_tries_are_limited(tries):
    requests, error = get_export(*[refusal(500)] * 10, retry_policy=RetryPolicy(tries=tries))
    assert len(requests) == tries
    assert error.status_code == 500


def test_waits_double_up_to_their_limit():
    retry_policy = RetryPolicy(tries=9, first_wait_seconds=1.0, longest_wait_seconds=10.0, jitter=lambda: 1.0)
    requests, _ = get_export(*[refusal(500)] * 9, retry_policy=retry_policy)
    assert waits(requests) == [0.0, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0, 10.0]


@given(st.integers(1, 2000), st.floats(0, 1))
def test_no_wait_exceeds_the_retry_policy(tried, jitter):
    retry_policy = RetryPolicy(jitter=lambda: jitter)
    wait = retry_policy.wait_seconds(min(tried, 1000))
    assert 0.5 <= wait <= retry_policy.longest_wait_seconds


def test_an_unknown_id_is_retried_a_few_times():
    """It may be too new to be known everywhere."""
    requests, export = get_export(refusal(404), refusal(404), response(200, READY))
    assert export.status == "ready"
    assert waits(requests) == [0.0, 0.5, 1.0]


def test_the_third_404_of_an_id_is_final():
    requests, error = get_export(*[refusal(404)] * 6)
    assert type(error) is SendGridNotFoundError
    assert len(requests) == 3


def test_other_404s_are_final():
    requests, error = list_exports(refusal(404))
    assert type(error) is SendGridNotFoundError
    assert len(requests) == 1


def test_a_stray_403_is_repeated_a_few_times():
    """SendGrid sometimes refuses one request among good ones."""
    requests, export = get_export(refusal(403), refusal(403), response(200, READY))
    assert export.status == "ready"
    assert waits(requests) == [0.0, 0.5, 1.0]
    requests, export_id = start_export(refusal(403), refusal(403), response(202, {"id": "started"}))
    assert (len(requests), export_id) == (3, "started")


@pytest.mark.parametrize("run", [get_export, start_export, list_exports])
def test_the_third_403_is_final(run):
    requests, error = run(*[refusal(403)] * 6)
    assert type(error) is SendGridPermissionError
    assert len(requests) == 3
    assert error.may_have_been_accepted is False


def test_a_stray_403_is_repeated_after_an_outage_too():
    requests, export = get_export(*[refusal(503)] * 4, refusal(403), response(200, READY))
    assert (len(requests), export.status) == (6, "ready")


def test_few_tries_limit_the_403s_as_well():
    requests, _ = get_export(*[refusal(403)] * 6, retry_policy=RetryPolicy(tries=2))
    assert len(requests) == 2


def test_a_start_whose_response_is_lost_after_a_403_is_not_repeated():
    requests, error = start_export(refusal(403), unanswered())
    assert len(requests) == 2
    assert error.may_have_been_accepted is True


# --- starting again


@pytest.mark.parametrize("event", [lambda: refusal(429), unsent])
def test_a_start_that_was_not_accepted_is_retried(event):
    requests, export_id = start_export(event(), response(202, {"id": "6f0a2c5e"}))
    assert export_id == "6f0a2c5e"
    assert requests[1].body == requests[0].body


@pytest.mark.parametrize(
    ("event", "error_class"),
    [
        pytest.param(unanswered, SendGridUnavailableError, id="answer lost"),
        pytest.param(lambda: refusal(500), SendGridServerError, id="500"),
        pytest.param(lambda: refusal(502), SendGridServerError, id="502"),
        pytest.param(lambda: refusal(408), SendGridServerError, id="408 of a gateway that waited too long"),
        pytest.param(lambda: response(499, b""), SendGridServerError, id="a gateway's own status"),
        pytest.param(lambda: response(403, b"<html>Blocked</html>"), SendGridPermissionError, id="a proxy's 403"),
        pytest.param(lambda: response(404, b"no such site"), SendGridNotFoundError, id="a proxy's 404"),
        pytest.param(lambda: response(202, b'{"id": '), SendGridServerError, id="broken JSON"),
        pytest.param(lambda: response(302, b""), SendGridServerError, id="redirect"),
    ],
)
def test_a_start_that_may_be_accepted_is_never_repeated(event, error_class):
    """SendGrid knows no idempotency key: a blind repetition starts another export."""
    requests, error = start_export(event())
    assert len(requests) == 1
    assert type(error) is error_class
    assert error.may_have_been_accepted is True


@pytest.mark.parametrize("status", [400, 401, 404, 405, 413])
def test_a_refused_start_is_final(status):
    requests, error = start_export(refusal(status))
    assert len(requests) == 1
    assert error.status_code == status
    assert error.may_have_been_accepted is False


@pytest.mark.parametrize(
    ("response", "is_of_proxy"),
    [
        (refusal(400), False),
        (refusal(401), False),
        (response(401, b""), False),
        (response(400, b"<html>Bad Request</html>"), True),
        (response(401, b"log in first"), True),
        (response(407, b""), True),
        (response(502, b"<html>Bad Gateway</html>"), False),
    ],
)
def test_a_refusal_by_a_proxy_is_recognized(response, is_of_proxy):
    _, error = get_export(*[response] * CALM.tries)
    assert error.is_of_proxy is is_of_proxy


@pytest.mark.parametrize("status", [429, 500])
def test_a_get_is_never_marked_as_accepted(status):
    """Only what changes something can have been."""
    _, error = get_export(*[refusal(status)] * CALM.tries)
    assert error.may_have_been_accepted is False


# --- how long SendGrid asks to wait


def in_seconds(seconds):
    return datetime.fromtimestamp(NOW, tz=timezone.utc) + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry_after": "18"}, 18.0),
        ({"retry_after": " 1.5 "}, 1.5),
        ({"retry_after": format_datetime(in_seconds(18), usegmt=True)}, 18.0),
        ({"retry_after": in_seconds(18).strftime("%a, %d %b %Y %H:%M:%S -0000")}, 18.0),
        ({"retry_after": in_seconds(18).strftime("%a %b %d %H:%M:%S %Y")}, 18.0),
        ({"retry_after": format_datetime(in_seconds(-18), usegmt=True)}, 0.0),
        ({"x_ratelimit_reset": "18"}, 18.0),
        ({"x_ratelimit_reset": "0"}, 0.0),
        ({"x_ratelimit_reset": str(int(NOW) + 18)}, 18.0),
        ({"x_ratelimit_reset": str(int(NOW) - 18)}, 0.0),
        ({"retry_after": "3", "x_ratelimit_reset": "18"}, 3.0),
        ({"retry_after": "soon", "x_ratelimit_reset": "18"}, 18.0),
        ({"retry_after": "-1", "x_ratelimit_reset": "-1"}, None),
        ({"retry_after": "nan"}, None),
        ({"x_ratelimit_reset": "inf"}, None),
        ({"retry_after": str(int(NOW) + 18)}, 18.0),
        ({"x_ratelimit_reset": str((int(NOW) + 18) * 1000)}, 18.0),
        ({"retry_after": "1e300"}, 86_400.0),
        ({"x_ratelimit_reset": "1e300"}, 86_400.0),
        ({"retry_after": "Fri, 31 Dec 9999 23:59:59 GMT"}, 86_400.0),
        ({"retry_after": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0.0),
    ],
)
def test_the_wait_is_read_from_any_header(headers, seconds):
    """SendGrid has sent the reset as an epoch and as seconds from now."""
    assert protocol.rate_limit_wait_seconds(response(429, {}, **headers)) == seconds


@pytest.mark.parametrize("ahead", [-600, 600])
@pytest.mark.parametrize(
    "headers",
    [
        {"retry_after": "18"},
        {"retry_after": format_datetime(in_seconds(18), usegmt=True)},
        {"x_ratelimit_reset": str(int(NOW) + 18)},
    ],
)
def test_a_rate_limit_is_read_by_sendgrids_clock(headers, ahead):
    """This machine's clock may be minutes ahead or behind."""
    sent = replace(
        response(429, {}, date=format_datetime(in_seconds(0), usegmt=True), **headers), received_at=NOW + ahead
    )
    assert protocol.rate_limit_wait_seconds(sent) == 18.0
    rate_limit = protocol.RateLimit()
    rate_limit.record(replace(sent, headers=sent.headers | {"x-ratelimit-remaining": "0"}))
    assert rate_limit.wait_seconds(NOW + ahead) == 18.0


@pytest.mark.parametrize("date", ["", "soon", "Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 -2359"])
def test_an_invalid_date_is_ignored(date):
    assert protocol.time_at_sendgrid(response(200, {}, date=date)) == in_seconds(0)


@pytest.mark.parametrize("status", [429, 500, 502, 503])
@pytest.mark.parametrize("retry_after", ["18", format_datetime(in_seconds(18), usegmt=True)])
def test_retry_after_is_respected_on_every_retryable_status(status, retry_after):
    refused = response(status, {}, retry_after=retry_after)
    requests, export = get_export(refused, response(200, READY))
    assert export.status == "ready"
    assert waits(requests) == [0.0, 18.0]
    _, error = get_export(*[refused] * CALM.tries)
    assert error.retry_after_seconds == 18.0


def test_a_long_outage_is_raised_with_retry_after():
    requests, error = get_export(response(503, {}, retry_after="3600"))
    assert len(requests) == 1
    assert error.retry_after_seconds == 3600.0


def test_a_reset_header_is_ignored_in_an_outage():
    requests, _ = get_export(response(503, {}, x_ratelimit_reset="60"), response(200, READY))
    assert waits(requests) == [0.0, 0.5]


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
def test_a_date_without_a_zone_is_utc(monkeypatch, zone):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    date = in_seconds(18).strftime("%a %b %d %H:%M:%S %Y")
    assert protocol.rate_limit_wait_seconds(response(429, {}, retry_after=date)) == 18.0
    monkeypatch.undo()
    time.tzset()


@given(st.text(max_size=30), st.text(max_size=30))
def test_malformed_rate_limits_are_ignored(retry_after, reset):
    seconds = protocol.rate_limit_wait_seconds(response(429, {}, retry_after=retry_after, x_ratelimit_reset=reset))
    assert seconds is None or seconds >= 0


def test_retry_after_is_kept_to_the_second():
    requests, _ = get_export(response(429, {}, retry_after="18"), response(200, READY))
    assert waits(requests) == [0.0, 18.0]
    assert "429" in requests[1].reason


def test_retries_at_the_same_time_are_spread_by_jitter():
    retry_policy = RetryPolicy(jitter=lambda: 1.0)
    requests, _ = get_export(response(429, {}, retry_after="18"), response(200, READY), retry_policy=retry_policy)
    assert 18.0 < waits(requests)[1] <= 23.0


def test_a_past_reset_does_not_shorten_the_wait():
    """This machine's clock may be ahead: a time in the past is no reason for six immediate retries."""
    requests, _ = get_export(*[response(429, {}, x_ratelimit_reset=str(int(NOW) - 60))] * 4)
    assert waits(requests) == [0.0, 0.5, 1.0, 2.0, 4.0]


def test_a_wait_beyond_the_retry_policy_is_an_error():
    """The error says how long, so that the caller may decide."""
    requests, error = get_export(response(429, {}, retry_after="121"))
    assert len(requests) == 1
    assert type(error) is SendGridRateLimitError
    assert error.retry_after_seconds == 121.0


STARTING = replace(protocol.START_RETRY_POLICY, jitter=lambda: 0.0)


def test_a_start_is_retried_while_others_use_the_rate_limit():
    """Hundreds of tasks start at once, and ten requests are granted in a window."""
    refused = [response(429, {}, retry_after="20")] * 20
    requests, export_id = start_export(*refused, response(202, {"id": "started"}), retry_policy=STARTING)
    assert export_id == "started"
    assert waits(requests) == [0.0] + [20.0] * 20


@pytest.mark.parametrize("retry_after", ["20", "0", ""])
def test_retries_for_the_rate_limit_are_limited(retry_after):
    requests, error = start_export(*[response(429, {}, retry_after=retry_after)] * 200, retry_policy=STARTING)
    assert type(error) is SendGridRateLimitError
    assert 590.0 <= sum(waits(requests)) <= 720.0
    assert len(requests) < 100


# --- what is left of the limit


def limit(remaining=None, reset=None, status=200):
    headers = {"x_ratelimit_remaining": remaining, "x_ratelimit_reset": reset}
    rate_limit = protocol.RateLimit()
    rate_limit.record(response(status, {}, **{name: value for name, value in headers.items() if value is not None}))
    return rate_limit


@pytest.mark.parametrize("reset", ["18", str(int(NOW) + 18)])
def test_a_used_up_limit_waits_for_the_next_window(reset):
    rate_limit = limit("0", reset)
    assert [rate_limit.wait_seconds(NOW + passed) for passed in (0, 10, 18, 30)] == [18.0, 8.0, 0.0, 0.0]
    assert [rate_limit.spare(NOW + passed) for passed in (0, 18)] == [0.0, float("inf")]


@pytest.mark.parametrize(("remaining", "spare"), [("1", 1.0), ("9", 9.0), (None, float("inf")), ("odd", float("inf"))])
def test_a_limit_with_requests_left_does_not_wait(remaining, spare):
    rate_limit = limit(remaining, "18")
    assert rate_limit.wait_seconds(NOW) == 0.0
    assert rate_limit.spare(NOW) == spare


def test_a_new_rate_limit_does_not_wait():
    assert protocol.RateLimit().wait_seconds(NOW) == 0.0
    assert protocol.RateLimit().spare(NOW) == float("inf")


def test_an_endless_window_is_not_waited_for():
    """The request is sent; the 429 then gives the reason."""
    assert limit("0", "1000000").wait_seconds(NOW) == protocol.DEFAULT_RETRY_POLICY.longest_wait_seconds
    assert limit("0").wait_seconds(NOW) == 0.0


def test_the_latest_response_sets_the_limit():
    rate_limit = limit("0", "18")
    rate_limit.record(response(200, {}, x_ratelimit_remaining="5", x_ratelimit_reset="60"))
    assert rate_limit.wait_seconds(NOW) == 0.0
    rate_limit.record(response(200, {}))
    assert rate_limit.spare(NOW) == float("inf")


# --- values


def test_reprs_contain_no_bodies_and_no_secrets():
    """Responses contain signed URLs."""
    assert "secret" not in repr(response(200, {"urls": ["https://secret"]}))


# --- limits and deadlines that cannot be right


@pytest.mark.parametrize("reset", ["86400", str(int(NOW) + 86_400), "18000000"])
def test_no_window_of_a_rate_limit_is_longer_than_two_minutes(reset):
    rate_limit = protocol.RateLimit()
    rate_limit.record(response(200, {}, x_ratelimit_remaining="0", x_ratelimit_reset=reset))
    assert rate_limit.wait_seconds(NOW) == 120.0
    assert rate_limit.spare(NOW + 121) == float("inf")


def test_a_clock_that_is_set_back_does_not_lengthen_a_window():
    rate_limit = protocol.RateLimit()
    rate_limit.record(response(200, {}, x_ratelimit_remaining="0", x_ratelimit_reset="60"))
    assert (rate_limit.wait_seconds(NOW - 3600), rate_limit.spare(NOW - 3600)) == (0.0, float("inf"))


def test_no_retry_begins_after_the_deadline():
    requests, error = get_export(
        refusal(503), response(200, READY), retry_policy=replace(CALM, seconds_left=lambda: 0.0)
    )
    assert (len(requests), error.status_code) == (1, 503)


@pytest.mark.parametrize(
    "broken", [lambda headers: response(503, {}, **headers), lambda headers: response(200, b"?", **headers)]
)
def test_an_unreadable_response_still_sets_the_limit(broken):
    """Else the wait for a slot would be part of the next try, and unbounded by the caller's retry policy."""
    refused = broken({"x_ratelimit_remaining": "0", "x_ratelimit_reset": "40"})
    _, error = get_export(refused, retry_policy=replace(CALM, longest_wait_seconds=5.0))
    assert error.retry_after_seconds == 40.0


@pytest.mark.parametrize("change", [{"id": None, "message": "upstream timed out"}, {"errors": [{"message": "no"}]}])
def test_a_failure_of_a_gateway_is_retried(change):
    requests, export = get_export(response(200, {"id": "6f0a2c5e", "status": "failure"} | change), response(200, READY))
    assert (len(requests), export.status) == (2, "ready")
