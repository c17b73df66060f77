"""What a look at an export means, and how long to wait for the next one; no clock, no sleep."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_sendgrid.exceptions import (
    ExportExpiredError,
    ExportFailedError,
    SendGridAuthError,
    SendGridNotFoundError,
    SendGridPermissionError,
    SendGridServerError,
)
from airflow_provider_sendgrid.exports.export import ContactExport
from airflow_provider_sendgrid.exports.polling import (
    Outcome,
    PollResult,
    PollSchedule,
    WaitState,
    evaluate_poll,
    outcome_of,
)

NOW = 1_767_323_045.0
AT = datetime.fromtimestamp(NOW, tz=timezone.utc)
FILES = ("https://files.example/1?X-Amz-Signature=5ecret",)


def export(status="pending", urls=(), **fields):
    return ContactExport("6f0a2c5e", status, urls=urls, **fields)


# --- judging

BEFORE, AFTER = AT - timedelta(seconds=1), AT + timedelta(seconds=1)


@pytest.mark.parametrize(
    ("seen", "outcome"),
    [
        (export("pending"), Outcome.WAITING),
        (export("pending", expires_at=AFTER), Outcome.WAITING),
        (export("pending", expires_at=BEFORE), Outcome.EXPIRED),
        (export("ready", FILES), Outcome.READY),
        (export("ready", FILES, expires_at=AFTER), Outcome.READY),
        (export("ready", FILES, expires_at=AT), Outcome.EXPIRED),
        (export("ready"), Outcome.WAITING),
        (export("ready", contact_count=5), Outcome.WAITING),
        (export("ready", contact_count=0), Outcome.READY),
        (export("failure"), Outcome.FAILURE),
        (export("failure", FILES), Outcome.FAILURE),
        (export("failure", expires_at=BEFORE), Outcome.FAILURE),
        (export("failed"), Outcome.WAITING),
        (export("READY", FILES), Outcome.WAITING),
        (export("", FILES), Outcome.WAITING),
        (export("archived", expires_at=BEFORE), Outcome.EXPIRED),
    ],
)
def test_ready_needs_the_files_of_the_export(seen, outcome):
    """An unknown status is waited on, and never passes as a success."""
    assert outcome_of(seen, AT) is outcome


@given(st.text(max_size=10), st.lists(st.just("https://files.example/1"), max_size=2), st.integers(-2, 2))
def test_only_ready_with_files_ends_a_wait_as_ready(status, urls, expires_in):
    seen = export(status, tuple(urls), expires_at=AT + timedelta(seconds=expires_in))
    assert (outcome_of(seen, AT) is Outcome.READY) == (status == "ready" and bool(urls) and expires_in > 0)


def test_a_poll_result_has_the_time_waited():
    result = evaluate_poll(export("ready", FILES), now=NOW, started_at=NOW - 30, polls=4)
    assert result == PollResult(export("ready", FILES), Outcome.READY, polls=4, waited_seconds=30.0)


def test_a_wait_that_began_in_the_future_took_no_time():
    """Two machines' clocks differ."""
    assert evaluate_poll(export(), now=NOW, started_at=NOW + 30, polls=1).waited_seconds == 0.0


@pytest.mark.parametrize(
    ("seen", "sentence"),
    [
        (export("pending"), "SendGrid export 6f0a2c5e is 'pending' after 30 s."),
        (export("ready", FILES), "SendGrid export 6f0a2c5e is 'ready' after 30 s."),
        (export("ready"), "SendGrid export 6f0a2c5e is 'ready', but without files (no count) after 30 s."),
        (
            export("archived"),
            "SendGrid export 6f0a2c5e is 'archived' (a status that this provider does not know) after 30 s.",
        ),
        (
            export(""),
            "SendGrid export 6f0a2c5e is without a status (a status that this provider does not know) after 30 s.",
        ),
    ],
)
def test_a_poll_result_is_described_without_urls(seen, sentence):
    assert evaluate_poll(seen, now=NOW, started_at=NOW - 30, polls=1).describe() == sentence


@pytest.mark.parametrize(
    ("seen", "error_class", "text"),
    [
        (export("failure", message="list is gone"), ExportFailedError, "6f0a2c5e ended with status 'failure': list is"),
        (export("failure"), ExportFailedError, "SendGrid gave no message"),
        (export("ready", FILES, expires_at=BEFORE), ExportExpiredError, "6f0a2c5e expired at 2026-01-02T03:04:04"),
    ],
)
def test_a_final_error_names_the_next_step(seen, error_class, text):
    error = evaluate_poll(seen, now=NOW, started_at=NOW, polls=1).error()
    assert type(error) is error_class
    assert text in str(error)
    assert "Start another export." in str(error)


@pytest.mark.parametrize("outcome", [Outcome.READY, Outcome.WAITING, Outcome.TIMEOUT])
def test_an_unfinished_export_is_not_an_error(outcome):
    assert PollResult(export(), outcome).error() is None


# --- how long until the next poll


def test_polls_are_frequent_at_first():
    """Most exports take seconds or tens of seconds."""
    schedule = PollSchedule(60.0, jitter=lambda: 0.0)
    waited, waits = 0.0, []
    for _ in range(12):
        waits.append(schedule.wait_seconds(waited))
        waited += waits[-1]
    assert waits[:5] == [2.0, 2.0, 2.0, 3.0, 4.5]
    assert waits == sorted(waits)
    assert waits[-1] == 60.0


