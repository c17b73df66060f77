"""An export is started once, whichever response is lost.

Flows are driven by hand, without clock and network, and then against the emulator with both clients.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import replace
from datetime import datetime, timezone
from email.utils import format_datetime

import pytest

from airflow_provider_sendgrid.emulator import Fault
from airflow_provider_sendgrid.exceptions import (
    ExportInDoubtError,
    SendGridAuthError,
    SendGridPermissionError,
    SendGridServerError,
    SendGridUnavailableError,
)
from airflow_provider_sendgrid.exports.client import AsyncSendGridClient, SendGridClient
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.export import ExportFamily, ExportSelection
from airflow_provider_sendgrid.exports.protocol import Response, RetryPolicy
from airflow_provider_sendgrid.exports.start import start_export_once
from airflow_provider_sendgrid.exports.start_attempt import Attempt, Baseline, Clock, ConcurrentStarts, PendingStart
from airflow_provider_sendgrid.exports.start_search import find_started

MARKETING, LEGACY = ExportFamily.MARKETING, ExportFamily.LEGACY
CALM = RetryPolicy(tries=2, jitter=lambda: 0.0)
NOW = 1_767_323_045.0
CUSTOMERS = ExportSelection(list_ids=["customers"])
LOST = SendGridUnavailableError("the connection broke", may_have_been_accepted=True)
ACCEPTED = {"id": "started"}
OTHER = PendingStart("other")
NOTHING = [[]] * 6  # the searches after a lost response
ALL_SEARCHES = len(NOTHING) + 5  # and further ones while in doubt


def at(seconds):
    return datetime.fromtimestamp(NOW + seconds, tz=timezone.utc)


def export(export_id, created=1.0, lists=("customers",), segments=(), status="pending", **fields):
    """An item of the listing, created this many seconds after the attempt."""
    return {
        "id": export_id,
        "status": status,
        "created_at": at(created).isoformat(),
        "lists": [{"ID": each, "Name": "x"} for each in lists],
        "segments": [{"ID": each, "Name": "x"} for each in segments],
        **fields,
    }


def walk(flow, *answers):
    """Run a flow with these responses; return its requests and its result or error.

    An answer is an exception, the payload of a 202 or, as a list, the items of a listing.
    """
    requests = []
    try:
        request = next(flow)
        for answer in answers:
            requests.append(request)
            if isinstance(answer, Exception):
                request = flow.throw(answer)
            else:
                request = flow.send(answer if isinstance(answer, Response) else response(answer))
    except StopIteration as end:
        return requests, end.value
    raise AssertionError(f"the flow continues with {request}")


def response(payload, ahead_seconds=None):
    is_listing = isinstance(payload, list)
    body = {"result": payload} if is_listing else payload
    headers = {} if ahead_seconds is None else {"date": format_datetime(at(10 + ahead_seconds), usegmt=True)}
    return Response(200 if is_listing else 202, headers, json.dumps(body).encode(), NOW + 10)


def start(*answers, family=MARKETING, selection=CUSTOMERS, **attempt):
    return walk(start_export_once(family, selection, Attempt(NOW, **attempt), CALM), *answers)


def sent(requests):
    return [(each.method, each.delay_seconds) for each in requests]


# --- without failures


def test_an_accepted_start_costs_one_request():
    requests, result = start(ACCEPTED)
    assert (sent(requests), result) == ([("POST", 0.0)], ("started", False))


def test_a_refused_start_is_not_searched_for():
    """It was certainly not accepted."""
    refusal = Response(401, {}, b"{}", NOW)
    with pytest.raises(SendGridAuthError):
        start(refusal)


def test_an_invalid_selection_sends_no_request():
    with pytest.raises(ValueError, match="file_type"):
        next(start_export_once(MARKETING, ExportSelection(file_type="xlsx"), Attempt(NOW, is_retry=True)))


# --- a lost response


def test_the_export_of_a_lost_start_is_found():
    requests, result = start(LOST, [export("ours")])
    assert (sent(requests), result) == ([("POST", 0.0), ("GET", 2.0)], ("ours", True))
    assert "the connection broke" in requests[1].reason


def test_an_export_may_be_listed_late():
    requests, result = start(LOST, [], [], [export("ours")])
    assert (sent(requests)[1:], result) == ([("GET", 2.0), ("GET", 5.0), ("GET", 10.0)], ("ours", True))


def test_a_start_that_was_not_accepted_is_repeated():
    requests, result = start(LOST, *NOTHING, ACCEPTED)
    assert (Counter(each.method for each in requests), result) == ({"POST": 2, "GET": 6}, ("started", False))


def test_the_number_of_starts_is_limited():
    """The next attempt of the task searches again."""
    with pytest.raises(SendGridUnavailableError, match="the connection broke"):
        start(LOST, *NOTHING, LOST, *NOTHING, LOST, *NOTHING)


def test_a_response_without_an_id_counts_as_lost():
    requests, result = start({}, [export("ours")])
    assert result == ("ours", True)
    assert "no usable id" in requests[1].reason


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_server_error_may_have_been_accepted(status):
    _, result = start(Response(status, {}, b"{}", NOW), [export("ours")])
    assert result == ("ours", True)


def test_without_the_list_no_other_export_is_started():
    """The error is that of the start, not that of the list."""
    broken = Response(500, {}, b"{}", NOW)
    with pytest.raises(SendGridUnavailableError, match="the connection broke") as caught:
        start(LOST, broken, broken)
    assert caught.value.may_have_been_accepted


# --- another try of the task


def test_a_retry_searches_before_it_starts():
    requests, result = start([export("ours")], is_retry=True)
    assert (sent(requests), result) == ([("GET", 0.0)], ("ours", True))


def test_a_retry_that_finds_nothing_starts():
    requests, result = start(*[[]] * 5, ACCEPTED, is_retry=True)
    assert [each.method for each in requests] == [*["GET"] * 5, "POST"]
    assert sum(each.delay_seconds for each in requests) > 60, "a killed worker's request may arrive late"
    assert result == ("started", False)


def test_a_retry_without_the_list_starts_nothing():
    broken = Response(500, {}, b"{}", NOW)
    with pytest.raises(SendGridServerError):
        start(broken, broken, is_retry=True)


# --- which export is ours


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (export("x", created=-700), "created before"),
        (export("x", lists=["others"]), "of other lists"),
        (export("x", lists=["customers", "others"]), "of more lists"),
        (export("x", lists=[]), "of the whole account"),
        (export("x", segments=["s"]), "of a segment, too"),
        (export("x", status="failure"), "failed"),
        (export("x", status="ready", urls=["https://f.example/contacts.json.gzip?a=.csv"]), "of another type"),
    ],
)
def test_another_export_is_not_adopted(other, why):
    _, found = walk(find_started(MARKETING, CUSTOMERS, Attempt(NOW), CALM), [other])
    assert found is None, why


@pytest.mark.parametrize(
    ("expires_in", "date_ahead", "is_gone"),
    [
        pytest.param(5, 0, True, id="by both clocks"),
        pytest.param(5, None, False, id="by the worker's clock alone"),
        pytest.param(3600, 4000, False, id="by one Date alone"),
    ],
)
def test_an_export_is_expired_only_if_both_clocks_agree(expires_in, date_ahead, is_gone):
    """A worker's clock may be wrong by hours, and so may one response's Date: another export would be started."""
    item = export("x", status="ready", expires_at=at(expires_in).isoformat())
    listing = response([item], date_ahead)
    attempt = Attempt(NOW, is_retry=True, clock=Clock.SENDGRID)
    _, found = walk(find_started(MARKETING, CUSTOMERS, attempt, CALM), listing)
    assert (found is None) is is_gone
    flow = start_export_once(MARKETING, CUSTOMERS, Attempt(NOW, export_id="x"), CALM)
    status = replace(response(item, date_ahead), status_code=200)
    _, result = walk(flow, status, *[ACCEPTED] * is_gone)
    assert result == (("started", False) if is_gone else ("x", True))


UNREAD, OF_LISTS = {"lists": None, "segments": None}, {"export_type": "list_export", "lists": []}
EVERYONE = ExportSelection()


@pytest.mark.parametrize(
    ("selection", "fields"),
    [(CUSTOMERS, {}), (CUSTOMERS, UNREAD), (CUSTOMERS, OF_LISTS), (EVERYONE, {}), (EVERYONE, UNREAD)],
)
def test_an_export_of_unknown_lists_is_in_doubt(selection, fields):
    """It is neither adopted as an export of all contacts nor ruled out."""
    unclear = {"id": "x", "status": "pending", "created_at": at(1).isoformat(), **fields}
    with pytest.raises(ExportInDoubtError, match="x"):
        walk(find_started(MARKETING, selection, Attempt(NOW), CALM), [unclear])


def test_a_listing_with_an_invalid_time_proves_nothing():
    """It is repeated; the export may be ours."""
    with pytest.raises(SendGridServerError, match="created_at"):
        walk(find_started(MARKETING, CUSTOMERS, Attempt(NOW), CALM), *[[export("x", created_at="soon")]] * CALM.tries)


@pytest.mark.parametrize(
    ("selection", "family", "listed"),
    [
        (ExportSelection(), MARKETING, export("ours", lists=[])),
        (ExportSelection(["a", "b"], ["s"]), MARKETING, export("ours", lists=["b", "a"], segments=["s"])),
        (ExportSelection([7, "8"], [9]), LEGACY, export("ours", lists=[8, 7], segments=[9])),
        (CUSTOMERS, MARKETING, export("ours", status="ready", urls=["https://f.example/contacts.csv.gzip?x=y"])),
        (CUSTOMERS, MARKETING, export("ours", status="simmering")),
        (CUSTOMERS, MARKETING, export("ours", created=-1.5)),
    ],
)
def test_the_export_must_have_the_same_lists_and_segments(selection, family, listed):
    """In any order, numbers or texts; SendGrid's times are whole seconds, so a little earlier is not before."""
    others = [export("x", lists=["others"]), export("y", lists=[], segments=["others"])]
    _, found = walk(find_started(family, selection, Attempt(NOW), CALM), [*others, listed])
    assert found.id == "ours"


