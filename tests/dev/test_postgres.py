"""Which PostgreSQL is taken, and what is said where there is none."""

import pytest

from dev.services import postgres


def test_the_newest_that_debian_installed_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(postgres.shutil, "which", lambda _name: None)
    for version in ("9.6", "15", "17"):
        (tmp_path / version / "bin").mkdir(parents=True)
        (tmp_path / version / "bin" / "initdb").touch()

    assert tmp_path / "17" / "bin" == postgres.find_programs(tmp_path)


def test_where_there_is_none_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(postgres.shutil, "which", lambda _name: None)

    with pytest.raises(RuntimeError, match="apt-get install postgresql"):
        postgres.find_programs(tmp_path)
