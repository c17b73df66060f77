"""boto3's upload_fileobj, fed by requests: what most people write. With its defaults, or tuned by options."""

from boto3.s3.transfer import TransferConfig  # noqa: TID253 - this is no DAG file

from benchmarks.job import BUCKET, measure, read_job

job = read_job()
session = job.session()
client = job.s3_client(**job.options.get("config", {}))
transfer = TransferConfig(**job.options.get("transfer", {}))


def copy() -> None:
    for url, key in job.targets():
        with session.get(url, stream=True) as response:
            response.raise_for_status()
            client.upload_fileobj(response.raw, BUCKET, key, Config=transfer)


measure(copy)