@pytest.mark.parametrize(("ahead_seconds", "is_found"), [(-300, True), (0, False), (300, False)])
def test_times_are_compared_by_sendgrids_clock(ahead_seconds, is_found):
    """This machine's clock may differ by minutes; SendGrid's response has its time."""
    listing = response([export("ours", created=-299)], ahead_seconds)
    _, found = walk(find_started(MARKETING, CUSTOMERS, Attempt(NOW), CALM), listing)
    assert (found is not None) == is_found


def test_a_clock_ahead_does_not_adopt_an_older_export():
    listing = response([export("before", created=240), export("ours", created=301)], 300)
    _, found = walk(find_started(MARKETING, CUSTOMERS, Attempt(NOW), CALM), listing)
    assert found.id == "ours"


@pytest.mark.parametrize("date", ["", "yesterday", "Mon, 99 Foo 2026 99:99:99 GMT"])
def test_an_invalid_date_header_is_ignored(date):
    listing = Response(200, {"date": date}, json.dumps({"result": [export("ours")]}).encode(), NOW + 10)
    _, found = walk(find_started(MARKETING, CUSTOMERS, Attempt(NOW), CALM), listing)
    assert found.id == "ours"


# --- doubt


def test_two_possible_exports_are_in_doubt():
    two = [export("first"), export("second", created=2.0)]
    with pytest.raises(ExportInDoubtError, match="first, second") as caught:
        start(LOST, *[two] * ALL_SEARCHES)
    assert "durable=False" in str(caught.value)
    assert at(0).isoformat(timespec="seconds") in str(caught.value)


