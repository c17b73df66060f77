"""What Airflow learns about the package at its start."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import subprocess
import sys
from importlib.resources import files
from importlib.util import find_spec

import jsonschema
import pytest

from airflow_provider_sendgrid.exports.connection import API_HOSTS, SendGridConnection
from airflow_provider_sendgrid.provider_info import get_provider_info

DISTRIBUTION = "airflow-provider-sendgrid"


def python_modules(info):
    for kind in ("hooks", "operators", "sensors", "triggers"):
        for part in info[kind]:
            yield from part["python-modules"]
    yield from (part["python-module"] for part in info["transfers"])


def test_it_satisfies_airflows_own_schema():
    """Airflow refuses metadata that does not, with a warning that no one reads."""
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


def test_a_catalogue_of_providers_finds_what_it_asks_for():
    """The Astronomer Registry takes name, description and versions from here, and Airflow's classifiers from PyPI."""
    about = importlib.metadata.metadata(DISTRIBUTION)

    assert [about["Version"]] == get_provider_info()["versions"]
    assert {"Framework :: Apache Airflow :: Provider", "Framework :: Apache Airflow"} <= {*about.get_all("Classifier")}
    assert all(get_provider_info()[name] for name in ("name", "description"))


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


def fields_shown(code):
    """The fields for extra that this Airflow shows: name, label, text, type and choices of each."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def fields_declared():
    [entry] = get_provider_info()["connection-types"]
    return {
        name: [field["label"], field["description"], sorted(field["schema"]["type"]), field["schema"].get("enum")]
        for name, field in entry["conn-fields"].items()
    }


AS_WTFORMS = """
import json
from wtforms import Form, IntegerField
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook
form = type("F", (Form,), SendGridHook.get_connection_form_widgets())()
def choices(field):
    return next((list(each.values) for each in field.validators if hasattr(each, "values")), None)
print(json.dumps({
    field.name: [str(field.label.text), field.description,
        ["integer" if isinstance(field, IntegerField) else "string"] + ["null"], choices(field)]
    for field in form
}))
"""
AS_AIRFLOW_3 = """
import json
from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService
[meta] = [each for each in HookMetaService.hook_meta_data() if each.connection_type == "sendgrid"]
print(json.dumps({
    name: [field["schema"]["title"], field["description"], sorted(field["schema"]["type"]), field["schema"].get("enum")]
    for name, field in (meta.extra_fields or {}).items()
}))
"""


def test_the_form_of_airflow_2_shows_the_fields_of_the_metadata():
    if not find_spec("flask_appbuilder"):
        pytest.skip("this Airflow has no form of that kind")

    shown = fields_shown(AS_WTFORMS)

    assert fields_declared() == {name: [*rest[:2], sorted(rest[2]), rest[3]] for name, rest in shown.items()}


def test_the_form_of_airflow_3_shows_the_fields_of_the_metadata(airflow_version):
    """Before 3.2 it takes them from the hook's method, later from the metadata."""
    if not has_module("airflow.api_fastapi.core_api.services.ui.connections"):
        pytest.skip("this Airflow has no form of that kind")

    if airflow_version.number == (3, 0) and not find_spec("flask_appbuilder"):
        pytest.skip("Airflow 3.0 shows no fields of any provider without flask_appbuilder")

    assert fields_declared() == fields_shown(AS_AIRFLOW_3)


def has_module(name):
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def test_every_field_of_the_form_is_one_that_the_connection_reads():
    """And what the form stores for an empty one, null or an empty text, counts as absent."""
    names = fields_declared().keys()
    plain = SendGridConnection.from_fields(name="c", password="SG.key")

    for empty in (None, ""):
        assert plain == SendGridConnection.from_fields(name="c", password="SG.key", extra=dict.fromkeys(names, empty))
    texts = {"region": "eu", "on_behalf_of": "sub", "timeout": 5, "verify": "false", "proxy": "http://p.example:1"}
    filled = SendGridConnection.from_fields(name="c", password="SG.key", extra=texts)
    assert names == texts.keys()
    assert (filled.base_url, filled.on_behalf_of, filled.timeout_seconds, filled.verify, filled.proxy) == (
        "https://api.eu.sendgrid.com",
        "sub",
        5,
        False,
        "http://p.example:1",
    )


def test_the_form_offers_every_region():
    assert set(API_HOSTS) == set(fields_declared()["region"][3])


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
