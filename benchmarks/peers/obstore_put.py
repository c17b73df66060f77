"""obstore for download and upload, 16 MiB x 4.

Its threads sometimes abort the process while the interpreter exits, so the program ends with os._exit.
"""

import asyncio
import os
import sys
from urllib.parse import urlsplit

import obstore
from obstore.store import HTTPStore, S3Store

from benchmarks.job import BUCKET, measure, read_job

PART_BYTES = 16 * 1024 * 1024

job = read_job()
source = urlsplit(job.urls[0])
plain_http = {"allow_http": True}
web = HTTPStore.from_url(f"{source.scheme}://{source.netloc}", client_options=plain_http)
store = S3Store(BUCKET, endpoint=job.endpoint, virtual_hosted_style_request=False, client_options=plain_http)


def copy() -> None:
    for url, key in job.targets():
        asyncio.run(copy_one(urlsplit(url).path.lstrip("/"), key))


async def copy_one(path: str, key: str) -> None:
    found = await obstore.get_async(web, path)
    stream = found.stream(min_chunk_size=PART_BYTES)
    await obstore.put_async(store, key, stream, chunk_size=PART_BYTES, max_concurrency=4)


measure(copy)
sys.stdout.flush()
os._exit(0)