def test_an_export_of_another_task_is_not_adopted():
    _, result = start(
        LOST, [export("theirs"), export("ours")], concurrent_starts=lambda: ConcurrentStarts(ids={"theirs"})
    )
    assert result == ("ours", True)


def test_a_start_is_repeated_if_all_exports_are_others():
    _, result = start(
        LOST, *[[export("theirs")]] * 6, ACCEPTED, concurrent_starts=lambda: ConcurrentStarts(ids={"theirs"})
    )
    assert result == ("started", False)


def test_a_concurrent_start_is_waited_for():
    """Whose it is shows when that task knows its own."""
    announced = iter([ConcurrentStarts(starting=[OTHER]), ConcurrentStarts(ids={"theirs"})])
    requests, result = start(LOST, *[[export("theirs"), export("ours")]] * 2, concurrent_starts=lambda: next(announced))
    assert (len(requests), result) == (3, ("ours", True))


def test_a_concurrent_start_without_an_id_leaves_a_doubt():
    """One export, two tasks that may have started it: taking it would be a guess."""
    one = [export("whose")]
    with pytest.raises(
        ExportInDoubtError, match=r"whose\. Other tasks that are starting the same: other\[3\]"
    ) as caught:
        start(
            LOST, *[one] * ALL_SEARCHES, concurrent_starts=lambda: ConcurrentStarts(starting=[PendingStart("other[3]")])
        )
    assert caught.value.may_have_been_accepted


