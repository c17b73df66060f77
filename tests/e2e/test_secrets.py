"""After failures of every kind, no secret is in logs, database, lineage or delivered objects.

Not checked: the row of the connection, where the key is encrypted, and Airflow's audit log of connections, which
contains the extra in some versions.
"""

from __future__ import annotations

import json
import re
import socket
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from airflow_provider_sendgrid.emulator import Emulator, Fault, Settings, backend
from dev.services.s3 import PASSWORD
from tests.support.local_airflow import airflow_with, connection_to

DAG_ID = "secrets"
KEY = "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"
WRONG_KEY = "SG.Hn6bP2sVw9KxZc4Tq8Lm1r.G7yJ3fDu0EoRa5NiBkWtXv2CzQpMsLh6YgTe9U1d4j"
PROXY_PASSWORD = "a-proxys-own-pass-word"
CREDENTIALS_IN_A_URL = "X-Amz-Credential=AKIA&X-Amz-Security-Token=FwoGZXIvYXdzEBYaDNotToBeSeen"
# The message of a server that repeats the request with its key, and of an export that failed with a signed URL.
ECHO = f"bad header 'Authorization: Bearer {KEY}' for https://files.example/a.csv?X-Amz-Signature=5eC2e7&{CREDENTIALS_IN_A_URL}"
DAG = '''
import time
from datetime import datetime, timedelta, timezone

try:
    from airflow.sdk import DAG, task
except ImportError:
    from airflow import DAG
    from airflow.decorators import task

from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook
from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator
from airflow_provider_sendgrid.sensors.sendgrid import SendGridExportSensor
from airflow_provider_sendgrid.transfers.sendgrid_to_s3 import SendGridToS3Operator
from airflow_provider_sendgrid.triggers.sendgrid import SendGridExportTrigger


class InTheTriggerer(SendGridExportSensor):
    def execute(self, context):
        trigger = SendGridExportTrigger(
            self.export_id, sendgrid_conn_id=self.sendgrid_conn_id, poll_interval=2, end_time=time.time() + 60
        )
        self.defer(trigger=trigger, method_name="execute_complete")


@task
def from_conf(what, **context):
    return context["dag_run"].conf[what]


@task
def raise_on_purpose(export_id):
    """What a user's task may do with the hook."""
    hook = SendGridHook()
    export = hook.get_export(export_id)
    print(hook.connection, export, repr(export))
    raise RuntimeError(f"{hook.connection} {export} {vars(hook)}")


with DAG(
    "secrets",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    default_args={"retries": 1, "retry_delay": timedelta(seconds=1)},
):
    connections = from_conf("connections")
    SendGridExportContactsOperator.partial(task_id="start").expand(sendgrid_conn_id=connections)
    InTheTriggerer.partial(task_id="wait", export_id="an-export").expand(sendgrid_conn_id=connections)
    exports = from_conf("exports")
    SendGridExportSensor.partial(task_id="wait_for", deferrable=True, poke_interval=2, timeout=90).expand(
        export_id=exports
    )
    SendGridToS3Operator.partial(task_id="store").expand_kwargs(from_conf("deliveries"))
    raise_on_purpose.expand(export_id=from_conf("ready"))
'''
BOUND_SECONDS = 900


@dataclass
class Signatures:
    """The signatures in the emulator's URLs."""

    values: set[str] = field(default_factory=set)

    def record(self, path: str) -> str:
        query = parse_qs(urlsplit(path).query)
        self.values |= {value for name in query if name in _SIGNED for value in query[name]}
        return path


_SIGNED = ("X-Amz-Signature", "X-Amz-Security-Token", "X-Amz-Credential", "Signature")


@pytest.fixture(scope="module")
def signatures() -> Iterator[Signatures]:
    recorded, sign = Signatures(), backend.sign_path
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "sign_path", lambda *from_conf: recorded.record(sign(*from_conf)))
        yield recorded


