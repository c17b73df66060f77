"""The operator for every storage: against SendGrid's emulator, a folder, and real servers of S3, Google and Azure.

What it promises of the files is tested once for all storages in `tests/storage/test_promises.py`.
"""

from __future__ import annotations

import builtins
import json
import os
from importlib.util import find_spec

import pytest

from airflow_provider_sendgrid._compat import AirflowFailException
from airflow_provider_sendgrid.transfers.sendgrid_to_object_storage import SendGridToObjectStorageOperator
from dev.services.azurite import azurite, connection
from dev.services.gcs import CONNECTION, gcs_server
from tests.support.destinations import Destination

pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.fixture
def export_id(sendgrid_emulator):
    found = sendgrid_emulator.add_list("Some", contacts=100)
    export_id = sendgrid_emulator.start_export([found])
    sendgrid_emulator.export_files(export_id)
    return export_id


def deliver(export_id, path, **arguments):
    return SendGridToObjectStorageOperator(task_id="store", export_id=export_id, path=path, **arguments).execute({})


def is_installed(module):
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


# Destinations


@pytest.mark.parametrize(
    "path", ["file://{folder}/a/b/", "file://{folder}/a/b", "{folder}/a/b", "file://c@{folder}/a/b"]
)
def test_a_folder_is_created_and_filled(sendgrid_emulator, export_id, tmp_path, path):
    """With a slash at its end or without."""
    [uri] = deliver(export_id, path.format(folder=tmp_path))

    name = f"{export_id}-00001-of-00001.csv.gz"
    assert f"file://{tmp_path}/a/b/{name}" == uri
    assert {name, "_manifest.json", "_metadata"} == {file.name for file in (tmp_path / "a" / "b").iterdir()}
    [file] = sendgrid_emulator.export_files(export_id)
    assert file.stored.path.read_bytes() == (tmp_path / "a" / "b" / name).read_bytes()
    assert uri == json.loads((tmp_path / "a" / "b" / "_manifest.json").read_text())["entries"][0]["url"]


def test_the_path_may_be_an_object(export_id, tmp_path, airflow_version):
    """An `ObjectStoragePath` of Airflow's."""
    path = airflow_version.object_storage_path()(f"file://{tmp_path}/in")

    [uri] = deliver(export_id, path)

    assert uri.startswith(f"file://{tmp_path}/in/{export_id}")


