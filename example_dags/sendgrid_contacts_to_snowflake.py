"""Export contacts to S3, then load the files that the transfer returns into Snowflake.

Needs the connections `sendgrid_default`, `aws_default` and `snowflake_default`, Airflow's snowflake provider, the name
of a bucket in the environment variable SENDGRID_EXPORT_BUCKET, a stage `lake` on that bucket, and a table `contacts`.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta

try:
    from airflow.sdk import DAG
except ImportError:  # Airflow 2
    from airflow import DAG

from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator

from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator
from airflow_provider_sendgrid.sensors.sendgrid import SendGridExportSensor
from airflow_provider_sendgrid.transfers.sendgrid_to_s3 import SendGridToS3Operator

BUCKET = os.environ.get("SENDGRID_EXPORT_BUCKET", "lake")

with DAG(
    dag_id="sendgrid_contacts_to_snowflake",
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
    store = SendGridToS3Operator(
        task_id="store",
        export_id=start.output,
        s3_bucket=BUCKET,
        s3_key_prefix="sendgrid/contacts/run={{ ts_nodash }}/",
    )
    load = SQLExecuteQueryOperator(
        task_id="load",
        conn_id="snowflake_default",
        sql=[
            "BEGIN",
            "DELETE FROM contacts",
            f"""COPY INTO contacts FROM @lake
            FILES = ({{% for uri in ti.xcom_pull(task_ids="store") -%}}
                '{{{{ uri | replace("s3://{BUCKET}/", "") }}}}'{{{{ "" if loop.last else ", " }}}}
            {{%- endfor %}})
            FILE_FORMAT = (TYPE = CSV COMPRESSION = GZIP PARSE_HEADER = TRUE FIELD_OPTIONALLY_ENCLOSED_BY = '"'
                MULTI_LINE = TRUE ENCODING = 'UTF8' EMPTY_FIELD_AS_NULL = TRUE NULL_IF = ())
            MATCH_BY_COLUMN_NAME = CASE_INSENSITIVE ON_ERROR = ABORT_STATEMENT""",
            "COMMIT",
        ],
    )
    wait >> store >> load