@pytest.mark.parametrize(("jitter", "factor"), [(0.0, 1.0), (0.5, 0.9), (1.0, 0.8)])
def test_polls_of_several_waits_are_spread_by_jitter(jitter, factor):
    schedule = PollSchedule(60.0, jitter=lambda: jitter)
    assert schedule.wait_seconds(1000.0) == pytest.approx(60.0 * factor)


@given(st.floats(0.01, 3600), st.floats(0, 1e7), st.floats(0, 1))
def test_pauses_stay_within_their_limits(interval, waited, jitter):
    wait = PollSchedule(interval, jitter=lambda: jitter).wait_seconds(waited)
    assert max(1.0, min(2.0, interval) * 0.8 - 1e-9) <= wait <= max(1.0, interval)


def test_an_interval_below_the_first_pause_is_kept():
    assert PollSchedule(1.5, jitter=lambda: 0.0).wait_seconds(0.0) == 1.5


@pytest.mark.parametrize("interval", [0.0, 0.01, 1.1])
def test_polls_are_at_least_a_second_apart(interval):
    assert PollSchedule(interval, jitter=lambda: 1.0).wait_seconds(0.0) == 1.0


def test_exponential_backoff_doubles_up_to_max_wait():
    schedule = replace(PollSchedule.for_sensor(10.0, exponential_backoff=True, max_wait=100.0), jitter=lambda: 0.0)
    waited, waits = 0.0, []
    for _ in range(7):
        waits.append(schedule.wait_seconds(waited))
        waited += waits[-1]
    assert waits == [10.0, 10.0, 20.0, 40.0, 80.0, 100.0, 100.0]


def test_a_pending_export_that_expired_was_never_finished():
    """There were no files that could have been deleted."""
    error = evaluate_poll(export("pending", expires_at=BEFORE), now=NOW, started_at=NOW, polls=1).error()
    assert type(error) is ExportExpiredError
    assert "SendGrid never finished it" in str(error)
    assert "deleted" not in str(error)


@pytest.mark.parametrize("created_at", [BEFORE, AFTER])
def test_an_expiry_before_the_creation_is_ignored(created_at):
    assert outcome_of(export("pending", created_at=created_at, expires_at=BEFORE), AT) is Outcome.WAITING


@pytest.mark.parametrize(("as_of", "outcome"), [(BEFORE, Outcome.READY), (AFTER, Outcome.EXPIRED)])
def test_expiry_is_compared_with_sendgrids_time(as_of, outcome):
    assert outcome_of(export("ready", FILES, expires_at=AT, as_of=as_of), AT) is outcome


# --- what one wait has seen


@pytest.mark.parametrize("error_class", [SendGridPermissionError, SendGridNotFoundError])
def test_the_fourth_refusal_in_a_row_ends_a_wait(error_class):
    state = WaitState("6f0a2c5e", NOW)
    state.record(export(), NOW)
    for refusal in range(3):
        assert state.record_failure(error_class("no"), NOW + refusal).outcome is Outcome.WAITING
    with pytest.raises(error_class):
        state.record_failure(error_class("no"), NOW + 4)


def test_any_refusal_by_a_proxy_may_be_stray():
    error = SendGridAuthError("no")
    state = WaitState("6f0a2c5e", NOW)
    state.record(export(), NOW)
    with pytest.raises(SendGridAuthError):
        state.record_failure(error, NOW)
    error.is_of_proxy = True
    state.record(export(), NOW)
    for refusal in range(3):
        assert state.record_failure(error, NOW + refusal).outcome is Outcome.WAITING
    with pytest.raises(SendGridAuthError):
        state.record_failure(error, NOW + 4)


def test_an_outage_resets_the_count_of_refusals():
    state = WaitState("6f0a2c5e", NOW)
    state.record(export(), NOW)
    for _ in range(9):
        state.record_failure(SendGridPermissionError("no"), NOW)
        state.record_failure(SendGridServerError("no"), NOW)


def test_a_refused_first_poll_ends_a_wait():
    with pytest.raises(SendGridNotFoundError):
        WaitState("6f0a2c5e", NOW).record_failure(SendGridNotFoundError("no"), NOW)


@pytest.mark.parametrize("urls", [("",), (*FILES, "")])
def test_a_file_without_a_url_is_not_a_file(urls):
    assert outcome_of(export("ready", urls, contact_count=0), AT) is Outcome.WAITING


def test_a_message_says_how_many_files_have_a_url():
    error = PollResult(export("ready", (*FILES, ""), contact_count=3), Outcome.WITHOUT_FILES).error()
    assert "only 1 of its 2 files" in str(error)


def test_minutes_without_files_count_from_the_last_status():
    old = export("ready", completed_at=AT - timedelta(hours=1), as_of=AT)
    state = WaitState("6f0a2c5e", NOW)
    state.record(export(), NOW)
    assert [state.record(old, NOW + seconds).outcome for seconds in (2, 4, 299)] == [Outcome.WAITING] * 3
    assert state.record(old, NOW + 301).outcome is Outcome.WITHOUT_FILES
