"""One export through a whole Airflow, as it is seen beside the task, in lineage, in assets and in metrics.

Where OPENLINEAGE_SPEC names the folder ``spec`` of OpenLineage's repository, events are validated against its schema.
"""

from __future__ import annotations

import json
import os
import re
import socket
import uuid
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_sendgrid.emulator import Emulator, Settings
from dev.airflow.api import run_path
from dev.services.processes import end_on_sigterm
from dev.services.s3 import S3, amazon_s3
from dev.services.waiting import wait_until
from tests.support.clock import FakeClock
from tests.support.local_airflow import airflow_with, connection_to, version

DAG_ID = "seen"
DAG = """
from datetime import datetime, timezone

try:
    from airflow.sdk import DAG, Asset
except ImportError:
    from airflow import DAG
    from airflow.datasets import Dataset as Asset

from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator
from airflow_provider_sendgrid.sensors.sendgrid import SendGridExportSensor
from airflow_provider_sendgrid.transfers.sendgrid_to_s3 import SendGridToS3Operator

with DAG("seen", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=timezone.utc), catchup=False):
    start = SendGridExportContactsOperator(task_id="start", list_names=["Customers"])
    wait = SendGridExportSensor(task_id="wait", export_id=start.output, deferrable=True, poke_interval=2)
    store = SendGridToS3Operator(
        task_id="store",
        export_id=start.output,
        s3_key_prefix="s3://lake/seen/ds={{ ds }}/",
        outlets=[Asset("s3://lake/seen")],
        partition_key="{{ ds }}",
    )
    wait >> store
"""
EXPORTS_PAGE = "https://mc.sendgrid.com/contacts/exports"
HELD_SECONDS = 7200
SECRETS = re.compile(r"X-Amz|Signature=|SG\.|Bearer")


