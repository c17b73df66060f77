"""Conversations with SendGrid walked by hand: what is asked, how answers are read, when it is asked again."""

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
from airflow_provider_sendgrid.exports.protocol import Patience, Reply, Request

NOW = 1_767_323_045.0
MARKETING, LEGACY = ExportFamily.MARKETING, ExportFamily.LEGACY
BOTH_FAMILIES = pytest.mark.parametrize("family", list(ExportFamily))
# No jitter: each wait is half of its full length, and 429s are obeyed to the second.
CALM = Patience(jitter=lambda: 0.0)
READY = {"id": "6f0a2c5e", "status": "ready", "urls": ["https://files.example/1"]}


def reply(status=200, payload=None, **headers):
    """An answer; bytes are sent as they are, anything else as JSON."""
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return Reply(status, {name.replace("_", "-"): value for name, value in headers.items()}, body, NOW)


def refusal(status, message="no", **fields):
    return reply(status, {"errors": [{"message": message, **fields}]})


def walk(conversation, *events):
    """Answer a conversation with replies and failures, in this order; return its requests and its result.

    The result is the error itself where the conversation ends with one; None where it goes on asking.
    """
    requests = [next(conversation)]
    for event in events:
        try:
            step = conversation.throw if isinstance(event, Exception) else conversation.send
            requests.append(step(event))
        except StopIteration as end:
            return requests, end.value
        except SendGridError as error:
            return requests, error
    return requests, None


def get_export(*events, patience=CALM, family=MARKETING, export_id="6f0a2c5e"):
    return walk(protocol.get_export(family, export_id, patience), *events)


def start_export(*events, patience=CALM, family=MARKETING, **selection):
    return walk(protocol.start_export(family, ExportSelection(**selection), patience), *events)


def waits(requests):
    return [request.after_seconds for request in requests]


def unsent():
    return SendGridUnavailableError("no connection")


def unanswered():
    return SendGridUnavailableError("the connection broke", may_have_been_accepted=True)


# --- asking


@BOTH_FAMILIES
def test_the_status_of_an_export_is_asked_for_by_its_id(family):
    requests, export = get_export(reply(200, READY), family=family)
    assert requests == [Request("GET", f"{FAMILIES[family].exports_path}/6f0a2c5e")]
    assert (export.id, export.status, export.urls) == ("6f0a2c5e", "ready", ("https://files.example/1",))


@pytest.mark.parametrize("export_id", ["../lists", "a/b", "a?b=c", "a#b", "a b", "%2e%2e", "..", ".", "a\nb", "ü"])
def test_an_id_stays_one_step_of_the_path(export_id):
    """An id comes from another task: whatever it holds, no other endpoint is asked."""
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
def test_what_cannot_be_an_id_is_refused_before_anything_is_asked(export_id):
    """Most of all the empty one: it would ask for the list. Clients resolve dots in paths."""
    with pytest.raises(ValueError, match="export_id"):
        get_export(export_id=export_id)


@BOTH_FAMILIES
def test_a_start_sends_the_selection(family):
    requests, export_id = start_export(reply(202, {"id": "6f0a2c5e"}), family=family, list_ids=["7"])
    body = {"list_ids": [FAMILIES[family].id_type(7)], "file_type": "csv", "notifications": {"email": False}}
    assert requests == [Request("POST", FAMILIES[family].exports_path, body)]
    assert export_id == "6f0a2c5e"


def test_a_wrong_selection_is_refused_before_anything_is_asked():
    with pytest.raises(ValueError, match="file_type"):
        start_export(file_type="xlsx")


@pytest.mark.parametrize("payload", [{}, {"id": None}, {"id": ""}, {"id": ["6f0a2c5e"]}])
def test_a_start_accepted_without_an_id_is_an_error_that_says_so(payload):
    """The description does not mark the id as required."""
    [_], error = start_export(reply(202, payload))
    assert type(error) is SendGridServerError
    assert error.may_have_been_accepted is True
    assert "list of exports" in str(error)


def test_scopes_are_texts():
    requests, scopes = walk(protocol.get_scopes(CALM), reply(200, {"scopes": ["marketing.read", 7]}))
    assert requests == [Request("GET", "/v3/scopes")]
    assert scopes == ["marketing.read", "7"]


