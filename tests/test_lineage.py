"""What is reported about where contacts came from and went to: OpenLineage, hook lineage, asset events."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from airflow_provider_sendgrid._compat import Asset
from airflow_provider_sendgrid.exports.export import ExportFamily, ExportSelection
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook
from airflow_provider_sendgrid.lineage import SendGridAccount
from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator
from airflow_provider_sendgrid.sensors.sendgrid import SendGridExportSensor
from airflow_provider_sendgrid.transfers.sendgrid_to_s3 import SendGridToS3Operator

pytestmark = pytest.mark.usefixtures("no_waiting")
PREFIX = "contacts/"
SECRETS = ("X-Amz", "Signature", "SG.")


@pytest.fixture
def namespace(sendgrid_emulator):
    return sendgrid_emulator.url.replace("http://", "sendgrid://")


@pytest.fixture
def store(s3):
    def run(export_id, context=None, **arguments):
        operator = SendGridToS3Operator(
            task_id="store", export_id=export_id, s3_bucket=s3.bucket, s3_key_prefix=PREFIX, **arguments
        )
        operator.execute(context or {})
        return operator

    return run


def as_json(operator):
    """What OpenLineage's own serialiser makes of an operator's lineage."""
    from openlineage.client.serde import Serde

    found = operator.get_openlineage_facets_on_complete(None)
    text = json.dumps([[Serde.to_dict(each) for each in side] for side in (found.inputs, found.outputs)])
    assert not any(secret in text for secret in SECRETS)
    return json.loads(text)


def export_of(emulator, **traits):
    export_id = emulator.start_export([emulator.add_list("Some", contacts=20, **traits)])
    emulator.export_files(export_id)
    return export_id


# Names


def test_datasets_are_named_by_host_product_and_id():
    marketing = SendGridAccount("https://api.eu.sendgrid.com", ExportFamily.MARKETING)
    legacy = SendGridAccount("https://api.sendgrid.com", ExportFamily.LEGACY)

    assert "sendgrid://api.eu.sendgrid.com/marketing/contacts/exports/6f" == marketing.export_uri("6f")
    assert "sendgrid://api.sendgrid.com/contactdb/exports/6f%2F..%3Fa" == legacy.export_uri("6f/..?a")
    assert ["contactdb/lists/7", "contactdb/segments/8"] == legacy.selection_names(ExportSelection([7], [8]))
    assert ["marketing/contacts"] == marketing.selection_names(ExportSelection())


# OpenLineage


def test_openlineage_learns_what_was_delivered(sendgrid_emulator, s3, store, namespace):
    sendgrid_emulator.configure(contacts_per_file=10)
    export_id = export_of(sendgrid_emulator)

    [source], [*objects, manifest] = as_json(store(export_id))

    assert (namespace, f"marketing/contacts/exports/{export_id}") == (source["namespace"], source["name"])
    assert 20 == source["inputFacets"]["dataQualityMetrics"]["rowCount"]
    assert {f"s3://{s3.bucket}"} == {each["namespace"] for each in [*objects, manifest]}
    assert s3.stored_keys() == sorted(each["name"] for each in [*objects, manifest])
    for each in objects:
        counted = each["outputFacets"]["outputStatistics"]
        assert (10, len(s3.read(each["name"])), 1) == (counted["rowCount"], counted["size"], counted["fileCount"])


def test_openlineage_learns_what_an_export_is_made_from(sendgrid_emulator, namespace):
    found = sendgrid_emulator.add_list("Some")
    operator = SendGridExportContactsOperator(task_id="start", list_ids=[found])
    export_id = operator.execute({})

    [[source], [target]] = as_json(operator)

    assert (namespace, f"marketing/lists/{found}") == (source["namespace"], source["name"])
    assert (namespace, f"marketing/contacts/exports/{export_id}") == (target["namespace"], target["name"])


def test_openlineage_learns_what_was_waited_for(namespace):
    """By a process, too, that only goes on after a wait in the triggerer."""
    [[source], targets] = as_json(SendGridExportSensor(task_id="wait", export_id="6f"))

    assert (namespace, "marketing/contacts/exports/6f", []) == (source["namespace"], source["name"], targets)


@pytest.mark.parametrize(
    "operator",
    [
        SendGridExportContactsOperator(task_id="start"),
        SendGridToS3Operator(task_id="store", export_id="6f", s3_key_prefix="s3://lake/"),
    ],
)
def test_a_task_that_did_nothing_has_no_lineage(operator):
    """Airflow asks failed tasks, too."""
    assert [[], []] == as_json(operator)


# Hook lineage


@pytest.fixture
def collected(monkeypatch):
    """The URIs that Airflow's own collector has collected: inputs, outputs."""
    try:
        from airflow.sdk import lineage as module
    except ImportError:
        from airflow.lineage import hook as module
    collector = module.HookLineageCollector()
    monkeypatch.setattr(module, "get_hook_lineage_collector", lambda: collector)

    def read():
        found = getattr(collector, "collected_assets", None) or collector.collected_datasets
        sides = [
            [getattr(each, "asset", None) or each.dataset for each in side] for side in (found.inputs, found.outputs)
        ]
        return tuple({each.uri for each in side} for side in sides)

    return read


