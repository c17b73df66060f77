"""The cost of an import: Airflow parses DAG files again and again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ENTRY_POINTS = [
    "airflow_provider_sendgrid.hooks.sendgrid",
    "airflow_provider_sendgrid.operators.sendgrid",
    "airflow_provider_sendgrid.sensors.sendgrid",
    "airflow_provider_sendgrid.triggers.sendgrid",
    "airflow_provider_sendgrid.transfers.sendgrid_to_object_storage",
    "airflow_provider_sendgrid.transfers.sendgrid_to_s3",
]
COSTLY = {
    "azure",
    "boto3",
    "botocore",
    "fsspec",
    "google",
    "requests",
    "httpx",
    "isal",
    "openlineage",
    "jsonschema",
    "moto",
}

# What any DAG file imports is in the DAG processor's memory anyway; then a fresh process for each entry point.
IMPORTER = """
import json, os, sys
try:
    import airflow.sdk, airflow.sdk.bases.sensor
except ImportError:
    import airflow, airflow.models, airflow.sensors.base
import airflow.configuration, airflow.triggers.base
before = set(sys.modules)
for module in sys.argv[1:]:
    if os.fork() == 0:
        __import__(module)
        print("added=" + json.dumps([module, sorted(set(sys.modules) - before)]), flush=True)
        os._exit(0)
    os.wait()
"""


def run(code, *arguments):
    """What a fresh process imported."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    added = [line.removeprefix("added=") for line in done.stdout.splitlines() if line.startswith("added=")]
    assert added, done.stderr
    return [json.loads(line) for line in added]


def modules_after(module):
    return run(f"import json, sys, {module}\nprint('added=' + json.dumps(sorted(sys.modules)))")[0]


def packages(modules):
    return {name.partition(".")[0] for name in modules}


@pytest.fixture(scope="module")
def added_by():
    return dict(run(IMPORTER, *ENTRY_POINTS))


def test_every_entry_point_is_listed():
    """A new file needs a line here, except a base class, which users do not import."""
    package = Path(__file__).parents[1] / "airflow_provider_sendgrid"
    kinds = ("hooks", "operators", "sensors", "triggers", "transfers")
    files = [path for kind in kinds for path in (package / kind).glob("*.py") if path.stem not in ("__init__", "base")]

    assert sorted(ENTRY_POINTS) == sorted(f"{package.name}.{path.parent.name}.{path.stem}" for path in files)


@pytest.mark.parametrize("module", ENTRY_POINTS)
def test_an_entry_point_imports_neither_cloud_nor_http_client(module, added_by):
    """Except what Airflow itself imports."""
    assert module in added_by[module]
    assert set() == packages(added_by[module]) & COSTLY


@pytest.mark.parametrize("module", ENTRY_POINTS)
def test_an_entry_point_does_not_import_the_emulator(module, added_by):
    assert [] == [name for name in added_by[module] if name.startswith("airflow_provider_sendgrid.emulator")]


def test_the_metadata_imports_nothing():
    """Every Airflow process reads it at its start."""
    imported = packages(modules_after("airflow_provider_sendgrid.provider_info"))

    assert "airflow_provider_sendgrid" in imported
    assert set() == imported & (COSTLY | {"airflow", "asyncio", "logging"})


def test_the_emulators_fixture_does_not_import_airflow():
    """It is loaded before a user's conftest can set AIRFLOW_HOME."""
    assert "airflow" not in packages(modules_after("airflow_provider_sendgrid.emulator.pytest_plugin"))
