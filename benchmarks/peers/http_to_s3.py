"""Airflow's HttpToS3Operator, executed without a scheduler; connections are in the environment."""

import json
import os
from urllib.parse import urlsplit

from benchmarks.job import BUCKET, measure, read_job

job = read_job()
source = urlsplit(job.urls[0])
os.environ["AIRFLOW_CONN_HTTP_DEFAULT"] = json.dumps(
    {"conn_type": "http", "schema": source.scheme, "host": source.hostname, "port": source.port}
)
os.environ["AIRFLOW_CONN_AWS_DEFAULT"] = json.dumps({"conn_type": "aws", "extra": {"endpoint_url": job.endpoint}})

from airflow.providers.amazon.aws.transfers.http_to_s3 import HttpToS3Operator  # noqa: E402


def copy() -> None:
    for number, (url, key) in enumerate(job.targets()):
        HttpToS3Operator(
            task_id=f"copy_{number}",
            endpoint=urlsplit(url).path,
            s3_bucket=BUCKET,
            s3_key=key,
            replace=True,
        ).execute({})


measure(copy)
