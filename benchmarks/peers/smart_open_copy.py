"""smart_open for download and upload."""

import shutil

import smart_open

from benchmarks.job import BUCKET, measure, read_job

job = read_job()
client = job.s3_client()


def copy() -> None:
    for url, key in job.targets():
        with (
            smart_open.open(url, "rb", compression="disable") as source,
            smart_open.open(
                f"s3://{BUCKET}/{key}", "wb", compression="disable", transport_params={"client": client}
            ) as target,
        ):
            shutil.copyfileobj(source, target, 1024 * 1024)


measure(copy)