@pytest.mark.parametrize(
    ("ask", "family", "target", "field"),
    [
        (protocol.list_exports, MARKETING, "/v3/marketing/contacts/exports", "result"),
        (protocol.list_exports, LEGACY, "/v3/contactdb/exports", "result"),
        (protocol.get_lists, MARKETING, "/v3/marketing/lists?page_size=1000", "result"),
        (protocol.get_lists, LEGACY, "/v3/contactdb/lists", "lists"),
        (protocol.get_segments, MARKETING, "/v3/marketing/segments/2.0", "results"),
        (protocol.get_segments, LEGACY, "/v3/contactdb/segments", "segments"),
    ],
)
def test_every_listing_is_read_under_its_own_name(ask, family, target, field):
    requests, items = walk(ask(family, CALM), reply(200, {field: [{"id": "a"}, "odd", {"id": "b"}]}))
    assert requests == [Request("GET", target)]
    assert [item.id if ask is protocol.list_exports else item["id"] for item in items] == ["a", "b"]


# --- pages


def page(*ids, following=None, metadata="_metadata"):
    return reply(200, {"result": [{"id": each} for each in ids], metadata: {"next": following}})


def list_exports(*events, patience=CALM):
    return walk(protocol.list_exports(MARKETING, patience), *events)


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
def test_another_host_is_never_asked(host):
    """The target names none, so the key goes where it always goes."""
    requests, _ = list_exports(page("a", following=f"{host}{PATH}?page_token=2"))
    assert requests[-1].target == f"{PATH}?page_token=2"


@pytest.mark.parametrize(
    "following",
    ["/v3/user/profile", f"{PATH}/../lists", f"{PATH}/", "https://evil.example", "?page_token=2", "http://[evil", "x"],
)
def test_another_path_is_never_asked(following):
    requests, error = list_exports(page("a", following=following))
    assert len(requests) == 1
    assert type(error) is SendGridServerError
    assert "next page" in str(error)


@pytest.mark.parametrize("nothing", [None, "", 7, ["x"]])
def test_a_page_without_a_next_one_is_the_last(nothing):
    _, exports = list_exports(page("a", following=nothing))
    assert [each.id for each in exports] == ["a"]


def test_pages_that_go_round_in_a_circle_end():
    requests, error = list_exports(
        page("a", following=f"{PATH}?page_token=2"), page("b", following=f"{PATH}?page_token=2")
    )
    assert len(requests) == 2
    assert "circle" in str(error)


def test_pages_without_end_end():
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


@pytest.mark.parametrize("metadata", [None, "odd", ["odd"]])
def test_odd_metadata_means_no_next_page(metadata):
    _, exports = list_exports(reply(200, {"result": [{"id": "a"}], "_metadata": metadata}))
    assert len(exports) == 1


def test_an_empty_account_has_no_exports():
    """A Go program says null for an empty list."""
    assert list_exports(reply(200, {"result": None}))[1] == []


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
    """With what was asked, SendGrid's own words, and what to do next."""
    answer = refusal(status, "it is so", field="list_ids", error_id="e1", parameter=None, help=None)
    _, error = get_export(*[answer] * CALM.tries)
    assert type(error) is error_class
    assert error.status_code == status
    assert error.errors == ({"message": "it is so", "field": "list_ids", "error_id": "e1"},)
    told = str(error)
    assert told.startswith("status of marketing export 6f0a2c5e: ")
    assert f"SendGrid answered {status} (list_ids: it is so)" in told
    assert next_step in told


def test_a_403_names_its_three_causes():
    _, error = get_export(refusal(403, "access forbidden"))
    for cause in ("scope", "marketing.read", "marketing_campaigns.read", "other product", "IP Access Management"):
        assert cause in str(error)


def test_several_errors_are_all_told():
    answer = reply(400, {"errors": [{"message": "one", "parameter": "p"}, {"message": "two"}, {"field": "f"}, "odd"]})
    _, error = get_export(answer)
    assert "(p: one; two; f: no message)" in str(error)


@pytest.mark.parametrize(
    "payload",
    [b"", b"<html>", b"\xff\xfe", {}, [], None, {"errors": None}, {"errors": {"message": "x"}}, {"errors": [7]}],
)
def test_an_error_without_errors_is_told_all_the_same(payload):
    _, error = get_export(reply(400, payload))
    assert type(error) is SendGridBadRequestError
    assert "(no message)" in str(error)
    assert error.errors == ()


def test_an_error_of_any_size_is_told_in_a_page():
    """It goes into logs, events and the database."""
    huge = [{"message": "m" * 10_000, "field": "f" * 10_000, "help": {"text": "h" * 10_000}}] * 1_000
    _, error = get_export(reply(400, {"errors": huge}))
    assert len(str(error)) < 20_000
    assert len(json.dumps(error.to_event())) < 50_000


