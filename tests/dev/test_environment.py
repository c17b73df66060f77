"""Which Python and which constraints an Airflow version gets."""

import os
from pathlib import Path

import pytest

from dev import environment, pythons


@pytest.mark.parametrize(
    ("airflow", "expected"), [("2.10.3", "3.11"), ("2.11.2", "3.11"), ("3.0.6", "3.12"), ("3.3.1", "3.12")]
)
def test_an_airflow_line_gets_the_python_that_managed_services_use(airflow, expected):
    assert expected == pythons.python_version_for(airflow)


def test_a_constraints_file_nearby_wins_without_its_stand_ins_for_servers(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "PINNED_NEARBY", tmp_path)
    (tmp_path / "3.3.1.txt").write_text("moto==5.0.11\nmotor==3.6\nrequests==2.32.0\n")
    (tmp_path / "env").mkdir()

    pins = environment.constraints("3.3.1", "3.12", tmp_path / "env")

    assert "motor==3.6\nrequests==2.32.0\n" == pins.read_text()


def test_without_a_file_nearby_airflows_own_constraints_are_asked_for(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(environment, "PINNED_NEARBY", tmp_path)

    def download(url, path):
        asked.append(url)
        path.write_text("requests==2.31.0\n")
        return path

    monkeypatch.setattr(environment, "download", download)

    pins = environment.constraints("2.11.0", "3.11", tmp_path)

    assert "requests==2.31.0\n" == pins.read_text()
    assert asked[0].endswith("/constraints-2.11.0/constraints-3.11.txt")


def test_constraints_that_cannot_be_downloaded_are_none_and_said(tmp_path, capsys):
    missing = (tmp_path / "nothing.txt").as_uri()

    assert environment.download(missing, tmp_path / "constraints.txt") is None
    assert missing in capsys.readouterr().out


def test_the_stamp_names_the_airflow_version():
    wish = environment.Wish(Path(".venv"), "3.3.1")

    assert Path(".venv/airflow-3.3.1.made") == wish.stamp


def test_an_environment_is_fulfilled_until_the_package_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "REPOSITORY", tmp_path)
    project = tmp_path / "pyproject.toml"
    project.touch()
    wish = environment.Wish(tmp_path, "3.3.1")

    assert not wish.is_fulfilled
    wish.stamp.touch()
    assert wish.is_fulfilled
    os.utime(project, (wish.stamp.stat().st_mtime + 1,) * 2)
    assert not wish.is_fulfilled


def test_an_index_that_pip_was_told_is_told_to_uv(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    monkeypatch.delenv("UV_DEFAULT_INDEX", raising=False)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")

    told = environment.uv_environment(Path("python"))

    assert told["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    assert "PYTHONDONTWRITEBYTECODE" not in told
