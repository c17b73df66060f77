"""The pytest fixture for users."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

USERS_TEST = """
import json, os, urllib.request

pytest_plugins = ["airflow_provider_sendgrid.emulator.pytest_plugin"]

def test_my_dag(sendgrid_emulator):
    connection = json.loads(os.environ["AIRFLOW_CONN_SENDGRID_DEFAULT"])
    assert connection["host"] == sendgrid_emulator.url
    asked = urllib.request.Request(
        connection["host"] + "/v3/scopes", headers={"Authorization": "Bearer " + connection["password"]}
    )
    with urllib.request.urlopen(asked) as response:
        assert response.status == 200

def test_it_is_gone_afterwards():
    assert "AIRFLOW_CONN_SENDGRID_DEFAULT" not in os.environ
"""


def test_the_fixture_is_the_default_connection(tmp_path):
    """Also with warnings as errors."""
    (tmp_path / "test_users.py").write_text(USERS_TEST)
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    environment.pop("AIRFLOW_CONN_SENDGRID_DEFAULT", None)
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "2 passed" in done.stdout, done.stdout + done.stderr
