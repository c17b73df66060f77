"""What Airflow learns about the package at its start."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import subprocess
import sys
from importlib.resources import files

import jsonschema
import pytest

from airflow_provider_sendgrid.provider_info import get_provider_info

DISTRIBUTION = "airflow-provider-sendgrid"


def python_modules(info):
    for kind in ("hooks", "operators", "sensors", "triggers"):
        for part in info[kind]:
            yield from part["python-modules"]
    yield from (part["python-module"] for part in info["transfers"])


def test_it_satisfies_airflows_own_schema():
    """Airflow refuses metadata that does not, with a warning that nobody reads."""
    schema = files("airflow").joinpath("provider_info.schema.json")
    if not schema.is_file():
        pytest.skip("this Airflow brings no schema")

    jsonschema.validate(get_provider_info(), json.loads(schema.read_text()))


def test_the_package_name_is_the_distributions():
    """Airflow leaves a package out whose two names differ."""
    found = importlib.metadata.entry_points(group="apache_airflow_provider")

    ours = [entry for entry in found if entry.value.startswith("airflow_provider_sendgrid.")]

    assert {DISTRIBUTION} == {entry.dist.metadata["Name"] for entry in ours}
    assert get_provider_info == ours[0].load()
    assert DISTRIBUTION == get_provider_info()["package-name"]


@pytest.mark.parametrize("module", [*python_modules(get_provider_info())])
def test_every_module_that_it_names_is_there(module):
    assert importlib.import_module(module)


@pytest.fixture
def hook_class():
    [entry] = get_provider_info()["connection-types"]
    module, _, name = entry["hook-class-name"].rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_the_hook_has_the_type_name_and_form_of_the_metadata(hook_class):
    """Airflow before 3.2 reads the hook's class methods, later ones the metadata: both must say the same."""
    [entry] = get_provider_info()["connection-types"]
    form = {name.replace("_", "-"): value for name, value in hook_class.get_ui_field_behaviour().items()}

    assert entry["connection-type"] == hook_class.conn_type
    assert entry["hook-name"] == hook_class.hook_name
    assert entry["ui-field-behaviour"] == form


def test_the_hooks_form_satisfies_airflows_own_schema(hook_class):
    """Airflow before 3.2 shows a plain form, and logs an error, where it does not."""
    schema = files("airflow").joinpath("customized_form_field_behaviours.schema.json")

    jsonschema.validate(hook_class.get_ui_field_behaviour(), json.loads(schema.read_text()))


def test_every_integration_that_it_names_is_declared():
    info = get_provider_info()
    declared = {item["integration-name"] for item in info["integrations"]}

    named = {part["integration-name"] for kind in ("hooks", "operators", "sensors", "triggers") for part in info[kind]}
    sources = {part["source-integration-name"] for part in info["transfers"]}

    assert declared == named | sources


def test_airflow_offers_the_connection_type():
    """As the connection form does, in a process that knows of us by the entry point alone."""
    code = (
        "from airflow.providers_manager import ProvidersManager\n"
        "manager = ProvidersManager()\n"
        "hook = manager.hooks['sendgrid']\n"
        "print('|'.join([hook.hook_name, hook.package_name, hook.connection_type]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert f"SendGrid|{DISTRIBUTION}|sendgrid" in done.stdout.splitlines(), done.stderr
    assert DISTRIBUTION not in done.stderr, done.stderr