def test_no_secret_of_an_answer_is_told():
    _, error = get_export(
        refusal(400, "bad key SG.abcdefghijklmnop.qrstuvwxyz and https://x.example/?X-Amz-Signature=5e")
    )
    assert "abcdefghij" not in str(error)
    assert "5e" not in str(error).replace("6f0a2c5e", "")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"text"', b"null", b"7", b"<html>login</html>", b"\xff", b"[" * 100_000]
)
def test_an_answer_that_is_no_json_object_is_a_broken_one(body):
    """Never an empty success."""
    requests, error = get_export(*[reply(200, body)] * CALM.tries)
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
        pytest.param(lambda: reply(200, b'{"id": '), id="broken JSON"),
        pytest.param(unsent, id="no connection"),
        pytest.param(lambda: SendGridUnavailableError("the connection broke"), id="no answer"),
    ],
)
def test_a_question_is_asked_again_after_what_may_pass(event):
    requests, export = get_export(event(), event(), reply(200, READY))
    assert export.status == "ready"
    assert [(each.method, each.target) for each in requests] == [("GET", f"{PATH}/6f0a2c5e")] * 3
    assert waits(requests) == [0.0, 0.5, 1.0]
    assert requests[1].because


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_refusal_is_final(status):
    requests, error = get_export(refusal(status))
    assert len(requests) == 1
    assert error.status_code == status


@pytest.mark.parametrize("tries", [1, 2, 6])
def test_tries_are_bounded(tries):
    requests, error = get_export(*[refusal(500)] * 10, patience=Patience(tries=tries))
    assert len(requests) == tries
    assert error.status_code == 500


def test_waits_double_up_to_their_bound():
    patience = Patience(tries=9, first_wait_seconds=1.0, longest_wait_seconds=10.0, jitter=lambda: 1.0)
    requests, _ = get_export(*[refusal(500)] * 9, patience=patience)
    assert waits(requests) == [0.0, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0, 10.0]


@given(st.integers(1, 2000), st.floats(0, 1))
def test_no_wait_is_longer_than_patience(tried, jitter):
    patience = Patience(jitter=lambda: jitter)
    wait = patience.wait_seconds(min(tried, 1000))
    assert 0.5 <= wait <= patience.longest_wait_seconds


def test_an_unknown_id_has_a_short_grace():
    """It may be too new to be known everywhere."""
    requests, export = get_export(refusal(404), refusal(404), reply(200, READY))
    assert export.status == "ready"
    assert waits(requests) == [0.0, 0.5, 1.0]


def test_the_grace_of_an_unknown_id_ends():
    requests, error = get_export(*[refusal(404)] * 6)
    assert type(error) is SendGridNotFoundError
    assert len(requests) == 3


def test_only_an_export_has_that_grace():
    requests, error = list_exports(refusal(404))
    assert type(error) is SendGridNotFoundError
    assert len(requests) == 1


# --- starting again


@pytest.mark.parametrize("event", [lambda: refusal(429), unsent])
def test_a_start_is_tried_again_where_it_surely_was_not_accepted(event):
    requests, export_id = start_export(event(), reply(202, {"id": "6f0a2c5e"}))
    assert export_id == "6f0a2c5e"
    assert requests[1].body == requests[0].body


@pytest.mark.parametrize(
    ("event", "error_class"),
    [
        pytest.param(unanswered, SendGridUnavailableError, id="answer lost"),
        pytest.param(lambda: refusal(500), SendGridServerError, id="500"),
        pytest.param(lambda: refusal(502), SendGridServerError, id="502"),
        pytest.param(lambda: reply(202, b'{"id": '), SendGridServerError, id="broken JSON"),
        pytest.param(lambda: reply(302, b""), SendGridServerError, id="redirect"),
    ],
)
def test_a_start_is_never_repeated_where_it_may_have_been_accepted(event, error_class):
    """SendGrid knows no idempotency key: a blind repetition starts another export."""
    requests, error = start_export(event())
    assert len(requests) == 1
    assert type(error) is error_class
    assert error.may_have_been_accepted is True


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 408, 413])
def test_a_start_that_was_refused_is_neither_repeated_nor_accepted(status):
    requests, error = start_export(refusal(status))
    assert len(requests) == 1
    assert error.status_code == status
    assert error.may_have_been_accepted is False


@pytest.mark.parametrize("status", [429, 500])
def test_a_question_is_never_accepted(status):
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
    ],
)
def test_a_limit_says_how_long_to_wait_in_one_of_many_ways(headers, seconds):
    """Reset was seen as an epoch and as seconds to go."""
    assert protocol.rate_limit_wait_seconds(reply(429, {}, **headers)) == seconds


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
def test_a_date_without_a_zone_is_utc_wherever_we_are(monkeypatch, zone):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    date = in_seconds(18).strftime("%a %b %d %H:%M:%S %Y")
    assert protocol.rate_limit_wait_seconds(reply(429, {}, retry_after=date)) == 18.0
    monkeypatch.undo()
    time.tzset()