def test_other_tasks_can_resolve_a_doubt():
    """All exports belong to other tasks: this one was never started."""
    announced = iter([ConcurrentStarts(starting=[OTHER]), *[ConcurrentStarts(ids={"theirs"})] * 5])
    _, result = start(LOST, *[[export("theirs")]] * 6, ACCEPTED, concurrent_starts=lambda: next(announced))
    assert result == ("started", False)


def test_a_doubt_is_waited_out_for_minutes():
    """In a parallel backfill the other runs announce their ids one after another."""
    announced = iter([*[ConcurrentStarts(starting=[OTHER])] * 7, ConcurrentStarts(ids={"theirs"})])
    requests, result = start(LOST, *[[export("theirs"), export("ours")]] * 8, concurrent_starts=lambda: next(announced))
    assert result == ("ours", True)
    assert 180 < sum(each.delay_seconds for each in requests) < 420


def test_an_export_of_unknown_type_may_belong_to_another():
    """Whether a pending export is CSV or JSON shows once it has files."""
    pending, ready = export("theirs"), export("theirs", status="ready", urls=["https://f.example/contacts.json.gzip"])
    others = ConcurrentStarts(starting=[PendingStart("as_json", file_type="json")])
    _, result = start(LOST, [pending], *[[ready]] * 5, ACCEPTED, concurrent_starts=lambda: others)
    assert result == ("started", False)


def test_a_pending_export_waits_for_its_file_type():
    """None of them is starting now; one may have left an export that it did not take."""
    pending, ready = export("x"), export("x", status="ready", urls=["https://f.example/contacts.json.gzip"])
    others = ConcurrentStarts(file_types={"csv", "json"})
    assert start(LOST, [pending], *[[ready]] * 5, ACCEPTED, concurrent_starts=lambda: others)[1] == ("started", False)
    with pytest.raises(ExportInDoubtError):
        start(LOST, *[[pending]] * ALL_SEARCHES, concurrent_starts=lambda: others)


def test_a_task_of_another_type_does_not_own_a_csv_file():
    ours = export("ours", status="ready", urls=["https://f.example/contacts.csv.gzip"])
    others = ConcurrentStarts(starting=[PendingStart("as_json", file_type="json")])
    assert start(LOST, [ours], concurrent_starts=lambda: others)[1] == ("ours", True)


def test_a_task_that_began_later_does_not_own_an_older_export():
    others = ConcurrentStarts(starting=[PendingStart("later", since=NOW + 300)])
    assert start(LOST, [export("ours")], concurrent_starts=lambda: others)[1] == ("ours", True)


# --- the list before the first POST


def test_an_export_that_was_listed_before_the_start_is_not_adopted():
    kept = []
    requests, result = start(
        [export("before", created=10)],
        LOST,
        [export("before", created=10), export("ours", created=10)],
        save_baseline=kept.append,
    )
    assert (sent(requests)[:2], result) == ([("GET", 0.0), ("POST", 0.0)], ("ours", True))
    assert kept == [Baseline(NOW + 10, Clock.WORKER, ("before",))]


