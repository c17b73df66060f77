"""Export contacts to a folder, then load them into a table of PostgreSQL in one transaction.

Needs the connections `sendgrid_default` and `postgres_default`, Airflow's postgres provider, and the environment
variable SENDGRID_EXPORT_FOLDER (an absolute path that all workers share).
"""

from __future__ import annotations

import gzip
import os
from datetime import datetime, timedelta
from typing import IO, Any

try:
    from airflow.sdk import DAG, task
except ImportError:  # Airflow 2
    from airflow import DAG
    from airflow.decorators import task

from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator
from airflow_provider_sendgrid.sensors.sendgrid import SendGridExportSensor
from airflow_provider_sendgrid.transfers.sendgrid_to_object_storage import SendGridToObjectStorageOperator

FOLDER = os.environ.get("SENDGRID_EXPORT_FOLDER", "/var/lib/sendgrid")


def copy(cursor: Any, sql: str, source: IO[bytes]) -> None:
    """Copy with psycopg 2 or 3, whichever is installed."""
    if hasattr(cursor, "copy_expert"):  # psycopg 2
        cursor.copy_expert(sql, source)
        return
    with cursor.copy(sql) as target:
        while piece := source.read(1024 * 1024):
            target.write(piece)


with DAG(
    dag_id="sendgrid_contacts_to_postgres",
    doc_md=__doc__,
    schedule="@daily",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
    tags=["sendgrid", "example"],
):
    start = SendGridExportContactsOperator(task_id="start_export")
    wait = SendGridExportSensor(
        task_id="wait_for_export",
        export_id=start.output,
        deferrable=True,
        timeout=timedelta(hours=2).total_seconds(),
    )
    store = SendGridToObjectStorageOperator(
        task_id="store", export_id=start.output, path=f"file://{FOLDER}/run={{{{ ts_nodash }}}}"
    )

    @task
    def load(uris: list[str]) -> int:
        """Replace the table by the contents of all files; return the number of contacts.

        The columns are those in the header of the first file: they differ by account and change over time.
        """
        import csv
        from contextlib import closing

        from airflow.providers.postgres.hooks.postgres import PostgresHook

        files = [uri.removeprefix("file://") for uri in uris]
        with gzip.open(files[0], "rt", encoding="utf-8", newline="") as first:
            columns = ", ".join('"' + name.replace('"', '""') + '" text' for name in next(csv.reader(first)))
        with (
            closing(PostgresHook("postgres_default").get_conn()) as connection,
            connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("DROP TABLE IF EXISTS contacts")
            cursor.execute(f"CREATE TABLE contacts ({columns})")
            for file in files:
                with gzip.open(file) as plain:
                    copy(cursor, "COPY contacts FROM STDIN (FORMAT csv, HEADER match, ENCODING 'utf8')", plain)
            cursor.execute("SELECT count(*) FROM contacts")
            [count] = cursor.fetchone()
        return int(count)

    wait >> store
    load(store.output)