def test_an_s3_path_names_its_connection(export_id, s3, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_THE_LAKE", os.environ["AIRFLOW_CONN_AWS_DEFAULT"])
    monkeypatch.delenv("AIRFLOW_CONN_AWS_DEFAULT")

    [uri] = deliver(export_id, f"s3://the_lake@{s3.bucket}/in")

    assert f"s3://{s3.bucket}/in/{export_id}-00001-of-00001.csv.gz" == uri
    assert {"in/_manifest.json", f"in/{export_id}-00001-of-00001.csv.gz"} == set(s3.stored_keys())


def test_an_s3_path_without_a_connection_uses_conn_id(export_id, s3, monkeypatch):
    assert 1 == len(deliver(export_id, f"s3://{s3.bucket}/one"))
    monkeypatch.setenv("AIRFLOW_CONN_THE_LAKE", os.environ["AIRFLOW_CONN_AWS_DEFAULT"])
    monkeypatch.delenv("AIRFLOW_CONN_AWS_DEFAULT")
    assert 1 == len(deliver(export_id, f"s3://{s3.bucket}/two", conn_id="the_lake"))


@pytest.mark.skipif(
    not is_installed("airflow.providers.google.cloud.hooks.gcs"), reason="no Google provider; make test-clouds has it"
)
def test_google_cloud_storage_by_airflows_connection(sendgrid_emulator, export_id, monkeypatch):
    with gcs_server() as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        monkeypatch.setenv("AIRFLOW_CONN_THE_CLOUD", json.dumps(CONNECTION))
        place = Destination.fresh("gs", url)

        [uri] = deliver(export_id, f"gs://the_cloud@{place.bucket}/in/")

        assert f"gs://{place.bucket}/in/{export_id}-00001-of-00001.csv.gz" == uri
        [file] = sendgrid_emulator.export_files(export_id)
        assert file.stored.path.read_bytes() == place.read(uri)


@pytest.mark.skipif(
    not is_installed("airflow.providers.microsoft.azure.hooks.wasb"),
    reason="no Azure provider; make test-clouds has it",
)
@pytest.mark.parametrize("form", ["abfs://the_cloud@{container}/in", "abfss://{container}@account.dfs.example/in"])
def test_azure_by_airflows_connection(sendgrid_emulator, export_id, monkeypatch, tmp_path, form):
    """In Airflow's form of a path, and in Azure's own."""
    with azurite(tmp_path) as connection_string:
        for name in ("THE_CLOUD", "WASB_DEFAULT"):
            monkeypatch.setenv(f"AIRFLOW_CONN_{name}", json.dumps(connection(connection_string)))
        place = Destination.fresh("abfs", connection_string)

        [uri] = deliver(export_id, form.format(container=place.bucket))

        expected = form.replace("the_cloud@", "").format(container=place.bucket)
        assert f"{expected}/{export_id}-00001-of-00001.csv.gz" == uri
        [file] = sendgrid_emulator.export_files(export_id)
        [key] = [key for key in place.stored_keys() if key.endswith(".gz")]
        assert file.stored.path.read_bytes() == place.read(key)


# Refused arguments


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("ftp://host/folder", "path must be s3://"),
        ("relative/folder", "absolute path"),
        ("file://folder/below", "absolute path"),
        ("s3:///prefix", "names no bucket"),
        ("gs://conn@/prefix", "names no bucket"),
        ("file:///lake/../etc", "path must be s3://"),
        ("", "path was passed but is empty"),
        ("None", "path was passed but is empty"),
        (None, "path was passed but is empty"),
        ("s3://lake/{{ ds }}", "path contains a template that was not rendered"),
        ("s3://@lake/in", "names no connection before the @"),
        ("s3://None@lake/in", "names no connection before the @"),
        ("gs://@lake/in", "names no connection before the @"),
        ("abfs://None@lake/in", "names no connection before the @"),
        ("file://@/in", "names no connection before the @"),
        ("s3://None/in", "names no bucket"),
        ("gs://None/in", "names no bucket"),
        ("abfs://conn@None/in", "names no bucket"),
        ("abfss://None@account.dfs.core.windows.net/in", "names no bucket"),
    ],
)
def test_a_wrong_path_is_refused_before_any_request(sendgrid_emulator, export_id, path, message):
    with pytest.raises(AirflowFailException, match=message):
        deliver(export_id, path)
    assert 0 == sendgrid_emulator.count()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", "conn_id was passed but is empty"),
        ("None", "conn_id was passed but is empty"),
        ("{{ conn }}", "conn_id contains a template that was not rendered"),
        (5, "conn_id must be a string"),
    ],
)
def test_a_conn_id_that_renders_to_nothing_is_refused(sendgrid_emulator, export_id, value, expected):
    with pytest.raises(AirflowFailException, match=expected):
        deliver(export_id, "s3://lake/in", conn_id=value)
    assert 0 == sendgrid_emulator.count()


@pytest.mark.parametrize(("name", "value"), [("path", None), ("path", ""), ("conn_id", None), ("conn_id", "")])
def test_a_mapped_task_refuses_an_empty_destination(sendgrid_emulator, export_id, airflow_version, name, value):
    """The mapped value is empty if an upstream task returned nothing."""
    others = {} if name == "path" else {"path": "s3://lake/in"}
    with airflow_version.dag("mapped"):
        mapped = SendGridToObjectStorageOperator.partial(task_id="store", export_id=export_id, **others).expand(
            **{name: ["a"]}
        )
    with pytest.raises(AirflowFailException, match=f"{name} was passed but is empty"):
        mapped.unmap({name: value}).execute({})
    assert 0 == sendgrid_emulator.count()


@pytest.mark.parametrize(
    ("path", "extra", "module"),
    [
        ("gs://bucket/in", "google", "airflow.providers.google"),
        ("abfs://container/in", "azure", "airflow.providers.microsoft"),
    ],
)
def test_a_missing_provider_is_named(sendgrid_emulator, export_id, monkeypatch, path, extra, module):
    """With the command that installs it."""
    import_module = builtins.__import__

    def without(name, *arguments, **more):
        if name.startswith(module):
            raise ModuleNotFoundError(name)
        return import_module(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=rf"pip install airflow-provider-sendgrid\[{extra}\]"):
        deliver(export_id, path)
    assert 0 == sendgrid_emulator.count()


def test_templates_are_rendered_before_they_are_used(export_id, tmp_path):
    operator = SendGridToObjectStorageOperator(
        task_id="store", export_id="{{ export }}", path="file://{{ folder }}/ds={{ day }}", conn_id="{{ which }}"
    )

    operator.render_template_fields(
        {"export": export_id, "folder": str(tmp_path), "day": "2026-11-21", "which": "unused"}
    )
    [uri] = operator.execute({})

    assert uri.startswith(f"file://{tmp_path}/ds=2026-11-21/")
