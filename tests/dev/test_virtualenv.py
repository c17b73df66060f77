"""Python and constraints of an Airflow version."""

import os
from pathlib import Path

import pytest

from dev.environments import interpreters, virtualenv


@pytest.mark.parametrize(
    ("airflow", "expected"), [("2.10.3", "3.11"), ("2.11.2", "3.11"), ("3.0.6", "3.12"), ("3.3.1", "3.12")]
)
def test_airflow_gets_the_python_of_managed_services(airflow, expected):
    assert expected == interpreters.python_version_for(airflow)


def test_a_local_constraints_file_is_used_without_servers(tmp_path, monkeypatch):
    monkeypatch.setattr(virtualenv, "LOCAL_CONSTRAINTS", tmp_path)
    (tmp_path / "3.3.1.txt").write_text("moto==5.0.11\nmotor==3.6\nrequests==2.32.0\n")
    (tmp_path / "env").mkdir()

    pins = virtualenv.constraints("3.3.1", "3.12", tmp_path / "env")

    assert "motor==3.6\nrequests==2.32.0\n" == pins.read_text()


def test_airflows_own_constraints_are_the_default(tmp_path, monkeypatch):
    urls = []
    monkeypatch.setattr(virtualenv, "LOCAL_CONSTRAINTS", tmp_path)

    def download(url, path):
        urls.append(url)
        path.write_text("requests==2.31.0\n")
        return path

    monkeypatch.setattr(virtualenv, "download", download)

    pins = virtualenv.constraints("2.11.0", "3.11", tmp_path)

    assert "requests==2.31.0\n" == pins.read_text()
    assert urls[0].endswith("/constraints-2.11.0/constraints-3.11.txt")


def test_a_failed_download_of_constraints_is_reported(tmp_path, capsys):
    missing = (tmp_path / "nothing.txt").as_uri()

    assert virtualenv.download(missing, tmp_path / "constraints.txt") is None
    assert missing in capsys.readouterr().out


def test_the_stamp_names_the_airflow_version():
    spec = virtualenv.EnvironmentSpec(Path(".venv"), "3.3.1")

    assert Path(".venv/airflow-3.3.1.made") == spec.stamp


def test_an_environment_is_current_until_pyproject_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(virtualenv, "REPOSITORY", tmp_path)
    project = tmp_path / "pyproject.toml"
    project.touch()
    spec = virtualenv.EnvironmentSpec(tmp_path, "3.3.1")

    assert not spec.is_current
    spec.stamp.touch()
    assert spec.is_current
    os.utime(project, (spec.stamp.stat().st_mtime + 1,) * 2)
    assert not spec.is_current


def test_uv_uses_the_package_index_of_pip(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    monkeypatch.delenv("UV_DEFAULT_INDEX", raising=False)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")

    environment = virtualenv.uv_environment(Path("python"))

    assert environment["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    assert "PYTHONDONTWRITEBYTECODE" not in environment
