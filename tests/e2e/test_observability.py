"""Links, lineage, assets and metrics of one export in a whole Airflow.

If OPENLINEAGE_SPEC names the folder ``spec`` of OpenLineage's repository, events are validated against its schema.
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

DAG_ID = "observed"
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

with DAG("observed", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=timezone.utc), catchup=False):
    start = SendGridExportContactsOperator(task_id="start", list_names=["Customers"])
    wait = SendGridExportSensor(task_id="wait", export_id=start.output, deferrable=True, poke_interval=2)
    store = SendGridToS3Operator(
        task_id="store",
        export_id=start.output,
        s3_key_prefix="s3://lake/observed/ds={{ ds }}/",
        outlets=[Asset("s3://lake/observed")],
        partition_key="{{ ds }}",
    )
    wait >> store
"""
EXPORTS_PAGE = "https://mc.sendgrid.com/contacts/exports"
HELD_SECONDS = 7200
SECRETS = re.compile(r"X-Amz|Signature=|SG\.|Bearer")


@dataclass(frozen=True)
class Observed:
    """The traces of one run."""

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
        """OpenLineage's event for the end of a task."""
        [event] = completed(self.events, task_id)
        return event

    def stored(self) -> dict[str, int]:
        """The bytes of each object, the manifest included."""
        return self.s3.sizes("observed/")


@pytest.fixture(scope="module")
def observed(tmp_path_factory):
    end_on_sigterm()
    folder, clock = tmp_path_factory.mktemp("observed"), FakeClock(is_running=True)
    events_file = folder / "openlineage.jsonl"
    with (
        Emulator(Settings(ready_after=HELD_SECONDS, contacts_per_file=300), clock=clock) as sendgrid,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind(("127.0.0.1", 0))
        settings = {
            "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(
                {"type": "file", "log_file_path": str(events_file), "append": True}
            ),
            "AIRFLOW__METRICS__STATSD_ON": "True",
            "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
            "AIRFLOW__METRICS__STATSD_PORT": str(receiver.getsockname()[1]),
            "AIRFLOW__METRICS__METRICS_ALLOW_LIST": "sendgrid",
        }
        with airflow_with("observed", {"observed.py": DAG}, settings, amazon_s3) as (airflow, s3):
            airflow.api.store_connection("sendgrid_default", connection_to(sendgrid))
            run_id = airflow.trigger(DAG_ID)
            wait_until("the wait deferred", lambda: is_deferred(airflow.api, run_id), seconds=300)
            clock.advance(HELD_SECONDS)
            assert "success" == airflow.wait_for_run(DAG_ID, run_id, seconds=300)
            export_id = airflow.api.xcom(DAG_ID, run_id, "start")
            # Airflow may write the event after the end of the task.
            wait_until("event of the delivery", lambda: completed(events_in(events_file), "store"), seconds=60)
            yield Observed(airflow.api, s3, sendgrid, run_id, export_id, received(receiver), events_in(events_file))


def events_in(events_file):
    return [json.loads(line) for line in events_file.read_text().splitlines()]


def completed(events, task_id):
    """OpenLineage's events for the end of a task."""
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
def test_links_lead_to_the_exports_and_objects(observed, task_id):
    links = observed.api.request("GET", f"{run_path(DAG_ID, observed.run_id)}/taskInstances/{task_id}/links")
    objects = f"https://console.aws.amazon.com/s3/buckets/lake?prefix=observed%2Fds%3D{observed.today}%2F"

    expected = {"SendGrid exports": EXPORTS_PAGE} | ({"Delivered objects": objects} if task_id == "store" else {})
    assert expected == links.get("extra_links", links)


def test_openlineage_gets_inputs_and_outputs(observed):
    export = {(observed.namespace, f"marketing/contacts/exports/{observed.export_id}")}
    lists = {(observed.namespace, f"marketing/lists/{observed.sendgrid.list_id('Customers')}")}

    assert (lists, export) == sides(observed.completed("start"))
    assert (export, set()) == sides(observed.completed("wait"))
    assert (export, {("s3://lake", key) for key in observed.stored()}) == sides(observed.completed("store"))


def sides(event):
    return tuple({(each["namespace"], each["name"]) for each in event[side]} for side in ("inputs", "outputs"))