@given(st.text(max_size=30), st.text(max_size=30))
def test_odd_limits_are_no_limits(retry_after, reset):
    seconds = protocol.rate_limit_wait_seconds(reply(429, {}, retry_after=retry_after, x_ratelimit_reset=reset))
    assert seconds is None or seconds >= 0


def test_a_limit_is_obeyed_to_the_second():
    requests, _ = get_export(reply(429, {}, retry_after="18"), reply(200, READY))
    assert waits(requests) == [0.0, 18.0]
    assert "429" in requests[1].because


def test_those_who_wait_for_the_same_moment_do_not_come_at_once():
    patience = Patience(jitter=lambda: 1.0)
    requests, _ = get_export(reply(429, {}, retry_after="18"), reply(200, READY), patience=patience)
    assert 18.0 < waits(requests)[1] <= 23.0


def test_a_limit_that_should_have_passed_is_not_stormed():
    """Our clock may be ahead of SendGrid's: a moment that seems past is no reason to ask at once, six times."""
    requests, _ = get_export(*[reply(429, {}, x_ratelimit_reset=str(int(NOW) - 60))] * 4)
    assert waits(requests) == [0.0, 0.5, 1.0, 2.0, 4.0]


def test_a_longer_wait_than_patience_is_not_begun():
    """The error says how long, so that the caller may decide."""
    requests, error = get_export(reply(429, {}, retry_after="121"))
    assert len(requests) == 1
    assert type(error) is SendGridRateLimitError
    assert error.retry_after_seconds == 121.0


STARTING = replace(protocol.START_PATIENCE, jitter=lambda: 0.0)


def test_a_start_waits_for_its_slot_though_others_are_faster():
    """Hundreds of tasks start at once, and ten requests are granted in a window."""
    refused = [reply(429, {}, retry_after="20")] * 20
    requests, export_id = start_export(*refused, reply(202, {"id": "started"}), patience=STARTING)
    assert export_id == "started"
    assert waits(requests) == [0.0] + [20.0] * 20


@pytest.mark.parametrize("retry_after", ["20", "0", ""])
def test_the_wait_for_a_slot_is_bounded_and_no_storm(retry_after):
    requests, error = start_export(*[reply(429, {}, retry_after=retry_after)] * 200, patience=STARTING)
    assert type(error) is SendGridRateLimitError
    assert 590.0 <= sum(waits(requests)) <= 720.0
    assert len(requests) < 100


# --- what is left of the limit


def limit(remaining=None, reset=None, status=200):
    headers = {"x_ratelimit_remaining": remaining, "x_ratelimit_reset": reset}
    noted = protocol.RateLimit()
    noted.note(reply(status, {}, **{name: value for name, value in headers.items() if value is not None}))
    return noted


@pytest.mark.parametrize("reset", ["18", str(int(NOW) + 18)])
def test_who_has_used_up_the_limit_waits_for_the_next_window(reset):
    noted = limit("0", reset)
    assert [noted.wait_seconds(NOW + passed) for passed in (0, 10, 18, 30)] == [18.0, 8.0, 0.0, 0.0]
    assert [noted.spare(NOW + passed) for passed in (0, 18)] == [0.0, float("inf")]


@pytest.mark.parametrize(("remaining", "spare"), [("1", 1.0), ("9", 9.0), (None, float("inf")), ("odd", float("inf"))])
def test_who_has_requests_left_or_was_told_nothing_does_not_wait(remaining, spare):
    noted = limit(remaining, "18")
    assert noted.wait_seconds(NOW) == 0.0
    assert noted.spare(NOW) == spare


def test_nobody_has_said_anything_yet():
    assert protocol.RateLimit().wait_seconds(NOW) == 0.0
    assert protocol.RateLimit().spare(NOW) == float("inf")


def test_a_window_that_never_ends_is_not_waited_for():
    """SendGrid may be asked then: it answers 429, and that says why."""
    assert limit("0", "1000000").wait_seconds(NOW) == protocol.DEFAULT_PATIENCE.longest_wait_seconds
    assert limit("0").wait_seconds(NOW) == 0.0


def test_the_last_answer_counts():
    noted = limit("0", "18")
    noted.note(reply(200, {}, x_ratelimit_remaining="5", x_ratelimit_reset="60"))
    assert noted.wait_seconds(NOW) == 0.0
    noted.note(reply(200, {}))
    assert noted.spare(NOW) == float("inf")


# --- values


def test_reprs_show_neither_answers_nor_secrets():
    """Answers hold signed URLs."""
    assert "secret" not in repr(reply(200, {"urls": ["https://secret"]}))
