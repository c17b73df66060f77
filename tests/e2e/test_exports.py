"""Twelve exports at once through a whole Airflow, with one that fails and one that never ends beside them."""

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
class Night:
    """What one run of the DAG came to."""

    run_id: str
    state: str
    deferred_at_once: int
    waits: list[TaskInstance]
    stores: list[TaskInstance]
    late: TaskInstance


@pytest.fixture(scope="module")
def night(world):
    """Twelve lists whose exports are held back until all of them wait, one of them to fail, one that never ends."""
    held = [
        world.sendgrid.add_list(f"List {number}", contacts=100 + number, ready_after=HELD_SECONDS)
        for number in range(EXPORTS)
    ]
    failing = world.sendgrid.add_list(
        "Broken", outcome="failure", message=FAILURE_MESSAGE, ready_after=HELD_SECONDS, contacts=5
    )
    stuck = world.sendgrid.add_list("Stuck", outcome="stuck", contacts=5)
    conf = {"lists": [[each] for each in [*held, failing]], "stuck": stuck}
    run_id = world.airflow.trigger(DAG_ID, conf)

    def waits():
        return world.tasks(DAG_ID, run_id, "export_list.wait")

    def deferred():
        world.airflow._check_components()
        return [task for task in waits() if task.state == "deferred"]

    wait_until(
        "all exports deferred",
        lambda: len(deferred()) == EXPORTS + 1,
        seconds=400,
        evidence=lambda: world.airflow.describe_run(DAG_ID, run_id),
    )
    deferred_at_once = len(deferred())
    world.clock.advance(HELD_SECONDS)
    state = world.airflow.wait_for_run(DAG_ID, run_id, seconds=400)
    [late] = world.tasks(DAG_ID, run_id, "wait_until_deadline")
    return Night(run_id, state, deferred_at_once, waits(), world.tasks(DAG_ID, run_id, "export_list.store"), late)


def test_all_wait_at_once_in_the_triggerer(night):
    """None of them holds a worker, of which there are four."""
    assert EXPORTS + 1 == night.deferred_at_once


def test_each_is_resumed_once_by_another_process(world, night):
    for task in night.waits:
        log = world.log(DAG_ID, night.run_id, task)
        [first], [second] = (re.findall(rf"The {half} half runs in process (\d+)", log) for half in ("first", "second"))
        assert first != second


def test_every_ready_export_is_waited_for_and_stored_in_one_try(night):
    """The tasks of the export that fails are the last."""
    assert [("success", 1)] * EXPORTS == [(task.state, task.try_number) for task in night.waits[:EXPORTS]]
    assert [("success", 1)] * EXPORTS == [(task.state, task.try_number) for task in night.stores[:EXPORTS]]


def test_the_files_reach_the_bucket_as_they_were(world, night):
    for index in range(EXPORTS):
        api = world.airflow.api
        export_id = api.xcom(DAG_ID, night.run_id, "export_list.start", index)
        uris = api.xcom(DAG_ID, night.run_id, "export_list.store", index)
        delivery = Delivery(world.s3, uris)

        assert 100 + index == delivery.contacts()
        assert 100 + index == delivery.manifest()["meta"]["record_count"]
        assert len(world.sendgrid.export_files(export_id)) == len(uris)
        assert export_id == api.xcom(DAG_ID, night.run_id, "export_list.wait", index)["id"]


def test_an_export_that_fails_fails_its_task_with_sendgrids_message(world, night):
    failed = night.waits[EXPORTS]

    assert ("failed", 1) == (failed.state, failed.try_number)
    assert FAILURE_MESSAGE in world.log(DAG_ID, night.run_id, failed)
    assert "upstream_failed" == night.stores[EXPORTS].state
    assert "failed" == night.state


def test_an_export_that_never_ends_fails_its_task_at_the_deadline(world, night):
    log = world.log(DAG_ID, night.run_id, night.late)

    assert "failed" == night.late.state
    assert f"The timeout of {DEADLINE_SECONDS} s is over" in log
    assert "'pending'" in log


@pytest.mark.usefixtures("night")
def test_each_export_is_started_once(world):
    starts = [request for request in world.sendgrid.requests("POST") if request.path.endswith("/exports")]

    assert EXPORTS + 2 == len(starts)


@pytest.mark.usefixtures("night")
def test_no_key_goes_to_the_file_storage(world):
    assert [] == world.sendgrid.leaks()


@pytest.mark.usefixtures("night")
def test_neither_key_nor_signed_url_stands_in_any_log(world):
    """Of tasks, of the triggerer, of the scheduler and all others."""
    files = [path for path in world.airflow.config.home.rglob("*.log") if path.is_file()]

    text = "\n".join(path.read_text(errors="replace") for path in files)

    assert "half runs in process" in text
    assert world.sendgrid.api_key not in text
    assert "X-Amz-Signature=" not in text.replace("X-Amz-Signature=***", "")


def test_the_wait_was_no_longer_than_it_had_to_be(night):
    """The deadline is the task's own, not the triggerer's nor that of one of its polls."""
    assert night.late.end - night.late.start < timedelta(seconds=DEADLINE_SECONDS + 60)


def test_what_is_handed_on_holds_no_url(world, night):
    handed_on = world.airflow.api.xcom(DAG_ID, night.run_id, "export_list.wait", 0)

    assert "http" not in json.dumps(handed_on)
