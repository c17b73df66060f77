"""This provider's delivery, as in SendGridToS3Operator; with ``imports_only`` everything but the delivery."""

import json
import logging

from airflow_provider_sendgrid.delivery.export import DeliveryOptions, deliver_export
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.export import ContactExport
from airflow_provider_sendgrid.exports.sessions import new_download_session
from airflow_provider_sendgrid.files.source import ExportFiles
from airflow_provider_sendgrid.storage.s3 import S3Storage, client_config
from benchmarks.job import BUCKET, measure, read_job

job = read_job()
logging.basicConfig(level=logging.INFO)
imports_only = job.options.pop("imports_only", False)
options = DeliveryOptions(verify_row_count=job.rows is not None, **job.options)
export = ContactExport(id="benchmark", status="ready", urls=tuple(job.urls), contact_count=job.rows)
session = new_download_session(SendGridConnection("SG.made.up", verify=job.authority or True))
source = ExportFiles(lambda: export, session, allow_http=job.authority is None)
client = job.s3_client(lambda config: client_config(config, 2 * options.max_concurrency))


def deliver() -> None:
    if imports_only:
        session.get(job.urls[0], stream=True).close()
        client.list_multipart_uploads(Bucket=BUCKET)
        return
    delivery = deliver_export(source, S3Storage(client, BUCKET, "ours/"), options)
    print(json.dumps({"rows": delivery.rows}))


measure(deliver)