@pytest.fixture(scope="module")
def texts(signatures, tmp_path_factory) -> Iterator[dict[str, str]]:  # noqa: ARG001 - recorded from the start
    """Every text that a run with many failures wrote, by its source."""
    events = tmp_path_factory.mktemp("lineage") / "events.json"
    environment = {
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "DEBUG",
        "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps({"type": "file", "log_file_path": str(events), "append": True}),
    }
    with (
        Emulator(Settings(contacts_per_file=30), api_key=KEY) as sendgrid,
        socket.create_server(("127.0.0.1", 0), backlog=100) as silent,
        airflow_with("secrets", {"secrets.py": DAG}, environment) as (airflow, s3),
    ):
        store_connections(airflow, sendgrid, f"http://127.0.0.1:{silent.getsockname()[1]}", s3)
        run_id = airflow.trigger(DAG_ID, conf_of(sendgrid, s3.bucket))
        assert "failed" == airflow.wait_for_run(DAG_ID, run_id, seconds=BOUND_SECONDS), airflow.log_tails()
        tasks = airflow.api.task_instances(DAG_ID, run_id)
        assert "success" in {task.state for task in tasks if task.task_id == "store"}
        assert [] == sendgrid.leaks()
        found = {
            **{f"log {path.name} {number}": text for number, (path, text) in enumerate(files_of(airflow.config.home))},
            **tables_of(airflow.config.database_url),
            **{f"object {key}": s3.open(key).read().decode("latin-1") for key in s3.sizes("")},
            "tasks": "\n".join(airflow.describe_run(DAG_ID, run_id).splitlines()),
            "lineage": "\n".join(path.read_text() for path in events.parent.iterdir()),
        }
        yield found


def store_connections(airflow, sendgrid, silent_url, s3):
    right = connection_to(sendgrid)
    proxied = {"proxy": f"http://user:{PROXY_PASSWORD}@127.0.0.1:9", "timeout": 2}
    for name, connection in {
        "sendgrid_default": right,
        "wrong_key": {**right, "password": WRONG_KEY},
        "silent": {**right, "host": silent_url, "extra": {"timeout": 1}},
        "behind_a_proxy": {**right, "extra": proxied},
        "unverified": {**right, "host": right["host"].replace("http://", "https://"), "extra": {"verify": False}},
        "odd_host": {**right, "host": f"https://{KEY}@api.sendgrid.example"},
        "odd_key": {**right, "password": f"{KEY} and more"},
        "unknown_aws": {**s3.connection, "login": "AKIAUNKNOWN"},
    }.items():
        airflow.api.store_connection(name, connection)


def conf_of(sendgrid, bucket) -> dict[str, Any]:
    """Exports with every outcome, and faults for the whole run."""

    def export(name, **traits):
        return sendgrid.start_export([sendgrid.add_list(name, contacts=100, **traits)])

    good, refused, damaged, html, cut = (export(name) for name in ("good", "refused", "damaged", "html", "cut"))
    failed = export("failed", outcome="failure", message=ECHO, ready_after=5)
    gone = export("gone", outcome="expired")
    flaky = export("flaky")
    sendgrid.inject(
        Fault("status", listener="files", path=f"{refused}*", status=403, message=ECHO),
        Fault("corrupt", listener="files", path=f"{damaged}*", at=200),
        Fault("html", listener="files", path=f"{html}*"),
        Fault("cut", listener="files", path=f"{cut}*", at=500, with_reset=True),
        Fault("status", listener="api", path=f"*/{flaky}", status=400, message=ECHO),
        Fault("status", method="POST", status=503, message=ECHO, nth=2),
        Fault(
            "redirect",
            listener="files",
            path=f"{good}*",
            location="http://elsewhere.example/?X-Amz-Signature=b4d",
            nth=1,
        ),
    )
    deliveries = [
        {"export_id": each, "s3_key_prefix": f"s3://{bucket}/{each}/"}
        for each in (good, refused, damaged, html, cut, failed, gone, flaky)
    ]
    deliveries.append({"export_id": good, "s3_key_prefix": f"s3://{bucket}/plain/"})
    deliveries.append({"export_id": good, "s3_key_prefix": "s3://no-such-bucket/x/"})
    return {
        "connections": ["wrong_key", "silent", "behind_a_proxy", "unverified", "odd_host", "odd_key", "missing"],
        "exports": [good, failed, gone, flaky],
        "deliveries": deliveries,
        "ready": [good],
    }


