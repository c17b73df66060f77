"""Copies one file to any storage, by this provider or by Airflow's `ObjectStoragePath`.

Its job is JSON: ``method`` (ours, counting, airflow), ``url`` and ``path``. Connections are in the environment.
"""

import json
import shutil
import sys

from airflow.sdk import ObjectStoragePath

from airflow_provider_sendgrid.delivery.export import DeliveryOptions, deliver_export
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.export import ContactExport
from airflow_provider_sendgrid.exports.sessions import new_download_session
from airflow_provider_sendgrid.files.source import ExportFiles
from airflow_provider_sendgrid.transfers.sendgrid_to_object_storage import SendGridToObjectStorageOperator
from benchmarks.job import measure, peak_bytes

given = json.loads(sys.argv[1])
session = new_download_session(SendGridConnection("SG.made.up"))


def deliver() -> None:
    deliver_export(source, storage, options)


def copy() -> None:
    with session.get(given["url"], stream=True) as source, target.open("wb") as file:
        shutil.copyfileobj(source.raw, file, 1024 * 1024)


if given["method"] == "airflow":
    target = ObjectStoragePath(given["path"]) / "copied.csv.gz"
    target.exists()
    transfer = copy
else:
    export = ContactExport(id="benchmark", status="ready", urls=(given["url"],))
    source = ExportFiles(lambda: export, session, allow_http=True)
    storage = SendGridToObjectStorageOperator(task_id="store", export_id="benchmark", path=given["path"])._storage()
    storage.head("nothing")
    options = DeliveryOptions(verify_row_count=given["method"] == "counting", replace=True)
    transfer = deliver
print(json.dumps({"idle": peak_bytes()}))
measure(transfer)
