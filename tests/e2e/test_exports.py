"""Twelve concurrent exports in a whole Airflow, one that fails, and one that is always pending."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import timedelta

import pytest

from dev.airflow.api import TaskInstance
from dev.demo.delivery import Delivery
from dev.services.waiting import wait_until

DAG_ID = "exports_to_s3"
EXPORTS = 12
HELD_SECONDS = 7200
FAILURE_MESSAGE = "The contacts could not be read: shard 7 is being moved"
DEADLINE_SECONDS = 20


@dataclass(frozen=True)
class ExportRun:
    """The result of one run of the DAG."""

    run_id: str
    state: str
    deferred_at_once: int
    waits: list[TaskInstance]
    stores: list[TaskInstance]
    late: TaskInstance


@pytest.fixture(scope="module")
def export_run(services):
    """Run the DAG. The exports stay pending until all tasks are deferred."""
    held = [
        services.sendgrid.add_list(f"List {number}", contacts=100 + number, ready_after=HELD_SECONDS)
        for number in range(EXPORTS)
    ]
    failing = services.sendgrid.add_list(
        "Broken", outcome="failure", message=FAILURE_MESSAGE, ready_after=HELD_SECONDS, contacts=5
    )
    stuck = services.sendgrid.add_list("Stuck", outcome="stuck", contacts=5)
    conf = {"lists": [[each] for each in [*held, failing]], "stuck": stuck}
    run_id = services.airflow.trigger(DAG_ID, conf)

    def waits():
        return services.tasks(DAG_ID, run_id, "export_list.wait")

    def deferred():
        services.airflow._check_components()
        return [task for task in waits() if task.state == "deferred"]

    wait_until(
        "all exports deferred",
        lambda: len(deferred()) == EXPORTS + 1,
        seconds=400,
        evidence=lambda: services.airflow.describe_run(DAG_ID, run_id),
    )
    deferred_at_once = len(deferred())
    services.clock.advance(HELD_SECONDS)
    state = services.airflow.wait_for_run(DAG_ID, run_id, seconds=400)
    [late] = services.tasks(DAG_ID, run_id, "wait_until_deadline")
    return ExportRun(
        run_id, state, deferred_at_once, waits(), services.tasks(DAG_ID, run_id, "export_list.store"), late
    )


def test_all_wait_at_once_in_the_triggerer(export_run):
    """There are only four worker slots."""
    assert EXPORTS + 1 == export_run.deferred_at_once


def test_each_is_resumed_once_by_another_process(services, export_run):
    for task in export_run.waits:
        log = services.log(DAG_ID, export_run.run_id, task)
        [first], [second] = (re.findall(rf"The {half} half runs in process (\d+)", log) for half in ("first", "second"))
        assert first != second


def test_every_ready_export_is_stored_in_one_try(export_run):
    """The tasks of the failing export are the last ones."""
    assert [("success", 1)] * EXPORTS == [(task.state, task.try_number) for task in export_run.waits[:EXPORTS]]
    assert [("success", 1)] * EXPORTS == [(task.state, task.try_number) for task in export_run.stores[:EXPORTS]]


def test_every_file_is_delivered_unchanged(services, export_run):
    for index in range(EXPORTS):
        api = services.airflow.api
        export_id = api.xcom(DAG_ID, export_run.run_id, "export_list.start", index)
        uris = api.xcom(DAG_ID, export_run.run_id, "export_list.store", index)
        delivery = Delivery(services.s3, uris)

        assert 100 + index == delivery.contacts()
        assert 100 + index == delivery.manifest()["meta"]["record_count"]
        assert len(services.sendgrid.export_files(export_id)) == len(uris)
        assert export_id == api.xcom(DAG_ID, export_run.run_id, "export_list.wait", index)["id"]


def test_a_failed_export_fails_its_task_with_the_message(services, export_run):
    failed = export_run.waits[EXPORTS]

    assert ("failed", 1) == (failed.state, failed.try_number)
    assert FAILURE_MESSAGE in services.log(DAG_ID, export_run.run_id, failed)
    assert "upstream_failed" == export_run.stores[EXPORTS].state
    assert "failed" == export_run.state


def test_a_stuck_export_fails_its_task_at_the_deadline(services, export_run):
    log = services.log(DAG_ID, export_run.run_id, export_run.late)

    assert "failed" == export_run.late.state
    assert f"The timeout of {DEADLINE_SECONDS} s is over" in log
    assert "'pending'" in log


@pytest.mark.usefixtures("export_run")
def test_each_export_is_started_once(services):
    starts = [request for request in services.sendgrid.requests("POST") if request.path.endswith("/exports")]

    assert EXPORTS + 2 == len(starts)


@pytest.mark.usefixtures("export_run")
def test_no_key_goes_to_the_file_storage(services):
    assert [] == services.sendgrid.leaks()


@pytest.mark.usefixtures("export_run")
def test_no_log_contains_the_key_or_a_signed_url(services):
    """Logs of tasks, triggerer, scheduler and all other processes."""
    files = [path for path in services.airflow.config.home.rglob("*.log") if path.is_file()]

    text = "\n".join(path.read_text(errors="replace") for path in files)

    assert "half runs in process" in text
    assert services.sendgrid.api_key not in text
    assert "X-Amz-Signature=" not in text.replace("X-Amz-Signature=***", "")


def test_the_deadline_is_that_of_the_task(export_run):
    """Neither that of the triggerer nor of a poll."""
    assert export_run.late.end - export_run.late.start < timedelta(seconds=DEADLINE_SECONDS + 60)


def test_xcoms_contain_no_url(services, export_run):
    xcom = services.airflow.api.xcom(DAG_ID, export_run.run_id, "export_list.wait", 0)

    assert "http" not in json.dumps(xcom)
