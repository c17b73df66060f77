"""Every fenced block of README, CONTRIBUTING and docs works: Python runs, commands exist, data can be parsed."""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import warnings
from fnmatch import fnmatch

import pytest
import yaml
from packaging.requirements import Requirement

from airflow_provider_sendgrid.emulator.__main__ import _parser as emulator_parser
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from tests.docs.blocks import REPOSITORY, all_blocks, blocks_of_kind, commands_of

MAKEFILE = (REPOSITORY / "Makefile").read_text()
PACKAGE = REPOSITORY / "airflow_provider_sendgrid"
PACKAGES = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
TARGETS = set(re.findall(r"(?m)^([\w-]+):", MAKEFILE))
# A comment on a page names what differs on Airflow 2; there, this is what is run.
ON_AIRFLOW_2 = re.compile(r"(?m)^( *)\S.*?  # Airflow 2: (.+)$")
PLUGIN = "airflow_provider_sendgrid.emulator.pytest_plugin"
LOCAL_BUNDLE = "airflow.dag_processing.bundles.local.LocalDagBundle"
PRELUDE = """
from datetime import datetime, timedelta
try:
    from airflow.sdk import DAG, task
except ImportError:
    from airflow import DAG
    from airflow.decorators import task
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook
from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator
from airflow_provider_sendgrid.sensors.sendgrid import SendGridExportSensor
from airflow_provider_sendgrid.transfers.sendgrid_to_s3 import SendGridToS3Operator
"""


def each(kind):
    return pytest.mark.parametrize("block", blocks_of_kind(kind), ids=str)


def python_of(block, airflow_version):
    is_airflow_2 = airflow_version.number < (3, 0)
    return ON_AIRFLOW_2.sub(r"\1\2", block.text) if is_airflow_2 else block.text


def test_every_block_is_run_or_has_a_reason():
    """At most a tenth is not run."""
    found = all_blocks()

    assert [] == [f"{block}: {block.language or 'no language'}" for block in found if block.kind == "unknown"]
    assert len([block for block in found if block.reason]) <= len(found) / 10


@each("file")
def test_an_included_file_is_a_tested_example(block):
    assert (REPOSITORY / block.included).is_file()
    assert block.included.startswith("example_dags/"), "tests/test_example_dags.py runs these"


# Python


@pytest.fixture
def lake(s3, monkeypatch):
    """The bucket `lake`, which the pages use; empty."""
    s3.client.create_bucket(Bucket="lake")
    for item in s3.client.list_objects_v2(Bucket="lake").get("Contents", []):
        s3.client.delete_object(Bucket="lake", Key=item["Key"])
    monkeypatch.setenv("AIRFLOW_CONN_SENDGRID_SHOP_DE", os.environ["AIRFLOW_CONN_SENDGRID_DEFAULT"])
    return s3


@each("dag")
@pytest.mark.usefixtures("airflow_database", "no_waiting")
def test_a_dag_delivers(block, airflow_version, ticking_emulator, lake, tmp_path, monkeypatch):
    """It is saved in a folder of DAGs, parsed by Airflow, and run to its end."""
    file = tmp_path / "dags" / "saved.py"
    file.parent.mkdir()
    bundle = {"name": "saved", "classpath": LOCAL_BUNDLE, "kwargs": {"path": str(file.parent)}}
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps([bundle]))
    file.write_text(python_of(block, airflow_version).replace("file:///tmp/", f"{tmp_path.as_uri()}/"))

    [dag] = airflow_version.load_dags(file).values()
    assert "success" == dag.test().state

    assert 1 == ticking_emulator.count("POST")
    listed = lake.client.list_objects_v2(Bucket="lake", Prefix="sendgrid/contacts/ds=").get("Contents", [])
    stored = [item["Key"] for item in listed] or [str(path) for path in (tmp_path / "lake").rglob("*")]
    assert {".csv.gz", ".json"} == {
        re.search(r"(\.\w+)+$", name)[0] for name in stored if "_metadata" not in name and "." in name
    }


@each("snippet")
@pytest.mark.usefixtures("no_waiting")
def test_a_snippet_runs(block, airflow_version, sendgrid_emulator, monkeypatch):
    """In a DAG with the tasks `start` and `store`, against the emulator."""
    monkeypatch.setenv("AIRFLOW_CONN_SENDGRID_DEFAULT", sendgrid_emulator.connection_json())
    names = {"__name__": "snippet"}
    exec(PRELUDE, names)
    code = compile(python_of(block, airflow_version), str(REPOSITORY / block.page), "exec")
    with names["DAG"]("snippets", schedule=None):
        for task_id, name in (("start_before", "start"), ("store_before", "store")):
            names[name] = names["SendGridExportContactsOperator"](task_id=task_id)
        exec(code, names)


@each("test")
def test_a_test_passes(block, airflow_version, sendgrid_emulator):
    """It uses the fixture that the package ships."""
    names = {"__name__": "users_test"}
    exec(compile(python_of(block, airflow_version), str(REPOSITORY / block.page), "exec"), names)
    [test] = [value for name, value in names.items() if name.startswith("test_")]

    test(sendgrid_emulator)

    assert names.get("pytest_plugins", [PLUGIN]) == [PLUGIN]


# Data


