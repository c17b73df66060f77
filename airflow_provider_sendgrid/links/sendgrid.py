"""The links that Airflow shows beside a task: its export in SendGrid's pages, its objects in the cloud's console.

A task leaves each address as an XCom when it knows it, so that it can be followed while the task runs, and after it
failed. No address holds a secret: whoever follows it has to log in there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from airflow_provider_sendgrid._compat import BaseOperatorLink, Context, read_xcom
from airflow_provider_sendgrid.exports.export import ExportFamily

log = logging.getLogger(__name__)

# An export has no page of its own. Source: Twilio's guides to both products name these pages.
EXPORT_PAGES = {
    ExportFamily.MARKETING.value: "https://mc.sendgrid.com/contacts/exports",
    ExportFamily.LEGACY.value: "https://sendgrid.com/marketing_campaigns/ui/contacts",
}


class _KeptLink(BaseOperatorLink):
    """A link whose address the task left as an XCom."""

    name: str = ""
    xcom_key: str = ""

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The address; empty where the task left none. Raises nothing: Airflow 3.0 would fail the task for it."""
        try:
            kept = read_xcom(ti_key, self.xcom_key)
        except Exception:  # noqa: BLE001 - a link is no reason to fail
            return ""
        return kept if isinstance(kept, str) else ""

    @classmethod
    def keep(cls, context: Context, address: str) -> None:
        """Leave the address for the pages. Nothing is left where a task is to push no XComs.

        An empty one is left, too: Airflow 3 asks for it at the task's end, and logs an error where there is none.
        """
        if "ti" not in context or not getattr(context.get("task"), "do_xcom_push", True):
            return
        try:
            context["ti"].xcom_push(key=cls.xcom_key, value=address)
        except Exception as error:  # noqa: BLE001 - likewise
            log.warning("The link %r could not be kept: %s", cls.name, type(error).__name__)


class SendGridExportsLink(_KeptLink):
    """The account's exports, in SendGrid's own pages."""

    name = "SendGrid exports"
    xcom_key = "sendgrid_exports_link"

    @classmethod
    def keep_for(cls, context: Context, family: str) -> None:
        """Leave the page of a family's exports; whether it is a family, others will say."""
        cls.keep(context, next((page for known, page in EXPORT_PAGES.items() if known == family), ""))


class DeliveredObjectsLink(_KeptLink):
    """The objects of a delivery, in the console of their cloud."""

    name = "Delivered objects"
    xcom_key = "sendgrid_delivered_objects_link"

    @classmethod
    def keep_for(cls, context: Context, prefix_uri: str, endpoint_url: str | None = None) -> None:
        """Leave the page of all objects below a prefix, see `console_url`."""
        cls.keep(context, console_url(prefix_uri, endpoint_url))


def console_url(prefix_uri: str, endpoint_url: str | None = None) -> str:
    """The page of a cloud's console that shows what lies below a prefix; empty where there is none.

    Args:
        prefix_uri: ``s3://bucket/prefix/`` or ``gs://bucket/prefix/``.
        endpoint_url: of the storage's API: an S3 that is not Amazon's is in no console of Amazon's.
    """
    scheme, bucket, prefix = _parts(prefix_uri)
    make = _CONSOLES.get(scheme)
    return make(bucket, prefix, (urlsplit(endpoint_url).hostname or "") if endpoint_url else "") if make else ""


def _parts(uri: str) -> tuple[str, str, str]:
    scheme, _, rest = uri.partition("://")
    bucket, _, prefix = rest.partition("/")
    return scheme, bucket.rpartition("@")[2], prefix


def _s3_console(bucket: str, prefix: str, api_host: str) -> str:
    host = next((console for ending, console in _AWS_CONSOLES if api_host.endswith(ending)), "")
    if "us-gov-" in api_host and host:
        host = "console.amazonaws-us-gov.com"
    return f"https://{host}/s3/buckets/{quote(bucket)}?{urlencode({'prefix': prefix})}" if host else ""


# Of the AWS partitions: the end of their APIs' hosts, and the host of their console.
_AWS_CONSOLES = (
    (".amazonaws.com", "console.aws.amazon.com"),
    (".amazonaws.com.cn", "console.amazonaws.cn"),
)


def _gcs_console(bucket: str, prefix: str, _api_host: str) -> str:
    return f"https://console.cloud.google.com/storage/browser/{quote(bucket)}/{quote(prefix)}"


_CONSOLES: dict[str, Callable[[str, str, str], str]] = {"s3": _s3_console, "gs": _gcs_console, "gcs": _gcs_console}
