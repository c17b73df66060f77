"""The environment variables of a local Airflow."""

from pathlib import Path

import pytest

from dev.airflow.settings import InstanceConfig, child_environment, settings


def config(version, **changes):
    return InstanceConfig(version, Path("/srv/airflow"), Path("/srv/dags"), port=8123, **changes)


@pytest.mark.parametrize(
    ("version", "expected"),
    [("2.10.3", True), ("2.10.5+composer", True), ("3.0.6", False), ("3.1.7+composer", False)],
)
def test_versions_of_composer_are_parsed(version, expected):
    assert expected == config(version).is_airflow_2


def test_airflow_2_on_sqlite_runs_one_task_at_a_time():
    assert settings(config("2.11.0"))["AIRFLOW__CORE__EXECUTOR"] == "SequentialExecutor"


@pytest.mark.parametrize(("version", "database_url"), [("2.11.0", "postgresql://x"), ("3.3.1", None)])
def test_other_versions_and_databases_run_tasks_in_parallel(version, database_url):
    chosen = settings(config(version, database_url=database_url))

    assert chosen["AIRFLOW__CORE__EXECUTOR"] == "LocalExecutor"


def test_the_default_database_is_a_file_in_its_home():
    assert settings(config("3.3.1"))["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] == "sqlite:////srv/airflow/airflow.db"


def test_airflow_3_has_its_execution_api_at_the_same_port():
    chosen = settings(config("3.0.6"))

    assert chosen["AIRFLOW__API__PORT"] == "8123"
    assert chosen["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://127.0.0.1:8123/execution/"
    assert chosen["AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL"] == "1"


def test_airflow_2_has_basic_auth():
    chosen = settings(config("2.10.3"))

    assert chosen["AIRFLOW__WEBSERVER__WEB_SERVER_PORT"] == "8123"
    assert chosen["AIRFLOW__API__AUTH_BACKENDS"] == "airflow.api.auth.backend.basic_auth"


def test_airflow_settings_and_key_are_not_inherited(monkeypatch):
    for name in ("AIRFLOW_CONN_SENDGRID_DEFAULT", "AIRFLOW__CORE__EXECUTOR", "SENDGRID_API_KEY"):
        monkeypatch.setenv(name, "of the shell")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")

    inherited = child_environment(config("3.3.1"), Path("/env/bin/python"), {})

    assert "of the shell" not in inherited.values()
    assert inherited["AWS_REGION"] == "eu-central-1"


def test_its_own_command_is_first_on_path():
    inherited = child_environment(config("2.10.3"), Path("/env/bin/python"), {})

    assert inherited["PATH"].startswith("/env/bin:")


def test_keys_are_random_and_hidden():
    one, other = config("3.3.1"), config("3.3.1")

    assert one.fernet_key != other.fernet_key
    assert one.secret_key not in repr(one)
