"""A killed task stops at once: Airflow 3 sends SIGTERM, calls `on_kill`, and kills the process 5 s later."""

from __future__ import annotations

import copy
import threading
import time

import pytest

from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator
from airflow_provider_sendgrid.sensors.sendgrid import SendGridExportSensor
from airflow_provider_sendgrid.stopping import StoppedError
from airflow_provider_sendgrid.transfers.sendgrid_to_object_storage import SendGridToObjectStorageOperator
from airflow_provider_sendgrid.transfers.sendgrid_to_s3 import SendGridToS3Operator

OPERATORS = [
    SendGridExportContactsOperator(task_id="start"),
    SendGridExportSensor(task_id="wait", export_id="6f"),
    SendGridToS3Operator(task_id="s3", export_id="6f", s3_key_prefix="s3://lake/in/"),
    SendGridToObjectStorageOperator(task_id="folder", export_id="6f", path="file:///in"),
]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.task_id)
def test_a_killed_task_stops_waiting(operator):
    task = copy.deepcopy(operator)  # as Airflow copies it before it runs
    task.on_kill()
    with pytest.raises(StoppedError):
        task._stop.wait(60)


def test_a_sensor_killed_between_two_polls_ends_at_once():
    sensor = SendGridExportSensor(task_id="wait", export_id="6f", mode="poke", poke_interval=60, timeout=3600)
    killer = threading.Timer(0.2, sensor.on_kill)
    killer.start()
    began = time.monotonic()
    with pytest.raises(StoppedError):
        sensor._get_next_poke_interval(0.0, lambda: 600.0)
    assert time.monotonic() - began < 5
    killer.join()