def files_of(home: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(home.rglob("*")):
        if path.is_file() and path.suffix != ".db" and "__pycache__" not in path.parts:
            yield path, path.read_text(errors="replace")


def tables_of(database_url: str) -> dict[str, str]:
    """Every row of every table as text, decompressed."""
    import psycopg2

    texts = {}
    with psycopg2.connect(database_url.replace("postgresql+psycopg2", "postgresql")) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
        for (table,) in cursor.fetchall():
            cursor.execute(f'SELECT * FROM "{table}"')
            names = [column.name for column in cursor.description]
            rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
            if table == "connection":
                rows = [{name: each for name, each in row.items() if name not in _ENCRYPTED} for row in rows]
            if table == "log":
                rows = [row for row in rows if "connection" not in str(row["event"])]
            texts[f"table {table}"] = "\n".join(text_of(value) for row in rows for value in row.values())
    return texts


# Columns of the connection: encrypted, or entered by a user (the host).
_ENCRYPTED = ("password", "extra", "host")


def text_of(value: Any) -> str:
    if not isinstance(value, memoryview):
        return str(value)
    raw = bytes(value)
    with suppress(zlib.error):
        raw += zlib.decompress(raw)
    return raw.decode("latin-1")


def secrets_in(text: str, signatures: Signatures) -> set[str]:
    """The secrets in a text, whole or in part."""
    parts = [part for key in (KEY, WRONG_KEY) for part in key.split(".")[1:]]
    pieces = [part[:12] for part in parts] + [part[-12:] for part in parts]
    needles = {*pieces, PROXY_PASSWORD, PASSWORD, "FwoGZXIvYXdzEBYaDNotToBeSeen", *signatures.values}
    found = {needle for needle in needles if len(needle) > 5 and needle in text}
    named = re.findall(
        r"(?i)(x-amz-(?:signature|credential|security-token)|[?&]signature)=(?!\*\*\*)([^&\s\"'<>\\]+)", text
    )
    return found | {f"{name}={value}" for name, value in named}


def test_the_run_logged_every_kind_of_failure(texts):
    """Otherwise the search for secrets would prove nothing."""
    everything = "\n".join(texts.values())
    for trace in (
        "answered 401",
        "S3 answered NoSuchBucket",
        "Bearer ***",
        "?***",
        "turns off the verification",
    ):
        assert trace in everything, trace
    for kind in ("log task", "log scheduler", "log triggerer", "table task_instance", "table xcom", "object "):
        assert any(name.startswith(kind) or kind.split()[-1] in name for name in texts), kind


def test_no_secret_is_stored_or_logged(texts, signatures):
    assert signatures.values
    found = {name: secrets for name, text in texts.items() if (secrets := secrets_in(text, signatures))}
    assert {} == found
    sizes = {
        kind: sum(len(text) for name, text in texts.items() if name.startswith(kind))
        for kind in ("log", "table", "object", "lineage")
    }
    print(f"searched: {len(texts)} texts, {sizes} characters, {len(signatures.values)} signatures")


def test_the_search_finds_a_planted_secret(signatures):
    """In each form."""
    for planted in (
        f"x{KEY}x",
        KEY[-20:],
        "a?X-Amz-Signature=abcd",
        f"http://u:{PROXY_PASSWORD}@h",
        min(signatures.values),
    ):
        assert secrets_in(f"some text {planted} some more", signatures), planted
