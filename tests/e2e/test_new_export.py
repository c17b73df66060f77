"""The event-driven example in a real Airflow 3: each export that is started in SendGrid starts one run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_provider_sendgrid.emulator import Emulator, Settings
from dev.services.waiting import wait_until
from tests.support.local_airflow import EXPORTS, airflow_with, connection_to, runs_of, version

DAG_ID = "sendgrid_new_export_to_s3"
EXAMPLE = Path(__file__).parents[2] / "example_dags" / f"{DAG_ID}.py"
OWN_EXPORT = """
from datetime import datetime
from airflow.sdk import DAG, Asset
from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator

with DAG("own_export", start_date=datetime(2026, 1, 1), schedule=None):
    SendGridExportContactsOperator(task_id="start", inlets=[Asset.ref(name="sendgrid_new_export")])
"""


def test_each_external_export_starts_exactly_one_run():
    """Also if it became ready while the triggerer was down; a restart or an export of a DAG starts no run."""
    if version() < (3, 3):
        pytest.skip("fired exports are stored from Airflow 3.3 on")
    dag = EXAMPLE.read_text().replace("poll_interval=30", "poll_interval=3")
    dags = {EXAMPLE.name: dag, "own_export.py": OWN_EXPORT}
    with Emulator(Settings(ready_after=4)) as emulator, airflow_with("new-export", dags) as (airflow, s3):
        emulator.configure(ready_after=0)
        before = emulator.start_export()
        emulator.configure(ready_after=4)
        airflow.api.store_connection("sendgrid_default", connection_to(emulator))
        airflow.wait_for_dag(DAG_ID)
        airflow.api.unpause(DAG_ID)
        wait_for_polls(emulator)

        started = []
        for name in ("Newsletter", "Customers", "Empty list"):
            started.append(emulator.start_export([emulator.list_id(name)]))
            wait_for_runs(airflow, len(started))

        wait_for_polls(emulator)  # fired exports are stored two seconds later, before the next poll
        airflow.components["triggerer"].stop()
        airflow.components["triggerer"].start()
        wait_for_polls(emulator, 3)
        assert len(runs_of(airflow, DAG_ID)) == 3

        airflow.components["triggerer"].kill()
        emulator.configure(ready_after=0)
        started.append(emulator.start_export([emulator.list_id("Customers")]))
        airflow.components["triggerer"].start()
        wait_for_runs(airflow, 4)

        emulator.configure(ready_after=5)
        own = airflow.trigger("own_export")
        assert airflow.wait_for_run("own_export", own) == "success"
        own_id = airflow.api.xcom("own_export", own, "start")
        emulator.export_files(own_id)
        wait_for_polls(emulator, 5)

        runs = runs_of(airflow, DAG_ID)
        assert len(runs) == 4, runs
        assert {run["state"] for run in runs} == {"success"}
        stored = {key.split("export=")[1].split("/")[0] for key in s3.sizes("sendgrid/new/")}
        assert stored == set(started)
        assert before not in stored
        events = json.dumps(airflow.api.request("GET", "/assets/events"))
        assert all(export_id in events for export_id in started)
        assert "X-Amz" not in events


def wait_for_polls(emulator, times=2):
    """Wait for so many polls of the trigger."""
    seen = emulator.count("GET", EXPORTS)
    assert emulator.wait_for_requests(seen + times, "GET", EXPORTS, timeout=90)


def wait_for_runs(airflow, count):
    def done():
        runs = runs_of(airflow, DAG_ID)
        states = [run["state"] for run in runs]
        assert "failed" not in states, airflow.describe_run(DAG_ID, runs[-1]["dag_run_id"])
        return states.count("success") >= count

    wait_until(f"{count} runs of {DAG_ID}", done, seconds=120, evidence=airflow.log_tails)
