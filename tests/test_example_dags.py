"""The example DAGs, run by Airflow itself against SendGrid's emulator and a real S3 server."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import duckdb
import pytest

from airflow_provider_sendgrid.emulator import Emulator

STATUS = {
    "sendgrid_contacts_to_s3": "/v3/marketing/contacts/exports/",
    "sendgrid_files_to_s3": "/v3/marketing/contacts/exports/",
    "sendgrid_legacy_contacts_to_s3": "/v3/contactdb/exports/",
}
STARTED_BY_TRIGGERS = {"sendgrid_new_export_to_s3"}
FOLDER = Path(__file__).parents[1] / "example_dags"
EXAMPLES = sorted(path.stem for path in FOLDER.glob("*.py"))
pytestmark = pytest.mark.usefixtures("airflow_database", "no_waiting")


@pytest.fixture
def run(airflow_version, monkeypatch, s3):
    """Run an example to its end and return its run."""
    monkeypatch.setenv("SENDGRID_EXPORT_BUCKET", s3.bucket)

    def run_dag(name):
        dag = airflow_version.load_dags(FOLDER / f"{name}.py")[name]
        return dag.test()

    return run_dag


def manifests(s3):
    return [json.loads(s3.read(key)) for key in s3.stored_keys() if key.endswith("_manifest.json")]


def assert_delivered(emulator, s3, manifest):
    """The objects contain the emulator's files, and the manifest names all of them."""
    truth = emulator.export_files(manifest["sendgrid_export"]["id"])
    stored = [s3.read_plain(entry["url"]) for entry in manifest["entries"]]
    assert [file.read() for file in truth] == stored
    assert sum(file.rows for file in truth) == manifest["meta"]["record_count"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_parses_without_any_connection(name, airflow_version):
    """It has one DAG, named like its file, with a description."""
    dags = airflow_version.load_dags(FOLDER / f"{name}.py")

    if name in STARTED_BY_TRIGGERS and not airflow_version.starts_dags_from_triggers:
        assert {} == dags
        return
    [(dag_id, dag)] = dags.items()
    assert name == dag_id
    assert "sendgrid_default" in dag.doc_md or "sendgrid_contacts_to_s3" in dag.doc_md


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_task_is_retried(name, airflow_version):
    """So a copied example survives an outage."""
    for dag in airflow_version.load_dags(FOLDER / f"{name}.py").values():
        assert [] == [task.task_id for task in dag.tasks if not task.retries]


def test_a_transfer_updates_an_asset(airflow_version):
    [dag] = airflow_version.load_dags(FOLDER / "sendgrid_contacts_to_s3.py").values()

    assert ["s3://lake/sendgrid/contacts"] == [outlet.uri for outlet in dag.get_task("store").outlets]


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("sendgrid_contacts_to_s3", "sendgrid/contacts/run="),
        ("sendgrid_legacy_contacts_to_s3", "sendgrid/recipients/run="),
        ("sendgrid_files_to_s3", "sendgrid/files/run="),
    ],
)
def test_every_contact_arrives(ticking_emulator, s3, run, name, prefix):
    """In several files; the sensor waits without a triggerer."""
    ticking_emulator.configure(contacts_per_file=1_000)

    assert "success" == run(name).state

    [manifest] = manifests(s3)
    assert_delivered(ticking_emulator, s3, manifest)
    assert len(manifest["entries"]) >= 2
    assert 2 <= ticking_emulator.count("GET", STATUS[name]), "it was never waited for"
    assert all(key.startswith(prefix) for key in s3.stored_keys())
    assert 1 == ticking_emulator.count("POST")
    assert [] == ticking_emulator.leaks()


def test_an_export_without_files_skips_the_manifest(monkeypatch, s3, run):
    """SendGrid may list no files for an empty list. Then the run succeeds and stores nothing."""
    with Emulator() as emulator:
        monkeypatch.setenv("AIRFLOW_CONN_SENDGRID_DEFAULT", emulator.connection_json())
        monkeypatch.setattr(type(emulator._backend), "signed_urls", lambda *_: [])
        monkeypatch.setattr(type(emulator._backend), "count", lambda *_: 0)

        dag_run = run("sendgrid_files_to_s3")

        states = {each.task_id: each.state for each in dag_run.get_task_instances()}
        assert "success" == dag_run.state
        assert "skipped" == states["write_manifest"]
        assert [] == s3.stored_keys()


def test_the_object_storage_example_delivers_to_a_folder(ticking_emulator, airflow_version, monkeypatch, tmp_path):
    monkeypatch.setenv("SENDGRID_EXPORT_PATH", f"file://{tmp_path}")
    name = "sendgrid_contacts_to_object_storage"

    assert "success" == airflow_version.load_dags(FOLDER / f"{name}.py")[name].test().state

    [manifest] = tmp_path.glob("contacts/run=*/_manifest.json")
    assert ticking_emulator.count("POST") == 1
    assert json.loads(manifest.read_text())["meta"]["record_count"] > 0


def test_duckdb_loads_every_contact(ticking_emulator, airflow_version, monkeypatch, tmp_path):
    """From several files, with line breaks and doubled quotes in values."""
    monkeypatch.setenv("SENDGRID_EXPORT_FOLDER", str(tmp_path / "exports"))
    monkeypatch.setenv("SENDGRID_DUCKDB", str(tmp_path / "contacts.duckdb"))
    ticking_emulator.configure(contacts_per_file=1_000)
    name = "sendgrid_contacts_to_duckdb"
    dag = airflow_version.load_dags(FOLDER / f"{name}.py")[name]

    assert "success" == dag.test().state

    [export] = ticking_emulator._backend.account.exports()
    truth = [contact for file in ticking_emulator.export_files(export.id) for contact in contacts_of(file.read())]
    with duckdb.connect(str(tmp_path / "contacts.duckdb")) as database:
        columns = ", ".join(f'"{column}"' for column in truth[0])
        stored = database.execute(f"SELECT {columns} FROM contacts").fetchall()
    expected = [tuple(value or None for value in contact.values()) for contact in truth]
    assert sorted(expected, key=repr) == sorted(stored, key=repr)
    assert any("\n" in value for contact in stored for value in contact if value)
    assert any('"' in value for contact in stored for value in contact if value)


def contacts_of(content):
    """As Python's csv module reads them."""
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def test_every_list_arrives_under_its_own_prefix(monkeypatch, s3, run):
    """There is one mapped task per list with contacts."""
    with Emulator(populate=False) as emulator:
        monkeypatch.setenv("AIRFLOW_CONN_SENDGRID_DEFAULT", emulator.connection_json())
        for name, contacts in (("News", 30), ("Empty", 0), ("Customers", 20)):
            emulator.add_list(name, contacts=contacts)

        assert "success" == run("sendgrid_lists_to_s3").state

        found = manifests(s3)
        assert [20, 30] == sorted(manifest["meta"]["record_count"] for manifest in found)
        for manifest in found:
            assert_delivered(emulator, s3, manifest)
        assert [] == emulator.leaks()
