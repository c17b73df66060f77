"""What Airflow learns about this package at its start: pure data, imports nothing."""

from __future__ import annotations

from typing import Any

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
        },
    },
}

_INTEGRATION = "SendGrid contact exports"


def get_provider_info() -> dict[str, Any]:
    """The metadata that Airflow reads through the entry point ``apache_airflow_provider``."""
    return {
        "package-name": "airflow-provider-sendgrid",
        "name": "SendGrid contact exports",
        "description": "Starts, awaits and delivers SendGrid contact exports into cloud storage.",
        "integrations": [
            {
                "integration-name": _INTEGRATION,
                "external-doc-url": "https://www.twilio.com/docs/sendgrid/api-reference/contacts",
                "tags": ["service"],
            }
        ],
        "connection-types": [CONNECTION_TYPE],
        "hooks": [_part("hooks")],
        "operators": [_part("operators")],
        "sensors": [_part("sensors")],
        "triggers": [_part("triggers")],
        "transfers": [
            {
                "source-integration-name": _INTEGRATION,
                "target-integration-name": "Amazon Simple Storage Service (S3)",
                "python-module": "airflow_provider_sendgrid.transfers.sendgrid_to_s3",
            }
        ],
    }


def _part(kind: str) -> dict[str, Any]:
    return {
        "integration-name": _INTEGRATION,
        "python-modules": [f"airflow_provider_sendgrid.{kind}.sendgrid"],
    }
