"""Durable starts: retries, clears and concurrent tasks get one export each."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace

import pytest

from airflow_provider_sendgrid._compat import AirflowFailException
from airflow_provider_sendgrid.emulator import Fault
from airflow_provider_sendgrid.exceptions import (
    ExportInDoubtError,
    SendGridError,
    SendGridUnavailableError,
)
from airflow_provider_sendgrid.exports import client as client_module
from airflow_provider_sendgrid.exports import start as start_module
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook
from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator
from tests.support.dag_run import DagRun
from tests.support.state_store import StateStore

pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.fixture(params=[True, False], ids=["with a state store", "without"])
def dag_run(request, sendgrid_emulator):
    run = DagRun(has_stores=request.param)
    run.add("start", list_ids=[sendgrid_emulator.list_id("Customers")])
    return run


def started_exports(emulator):
    return [each.id for each in emulator._backend.account.exports()]


def test_a_start_with_an_unreadable_response_is_found(sendgrid_emulator, monkeypatch):
    """An error of a library after the request was sent does not mean that an argument is wrong."""
    usual = client_module._Body.add

    def add(body, chunk):
        if body._request.method == "POST":
            raise ValueError("Invalid IPv6 URL")
        usual(body, chunk)

    monkeypatch.setattr(client_module._Body, "add", add)
    operator = SendGridExportContactsOperator(task_id="start", list_ids=[sendgrid_emulator.list_id("Customers")])
    assert [operator.execute({})] == started_exports(sendgrid_emulator)


def test_an_unforeseen_error_of_a_start_keeps_its_record(sendgrid_emulator, monkeypatch):
    """The retry finds the export instead of starting another."""
    run = DagRun()
    run.add("start", list_ids=[sendgrid_emulator.list_id("Customers")])
    usual = SendGridHook.start_export_once

    def start_and_fail(*arguments):
        usual(*arguments)
        raise ValueError("unforeseen")

    with monkeypatch.context() as patched:
        patched.setattr(SendGridHook, "start_export_once", start_and_fail)
        with pytest.raises(SendGridError, match="unexpected ValueError: unforeseen") as caught:
            run.execute("start")
    assert not isinstance(caught.value, AirflowFailException)
    assert [run.execute("start")] == started_exports(sendgrid_emulator)


def test_a_retry_returns_the_same_export(sendgrid_emulator, dag_run):
    """The first try failed after the start."""
    first = dag_run.execute("start")

    assert dag_run.execute("start") == first
    assert [first] == started_exports(sendgrid_emulator)


@pytest.mark.parametrize("fault", ["lost", "cut", "broken_json"])
def test_a_lost_response_starts_no_second_export(sendgrid_emulator, dag_run, fault, output_of_all_logs):
    sendgrid_emulator.inject(Fault(fault, method="POST", nth=1))

    assert [dag_run.execute("start")] == started_exports(sendgrid_emulator)
    assert "Found the export that an earlier request started" in output_of_all_logs()


def test_a_retry_finds_the_export_of_a_killed_worker(sendgrid_emulator, dag_run, monkeypatch):
    """The worker was killed before it could store the id."""

    class Killed(BaseException):
        pass

    def start_and_die(hook, selection, attempt):
        start_export_once(hook, selection, attempt)
        raise Killed

    start_export_once = SendGridHook.start_export_once
    monkeypatch.setattr(SendGridHook, "start_export_once", start_and_die)
    with pytest.raises(Killed):
        dag_run.execute("start")
    monkeypatch.setattr(SendGridHook, "start_export_once", start_export_once)

    assert [dag_run.execute("start")] == started_exports(sendgrid_emulator)


def test_a_retry_with_other_lists_starts_another_export(sendgrid_emulator):
    """The DAG was corrected before the retry, so the first export has the wrong contacts."""
    run = DagRun()
    run.add("start", list_ids=[sendgrid_emulator.list_id("Newsletter")])
    wrong = run.execute("start")

    right = run.execute("start", list_ids=[sendgrid_emulator.list_id("Customers")])

    assert right != wrong
    assert 500 == sendgrid_emulator.export_files(right)[0].rows


@pytest.mark.parametrize("change", [{"file_type": "json"}, {"max_file_size": 7}])
@pytest.mark.usefixtures("sendgrid_emulator")
def test_another_file_type_or_size_starts_another_export(change):
    run = DagRun()
    run.add("start")
    first = run.execute("start")
    assert run.execute("start", **change) != first


@pytest.mark.parametrize("outcome", ["failure", "expired"])
@pytest.mark.parametrize("has_stores", [True, False])
def test_a_failed_or_expired_export_is_not_returned(sendgrid_emulator, outcome, has_stores):
    run = DagRun(has_stores)
    run.add("start", list_ids=[sendgrid_emulator.add_list("Odd", outcome=outcome)])
    first = run.execute("start")

    assert run.execute("start") != first


def test_an_export_that_is_listed_is_kept_after_a_404(sendgrid_emulator):
    run = DagRun()
    run.add("start")
    first = run.execute("start")
    sendgrid_emulator.inject(Fault("status", path=first, status=404))

    assert run.execute("start") == first


def test_two_tasks_with_the_same_lists_get_one_export_each(sendgrid_emulator, dag_run):
    """The request of the second task is lost before SendGrid accepts it."""
    dag_run.add("again", list_ids=dag_run.operators["start"].list_ids)
    first = dag_run.execute("start")
    sendgrid_emulator.inject(Fault("reset", method="POST", nth=1))

    second = dag_run.execute("again")

    assert sorted([first, second]) == sorted(started_exports(sendgrid_emulator))
    assert first != second


def test_mapped_tasks_with_the_same_lists_get_one_export_each(sendgrid_emulator, dag_run):
    first = dag_run.execute("start", map_index=0)
    sendgrid_emulator.inject(Fault("lost", method="POST", nth=1))

    second = dag_run.execute("start", map_index=1)

    assert sorted([first, second]) == sorted(started_exports(sendgrid_emulator))
    assert first != second


def test_an_export_with_an_unclear_owner_fails_the_task(sendgrid_emulator, dag_run, monkeypatch):
    """Another task starts the same lists at the same time and does not announce an id; one start was accepted."""
    customers = dag_run.operators["start"].list_ids
    dag_run.add("again", list_ids=customers, file_type="json")
    start_export_once = SendGridHook.start_export_once

    def start_beside_another(hook, selection, attempt):
        def keep(baseline):
            attempt.save_baseline(baseline)
            dag_run.xcoms["start", -1, "sendgrid_export"] = {
                **dag_run.xcoms["again", -1, "sendgrid_export"],
                "task": "start",
                "form": ["csv", "None"],
            }
            sendgrid_emulator.start_export(customers)

        return start_export_once(hook, selection, replace(attempt, save_baseline=keep))

    sendgrid_emulator.configure(ready_after=3600)  # its type does not show
    sendgrid_emulator.inject(Fault("reset", method="POST", nth=1))
    monkeypatch.setattr(SendGridHook, "start_export_once", start_beside_another)

    with pytest.raises(AirflowFailException, match=r"Other tasks that are starting the same: start\.") as caught:
        dag_run.execute("again")

    assert isinstance(caught.value.__cause__, ExportInDoubtError)
    [export_id] = started_exports(sendgrid_emulator)
    assert export_id in str(caught.value)


# --- refusals, clears and records


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_after_a_refused_start_no_other_export_is_taken(sendgrid_emulator, dag_run, status):
    """Other exports of the same list start before the cause is corrected and the task is cleared."""
    sendgrid_emulator.inject(Fault("status", method="POST", first=3, status=status))
    with pytest.raises(AirflowFailException):
        dag_run.execute("start")
    assert {} == dag_run.xcoms["start", -1, "sendgrid_export"]
    assert all(not store.kept for store in dag_run.stores.values())
    sendgrid_emulator.clear_faults()
    others = [sendgrid_emulator.start_export(dag_run.operators["start"].list_ids) for _ in range(2)]

    dag_run.clear("start")

    assert dag_run.execute("start") not in others


def test_a_retry_that_fails_early_keeps_the_record(sendgrid_emulator):
    """The first try may have started an export; the second is refused before it reads the list."""
    run = DagRun()
    run.add("start", list_ids=[sendgrid_emulator.list_id("Customers")])
    sendgrid_emulator.inject(Fault("lost", method="POST"), Fault("status", method="GET", nth=2, status=500))
    sendgrid_emulator.inject(*[Fault("status", method="GET", nth=number, status=500) for number in range(3, 8)])
    with pytest.raises(SendGridUnavailableError):
        run.execute("start")
    sendgrid_emulator.clear_faults()
    sendgrid_emulator.inject(Fault("status", status=401))
    with pytest.raises(AirflowFailException, match="401"):
        run.execute("start")
    sendgrid_emulator.clear_faults()

    assert [run.execute("start")] == started_exports(sendgrid_emulator)


def test_a_cleared_task_starts_a_new_export(sendgrid_emulator, dag_run):
    first = dag_run.execute("start")
    dag_run.clear("start")

    second = dag_run.execute("start")

    assert {first, second} == set(started_exports(sendgrid_emulator))
    assert second != first


def test_after_a_clear_the_earlier_export_is_not_returned(sendgrid_emulator):
    """The response to the new start is lost, and it was not accepted."""
    run = DagRun()
    run.add("start", list_ids=[sendgrid_emulator.list_id("Customers")])
    first = run.execute("start")
    run.clear("start")
    sendgrid_emulator.inject(Fault("reset", method="POST", nth=1))

    second = run.execute("start")

    assert {first, second} == set(started_exports(sendgrid_emulator))


@pytest.mark.parametrize("is_killed", [False, True])
def test_after_a_clear_the_earlier_export_is_known_if_unlisted(sendgrid_emulator, monkeypatch, is_killed):
    run = DagRun()
    run.add("start", list_ids=[sendgrid_emulator.list_id("Customers")])
    first = run.execute("start")
    run.clear("start")
    if is_killed:
        sendgrid_emulator.inject(*[Fault("reset", method="POST", nth=nth) for nth in (1, 2, 3)])
        monkeypatch.setattr(start_module, "_SEARCH_DELAYS", (0.0,))
        with pytest.raises(SendGridError):
            run.execute("start")
    attempts = []

    def note(_hook, _selection, attempt):
        attempts.append(attempt)
        return "found", True

    monkeypatch.setattr(SendGridHook, "start_export_once", note)
    run.execute("start")

    assert first in attempts[0].known_ids
    assert attempts[0].is_retry is is_killed


def test_a_retry_after_a_clear_returns_the_new_export(sendgrid_emulator):
    run = DagRun()
    run.add("start", list_ids=[sendgrid_emulator.list_id("Customers")])
    run.execute("start")
    run.clear("start")
    second = run.execute("start")
    assert second == run.execute("start")


def test_before_3_3_a_clear_in_a_running_run_is_a_retry(sendgrid_emulator):
    """Airflow does not distinguish it from lowered `retries`, and a second export would be worse."""
    run = DagRun(has_stores=False)
    run.add("start", list_ids=[sendgrid_emulator.list_id("Customers")])
    first = run.execute("start")
    run.clear("start", has_run_ended=False)
    assert first == run.execute("start")


def test_a_record_of_an_older_version_is_read(sendgrid_emulator):
    """It holds the time by the worker's clock, and no list of earlier exports."""
    run = DagRun()
    customers = sendgrid_emulator.list_id("Customers")
    run.add("start", list_ids=[customers])
    export_id = sendgrid_emulator.start_export([customers])
    store = run.stores["start", -1] = StateStore()
    wanted = ["sendgrid_default", "marketing", [customers], [], "csv", "None"]
    of = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()
    store.set("sendgrid_export", {"of": of, "task": "start", "began": time.time() - 5})
    run.tries["start", -1] = 1

    assert export_id == run.execute("start")


