"""The services of the fault tests: emulators, an S3 server behind a proxy, and the provider's entry points.

No test sleeps: waits between tries have no length, and a fake clock advances with each status request. For faults
without a response, the timeout is short.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final

import pytest

from airflow_provider_sendgrid._compat import AirflowFailException
from airflow_provider_sendgrid.emulator import Emulator, Settings
from airflow_provider_sendgrid.exceptions import SendGridError
from airflow_provider_sendgrid.exports import client as client_module
from airflow_provider_sendgrid.files.download import DownloadLimits
from airflow_provider_sendgrid.files.source import ExportFiles
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook
from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator
from airflow_provider_sendgrid.transfers.sendgrid_to_s3 import SendGridToS3Operator
from tests.support.clock import FakeClock, advance_at_status_requests
from tests.support.sensor_run import SensorRun
from tests.support.storage_proxy import StorageProxy

EXPORTS: Final = "/v3/marketing/contacts/exports"
MIB: Final = 1024 * 1024
# One file of about 6 MB, in two parts, and one of about 200 kB.
CONTACTS, CONTACTS_PER_FILE = 27_000, 26_000


@dataclass
class EmulatedSendGrid:
    """One emulator whose exports are pending at the first request, with one large export that is ready."""

    emulator: Emulator
    clock: FakeClock
    export_id: str = ""
    other_export_id: str = ""
    expected_files: list[bytes] = field(default_factory=list)

    @classmethod
    @contextmanager
    def running(cls, encoding: str) -> Iterator[EmulatedSendGrid]:
        clock = FakeClock(is_running=True)
        settings = Settings(ready_after=5, encoding=encoding, contacts_per_file=CONTACTS_PER_FILE)
        with Emulator(settings, clock=clock, observe=advance_at_status_requests(clock), populate=False) as emulator:
            sendgrid = cls(emulator, clock)
            large = emulator.add_list("Large", contacts=CONTACTS, ready_after=0)
            sendgrid.export_id = emulator.start_export([large])
            sendgrid.expected_files = [file.read() for file in emulator.export_files(sendgrid.export_id)]
            other = emulator.add_list("Other", contacts=20, ready_after=0)
            sendgrid.other_export_id = emulator.start_export([other])
            yield sendgrid

    def reset(self) -> None:
        """Remove all faults and reset the clock, so that the large export never expires."""
        self.emulator.clear_faults()
        self.clock.ahead_seconds = 0.0

    def exports_of(self, list_id: str) -> list[str]:
        started = self.emulator._backend.account.exports()
        return [each.id for each in started if [chosen.id for chosen in each.audiences] == [list_id]]


@dataclass
class Services:
    """All services, and the provider's entry points."""

    gzipped: EmulatedSendGrid
    plain: EmulatedSendGrid
    proxy: StorageProxy
    s3: Any
    airflow_version: Any
    monkeypatch: pytest.MonkeyPatch
    prefixes: int = 0

    @classmethod
    @contextmanager
    def open(cls, s3: Any, airflow_version: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
        with ExitStack() as stack:
            gzipped = stack.enter_context(EmulatedSendGrid.running("x-gzip"))
            plain = stack.enter_context(EmulatedSendGrid.running("plain"))
            proxy = stack.enter_context(StorageProxy(s3.url))
            yield cls(gzipped, plain, proxy, s3, airflow_version, monkeypatch)

    def connect(self, sendgrid: EmulatedSendGrid, timeout_seconds: float) -> None:
        """Set Airflow's connections."""
        given = json.loads(sendgrid.emulator.connection_json(timeout=timeout_seconds))
        self.monkeypatch.setenv("AIRFLOW_CONN_SENDGRID_DEFAULT", json.dumps(given))
        aws_config = {"retries": {"mode": "standard", "max_attempts": 3}, "read_timeout": 20}
        for name, url in (("AWS_DEFAULT", self.proxy.url), ("AWS_DIRECT", self.s3.url)):
            options = {"endpoint_url": url, "region_name": "us-east-1", "config_kwargs": aws_config}
            connection = {"conn_type": "aws", "login": "test", "password": "test", "extra": options}
            self.monkeypatch.setenv(f"AIRFLOW_CONN_{name}", json.dumps(connection))

    def reset(self) -> None:
        self.gzipped.reset()
        self.plain.reset()
        self.proxy.clear()

    def new_prefix(self) -> str:
        self.prefixes += 1
        return f"prefix-{self.prefixes}/"

    def keys(self, prefix: str) -> dict[str, bytes]:
        """The objects with a prefix, read without the proxy."""
        listed = self.s3.client.list_objects_v2(Bucket=self.s3.bucket, Prefix=prefix)
        return {item["Key"]: self.s3.read(item["Key"]) for item in listed.get("Contents", [])}

    # Entry points

    def ask(self, sendgrid: EmulatedSendGrid) -> Any:
        return SendGridHook().get_export(sendgrid.export_id)

    def wait(self, mode: str, export_id: str, inject: Any, timeout: float = 60.0) -> Any:
        """Wait in a mode; `inject` is called before the first poll, in a deferred wait right after it."""
        wait = SensorRun(mode, self.airflow_version, export_id=export_id, timeout=timeout)
        if mode == "deferrable":
            wait.between = inject
        else:
            inject()
        return wait.run()

    def start(self, list_id: str) -> str:
        return SendGridExportContactsOperator(task_id="start", list_ids=[list_id]).execute({})

    def deliver(self, export_id: str, prefix: str, **arguments: Any) -> list[str]:
        place = {"s3_bucket": self.s3.bucket, "s3_key_prefix": prefix, "compression": "none"}
        sizes = {"part_size": 5 * MIB, "max_concurrency": 2}
        operator = SendGridToS3Operator(task_id="store", export_id=export_id, **{**place, **sizes, **arguments})
        return operator.execute({})


def without_waits(monkeypatch: pytest.MonkeyPatch, stall_seconds: float = 0.5) -> None:
    """Shorten the waits that the fixture `no_waiting` leaves: those of boto3, stalls, and whole responses."""
    limits = DownloadLimits(stall_seconds=stall_seconds)
    monkeypatch.setitem(ExportFiles.__init__.__kwdefaults__, "limits", limits)
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda _seconds: None))
    monkeypatch.setattr(client_module, "_RESPONSE_TIMEOUTS", 1)


def outcome_of(error: BaseException | None) -> str:
    """The outcome of the matrix for an error."""
    if error is None:
        return "ok"
    if isinstance(error, AirflowFailException):
        return f"stop {type(error.__cause__).__name__}"
    return f"fail {type(error).__name__}"


def all_texts(error: BaseException | None) -> str:
    """All texts and reprs of an error and its causes, as a log may show them."""
    texts = []
    while error is not None:
        texts += [str(error), repr(error), repr(getattr(error, "errors", ""))]
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def is_ours(error: BaseException) -> bool:
    return isinstance(error, SendGridError | AirflowFailException)
