"""The provider's metadata for Airflow. Imports only the version, because every Airflow process reads it."""

from __future__ import annotations

from typing import Any

from airflow_provider_sendgrid import __version__

CONNECTION_TYPE: dict[str, Any] = {
    "connection-type": "sendgrid",
    "hook-class-name": "airflow_provider_sendgrid.hooks.sendgrid.SendGridHook",
    "hook-name": "SendGrid",
    "ui-field-behaviour": {
        "hidden-fields": ["login", "schema", "port"],
        "relabeling": {"password": "API key", "host": "API host"},
        "placeholders": {
            "password": "SG.…",
            "host": "empty for SendGrid's own, by region",
            "extra": '{"region": "eu", "on_behalf_of": "subuser", "timeout": 30, "proxy": "http://proxy:3128"}',
            "region": "global",
            "on_behalf_of": "the account itself",
            "timeout": "30",
            "verify": "true",
            "proxy": "http://proxy.example:3128",
        },
    },
    # The settings in extra. Airflow stores an empty field as null, which counts as absent. `verify` is not a boolean:
    # Airflow 2 would store an unticked box as false and switch the verification off.
    "conn-fields": {
        "region": {
            "label": "Data region",
            "description": "Where the account's data is stored; must match the API host.",
            "schema": {"type": ["string", "null"], "enum": ["global", "eu"]},
        },
        "on_behalf_of": {
            "label": "Subuser",
            "description": "User name of the subuser to act for, or account-id and an id.",
            "schema": {"type": ["string", "null"]},
        },
        "timeout": {
            "label": "Timeout (seconds)",
            "description": "Longest wait for a connection, and for the next bytes of a response; 30 if empty.",
            "schema": {"type": ["integer", "null"]},
        },
        "verify": {
            "label": "Verify TLS certificates",
            "description": "true, false, or the path of a file or folder of CA certificates on each machine.",
            "schema": {"type": ["string", "null"]},
        },
        "proxy": {
            "label": "Proxy",
            "description": "URL of the proxy for all requests; if empty, HTTPS_PROXY and NO_PROXY apply.",
            "schema": {"type": ["string", "null"]},
        },
    },
}

_INTEGRATION = "SendGrid contact exports"


def get_provider_info() -> dict[str, Any]:
    """The metadata that Airflow reads through the entry point ``apache_airflow_provider``."""
    return {
        "package-name": "airflow-provider-sendgrid",
        "name": "SendGrid contact exports",
        "description": "Starts SendGrid contact exports, waits for them, and delivers them to cloud storage.",
        "versions": [__version__],  # for catalogues of providers; Airflow does not read it
        "integrations": [
            {
                "integration-name": _INTEGRATION,
                "external-doc-url": "https://www.twilio.com/docs/sendgrid/api-reference/contacts",
                "tags": ["service"],
            }
        ],
        "connection-types": [CONNECTION_TYPE],
        "extra-links": [
            "airflow_provider_sendgrid.links.sendgrid.SendGridExportsLink",
            "airflow_provider_sendgrid.links.sendgrid.DeliveredObjectsLink",
        ],
        "hooks": [_modules("hooks")],
        "operators": [_modules("operators")],
        "sensors": [_modules("sensors")],
        "triggers": [_modules("triggers")],
        "transfers": [
            {
                "source-integration-name": _INTEGRATION,
                "target-integration-name": "Amazon Simple Storage Service (S3)",
                "python-module": "airflow_provider_sendgrid.transfers.sendgrid_to_s3",
            },
            *(
                {
                    "source-integration-name": _INTEGRATION,
                    "target-integration-name": target,
                    "python-module": "airflow_provider_sendgrid.transfers.sendgrid_to_object_storage",
                }
                for target in ("Google Cloud Storage (GCS)", "Microsoft Azure Blob Storage", "Local files")
            ),
        ],
    }


def _modules(kind: str) -> dict[str, Any]:
    return {
        "integration-name": _INTEGRATION,
        "python-modules": [f"airflow_provider_sendgrid.{kind}.sendgrid"],
    }
