"""Imports: Airflow parses DAG files again and again, so importing an operator must cost little."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "airflow_provider_sendgrid"
# Every module of the folders that DAG files import from.
MODULES = [
    "airflow_provider_sendgrid.hooks.airflow_connection",
    "airflow_provider_sendgrid.hooks.sendgrid",
    "airflow_provider_sendgrid.operators.announcements",
    "airflow_provider_sendgrid.operators.selection",
    "airflow_provider_sendgrid.operators.sendgrid",
    "airflow_provider_sendgrid.operators.start_record",
    "airflow_provider_sendgrid.sensors.airflow_errors",
    "airflow_provider_sendgrid.sensors.sendgrid",
    "airflow_provider_sendgrid.transfers.base",
    "airflow_provider_sendgrid.transfers.sendgrid_to_object_storage",
    "airflow_provider_sendgrid.transfers.sendgrid_to_s3",
    "airflow_provider_sendgrid.triggers.fired_exports",
    "airflow_provider_sendgrid.triggers.new_export_events",
    "airflow_provider_sendgrid.triggers.sendgrid",
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

# The DAG processor has imported Airflow before it parses a file. Then one new process for each module.
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
    """The JSON values that `code` prints after ``added=``, run in a new process."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    printed = [line.removeprefix("added=") for line in done.stdout.splitlines() if line.startswith("added=")]
    assert printed, done.stderr
    return [json.loads(line) for line in printed]


def modules_after(module):
    return run(f"import json, sys, {module}\nprint('added=' + json.dumps(sorted(sys.modules)))")[0]


def packages(modules):
    return {name.partition(".")[0] for name in modules}


@pytest.fixture(scope="module")
def added_by():
    """By module, what importing it adds to what Airflow has imported."""
    return dict(run(IMPORTER, *MODULES))


def test_every_module_is_checked():
    folders = [PACKAGE / kind for kind in ("hooks", "operators", "sensors", "transfers", "triggers")]
    files = [path for folder in folders for path in folder.glob("*.py") if path.stem != "__init__"]

    assert MODULES == sorted(f"{PACKAGE.name}.{path.parent.name}.{path.stem}" for path in files)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_neither_cloud_nor_http_client(module, added_by):
    assert module in added_by[module]
    assert set() == packages(added_by[module]) & COSTLY


@pytest.mark.parametrize("module", MODULES)
def test_a_module_does_not_import_the_emulator(module, added_by):
    assert [] == [name for name in added_by[module] if name.startswith("airflow_provider_sendgrid.emulator")]


def test_the_metadata_imports_nothing():
    """Every Airflow process reads it when it starts."""
    imported = packages(modules_after("airflow_provider_sendgrid.provider_info"))

    assert "airflow_provider_sendgrid" in imported
    assert set() == imported & (COSTLY | {"airflow", "asyncio", "logging"})


def test_the_emulators_pytest_plugin_does_not_import_airflow():
    """Pytest loads it before a user's conftest sets AIRFLOW_HOME."""
    assert "airflow" not in packages(modules_after("airflow_provider_sendgrid.emulator.pytest_plugin"))


def imported_names(path):
    """The full name of every module that a file imports, and of every name that it imports from one."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)


def test_no_test_imports_another_test():
    """What several tests need is in tests/support."""
    folder = Path(__file__).parent
    modules = {path.stem for path in folder.rglob("test_*.py")}
    imports = {
        (path.relative_to(folder).as_posix(), name) for path in folder.rglob("*.py") for name in imported_names(path)
    }

    assert ("test_redaction.py", "tests.support.file_server.redirecting") in imports
    assert set() == {(path, name) for path, name in imports if modules & {*name.split(".")}}
