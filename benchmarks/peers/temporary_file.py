"""A temporary file, then boto3's upload_file."""

import shutil
import tempfile

from benchmarks.job import BUCKET, measure, read_job

job = read_job()
session = job.session()
client = job.s3_client()


def copy() -> None:
    for url, key in job.targets():
        with tempfile.NamedTemporaryFile() as file:
            with session.get(url, stream=True) as response:
                response.raise_for_status()
                shutil.copyfileobj(response.raw, file)
            file.flush()
            client.upload_file(file.name, BUCKET, key)


measure(copy)
