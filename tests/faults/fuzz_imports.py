"""The fuzzed functions, imported so that atheris can measure their coverage."""

# ruff: noqa: F401 - they are returned by their names
from __future__ import annotations

import sys
from contextlib import nullcontext
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any


def _instrumented() -> Any:
    if "--target" not in sys.argv:  # a test, or the parent process
        return nullcontext()
    try:
        import atheris
    except ImportError:
        return nullcontext()
    return atheris.instrument_imports(include=["airflow_provider_sendgrid"])


def import_instrumented() -> SimpleNamespace:
    """Import every parser of external data."""
    with _instrumented():
        from airflow_provider_sendgrid.compression import Gunzip
        from airflow_provider_sendgrid.delivery.manifest import KnownManifest
        from airflow_provider_sendgrid.exceptions import ExportIncompleteError, SendGridError, redact
        from airflow_provider_sendgrid.exports import protocol
        from airflow_provider_sendgrid.exports.export import ContactExport, ExportFamily, ExportSelection
        from airflow_provider_sendgrid.exports.polling import outcome_of
        from airflow_provider_sendgrid.exports.protocol import Response
        from airflow_provider_sendgrid.files.download import RetryableError, parse_content_range
        from airflow_provider_sendgrid.files.rows import record_counter

    found = {name: value for name, value in locals().items() if not name.startswith("_")}
    return SimpleNamespace(**found, now=datetime(2026, 1, 2, tzinfo=timezone.utc))
