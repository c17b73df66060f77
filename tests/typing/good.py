"""Calls that users write, all of which must type-check under ``mypy --strict``; nothing here runs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

from airflow.sdk import DAG, Asset, AssetWatcher, task

from airflow_provider_sendgrid.emulator import Emulator, Fault, Settings
from airflow_provider_sendgrid.exceptions import (
    ExportFailedError,
    SendGridError,
    SendGridRateLimitError,
)
from airflow_provider_sendgrid.exports.export import ContactExport, ExportFamily, ExportSelection
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook
from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator
from airflow_provider_sendgrid.sensors.sendgrid import SendGridExportSensor
from airflow_provider_sendgrid.transfers.sendgrid_to_object_storage import SendGridToObjectStorageOperator
from airflow_provider_sendgrid.transfers.sendgrid_to_s3 import SendGridToS3Operator
from airflow_provider_sendgrid.triggers.sendgrid import SendGridExportTrigger, SendGridNewExportTrigger

with DAG("all_of_it", schedule="@daily", start_date=datetime(2026, 1, 1, tzinfo=timezone.utc)):

    @task
    def chosen() -> list[str]:
        """Lists, chosen when the DAG runs."""
        return [item["id"] for item in SendGridHook("sendgrid_default", family="marketing").get_lists()]

    everybody = SendGridExportContactsOperator(task_id="everybody", retries=3)
    some = SendGridExportContactsOperator(
        task_id="some",
        list_ids=["6f", 7],
        segment_names=("Customers in Germany",),
        file_type="json",
        max_file_size=500,
        notify_by_email=True,
        durable=False,
        family="legacy",
        sendgrid_conn_id="other",
        inlets=[Asset.ref(name="watched")],
    )
    of_an_xcom = SendGridExportContactsOperator(task_id="of_an_xcom", list_ids=everybody.output)
    wait = SendGridExportSensor(
        task_id="wait", export_id=some.output, deferrable=True, poke_interval=30.0, timeout=7200, soft_fail=True
    )
    store = SendGridToS3Operator(
        task_id="store",
        export_id=some.output,
        s3_bucket="lake",
        s3_key_prefix="contacts/ds={{ ds }}/",
        aws_conn_id=None,
        encrypt=True,
        acl_policy="bucket-owner-full-control",
        extra_args={"StorageClass": "STANDARD_IA"},
        verify="/etc/ssl/ca.pem",
        replace=True,
        compression="none",
        file_index=0,
        partition_key="{{ ds }}",
        outlets=[Asset("s3://lake/contacts")],
    )
    to_gcs = SendGridToObjectStorageOperator(task_id="to_gcs", export_id="6f", path="gs://conn@bucket/contacts/")
    everybody >> some >> wait >> [store, to_gcs]

trigger = SendGridExportTrigger(export_id="6f", poll_interval=5.0, end_time=1e9)
watched = Asset("watched", watchers=[AssetWatcher(name="w", trigger=SendGridNewExportTrigger(since="2026-01-01"))])


def with_the_hook() -> int | None:
    """In your own task."""
    hook = SendGridHook(family=ExportFamily.MARKETING)
    works, why = hook.test_connection()
    if not works:
        raise ValueError(why.upper())
    export_id: str = hook.start_export(["6f"], file_type="csv", max_file_size=100)
    started: str = hook.start_selection(ExportSelection(list_ids=[1, "2"]))
    export: ContactExport = hook.get_export(export_id or started)
    summary: dict[str, Any] = export.summary()
    lists: list[dict[str, Any]] = hook.get_lists()
    assert hook.get_conn().headers
    assert summary
    assert lists
    return export.contact_count


async def on_an_event_loop() -> list[ContactExport]:
    """In your own trigger."""
    export = await SendGridHook().aget_export("6f")
    return [export, *await SendGridHook().alist_exports()]


def when_it_goes_wrong() -> float | None:
    """Errors are typed, too."""
    try:
        SendGridHook().list_exports()
    except SendGridRateLimitError as error:
        return error.retry_after_seconds
    except ExportFailedError as error:
        raise RuntimeError(str(error)) from error
    except SendGridError as error:
        return float(error.status_code or 0)
    return None


def in_a_test() -> Iterator[Emulator]:
    """With the emulator."""
    with Emulator(Settings(ready_after=1.0), contacts=100) as emulator:
        found: str = emulator.add_list("News", contacts=10)
        emulator.inject(Fault("status", status=503, first=2))
        assert emulator.start_export([found])
        yield emulator
