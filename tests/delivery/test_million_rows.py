"""A million contacts: byte-identical, counted, in bounded memory, though each process is alone with its own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from airflow_provider_sendgrid.emulator import Emulator, Settings

REPOSITORY = Path(__file__).parents[2]
CONTACTS = 1_000_000
MOST_KIB = 200 * 1024
_S3 = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(*server.get_host_and_port(), sep=":", flush=True)
sys.stdin.read()
server.stop()
"""


@pytest.fixture
def s3_url():
    """An S3 server in a separate process, which ends with its input."""
    command = [sys.executable, "-c", _S3]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        yield f"http://{server.stdout.readline().strip()}"
        server.stdin.close()


@pytest.fixture
def bucket(s3_url):
    import boto3

    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    client = boto3.client("s3", endpoint_url=s3_url, region_name="us-east-1", **keys)
    client.create_bucket(Bucket="lake")
    return client


def sha256(pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def gunzipped(pieces: Iterable[bytes]) -> Iterator[bytes]:
    gunzip = zlib.decompressobj(wbits=31)
    for piece in pieces:
        yield gunzip.decompress(piece)
    assert gunzip.eof


def deliver_alone(emulator: Emulator, export_id: str, s3_url: str) -> dict[str, int]:
    """Deliver in a separate process; return its rows, and its memory before and at the peak."""
    arguments = {
        "url": emulator.url,
        "api_key": emulator.api_key,
        "export_id": export_id,
        "s3_url": s3_url,
        "bucket": "lake",
        "options": {},
    }
    command = [sys.executable, "-m", "tests.support.deliver_alone", json.dumps(arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, env=os.environ, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr
    answer: dict[str, int] = json.loads(done.stdout)
    return answer


def test_a_million_contacts_arrive_in_bounded_memory(s3_url, bucket):
    """Three files, gzip passed through and counted: the worker's peak is less than 200 MiB above its idle state."""
    settings = Settings(contacts_per_file=350_000)
    with Emulator(settings, populate=False) as emulator:
        export_id = emulator.start_export([emulator.add_list("All", contacts=CONTACTS)])
        files = emulator.export_files(export_id)
        done = deliver_alone(emulator, export_id, s3_url)
        keys = [f"in/{export_id}-{number:05}-of-00003.csv.gz" for number in (1, 2, 3)]
        stored = [bucket.get_object(Bucket="lake", Key=key)["Body"].iter_chunks(1 << 20) for key in keys]
        truth = [sha256(file.chunks()) for file in files]
        assert truth == [sha256(gunzipped(pieces)) for pieces in stored]
    manifest = json.loads(bucket.get_object(Bucket="lake", Key="in/_manifest.json")["Body"].read())
    assert [file.rows for file in files] == [entry["meta"]["record_count"] for entry in manifest["entries"]]
    assert (CONTACTS, CONTACTS) == (done["rows"], manifest["meta"]["record_count"])
    assert done["peak_kib"] - done["idle_kib"] < MOST_KIB