def test_another_run_with_the_same_lists_keeps_its_export(sendgrid_emulator, monkeypatch):
    """As in a parallel backfill: it starts after this task read the list and before this task's lost request."""
    customers = [sendgrid_emulator.list_id("Customers")]
    run = DagRun(other_runs={"other": {"task": "start"}})
    run.add("start", list_ids=customers)
    start_export_once = SendGridHook.start_export_once

    def start_beside_another(hook, selection, attempt):
        def keep(baseline):
            attempt.save_baseline(baseline)
            run.other_runs["other"]["id"] = sendgrid_emulator.start_export(customers)

        return start_export_once(hook, selection, replace(attempt, save_baseline=keep))

    monkeypatch.setattr(SendGridHook, "start_export_once", start_beside_another)
    sendgrid_emulator.inject(Fault("reset", method="POST", nth=1))

    ours = run.execute("start")

    assert {run.other_runs["other"]["id"], ours} == set(started_exports(sendgrid_emulator))
    assert run.other_runs["other"]["id"] != ours


def test_a_retry_without_durable_starts_another_export(dag_run):
    dag_run.add("again", durable=False)
    assert dag_run.execute("again") != dag_run.execute("again")


def test_a_task_without_durable_announces_its_export(dag_run):
    dag_run.add("again", durable=False, list_ids=dag_run.operators["start"].list_ids)
    first = dag_run.execute("again")
    assert first == dag_run.xcoms["again", -1, "sendgrid_export"]["id"]


def test_the_announcement_holds_no_api_key_and_no_list_names(sendgrid_emulator, dag_run):
    export_id = dag_run.execute("start")
    record, _link = dag_run.xcoms.pop(("start", -1, "sendgrid_export")), dag_run.xcoms.popitem()
    assert {} == dag_run.xcoms
    kept = {"of", "form", "run", "task", "max_tries", "began", "since", "clock", "known_ids", "id"}
    assert kept == set(record)
    assert ("start", export_id) == (record["task"], record["id"])
    assert sendgrid_emulator.api_key not in json.dumps(record)
