"""The links that Airflow shows beside a task: to the exports at SendGrid, and to the objects in a cloud console.

A task pushes each address as an XCom as soon as it knows it, so the link works while the task runs and after it failed.
The addresses contain no secrets: the reader has to log in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from airflow_provider_sendgrid._compat import BaseOperatorLink, Context, read_xcom
from airflow_provider_sendgrid.exports.export import ExportFamily

log = logging.getLogger(__name__)

# A single export has no page. Source: Twilio's guides to both products name these pages.
EXPORT_PAGES = {
    ExportFamily.MARKETING.value: "https://mc.sendgrid.com/contacts/exports",
    ExportFamily.LEGACY.value: "https://sendgrid.com/marketing_campaigns/ui/contacts",
}


class _XComLink(BaseOperatorLink):
    """A link whose address the task pushes as an XCom."""

    name: str = ""
    xcom_key: str = ""

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The address; empty if the task pushed none. Raises nothing, because Airflow 3.0 would fail the task."""
        try:
            address = read_xcom(ti_key, self.xcom_key)
        except Exception:  # noqa: BLE001 - a link must not fail a task
            return ""
        return address if isinstance(address, str) else ""

    @classmethod
    def keep(cls, context: Context, address: str) -> None:
        """Push `address`, unless it is empty or the task pushes no XComs. A failure is logged."""
        is_kept = False
        if address and "ti" in context and getattr(context.get("task"), "do_xcom_push", True):
            try:
                context["ti"].xcom_push(key=cls.xcom_key, value=address)
                is_kept = True
            except Exception as error:  # noqa: BLE001 - a link must not fail a task
                log.warning("The address of the link %r could not be pushed: %s", cls.name, type(error).__name__)
        cls._list_in_task(context, is_listed=is_kept)

    @classmethod
    def leave_out(cls, context: Context) -> None:
        """Push no address, until `keep` is called with one."""
        cls._list_in_task(context, is_listed=False)

    @classmethod
    def _list_in_task(cls, context: Context, *, is_listed: bool) -> None:
        """List the link in the running task only if its address was pushed.

        When a task ends, Airflow 3 reads the address of each link that the task lists and pushes it again. It would log
        an error for a missing address and push an empty one. The DAG still lists the link.
        """
        task: Any = context.get("task")
        try:
            others = [link for link in task.operator_extra_links if not isinstance(link, cls)]
            task.operator_extra_links = (*others, cls()) if is_listed else tuple(others)
        except (AttributeError, TypeError):  # no task, or a class whose links are a property
            pass


class SendGridExportsLink(_XComLink):
    """The account's exports, in SendGrid's web pages."""

    name = "SendGrid exports"
    xcom_key = "sendgrid_exports_link"

    @classmethod
    def keep_for(cls, context: Context, family: str) -> None:
        """Push the page of a family's exports; an unknown family has none."""
        cls.keep(context, next((page for known, page in EXPORT_PAGES.items() if known == family), ""))


class DeliveredObjectsLink(_XComLink):
    """The objects of a delivery, in the console of their cloud."""

    name = "Delivered objects"
    xcom_key = "sendgrid_delivered_objects_link"

    @classmethod
    def keep_for(cls, context: Context, prefix_uri: str, endpoint_url: str | None = None) -> None:
        """Push the page of all objects below a prefix, see `console_url`."""
        cls.keep(context, console_url(prefix_uri, endpoint_url))


def console_url(prefix_uri: str, endpoint_url: str | None = None) -> str:
    """The page of a cloud's console that shows the objects below a prefix; empty if there is none.

    Args:
        prefix_uri: ``s3://bucket/prefix/`` or ``gs://bucket/prefix/``. Other schemes have no page.
        endpoint_url: URL of the S3 API; only Amazon's has a page.
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


# By AWS partition: the end of the API's host names, and the host of the console.
_AWS_CONSOLES = (
    (".amazonaws.com", "console.aws.amazon.com"),
    (".amazonaws.com.cn", "console.amazonaws.cn"),
)


def _gcs_console(bucket: str, prefix: str, _api_host: str) -> str:
    return f"https://console.cloud.google.com/storage/browser/{quote(bucket)}/{quote(prefix)}"


_CONSOLES: dict[str, Callable[[str, str, str], str]] = {"s3": _s3_console, "gs": _gcs_console, "gcs": _gcs_console}
