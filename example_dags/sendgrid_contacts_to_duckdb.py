"""Export contacts to a folder, then load them into a DuckDB database. No cloud is needed.

Needs the connection `sendgrid_default`, the package duckdb, and the environment variables SENDGRID_EXPORT_FOLDER (an
absolute path that all workers share) and SENDGRID_DUCKDB (the database file).
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta

try:
    from airflow.sdk import DAG, task
except ImportError:  # Airflow 2
    from airflow import DAG
    from airflow.decorators import task

from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator
from airflow_provider_sendgrid.sensors.sendgrid import SendGridExportSensor
from airflow_provider_sendgrid.transfers.sendgrid_to_object_storage import SendGridToObjectStorageOperator

FOLDER = os.environ.get("SENDGRID_EXPORT_FOLDER", "/var/lib/sendgrid")
DATABASE = os.environ.get("SENDGRID_DUCKDB", "/var/lib/sendgrid/contacts.duckdb")

with DAG(
    dag_id="sendgrid_contacts_to_duckdb",
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
        """Replace the table by the contents of all files; return the number of contacts."""
        import duckdb

        files = [uri.removeprefix("file://") for uri in uris]
        with duckdb.connect(DATABASE) as database:
            database.execute(
                """CREATE OR REPLACE TABLE contacts AS SELECT * FROM read_csv(
                    ?, header = true, delim = ',', quote = '"', escape = '"', all_varchar = true, union_by_name = true,
                    max_line_size = 16777216
                )""",
                [files],
            )
            [[count]] = database.execute("SELECT count(*) FROM contacts").fetchall()
        return int(count)

    wait >> store
    load(store.output)
