"""What all tests share: an Airflow of their own, SendGrid's emulator, an S3 server.

Airflow reads its settings when it is imported, so they stand at the top, before any test imports it. The same suite
runs on every supported Airflow: what differs between them is in `AirflowVersion`, and nowhere else.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import pytest

from tests.support.clock import FakeClock, advance_at_status_requests

# No test times anything: a first import, or a busy machine, may take its time.
hypothesis.settings.register_profile("calm", deadline=None)
hypothesis.settings.load_profile("calm")

REPOSITORY = Path(__file__).parents[1]
EXAMPLE_DAGS = REPOSITORY / "example_dags"
_HOME = tempfile.TemporaryDirectory(prefix="airflow-home-")

# Neither the shell's Airflow nor its clouds have anything to do with the tests.
for _name in [name for name in os.environ if name.startswith(("AIRFLOW_", "AWS_", "SENDGRID_"))]:
    del os.environ[_name]
os.environ |= {
    "AIRFLOW_HOME": _HOME.name,
    "AIRFLOW__CORE__DAGS_FOLDER": str(EXAMPLE_DAGS),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
    "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}

pytest_plugins = ["airflow_provider_sendgrid.emulator.pytest_plugin", "tests.support.seaweedfs", "tests.support.ceph"]


def pytest_unconfigure() -> None:
    """Leave nothing behind."""
    _HOME.cleanup()


class AirflowVersion:
    """What differs between the Airflow versions that this suite runs on."""

    def __init__(self) -> None:
        numbers = re.findall(r"\d+", version("apache-airflow"))
        self.number = (int(numbers[0]), int(numbers[1]))
        self.starts_dags_from_triggers = self.number >= (3, 0)

    def reschedule_context(self, began_at: Any = None) -> Any:
        """A context in which a sensor in reschedule mode finds that it pokes for the first time, or began then.

        Airflow 3 asks the task instance, Airflow 2 the database.
        """
        identity = {"dag_id": "dag", "task_id": "wait", "run_id": "run", "map_index": -1}
        numbers = {"try_number": 1, "max_tries": 0}
        methods = {"get_first_reschedule_date": lambda _context: began_at, "xcom_push": lambda **_xcom: None}
        return {"ti": SimpleNamespace(**identity, **numbers, **methods)}

    def load_dags(self, path: Path) -> Mapping[str, Any]:
        """The DAGs of a file, parsed as Airflow's own dag processor does it."""
        try:
            from airflow.dag_processing.dagbag import DagBag
        except ImportError:
            from airflow.models.dagbag import DagBag
        bag = DagBag(str(path))
        assert {} == bag.import_errors
        return bag.dags

    def dag(self, dag_id: str) -> Any:
        """A DAG without a schedule."""
        try:
            from airflow.sdk import DAG
        except ImportError:
            from airflow import DAG
        return DAG(dag_id, schedule=None)

    def exceptions(self) -> Any:
        """Airflow's exceptions from where this version keeps them."""
        from airflow import exceptions

        names = ("AirflowRescheduleException", "TaskDeferred")
        try:
            from airflow.sdk import exceptions as newer
        except ImportError:
            newer = exceptions
        return SimpleNamespace(**{name: getattr(newer, name, None) or getattr(exceptions, name) for name in names})

    def object_storage_path(self) -> Any:
        """The class of Airflow's paths."""
        try:
            from airflow.sdk import ObjectStoragePath
        except ImportError:
            from airflow.io.path import ObjectStoragePath
        return ObjectStoragePath

    def redact(self, text: str) -> str:
        """`text` as it would stand in a task's log."""
        try:
            from airflow.sdk._shared.secrets_masker import redact
        except ImportError:
            try:
                from airflow.sdk.execution_time.secrets_masker import redact
            except ImportError:
                from airflow.utils.log.secrets_masker import redact
        return str(redact(text))


@pytest.fixture(scope="session")
def airflow_version() -> AirflowVersion:
    return AirflowVersion()


