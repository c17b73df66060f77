"""SendGrid and S3 as the fault tests have them: emulators, an S3 server behind a proxy, and each of our doors.

Nobody sleeps: waits between tries are parameters, here of no length; exports become ready by a clock that moves with
each question. Where a fault is a silence, the timeout is short.
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
from tests.faults.storage_proxy import StorageProxy
from tests.support.clock import FakeClock, advance_at_status_requests
from tests.support.sensor_run import SensorRun

EXPORTS: Final = "/v3/marketing/contacts/exports"
MIB: Final = 1024 * 1024
# Some 6 MB, in two parts, and some 200 kB.
CONTACTS, CONTACTS_PER_FILE = 27_000, 26_000


@dataclass
class Sendgrid:
    """One emulator whose exports are pending when first asked for, with one export that is ready and large."""

    emulator: Emulator
    clock: FakeClock
    export_id: str = ""
    other_export_id: str = ""
    truth: list[bytes] = field(default_factory=list)

    @classmethod
    @contextmanager
    def playing(cls, encoding: str) -> Iterator[Sendgrid]:
        clock = FakeClock(is_running=True)
        settings = Settings(ready_after=5, encoding=encoding, contacts_per_file=CONTACTS_PER_FILE)
        with Emulator(settings, clock=clock, observe=advance_at_status_requests(clock), populate=False) as emulator:
            sendgrid = cls(emulator, clock)
            large = emulator.add_list("Large", contacts=CONTACTS, ready_after=0)
            sendgrid.export_id = emulator.start_export([large])
            sendgrid.truth = [file.read() for file in emulator.export_files(sendgrid.export_id)]
            other = emulator.add_list("Other", contacts=20, ready_after=0)
            sendgrid.other_export_id = emulator.start_export([other])
            yield sendgrid

    def calm(self) -> None:
        """All is well again, and time is what it was: the large export never expires."""
        self.emulator.clear_faults()
        self.clock.ahead_seconds = 0.0

    def exports_of(self, list_id: str) -> list[str]:
        begun = self.emulator._backend.account.exports()
        return [each.id for each in begun if [chosen.id for chosen in each.audiences] == [list_id]]


@dataclass
class World:
    """Everything, and the doors to it."""

    packed: Sendgrid
    plain: Sendgrid
    proxy: StorageProxy
    s3: Any
    airflow_version: Any
    monkeypatch: pytest.MonkeyPatch
    prefixes: int = 0

    @classmethod
    @contextmanager
    def open(cls, s3: Any, airflow_version: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
        with ExitStack() as stack:
            packed = stack.enter_context(Sendgrid.playing("x-gzip"))
            plain = stack.enter_context(Sendgrid.playing("plain"))
            proxy = stack.enter_context(StorageProxy(s3.url))
            yield cls(packed, plain, proxy, s3, airflow_version, monkeypatch)

    def connect(self, sendgrid: Sendgrid, timeout_seconds: float) -> None:
        """Have Airflow's connections lead here."""
        given = json.loads(sendgrid.emulator.connection_json(timeout=timeout_seconds))
        self.monkeypatch.setenv("AIRFLOW_CONN_SENDGRID_DEFAULT", json.dumps(given))
        few = {"retries": {"mode": "standard", "max_attempts": 3}, "read_timeout": 20}
        for name, url in (("AWS_DEFAULT", self.proxy.url), ("AWS_DIRECT", self.s3.url)):
            options = {"endpoint_url": url, "region_name": "us-east-1", "config_kwargs": few}
            connection = {"conn_type": "aws", "login": "test", "password": "test", "extra": options}
            self.monkeypatch.setenv(f"AIRFLOW_CONN_{name}", json.dumps(connection))

    def calm(self) -> None:
        self.packed.calm()
        self.plain.calm()
        self.proxy.clear()

    def new_prefix(self) -> str:
        self.prefixes += 1
        return f"prefix-{self.prefixes}/"

    def keys(self, prefix: str) -> dict[str, bytes]:
        """The objects below a prefix, read past the proxy."""
        listed = self.s3.client.list_objects_v2(Bucket=self.s3.bucket, Prefix=prefix)
        return {item["Key"]: self.s3.read(item["Key"]) for item in listed.get("Contents", [])}

    # The doors

    def ask(self, sendgrid: Sendgrid) -> Any:
        return SendGridHook().get_export(sendgrid.export_id)

    def wait(self, mode: str, export_id: str, break_it: Any, timeout: float = 60.0) -> Any:
        """Wait in a mode; what is to break does so before the first look, in a deferred wait right after it."""
        wait = SensorRun(mode, self.airflow_version, export_id=export_id, timeout=timeout)
        if mode == "deferrable":
            wait.between = break_it
        else:
            break_it()
        return wait.run()

    def start(self, list_id: str) -> str:
        return SendGridExportContactsOperator(task_id="start", list_ids=[list_id]).execute({})

    def deliver(self, export_id: str, prefix: str, **arguments: Any) -> list[str]:
        place = {"s3_bucket": self.s3.bucket, "s3_key_prefix": prefix, "compression": "none"}
        sizes = {"part_size": 5 * MIB, "max_concurrency": 2}
        operator = SendGridToS3Operator(task_id="store", export_id=export_id, **{**place, **sizes, **arguments})
        return operator.execute({})


def without_waits(monkeypatch: pytest.MonkeyPatch, stall_seconds: float = 0.5) -> None:
    """What the fixture `no_waiting` leaves: boto3's waits, stalls, and the time of a whole answer."""
    limits = DownloadLimits(stall_seconds=stall_seconds)
    monkeypatch.setitem(ExportFiles.__init__.__kwdefaults__, "limits", limits)
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda _seconds: None))
    monkeypatch.setattr(client_module, "_RESPONSE_TIMEOUTS", 1)


def outcome_of(error: BaseException | None) -> str:
    """An error in the words of the matrix."""
    if error is None:
        return "ok"
    if isinstance(error, AirflowFailException):
        return f"never {type(error.__cause__).__name__}"
    return f"again {type(error).__name__}"


def all_texts(error: BaseException | None) -> str:
    """What a log may show of an error: all texts and reprs, down to the first cause."""
    texts = []
    while error is not None:
        texts += [str(error), repr(error), repr(getattr(error, "errors", ""))]
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def is_ours(error: BaseException) -> bool:
    return isinstance(error, SendGridError | AirflowFailException)
