"""Calls that are wrong, each of which ``mypy --strict`` must refuse as its line says; nothing here runs."""

from __future__ import annotations

from airflow_provider_sendgrid.exceptions import SendGridError
from airflow_provider_sendgrid.exports.export import ContactExport, ExportSelection
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook
from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator
from airflow_provider_sendgrid.sensors.sendgrid import SendGridExportSensor
from airflow_provider_sendgrid.transfers.sendgrid_to_object_storage import SendGridToObjectStorageOperator
from airflow_provider_sendgrid.transfers.sendgrid_to_s3 import SendGridToS3Operator
from airflow_provider_sendgrid.triggers.sendgrid import SendGridExportTrigger

SendGridExportContactsOperator(task_id="a", max_file_size="500")  # error: arg-type
SendGridExportContactsOperator(task_id="a", list_ids=7)  # error: arg-type
SendGridExportContactsOperator(task_id="a", durable="no")  # error: arg-type
SendGridExportContactsOperator(["6f"])  # error: call-arg
SendGridExportSensor(task_id="a")  # error: call-arg
SendGridExportSensor(task_id="a", export_id=7)  # error: arg-type
SendGridExportSensor(task_id="a", export_id="6f", deferrable="yes")  # error: arg-type
SendGridToS3Operator(task_id="a", export_id="6f")  # error: call-arg
SendGridToS3Operator(task_id="a", export_id="6f", s3_key_prefix="a/", encrypt="AES256")  # error: arg-type
SendGridToS3Operator(task_id="a", export_id="6f", s3_key_prefix="a/", extra_args=["ACL"])  # error: arg-type
SendGridToS3Operator(task_id="a", s3_key_prefix="a/")  # error: call-arg
SendGridToS3Operator(task_id="a", export_id="6f", s3_key_prefix="a/", replace="yes")  # error: arg-type
SendGridToObjectStorageOperator(task_id="a", export_id="6f")  # error: call-arg
SendGridToObjectStorageOperator(task_id="a", export_id="6f", path="file:///a", part_size="8M")  # error: arg-type
SendGridExportTrigger()  # error: call-arg
SendGridExportTrigger("6f", end_time="soon")  # error: arg-type
SendGridHook().start_export(max_file_size="500")  # error: arg-type
SendGridHook().start_export(["6f"], [], "json")  # error: call-arg
SendGridHook().get_export(7)  # error: arg-type
SendGridHook().delete_export("6f")  # error: attr-defined
ExportSelection(list_ids=7)  # error: arg-type


def read(export: ContactExport, error: SendGridError) -> str:
    """What is read wrongly."""
    export.status = "ready"  # error: misc
    count: int = export.contact_count  # error: assignment
    url: str = export.urls  # error: assignment
    return f"{count}{url}{error.status}"  # error: attr-defined


async def on_an_event_loop() -> ContactExport:
    """An await that is missing."""
    return SendGridHook().aget_export("6f")  # error: return-value
