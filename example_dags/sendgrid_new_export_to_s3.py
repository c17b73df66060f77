"""### Store each export in S3 as soon as it is ready, no matter who started it.

A trigger watches SendGrid, and each export that becomes ready starts this DAG; no schedule and no polling task are
needed. For example, a marketer exports a list in SendGrid's web pages; minutes later it is in S3.

Needs Airflow 3; on Airflow 2 this file defines no DAG. It also needs the connections `sendgrid_default` and
`aws_default`, and the name of a bucket in the environment variable `SENDGRID_EXPORT_BUCKET`.

If your own tasks export lists, too, their exports also start this DAG. To prevent that from Airflow 3.3 on, add
`inlets=[Asset.ref(name="sendgrid_new_export")]` to their `SendGridExportContactsOperator`. Use `Asset.ref`: a file that
declares the asset without its watcher removes the watcher. Or restrict the trigger by `export_type`, `list_id` or
`segment_id`.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from typing import Any

try:
    from airflow.sdk import DAG, Asset, AssetWatcher, task
except ImportError:
    pass  # Airflow 2: no DAG
else:
    from airflow_provider_sendgrid.transfers.sendgrid_to_s3 import SendGridToS3Operator
    from airflow_provider_sendgrid.triggers.sendgrid import SendGridNewExportTrigger

    new_export = Asset(
        "sendgrid_new_export",
        watchers=[
            AssetWatcher(
                name="sendgrid",
                trigger=SendGridNewExportTrigger(sendgrid_conn_id="sendgrid_default", poll_interval=30),
            )
        ],
    )

    with DAG(
        dag_id="sendgrid_new_export_to_s3",
        doc_md=__doc__,
        schedule=[new_export],
        start_date=datetime(2026, 1, 1),
        default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
        tags=["sendgrid", "s3", "example"],
    ):

        @task
        def what_became_ready(triggering_asset_events: Any = None) -> list[dict[str, str]]:
            """Arguments of one transfer per export. Exports that are ready at once may start one run."""
            events = triggering_asset_events[new_export] if triggering_asset_events else []
            export_ids = [event.extra["payload"]["id"] for event in events]
            return [
                {"export_id": export_id, "s3_key_prefix": f"sendgrid/new/export={export_id}/"}
                for export_id in export_ids
            ]

        SendGridToS3Operator.partial(
            task_id="store", s3_bucket=os.environ.get("SENDGRID_EXPORT_BUCKET", "lake")
        ).expand_kwargs(what_became_ready())
