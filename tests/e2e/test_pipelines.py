"""Loading a delivery into PostgreSQL."""

from __future__ import annotations

import csv
import io
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from dev.services.postgres import postgres

FOLDER = Path(__file__).parents[2] / "example_dags"
pytestmark = pytest.mark.usefixtures("airflow_database", "no_waiting")


def test_postgresql_holds_every_contact(ticking_emulator, airflow_version, monkeypatch, tmp_path_factory):
    """From several files, with line breaks and quotes in values."""
    folder = tmp_path_factory.mktemp("pipelines")
    for each in (folder, *list(folder.parents)[:2]):
        each.chmod(0o755)  # PostgreSQL runs as another user
    monkeypatch.setenv("SENDGRID_EXPORT_FOLDER", str(folder / "exports"))
    ticking_emulator.configure(contacts_per_file=1_000)
    name = "sendgrid_contacts_to_postgres"
    with postgres(folder) as url:
        database = url.replace("postgresql+psycopg2", "postgresql")
        monkeypatch.setenv("AIRFLOW_CONN_POSTGRES_DEFAULT", database)

        assert "success" == airflow_version.load_dags(FOLDER / f"{name}.py")[name].test().state

        [export] = ticking_emulator._backend.account.exports()
        files = [file.read().decode() for file in ticking_emulator.export_files(export.id)]
        expected_rows = [row for file in files for row in csv.DictReader(io.StringIO(file, newline=""))]
        columns = ", ".join(f'"{column}"' for column in expected_rows[0])
        with closing(psycopg2.connect(database)) as connection, connection.cursor() as cursor:
            cursor.execute(f"SELECT {columns} FROM contacts")
            stored = cursor.fetchall()
    expected = [tuple(value or None for value in contact.values()) for contact in expected_rows]
    assert len(files) >= 2
    assert sorted(expected, key=repr) == sorted(stored, key=repr)
    assert any("\n" in value for contact in stored for value in contact if value)
    assert any('"' in value for contact in stored for value in contact if value)