@each("data")
def test_data_can_be_parsed(block):
    """A connection is also one that a task accepts."""
    if block.language == "json":
        read_json(block.text)
    elif block.language == "yaml":
        yaml.safe_load(block.text)
    elif block.language == "ini":
        read_settings(block.text)
    else:
        for line in block.text.splitlines():
            assert line.startswith(("--constraint ", "--find-links ", "--no-index")) or Requirement(line)


def read_json(text):
    value = json.loads(text)
    if value.get("conn_type") == "sendgrid":
        fields = {name: value.get(name) for name in ("host", "port", "extra")}
        # The dots replace a key, so that no one copies it.
        SendGridConnection.from_fields(name="shown", password=value["password"].replace("…", "key"), **fields)


def read_settings(text):
    """Airflow's settings, in the form `section.option = value`."""
    from airflow.configuration import conf

    parser = configparser.ConfigParser()
    parser.read_string(f"[all]\n{text}")
    for name in parser["all"]:
        assert conf.has_option(*name.split(".")), name


# Commands


@pytest.fixture(scope="module")
def airflow_cli():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from airflow.cli.cli_parser import get_parser

        return get_parser()


@each("commands")
def test_commands_exist(block, airflow_cli, sendgrid_emulator):
    """Each is run, or parsed by the program's own parser."""
    for line in commands_of(block):
        words = shlex.split(line, comments=True)
        if words[0] == "export" or words[:2] == [".", "venv/bin/activate"]:
            check_exports(words[1:])
        elif words[0] == "make":
            check_make(words[1:])
        elif words[0] == "airflow":
            check_airflow(airflow_cli, words[1:])
        elif words[:3] == ["python", "-m", "airflow_provider_sendgrid.emulator"]:
            emulator_parser().parse_args(words[3:])
        elif words[0] == "pip" or words[1:3] == ["-m", "pip"]:
            check_pip(words[1:] if words[0] == "pip" else words[3:])
        elif words[0] == "curl":
            run(line.replace("http://127.0.0.1:8025", sendgrid_emulator.url))
        elif words[:3] == [".venv/bin/python", "-m", "pytest"]:
            assert (REPOSITORY / words[3]).exists()
        else:
            check_program(words)


def check_exports(assignments):
    """A connection in an environment variable can be used."""
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        if name.startswith("AIRFLOW_CONN_"):
            read_json(value)


def check_make(words):
    for word in words:
        name, is_variable, _ = word.partition("=")
        assert f"$({name})" in MAKEFILE if is_variable else name in TARGETS, word


def test_every_command_of_the_makefile_is_explained():
    """All commands that `make help` lists."""
    page = (REPOSITORY / "CONTRIBUTING.md").read_text()

    assert [] == [name for name in re.findall(r"(?m)^([\w-]+):.*## ", MAKEFILE) if f"make {name}" not in page]


def check_airflow(parser, words):
    try:
        with contextlib.redirect_stderr(None):
            parser.parse_args(words)
    except SystemExit:
        pytest.fail(f"airflow has no such command: {shlex.join(words)}")


def check_pip(words):
    commands = pytest.importorskip("pip._internal.commands")
    options, names = commands.create_command(words[0]).parser.parse_args(words[1:])
    assert names or options.requirements
    for name in names:
        assert Requirement(name)


def check_program(words):
    """A program that only has to exist."""
    known = {"python3 -m venv venv", "find /tmp/lake -type f", "python3 -m zipfile -c plugins.zip 'wheels/*.whl'"}
    assert shlex.join(words) in known, f"say why this is not run, above the block: {shlex.join(words)}"
    assert shutil.which(words[0])


def run(line):
    done = subprocess.run(["bash", "-c", line], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr


# Words in the text


@pytest.mark.parametrize(
    "page",
    [
        *sorted(path.name for path in REPOSITORY.glob("[A-Z]*.md")),
        *sorted(path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "docs").rglob("*.md")),
    ],
)
def test_every_name_on_a_page_exists(page):
    """Make targets, tests, files, modules and, on pages outside the site, links."""
    text = (REPOSITORY / page).read_text()
    for words in re.findall(r"`make ([a-z][\w-]*)", text):
        assert words in TARGETS, f"make {words}"
    for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text):
        assert re.search(rf"(?m)^(?: *(?:async )?def )?{name}\b", (REPOSITORY / file).read_text()), f"{file}::{name}"
    for file in re.findall(r"`((?:tests|docs|dev|example_dags|benchmarks|\.github)/[\w./-]*)`", text):
        assert (REPOSITORY / file).exists(), file
    for folder, file in re.findall(r"`(\w+)/(\w+\.py)`", text):
        assert folder not in PACKAGES or (PACKAGE / folder / file).exists(), f"{folder}/{file}"
    if "/" not in page:
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            # A page of GitHub that is not a file, such as the badge of CI.
            assert target.startswith("../../actions/") or (REPOSITORY / target).exists(), target


def test_the_design_lists_every_module():
    """Those below the four packages without Airflow; a pattern such as `storage/s3_*.py` lists several."""
    listed = re.findall(r"`(\w+/[\w*]+\.py)`", (REPOSITORY / "docs" / "design.md").read_text())
    folders = ("delivery", "exports", "files", "storage")
    modules = {f"{folder}/{path.name}" for folder in folders for path in (PACKAGE / folder).glob("[!_]*.py")}

    assert set() == {module for module in modules if not any(fnmatch(module, pattern) for pattern in listed)}
