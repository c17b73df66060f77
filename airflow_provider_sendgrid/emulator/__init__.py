"""SendGrid's contact-export API on localhost, for tests of DAGs and of failures.

    with Emulator() as sendgrid:
        news = sendgrid.add_list("News", contacts=1_000)
        print(sendgrid.url, sendgrid.api_key)

or `python -m airflow_provider_sendgrid.emulator`. Needs only the standard library; imports neither Airflow nor the rest
of this package.
"""

from __future__ import annotations

from .backend import ExportedFile
from .emulator import DEFAULT_API_KEY, DEFAULT_LISTS, DEFAULT_SEGMENTS, Emulator
from .faults import Fault
from .recording import RecordedRequest
from .settings import Key, Settings

__all__ = [
    "DEFAULT_API_KEY",
    "DEFAULT_LISTS",
    "DEFAULT_SEGMENTS",
    "Emulator",
    "ExportedFile",
    "Fault",
    "Key",
    "RecordedRequest",
    "Settings",
]