def test_the_baseline_is_in_sendgrids_time():
    kept = []
    start(response([], ahead_seconds=-400), ACCEPTED, save_baseline=kept.append)
    assert kept == [Baseline(NOW + 10 - 400, Clock.SENDGRID, ())]


def test_nothing_is_started_without_a_baseline():
    """A definite failure: there is nothing to search for."""
    broken = Response(500, {}, b"{}", NOW)
    with pytest.raises(SendGridServerError) as caught:
        start(broken, broken, save_baseline=lambda _: None)
    assert not caught.value.may_have_been_accepted


@pytest.mark.parametrize("status", [403, 404])
def test_a_key_that_may_not_list_exports_may_start_one(status):
    """The worker's clock is used instead of SendGrid's."""
    kept = []
    refused = [Response(status, {}, b"{}", NOW)] * (3 if status == 403 else 1)
    retry_policy = replace(CALM, tries=6)
    flow = start_export_once(MARKETING, CUSTOMERS, Attempt(NOW, save_baseline=kept.append), retry_policy)
    requests, result = walk(flow, *refused, ACCEPTED)
    assert "POST" == requests[-1].method
    assert (result[1], kept) == (False, [Baseline(NOW, Clock.WORKER, None)])


def test_a_refused_search_of_a_retry_leaves_a_doubt():
    """The earlier try may have started an export."""
    with pytest.raises(SendGridAuthError) as caught:
        start(Response(401, {}, b"{}", NOW), is_retry=True)
    assert caught.value.may_have_been_accepted


@pytest.mark.parametrize("ahead_seconds", [0, 1, 3, 60, 300, 600])
@pytest.mark.parametrize("sign", [1, -1])
def test_another_workers_clock_still_finds_the_export(ahead_seconds, sign):
    """The first attempt ran on a worker with a wrong clock; the second one searches five minutes later."""
    listing = response([export("ours", created=-299.5)], ahead_seconds=0)
    attempt = Attempt(NOW - 299.5 + sign * ahead_seconds, is_retry=True, known_ids=())
    assert walk(start_export_once(MARKETING, CUSTOMERS, attempt, CALM), listing)[1] == ("ours", True)


@pytest.mark.parametrize("clock", [Clock.WORKER, Clock.SENDGRID])
def test_an_older_export_is_in_doubt_without_a_baseline(clock):
    """The key was not allowed to list exports, or an older version of this package kept no list."""
    attempt = Attempt(NOW, is_retry=True, clock=clock, known_ids=None)
    with pytest.raises(ExportInDoubtError, match="shortly_before"):
        walk(find_started(MARKETING, CUSTOMERS, attempt, CALM), [export("shortly_before", created=-20)])


@pytest.mark.parametrize("created", [-45, -120, -46_800])
def test_a_wrong_date_leaves_a_doubt_instead_of_a_second_export(created):
    """A proxy whose clock is ahead wrote the Date header; the export was not in the list before the start."""
    ours = export("ours", created=created, expires_at=at(created + 43_200).isoformat())
    with pytest.raises(ExportInDoubtError, match="ours"):
        start(response([], 0), LOST, *[response([ours], 20)] * ALL_SEARCHES, save_baseline=lambda _: None)


def test_a_worker_with_a_fast_clock_finds_its_export():
    assert start([], LOST, [export("ours", created=-5)], save_baseline=lambda _: None)[1] == ("ours", True)


def test_a_refusal_after_a_lost_start_is_not_definite():
    """SendGrid may carry the first one out late."""
    with pytest.raises(SendGridAuthError) as caught:
        start(LOST, *NOTHING, Response(401, {}, b"{}", NOW))
    assert caught.value.may_have_been_accepted


def test_a_start_refused_by_a_proxy_is_searched_for():
    """The proxy may have refused the response."""
    blocked = Response(403, {}, b"<html>Blocked</html>", NOW + 10)
    _, result = start(response([], 0), blocked, [], [export("ours")], save_baseline=lambda _: None)
    assert result == ("ours", True)