@pytest.fixture(scope="session")
def airflow_database() -> None:
    """Airflow's database, made once for the tests that need one."""
    command = [sys.executable, "-m", "airflow", "db", "migrate"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider's waits between tries take no time."""
    take_no_time(monkeypatch)


def take_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the provider's waits between tries take no time: each is a parameter, here with another default."""
    from airflow_provider_sendgrid.exports.client import AsyncSendGridClient, SendGridClient
    from airflow_provider_sendgrid.files.source import ExportFiles

    async def asleep(_seconds: float) -> None:
        return None

    for callee, sleep in (
        (SendGridClient.__init__, lambda _seconds: None),
        (ExportFiles.__init__, lambda _seconds: None),
        (AsyncSendGridClient.__init__, asleep),
    ):
        assert "sleep" in callee.__kwdefaults__
        monkeypatch.setitem(callee.__kwdefaults__, "sleep", sleep)


@pytest.fixture
def no_shortest_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sensors and triggers may poll as often as a test's interval says."""
    from airflow_provider_sendgrid.exports.polling import PollSchedule

    assert "floor_seconds" in PollSchedule.__init__.__kwdefaults__
    monkeypatch.setitem(PollSchedule.__init__.__kwdefaults__, "floor_seconds", 0.0)


@pytest.fixture
def ticking_clock() -> FakeClock:
    """The clock of `ticking_emulator`."""
    return FakeClock(is_running=True)


@pytest.fixture
def ticking_emulator(monkeypatch: pytest.MonkeyPatch, ticking_clock: FakeClock) -> Iterator[Any]:
    """An emulator whose exports are pending when first asked for, and done when asked for again."""
    from airflow_provider_sendgrid.emulator import Emulator, Settings

    observe = advance_at_status_requests(ticking_clock)
    with Emulator(Settings(ready_after=5), clock=ticking_clock, observe=observe) as emulator:
        monkeypatch.setenv("AIRFLOW_CONN_SENDGRID_DEFAULT", emulator.connection_json())
        yield emulator


@dataclass(frozen=True)
class S3:
    """A bucket on the S3 server, and an independent client to look into it."""

    client: Any
    bucket: str
    url: str

    def connection_json(self, **extra: Any) -> str:
        """An Airflow connection to the server."""
        options = {"endpoint_url": self.url, "region_name": "us-east-1", **extra}
        return json.dumps({"conn_type": "aws", "login": "test", "password": "test", "extra": options})

    def stored_keys(self) -> list[str]:
        listed = self.client.list_objects_v2(Bucket=self.bucket)
        return [item["Key"] for item in listed.get("Contents", [])]

    def read(self, key_or_uri: str) -> bytes:
        key = key_or_uri.removeprefix(f"s3://{self.bucket}/")
        content: bytes = self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return content

    def read_plain(self, key_or_uri: str) -> bytes:
        content = self.read(key_or_uri)
        return gzip.decompress(content) if key_or_uri.endswith(".gz") else content

    def head(self, key_or_uri: str) -> Any:
        return self.client.head_object(Bucket=self.bucket, Key=key_or_uri.removeprefix(f"s3://{self.bucket}/"))

    def open_uploads(self) -> list[Any]:
        uploads: list[Any] = self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
        return uploads


@pytest.fixture(scope="session")
def s3_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """A real S3 server on localhost; its URL. It is moto's, and Ceph RGW in `make test-ceph`."""
    import logging

    from tests.support import ceph

    if ceph.IS_WANTED:
        yield request.getfixturevalue("ceph")
        return

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    yield f"http://127.0.0.1:{server._server.server_port}"
    server.stop()


@pytest.fixture(scope="session")
def s3_client(s3_server: str) -> Any:
    """Reads objects without verifying checksums: older versions of moto report wrong ones for multipart objects."""
    import boto3

    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
        return boto3.client("s3", endpoint_url=s3_server, region_name="us-east-1", **keys)


@pytest.fixture
def s3(s3_server: str, s3_client: Any, monkeypatch: pytest.MonkeyPatch) -> S3:
    """A fresh bucket, reached by the connection `aws_default`."""
    bucket = f"lake-{uuid.uuid4().hex[:12]}"
    s3_client.create_bucket(Bucket=bucket)
    s3 = S3(s3_client, bucket, s3_server)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", s3.connection_json())
    return s3


@pytest.fixture
def output_of_all_logs(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """All that was logged or printed so far, wherever this Airflow sends it."""
    caplog.set_level("DEBUG")
    printed: list[str] = []

    def read() -> str:
        printed.extend(capfd.readouterr())
        return "\n".join([*printed, caplog.text])

    return read