@dataclass(frozen=True)
class Seen:
    """What one run left everywhere."""

    api: Any
    s3: S3
    sendgrid: Emulator
    run_id: str
    export_id: str
    statsd: list[str]
    events: list[dict[str, Any]]

    @property
    def today(self) -> str:
        return datetime.now(timezone.utc).date().isoformat()

    @property
    def namespace(self) -> str:
        return self.sendgrid.url.replace("http://", "sendgrid://")

    def completed(self, task_id: str) -> dict[str, Any]:
        """The event of OpenLineage that tells how a task ended."""
        [event] = completed(self.events, task_id)
        return event

    def stored(self) -> dict[str, int]:
        """The bytes of each object, the manifest included."""
        return self.s3.sizes("seen/")


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    end_on_sigterm()
    folder, clock = tmp_path_factory.mktemp("seen"), FakeClock(is_running=True)
    told = folder / "openlineage.jsonl"
    with (
        Emulator(Settings(ready_after=HELD_SECONDS, contacts_per_file=300), clock=clock) as sendgrid,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind(("127.0.0.1", 0))
        settings = {
            "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps({"type": "file", "log_file_path": str(told), "append": True}),
            "AIRFLOW__METRICS__STATSD_ON": "True",
            "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
            "AIRFLOW__METRICS__STATSD_PORT": str(receiver.getsockname()[1]),
            "AIRFLOW__METRICS__METRICS_ALLOW_LIST": "sendgrid",
        }
        with airflow_with("seen", {"seen.py": DAG}, settings, amazon_s3) as (airflow, s3):
            airflow.api.store_connection("sendgrid_default", connection_to(sendgrid))
            run_id = airflow.trigger(DAG_ID)
            wait_until("the wait deferred", lambda: is_deferred(airflow.api, run_id), seconds=300)
            clock.advance(HELD_SECONDS)
            assert "success" == airflow.wait_for_run(DAG_ID, run_id, seconds=300)
            export_id = airflow.api.xcom(DAG_ID, run_id, "start")
            # Airflow tells of a task's end beside it, and on a busy machine after it.
            wait_until("the delivery told of", lambda: completed(events_in(told), "store"), seconds=60)
            yield Seen(airflow.api, s3, sendgrid, run_id, export_id, received(receiver), events_in(told))


def events_in(told):
    return [json.loads(line) for line in told.read_text().splitlines()]


def completed(events, task_id):
    """The events of OpenLineage that tell how a task ended."""
    return [
        event for event in events if event["eventType"] == "COMPLETE" and event["job"]["name"] == f"{DAG_ID}.{task_id}"
    ]


def is_deferred(api, run_id):
    return ("wait", "deferred") in [(task.task_id, task.state) for task in api.task_instances(DAG_ID, run_id)]


def received(receiver):
    receiver.setblocking(False)
    lines = []
    try:
        while True:
            lines.append(receiver.recv(65_536).decode().removeprefix("airflow."))
    except BlockingIOError:
        return lines


@pytest.mark.parametrize("task_id", ["start", "wait", "store"])
def test_every_task_leads_to_the_exports_and_the_delivery_to_its_objects(seen, task_id):
    links = seen.api.request("GET", f"{run_path(DAG_ID, seen.run_id)}/taskInstances/{task_id}/links")
    objects = f"https://console.aws.amazon.com/s3/buckets/lake?prefix=seen%2Fds%3D{seen.today}%2F"

    expected = {"SendGrid exports": EXPORTS_PAGE} | ({"Delivered objects": objects} if task_id == "store" else {})
    assert expected == links.get("extra_links", links)


def test_openlineage_is_told_where_contacts_came_from_and_went_to(seen):
    export = {(seen.namespace, f"marketing/contacts/exports/{seen.export_id}")}
    lists = {(seen.namespace, f"marketing/lists/{seen.sendgrid.list_id('Customers')}")}

    assert (lists, export) == sides(seen.completed("start"))
    assert (export, set()) == sides(seen.completed("wait"))
    assert (export, {("s3://lake", key) for key in seen.stored()}) == sides(seen.completed("store"))


def sides(event):
    return tuple({(each["namespace"], each["name"]) for each in event[side]} for side in ("inputs", "outputs"))


def test_openlineage_is_told_rows_and_bytes(seen):
    outputs = {each["name"]: each.get("outputFacets", {}) for each in seen.completed("store")["outputs"]}
    counted = {name: facets["outputStatistics"] for name, facets in outputs.items() if "outputStatistics" in facets}
    [source] = seen.completed("store")["inputs"]

    assert {name: size for name, size in seen.stored().items() if not name.endswith("_manifest.json")} == {
        name: facet["size"] for name, facet in counted.items()
    }
    rows = sum(file.rows for file in seen.sendgrid.export_files(seen.export_id))
    assert rows == sum(facet["rowCount"] for facet in counted.values())
    assert rows == source["inputFacets"]["dataQualityMetrics"]["rowCount"]
    assert len(counted) >= 2


def test_the_events_are_as_openlineage_wants_them(seen):
    for event in seen.events:
        assert uuid.UUID(event["run"]["runId"])
        assert datetime.fromisoformat(event["eventTime"].replace("Z", "+00:00"))
        assert event["producer"]
        assert event["schemaURL"].startswith("https://openlineage.io/spec/")
    for facet in facets_of(seen.completed("store")):
        assert facet["_producer"]
        assert facet["_schemaURL"].startswith("https://")


def facets_of(event):
    for dataset in [*event["inputs"], *event["outputs"]]:
        for kind in ("facets", "inputFacets", "outputFacets"):
            yield from dataset.get(kind, {}).values()


def test_the_events_satisfy_the_schema_of_openlineage(seen):
    if not (folder := os.environ.get("OPENLINEAGE_SPEC")):
        pytest.skip("OPENLINEAGE_SPEC names no folder with OpenLineage's schema")
    validator, of_facets = schema_of(Path(folder))

    for event in seen.events:
        validator.validate(event)
    for dataset in [*seen.completed("store")["inputs"], *seen.completed("store")["outputs"]]:
        for kind in ("inputFacets", "outputFacets"):
            for name, facet in dataset.get(kind, {}).items():
                of_facets[name].validate({name: facet})


def schema_of(folder):
    """Of an event, and of each facet by its name: those that an event's own schema leaves open."""
    import jsonschema
    from referencing import Registry, Resource

    schemas = [
        json.loads(path.read_text()) for path in [folder / "OpenLineage.json", *(folder / "facets").glob("*.json")]
    ]
    registry = Registry().with_resources((each["$id"], Resource.from_contents(each)) for each in schemas)
    event, *facets = [jsonschema.Draft202012Validator(each, registry=registry) for each in schemas]
    return event, {name: each for each in facets for name in each.schema.get("properties", {})}


def test_the_event_of_the_asset_says_what_was_delivered(seen):
    kind = "datasets" if version() < (3, 0) else "assets"
    [event] = seen.api.request("GET", f"/{kind}/events")[f"{kind.removesuffix('s')}_events"]

    files = seen.sendgrid.export_files(seen.export_id)
    assert {
        "export_id": seen.export_id,
        "files": len(files),
        "rows": sum(file.rows for file in files),
        "bytes": sum(file.stored_bytes for file in files),
        "manifest": f"s3://lake/seen/ds={seen.today}/_manifest.json",
        "partition": seen.today,
    } == {name: value for name, value in event["extra"].items() if name != "from_rest_api"}
    if version() >= (3, 3):
        assert seen.today == event["partition_key"]


def test_metrics_come_from_every_task(seen):
    told = [line.split(":") for line in seen.statsd if line.startswith("sendgrid.")]
    counts = Counter()
    for name, value in told:
        counts[name] += int(value[:-2]) if value.endswith("|c") else 0
    [wait] = [value for name, value in told if name == "sendgrid.wait"]
    files = seen.sendgrid.export_files(seen.export_id)

    assert (1, 1) == (counts["sendgrid.exports_started"], counts["sendgrid.waits_ready"])
    assert sum(file.rows for file in files) == counts["sendgrid.delivered_rows"]
    assert sum(file.stored_bytes for file in files) == counts["sendgrid.fetched_bytes"]
    assert 2 <= counts["sendgrid.polls"]
    assert 0 < float(wait.removesuffix("|ms"))
    assert 1 == len([name for name, _ in told if name == "sendgrid.delivery"])


def test_no_secret_is_seen_anywhere(seen):
    assert not SECRETS.search(json.dumps(seen.events))
    assert not SECRETS.search("".join(seen.statsd))
    assert [] == seen.sendgrid.leaks()