@pytest.mark.parametrize("lost", [[], [LOST, *NOTHING]])
def test_a_start_refused_by_a_proxy_and_not_listed_failed(lost):
    """Nothing is left to adopt by, unless an earlier request may be carried out late."""
    blocked = Response(403, {}, b"<html>Blocked</html>", NOW + 10)
    with pytest.raises(SendGridPermissionError) as caught:
        start(*lost, blocked, *NOTHING)
    assert caught.value.may_have_been_accepted is bool(lost)


def test_a_gateway_timeout_is_searched_before_a_second_start():
    timed_out = Response(408, {}, b"upstream request timeout", NOW + 10)
    assert start(timed_out, [], [export("ours")])[1] == ("ours", True)
    assert start(timed_out, *NOTHING, ACCEPTED)[1] == ("started", False)


def test_an_export_missing_from_a_cached_list_is_in_doubt():
    """The copy is from before the export, and the export from before the start."""
    kept = Response(200, {**response([], -600).headers, "age": "600"}, b'{"result": []}', NOW)
    foreign = export("foreign", created=-120)
    with pytest.raises(ExportInDoubtError, match="foreign"):
        start(kept, LOST, *[response([foreign], 0)] * ALL_SEARCHES, save_baseline=lambda _: None)


def test_an_export_from_before_a_clear_is_not_adopted():
    earlier = response([export("earlier", created=5)], 0)
    flow_answers = [response([], 0), LOST, *[earlier] * len(NOTHING), ACCEPTED]
    assert start(*flow_answers, known_ids=["earlier"], save_baseline=lambda _: None)[1] == ("started", False)


@pytest.mark.parametrize("headers", [{"age": "30"}, {"date": format_datetime(at(5), usegmt=True)}])
def test_a_cached_list_proves_nothing(headers):
    old = Response(200, headers, b'{"result": []}', NOW + 10)
    _, result = start(response([], 0), LOST, *[old] * 7, [export("ours", created=10)], save_baseline=lambda _: None)
    assert result == ("ours", True)
    with pytest.raises(SendGridUnavailableError, match="the connection broke"):
        start(response([], 0), LOST, *[old] * ALL_SEARCHES, save_baseline=lambda _: None)


@pytest.mark.parametrize(
    ("lists", "segments", "kind"),
    [(["customers"], None, "segment_export"), (None, ["s"], "list_export"), (["customers"], ["s"], "contacts_export")],
)
def test_an_export_of_unknown_selection_is_in_doubt(lists, segments, kind):
    """Its type shows that there are lists or segments; it may belong to this task or not."""
    listed = export("x", lists=lists or (), segments=segments or ()) | {"export_type": kind}
    listed |= {"lists": None} if lists is None else {"segments": None} if segments is None else {}
    with pytest.raises(ExportInDoubtError, match="x"):
        walk(find_started(MARKETING, ExportSelection(["customers"], ["s"]), Attempt(NOW), CALM), [listed])


def test_ids_of_other_tasks_match_in_any_case():
    _, result = start(LOST, [export("ABC"), export("ours")], concurrent_starts=lambda: ConcurrentStarts(ids={"abc"}))
    assert result == ("ours", True)


def test_unread_runs_leave_a_doubt():
    with pytest.raises(ExportInDoubtError):
        start(LOST, *[[export("x")]] * ALL_SEARCHES, concurrent_starts=lambda: ConcurrentStarts(is_complete=False))


def test_an_export_shortly_before_the_run_is_in_doubt():
    """The run's time is from another machine: neither ours for sure, nor none."""
    attempt = Attempt(NOW, is_retry=True, clock=Clock.RUN)
    with pytest.raises(ExportInDoubtError, match="shortly_before"):
        walk(find_started(MARKETING, CUSTOMERS, attempt, CALM), [export("shortly_before", created=-300)])
    assert walk(find_started(MARKETING, CUSTOMERS, attempt, CALM), [export("ours")])[1].id == "ours"
    assert walk(find_started(MARKETING, CUSTOMERS, attempt, CALM), [export("before", created=-700)])[1] is None


