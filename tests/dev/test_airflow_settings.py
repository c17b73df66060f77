"""With which variables one Airflow runs."""

from pathlib import Path

import pytest

from dev.airflow.settings import Place, child_environment, settings


def place(version, **changes):
    return Place(version, Path("/lab/home"), Path("/lab/dags"), port=8123, **changes)


@pytest.mark.parametrize(
    ("version", "expected"),
    [("2.10.3", True), ("2.10.5+composer", True), ("3.0.6", False), ("3.1.7+composer", False)],
)
def test_composer_versions_are_read_too(version, expected):
    assert expected == place(version).is_airflow_2


def test_airflow_2_on_sqlite_runs_one_task_at_a_time():
    assert settings(place("2.11.0"))["AIRFLOW__CORE__EXECUTOR"] == "SequentialExecutor"


@pytest.mark.parametrize(("version", "database_url"), [("2.11.0", "postgresql://x"), ("3.3.1", None)])
def test_else_tasks_run_in_parallel(version, database_url):
    chosen = settings(place(version, database_url=database_url))

    assert chosen["AIRFLOW__CORE__EXECUTOR"] == "LocalExecutor"


def test_without_a_database_it_is_a_file_in_its_home():
    assert settings(place("3.3.1"))["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] == "sqlite:////lab/home/airflow.db"


def test_airflow_3_finds_its_execution_api_at_the_servers_port():
    chosen = settings(place("3.0.6"))

    assert chosen["AIRFLOW__API__PORT"] == "8123"
    assert chosen["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://127.0.0.1:8123/execution/"
    assert chosen["AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL"] == "1"


def test_airflow_2_is_asked_with_a_password_at_the_webservers_port():
    chosen = settings(place("2.10.3"))

    assert chosen["AIRFLOW__WEBSERVER__WEB_SERVER_PORT"] == "8123"
    assert chosen["AIRFLOW__API__AUTH_BACKENDS"] == "airflow.api.auth.backend.basic_auth"


def test_nothing_of_the_shells_own_airflow_or_key_is_inherited(monkeypatch):
    for name in ("AIRFLOW_CONN_SENDGRID_DEFAULT", "AIRFLOW__CORE__EXECUTOR", "SENDGRID_API_KEY"):
        monkeypatch.setenv(name, "of the shell")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")

    inherited = child_environment(place("3.3.1"), Path("/env/bin/python"), {})

    assert "of the shell" not in inherited.values()
    assert inherited["AWS_REGION"] == "eu-central-1"


def test_airflow_2_finds_its_own_command_first():
    inherited = child_environment(place("2.10.3"), Path("/env/bin/python"), {})

    assert inherited["PATH"].startswith("/env/bin:")


def test_keys_differ_between_two_airflows_and_are_not_shown():
    one, other = place("3.3.1"), place("3.3.1")

    assert one.fernet_key != other.fernet_key
    assert one.secret_key not in repr(one)