def test_hook_lineage_tells_what_a_task_of_ones_own_read_and_wrote(sendgrid_emulator, namespace, collected):
    export_id = SendGridHook().start_export([sendgrid_emulator.add_list("Some")])
    with SendGridHook().source(export_id):
        pass

    uri = f"{namespace}/marketing/contacts/exports/{export_id}"
    assert ({uri}, {uri}) == collected()


def test_hook_lineage_tells_what_was_delivered(sendgrid_emulator, s3, store, namespace, collected):
    export_id = export_of(sendgrid_emulator)

    store(export_id)

    inputs, outputs = collected()
    assert {f"{namespace}/marketing/contacts/exports/{export_id}"} == inputs
    assert {f"s3://{s3.bucket}/{key}" for key in s3.stored_keys()} == outputs


def test_a_collector_that_breaks_fails_no_export(sendgrid_emulator, store, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no memory")

    monkeypatch.setattr("airflow_provider_sendgrid.lineage.note_hook_lineage", broken)

    assert store(export_of(sendgrid_emulator))


# Asset events


class Event(SimpleNamespace):
    """As in a task's context."""

    def __init__(self):
        super().__init__(extra={}, partitions=[])


class PartitionedEvent(Event):
    """As in Airflow 3.3."""

    def add_partitions(self, keys):
        self.partitions.append(keys)


class Events(dict):
    """By URI: not every Airflow's assets can be keys."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def __getitem__(self, asset):
        return self.setdefault(asset.uri, self.kind())


def test_asset_events_say_what_was_delivered(sendgrid_emulator, s3, store):
    export_id = export_of(sendgrid_emulator)
    events = Events(PartitionedEvent)

    store(export_id, {"outlet_events": events}, outlets=[Asset("s3://lake/contacts"), SimpleNamespace(uri="no asset")])

    [(uri, event)] = events.items()
    [key] = [key for key in s3.stored_keys() if not key.endswith(".json")]
    manifest = f"s3://{s3.bucket}/{PREFIX}_manifest.json"
    assert "s3://lake/contacts" == uri
    assert {
        "export_id": export_id,
        "files": 1,
        "rows": 20,
        "bytes": len(s3.read(key)),
        "manifest": manifest,
    } == event.extra
    assert [] == event.partitions
    json.dumps(event.extra)


def test_an_asset_may_have_a_partition(sendgrid_emulator, store):
    """In the extra of every Airflow, as a partition from 3.3 on."""
    for kind, partitions in ((Event, []), (PartitionedEvent, ["2026-11-21"])):
        events = Events(kind)
        arguments = {"outlets": [Asset("s3://lake/c")], "partition_key": "2026-11-21", "replace": True}

        store(export_of(sendgrid_emulator), {"outlet_events": events}, **arguments)

        [event] = events.values()
        assert ("2026-11-21", partitions) == (event.extra["partition"], event.partitions)


def test_the_partition_of_the_run_is_told(sendgrid_emulator, store):
    """Airflow itself puts it on the event."""
    events = Events(PartitionedEvent)

    store(export_of(sendgrid_emulator), {"outlet_events": events, "partition_key": "p"}, outlets=[Asset("s3://lake/c")])

    [event] = events.values()
    assert ("p", []) == (event.extra["partition"], event.partitions)