@pytest.mark.parametrize("ahead_seconds", [60, 300, 420])
def test_a_fast_clock_leaves_an_earlier_export_in_doubt(ahead_seconds):
    """By this worker's clock, the run seems to have started earlier than it did."""
    began = -60 - ahead_seconds
    attempt = Attempt(NOW + began, is_retry=True, clock=Clock.RUN)
    listing = response([export("before", created=began - 30)], ahead_seconds=-ahead_seconds)
    with pytest.raises(ExportInDoubtError, match="before"):
        walk(find_started(MARKETING, CUSTOMERS, attempt, CALM), listing)
    listing = response([export("ours", created=began + 10)], ahead_seconds=-ahead_seconds)
    assert walk(find_started(MARKETING, CUSTOMERS, attempt, CALM), listing)[1].id == "ours"


# --- an export that an earlier try got


def test_a_cached_list_does_not_prove_an_export_missing():
    retry_policy = RetryPolicy(tries=3, jitter=lambda: 0.0)
    flow = start_export_once(
        MARKETING, CUSTOMERS, Attempt(NOW, export_id="known", save_baseline=lambda _: None), retry_policy
    )
    with pytest.raises(SendGridServerError, match="a copy from before the start") as caught:
        walk(
            flow,
            *[Response(404, {}, b"<html>Maintenance</html>", NOW)] * 3,
            Response(200, {"age": "9"}, b'{"result": []}', NOW),
        )
    assert caught.value.may_have_been_accepted


def test_a_known_export_is_returned_without_another_start():
    requests, result = start({"id": "known", "status": "pending"}, export_id="known", save_baseline=lambda _: None)
    assert (sent(requests), result) == ([("GET", 0.0)], ("known", True))


@pytest.mark.parametrize(
    "answer",
    [
        {"id": "known", "status": "failure"},
        Response(404, {}, b"{}", NOW),
    ],
)
def test_an_unusable_known_export_is_replaced(answer):
    answers = [*[answer] * 3, []] if isinstance(answer, Response) else [answer]
    retry_policy = RetryPolicy(tries=3, jitter=lambda: 0.0)
    flow = start_export_once(
        MARKETING, CUSTOMERS, Attempt(NOW, export_id="known", save_baseline=lambda _: None), retry_policy
    )
    assert walk(flow, *answers, [], ACCEPTED)[1] == ("started", False)


def test_a_listed_known_export_is_kept_after_a_404():
    """A proxy sent it, or a machine of SendGrid's that lags behind."""
    retry_policy = RetryPolicy(tries=3, jitter=lambda: 0.0)
    flow = start_export_once(
        MARKETING, CUSTOMERS, Attempt(NOW, export_id="known", save_baseline=lambda _: None), retry_policy
    )
    assert walk(flow, *[Response(404, {}, b"{}", NOW)] * 3, [export("KNOWN")])[1] == ("known", True)


def test_a_known_export_of_another_task_is_not_used():
    """It adopted the export before this try could announce the id again."""
    known = {"id": "known", "status": "pending"}
    others = iter([ConcurrentStarts(starting=[OTHER]), ConcurrentStarts(ids={"known"})])
    result = start(
        known,
        known,
        [],
        ACCEPTED,
        export_id="known",
        save_baseline=lambda _: None,
        concurrent_starts=lambda: next(others),
    )[1]
    assert result == ("started", False)


def test_a_known_export_is_kept_if_another_task_is_stuck():
    known = {"id": "known", "status": "pending"}
    result = start(*[known] * 4, export_id="known", concurrent_starts=lambda: ConcurrentStarts(starting=[OTHER]))[1]
    assert result == ("known", True)


@pytest.mark.parametrize("kind", ["list_export", "segment_export"])
def test_an_export_of_a_deleted_list_is_not_one_of_all_contacts(kind):
    """Its list is gone from the listing; its type still shows that it had one."""
    listed = export("of_a_list", lists=[], export_type=kind)
    assert walk(find_started(MARKETING, ExportSelection(), Attempt(NOW), CALM), [listed])[1] is None


