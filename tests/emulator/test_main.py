"""The command line."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys

import pytest

from airflow_provider_sendgrid.emulator.__main__ import main

COMMAND = [sys.executable, "-u", "-m", "airflow_provider_sendgrid.emulator", "--port", "0"]


def test_the_emulator_runs_until_interrupted(client_of):
    """The printed connection works, each request is one line, and SIGINT ends it without an error."""
    arguments = ["--list", "News=30", "--list", "Odd=5:stuck", "--rate-limit", "50/60", "--verbose"]
    with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        printed = []
        while not any(line.lstrip().startswith("legacy") and "Odd" in line for line in printed):
            printed.append(running.stdout.readline())
            assert printed[-1], running.stderr.read()
        connection = connection_in(printed)
        client = client_of(None)
        response = client_lists(client, connection)
        running.send_signal(signal.SIGINT)
        rest, errors = running.communicate(timeout=10)
    assert [each["name"] for each in response.json["result"]] == ["News", "Odd"]
    assert response.headers["X-RateLimit-Limit"] == "50"
    assert any(response.json["result"][0]["id"] in line for line in printed)
    assert "api   200 GET /v3/marketing/lists" in rest
    assert (running.returncode, errors) == (0, "")


def connection_in(printed):
    [line] = [line for line in printed if "AIRFLOW_CONN_SENDGRID_DEFAULT=" in line]
    return json.loads(shlex.split(line)[1].partition("=")[2])


def client_lists(client, connection):
    headers = {"Authorization": f"Bearer {connection['password']}"}
    client.emulator = type("Running", (), {"api_key": connection["password"], "url": connection["host"]})
    return client.ask("GET", "/v3/marketing/lists", **headers)


@pytest.mark.parametrize(
    "wrong", [["--list", "News"], ["--list", "News=many"], ["--list", "News=5:failed"], ["--rate-limit", "often"]]
)
def test_an_error_names_the_invalid_option(capsys, wrong):
    with pytest.raises(SystemExit):
        main(wrong)
    assert wrong[1] in capsys.readouterr().err


def test_help_lists_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    output = capsys.readouterr().out
    for option in (
        "--port",
        "--files-port",
        "--host",
        "--contacts",
        "--list",
        "--ready-after",
        "--url-lifetime",
    ):
        assert option in output
