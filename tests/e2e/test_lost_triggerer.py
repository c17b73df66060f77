"""The triggerer is killed while twelve exports are waited for; another takes over."""

from __future__ import annotations

import re

import pytest

from dev.services.waiting import wait_until

DAG_ID = "waits"
EXPORTS = 12
HELD_SECONDS = 7200
STATUS_PATH = "/v3/marketing/contacts/exports"


@pytest.fixture(scope="module")
def survived(world):
    """The run that lived through it, its exports and its waits."""
    lists = [world.sendgrid.add_list(f"Held {number}", ready_after=HELD_SECONDS) for number in range(EXPORTS)]
    exports = [world.sendgrid.start_export([each]) for each in lists]
    run_id = world.airflow.trigger(DAG_ID, {"exports": exports})

    def account():
        return world.airflow.describe_run(DAG_ID, run_id)

    def states():
        world.airflow._check_components()
        return [task.state for task in world.tasks(DAG_ID, run_id, "wait")]

    wait_until("all deferred", lambda: ["deferred"] * EXPORTS == states(), seconds=300, evidence=account)
    triggerer = world.airflow.components["triggerer"]
    triggerer.kill()
    polls_before = world.sendgrid.count("GET", STATUS_PATH)
    triggerer.start()
    wait_until(
        "the other triggerer polls",
        lambda: world.sendgrid.count("GET", STATUS_PATH) > polls_before,
        seconds=180,
        evidence=account,
    )
    assert ["deferred"] * EXPORTS == states()
    world.clock.advance(HELD_SECONDS)
    assert "success" == world.airflow.wait_for_run(DAG_ID, run_id, seconds=300)
    return run_id, exports, world.tasks(DAG_ID, run_id, "wait")


def test_every_task_ends_right_in_its_first_try(survived):
    _, _, waits = survived

    assert [("success", 1)] * EXPORTS == [(task.state, task.try_number) for task in waits]


def test_no_event_is_lost_or_doubled(world, survived):
    """Each wait was resumed once, with the summary of its own export."""
    run_id, exports, waits = survived
    for export_id, task in zip(exports, waits, strict=True):
        assert export_id == world.airflow.api.xcom(DAG_ID, run_id, "wait", task.map_index)["id"]
        assert 1 == len(re.findall("The second half runs in process", world.log(DAG_ID, run_id, task)))
