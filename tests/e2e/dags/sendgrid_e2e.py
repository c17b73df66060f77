"""The DAGs of the end-to-end tests; the run's conf has their lists and connections.

The outcome of an export is a property of its list in SendGrid's emulator.
"""

from __future__ import annotations

import os
import time
from datetime import datetime, timezone
from typing import Any

try:
    from airflow.sdk import DAG, task, task_group
except ImportError:  # Airflow 2
    from airflow import DAG
    from airflow.decorators import task, task_group

from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator
from airflow_provider_sendgrid.sensors.sendgrid import SendGridExportSensor
from airflow_provider_sendgrid.transfers.sendgrid_to_s3 import SendGridToS3Operator
from airflow_provider_sendgrid.triggers.sendgrid import SendGridExportTrigger

DEADLINE_SECONDS = 20
SETTINGS = {
    "schedule": None,
    "start_date": datetime(2026, 1, 1, tzinfo=timezone.utc),
    "catchup": False,
    "default_args": {"retries": 0},
}


class LoggingSensor(SendGridExportSensor):
    """Logs the process of each half."""

    def execute(self, context):
        self.log.info("The first half runs in process %s.", os.getpid())
        return super().execute(context)

    def execute_complete(self, context, event=None):
        self.log.info("The second half runs in process %s.", os.getpid())
        return super().execute_complete(context, event)


class TriggererOnlySensor(SendGridExportSensor):
    """Defers before the first poll, so that the triggerer reads the connection."""

    def execute(self, context):
        trigger = SendGridExportTrigger(
            self.export_id,
            sendgrid_conn_id=self.sendgrid_conn_id,
            poll_interval=5,
            end_time=time.time() + float(self.timeout),
        )
        self.defer(trigger=trigger, method_name="execute_complete")


@task
def chosen(what: str, **context: Any) -> list[Any]:
    """A value of the run's conf."""
    return context["dag_run"].conf[what]


with DAG("exports_to_s3", **SETTINGS):

    @task_group
    def export_list(list_ids: list[str]) -> None:
        start = SendGridExportContactsOperator(task_id="start", list_ids=list_ids)
        wait = LoggingSensor(task_id="wait", export_id=start.output, deferrable=True, poke_interval=5, timeout=1200)
        store = SendGridToS3Operator(
            task_id="store", export_id=start.output, s3_key_prefix="s3://lake/{{ dag.dag_id }}/{{ ti.map_index }}/"
        )
        wait >> store

    export_list.expand(list_ids=chosen("lists"))

    start_stuck = SendGridExportContactsOperator(task_id="start_stuck", list_ids=["{{ dag_run.conf['stuck'] }}"])
    LoggingSensor(
        task_id="wait_until_deadline",
        export_id=start_stuck.output,
        deferrable=True,
        poke_interval=5,
        timeout=DEADLINE_SECONDS,
    )

with DAG("waits", **SETTINGS):
    LoggingSensor.partial(task_id="wait", deferrable=True, poke_interval=5, timeout=1200).expand(
        export_id=chosen("exports")
    )

with DAG("misconfigured", **SETTINGS):
    connections = chosen("connections")
    SendGridExportContactsOperator.partial(task_id="in_a_worker").expand(sendgrid_conn_id=connections)
    TriggererOnlySensor.partial(task_id="in_the_triggerer", export_id="an-export", timeout=60).expand(
        sendgrid_conn_id=connections
    )
