"""### Every export that anybody begins in SendGrid, into S3, as soon as it is ready.

No schedule and no polling task: a trigger watches SendGrid, and each export that becomes ready starts this DAG. Say, a
marketer exports a list in SendGrid's own pages; minutes later it is in the lake.

Needs Airflow 3; on Airflow 2, which starts no DAG from a trigger, this file holds no DAG. Besides, what
`sendgrid_contacts_to_s3` needs: the connections `sendgrid_default` and `aws_default`, and the bucket's name in the
environment variable `SENDGRID_EXPORT_BUCKET`.

Do your own tasks export lists, too? From Airflow 3.3 on, give their `SendGridExportContactsOperator` the asset below as
an inlet, `inlets=[Asset.ref(name="sendgrid_new_export")]`, and their exports do not start this DAG. (By a reference: a
file that declares the asset without its watcher takes the watcher away.) Or narrow the trigger by `export_type`,
`list_id` or `segment_id`.
"""

from __future__ import annotations

import os
from datetime import datetime
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
        default_args={"retries": 2},
        tags=["sendgrid", "s3", "example"],
    ):

        @task
        def what_became_ready(triggering_asset_events: Any = None) -> list[dict[str, str]]:
            """Where each export goes; several that are ready at once may start one run."""
            events = triggering_asset_events[new_export] if triggering_asset_events else []
            export_ids = [event.extra["payload"]["id"] for event in events]
            return [
                {"export_id": export_id, "s3_key_prefix": f"sendgrid/new/export={export_id}/"}
                for export_id in export_ids
            ]

        SendGridToS3Operator.partial(
            task_id="store", s3_bucket=os.environ.get("SENDGRID_EXPORT_BUCKET", "change-me")
        ).expand_kwargs(what_became_ready())
