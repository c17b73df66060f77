"""Delivers one export in a process of its own, to be killed or measured: its arguments are JSON, so is its answer."""

from __future__ import annotations

import json
import resource
import sys
from types import SimpleNamespace

from airflow_provider_sendgrid.delivery.export import DeliveryOptions, deliver_export
from airflow_provider_sendgrid.storage.s3 import S3Storage
from tests.support.sendgrid_source import SendGrid


def main(arguments: str) -> None:
    import boto3

    given = json.loads(arguments)
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    client = boto3.client("s3", endpoint_url=given["s3_url"], region_name="us-east-1", **keys)
    sendgrid = SendGrid(SimpleNamespace(url=given["url"], api_key=given["api_key"]), timeout_seconds=120.0)
    with sendgrid.source(given["export_id"]) as source:
        source.export()
        client.head_bucket(Bucket=given["bucket"])
        idle_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        storage = S3Storage(client, given["bucket"], "in/")
        delivery = deliver_export(source, storage, DeliveryOptions(**given["options"]))
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"rows": delivery.rows, "idle_kib": idle_kib, "peak_kib": peak_kib}))


if __name__ == "__main__":
    main(sys.argv[1])
