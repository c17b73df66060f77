"""The triggerer is killed while twelve exports are pending; another one continues."""

from __future__ import annotations

import re

import pytest

from dev.services.waiting import wait_until

DAG_ID = "waits"
EXPORTS = 12
HELD_SECONDS = 7200
STATUS_PATH = "/v3/marketing/contacts/exports"


@pytest.fixture(scope="module")
def finished_run(services):
    """The run, its exports and its waits."""
    lists = [services.sendgrid.add_list(f"Held {number}", ready_after=HELD_SECONDS) for number in range(EXPORTS)]
    exports = [services.sendgrid.start_export([each]) for each in lists]
    run_id = services.airflow.trigger(DAG_ID, {"exports": exports})

    def description():
        return services.airflow.describe_run(DAG_ID, run_id)

    def states():
        services.airflow._check_components()
        return [task.state for task in services.tasks(DAG_ID, run_id, "wait")]

    wait_until("all deferred", lambda: ["deferred"] * EXPORTS == states(), seconds=300, evidence=description)
    triggerer = services.airflow.components["triggerer"]
    triggerer.kill()
    polls_before = services.sendgrid.count("GET", STATUS_PATH)
    triggerer.start()
    wait_until(
        "the other triggerer polls",
        lambda: services.sendgrid.count("GET", STATUS_PATH) > polls_before,
        seconds=180,
        evidence=description,
    )
    assert ["deferred"] * EXPORTS == states()
    services.clock.advance(HELD_SECONDS)
    assert "success" == services.airflow.wait_for_run(DAG_ID, run_id, seconds=300)
    return run_id, exports, services.tasks(DAG_ID, run_id, "wait")


def test_every_task_succeeds_in_its_first_try(finished_run):
    _, _, waits = finished_run

    assert [("success", 1)] * EXPORTS == [(task.state, task.try_number) for task in waits]


def test_no_event_is_lost_or_doubled(services, finished_run):
    """Each wait is resumed once, with the summary of its export."""
    run_id, exports, waits = finished_run
    for export_id, task in zip(exports, waits, strict=True):
        assert export_id == services.airflow.api.xcom(DAG_ID, run_id, "wait", task.map_index)["id"]
        assert 1 == len(re.findall("The second half runs in process", services.log(DAG_ID, run_id, task)))