def test_other_tasks_are_read_only_if_an_export_was_found():
    def others():
        raise AssertionError("asked")

    assert start(LOST, *NOTHING, ACCEPTED, concurrent_starts=others)[1] == ("started", False)


# --- against the emulator


@pytest.fixture(params=["requests", "httpx"])
def run_flow(request, sendgrid_emulator):
    """Carry a flow with the emulator on, by either client, without waiting."""
    connection = SendGridConnection.from_fields(
        name="test", password=sendgrid_emulator.api_key, host=sendgrid_emulator.url, extra={"timeout": 0.5}
    )

    async def on_a_loop(flow):
        async with AsyncSendGridClient(connection, sleep=lambda _: asyncio.sleep(0)) as client:
            return await client.run_flow(flow)

    def in_a_worker(flow):
        with SendGridClient(connection, sleep=lambda _: None) as client:
            return client.run_flow(flow)

    return in_a_worker if request.param == "requests" else lambda each: asyncio.run(on_a_loop(each))


def exports_of(emulator):
    return [each for each in emulator.requests("POST") if each.path.endswith("/exports")]


def created(emulator):
    """How many exports there are."""
    return len(emulator._backend.account.exports())


LOSSES = {
    "before it was sent": Fault("refuse", method="POST", nth=1),
    "before it was carried out": Fault("reset", method="POST", nth=1),
    "by a server that broke": Fault("status", method="POST", nth=1),
    "after it was accepted": Fault("lost", method="POST", nth=1),
    "after it was accepted, with a reset": Fault("lost", method="POST", nth=1, with_reset=True),
    "in the middle of the answer": Fault("cut", method="POST", nth=1),
    "in the middle of its JSON": Fault("broken_json", method="POST", nth=1),
    "in an answer without a body": Fault("empty", method="POST", nth=1),
    "in an answer that comes too late": Fault("delay", method="POST", nth=1, seconds=1.0),
    "by a proxy's page": Fault("html", method="POST", nth=1),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("family", [MARKETING, LEGACY])
def test_a_lost_response_leaves_exactly_one_export(sendgrid_emulator, run_flow, family, loss):
    customers = sendgrid_emulator.list_id("Customers", family.value)
    sendgrid_emulator.start_export([sendgrid_emulator.list_id("Newsletter", family.value)], family=family.value)
    sendgrid_emulator.inject(LOSSES[loss])

    export_id, _ = run_flow(start_export_once(family, ExportSelection([customers]), Attempt(time.time())))

    assert created(sendgrid_emulator) == 2
    [file] = sendgrid_emulator.export_files(export_id)
    assert file.rows == 500


def test_an_export_of_all_contacts_is_not_one_of_a_list(sendgrid_emulator, run_flow):
    of_a_list = sendgrid_emulator.start_export([sendgrid_emulator.list_id("Customers")])
    sendgrid_emulator.inject(Fault("lost", method="POST"))

    export_id, is_found = run_flow(start_export_once(MARKETING, ExportSelection(), Attempt(time.time())))

    assert is_found
    assert export_id != of_a_list


def test_a_retry_finds_the_export_of_the_first_attempt(sendgrid_emulator, run_flow):
    """The worker was killed in between."""
    since = time.time()
    begun_before = sendgrid_emulator.start_export()

    found = run_flow(start_export_once(MARKETING, ExportSelection(), Attempt(since, is_retry=True)))

    assert found == (begun_before, True)
    assert exports_of(sendgrid_emulator) == []


def test_a_failed_export_is_not_adopted(sendgrid_emulator, run_flow):
    since, broken = time.time(), sendgrid_emulator.list_id("Broken list")
    sendgrid_emulator.start_export([broken])

    _, is_found = run_flow(start_export_once(MARKETING, ExportSelection([broken]), Attempt(since, is_retry=True)))

    assert not is_found
    assert len(exports_of(sendgrid_emulator)) == 1