def test_openlineage_gets_rows_and_bytes(observed):
    outputs = {each["name"]: each.get("outputFacets", {}) for each in observed.completed("store")["outputs"]}
    counted = {name: facets["outputStatistics"] for name, facets in outputs.items() if "outputStatistics" in facets}
    [source] = observed.completed("store")["inputs"]

    assert {name: size for name, size in observed.stored().items() if not name.endswith("_manifest.json")} == {
        name: facet["size"] for name, facet in counted.items()
    }
    rows = sum(file.rows for file in observed.sendgrid.export_files(observed.export_id))
    assert rows == sum(facet["rowCount"] for facet in counted.values())
    assert rows == source["inputFacets"]["dataQualityMetrics"]["rowCount"]
    assert len(counted) >= 2


def test_the_events_have_the_required_fields(observed):
    for event in observed.events:
        assert uuid.UUID(event["run"]["runId"])
        assert datetime.fromisoformat(event["eventTime"].replace("Z", "+00:00"))
        assert event["producer"]
        assert event["schemaURL"].startswith("https://openlineage.io/spec/")
    for facet in facets_of(observed.completed("store")):
        assert facet["_producer"]
        assert facet["_schemaURL"].startswith("https://")


def facets_of(event):
    for dataset in [*event["inputs"], *event["outputs"]]:
        for kind in ("facets", "inputFacets", "outputFacets"):
            yield from dataset.get(kind, {}).values()


def test_the_events_satisfy_the_schema_of_openlineage(observed):
    if not (folder := os.environ.get("OPENLINEAGE_SPEC")):
        pytest.skip("OPENLINEAGE_SPEC names no folder with OpenLineage's schema")
    validator, of_facets = schema_of(Path(folder))

    for event in observed.events:
        validator.validate(event)
    for dataset in [*observed.completed("store")["inputs"], *observed.completed("store")["outputs"]]:
        for kind in ("inputFacets", "outputFacets"):
            for name, facet in dataset.get(kind, {}).items():
                of_facets[name].validate({name: facet})


def schema_of(folder):
    """Validators of an event, and of each facet by its name, which the schema of an event does not cover."""
    import jsonschema
    from referencing import Registry, Resource

    schemas = [
        json.loads(path.read_text()) for path in [folder / "OpenLineage.json", *(folder / "facets").glob("*.json")]
    ]
    registry = Registry().with_resources((each["$id"], Resource.from_contents(each)) for each in schemas)
    event, *facets = [jsonschema.Draft202012Validator(each, registry=registry) for each in schemas]
    return event, {name: each for each in facets for name in each.schema.get("properties", {})}


def test_the_asset_event_describes_the_delivery(observed):
    kind = "datasets" if version() < (3, 0) else "assets"
    [event] = observed.api.request("GET", f"/{kind}/events")[f"{kind.removesuffix('s')}_events"]

    files = observed.sendgrid.export_files(observed.export_id)
    assert {
        "export_id": observed.export_id,
        "files": len(files),
        "rows": sum(file.rows for file in files),
        "bytes": sum(file.stored_bytes for file in files),
        "manifest": f"s3://lake/observed/ds={observed.today}/_manifest.json",
        "partition": observed.today,
    } == {name: value for name, value in event["extra"].items() if name != "from_rest_api"}
    if version() >= (3, 3):
        assert observed.today == event["partition_key"]


def test_metrics_come_from_every_task(observed):
    metrics = [line.split(":") for line in observed.statsd if line.startswith("sendgrid.")]
    counts = Counter()
    for name, value in metrics:
        counts[name] += int(value[:-2]) if value.endswith("|c") else 0
    [wait] = [value for name, value in metrics if name == "sendgrid.wait"]
    files = observed.sendgrid.export_files(observed.export_id)

    assert (1, 1) == (counts["sendgrid.exports_started"], counts["sendgrid.waits_ready"])
    assert sum(file.rows for file in files) == counts["sendgrid.delivered_rows"]
    assert sum(file.stored_bytes for file in files) == counts["sendgrid.fetched_bytes"]
    assert 2 <= counts["sendgrid.polls"]
    assert 0 < float(wait.removesuffix("|ms"))
    assert 1 == len([name for name, _ in metrics if name == "sendgrid.delivery"])


def test_no_event_or_metric_contains_a_secret(observed):
    assert not SECRETS.search(json.dumps(observed.events))
    assert not SECRETS.search("".join(observed.statsd))
    assert [] == observed.sendgrid.leaks()
