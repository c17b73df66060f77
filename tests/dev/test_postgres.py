"""Finding PostgreSQL's programs."""

import pytest

from dev.services import postgres


def test_the_newest_version_of_debian_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(postgres.shutil, "which", lambda _name: None)
    for version in ("9.6", "15", "17"):
        (tmp_path / version / "bin").mkdir(parents=True)
        (tmp_path / version / "bin" / "initdb").touch()

    assert tmp_path / "17" / "bin" == postgres.find_programs(tmp_path)


def test_the_error_names_the_package_of_postgresql(tmp_path, monkeypatch):
    monkeypatch.setattr(postgres.shutil, "which", lambda _name: None)

    with pytest.raises(RuntimeError, match="apt-get install postgresql"):
        postgres.find_programs(tmp_path)
