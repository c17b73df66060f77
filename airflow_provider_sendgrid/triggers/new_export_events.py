"""The events of new exports, with the contact counts that SendGrid's list of exports lacks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_sendgrid.exceptions import SendGridError
from airflow_provider_sendgrid.exports import protocol
from airflow_provider_sendgrid.exports.export import ContactExport, ExportFamily, parse_family
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook

if TYPE_CHECKING:
    from airflow_provider_sendgrid.exports.client import AsyncSendGridClient

log = logging.getLogger(__name__)

# At most this many counts are requested at once, to spare the account's rate limit.
_COUNTS_AT_ONCE = 10


async def new_export_events(
    hook: SendGridHook, exports: Sequence[ContactExport], count_seconds: float
) -> list[dict[str, Any]]:
    """One event per export; its keys are those that `SendGridNewExportTrigger` documents.

    Args:
        hook: for the requests of the counts.
        exports: as SendGrid's list describes them.
        count_seconds: longest wait for the counts. What is not known by then is None.
    """
    if not exports:
        return []
    family = parse_family(hook.family)
    counts = await _fetch_counts(hook, family, exports[:_COUNTS_AT_ONCE], count_seconds)
    return [_event(family, export, counts.get(export.id, export.contact_count)) for export in exports]


def type_of_export(export: ContactExport) -> str:
    """The export's type; where SendGrid's list does not hold it, what its lists and segments imply."""
    implied = "list_export" if export.list_ids else "segment_export" if export.segment_ids else "contacts_export"
    return export.export_type or implied


def _event(family: ExportFamily, export: ContactExport, contact_count: int | None) -> dict[str, Any]:
    summary = export.summary()
    return {
        "id": export.id,
        "family": family.value,
        "export_type": type_of_export(export),
        "list_ids": list(export.list_ids),
        "segment_ids": list(export.segment_ids),
        "contact_count": contact_count,
        **{name: summary[name] for name in ("created_at", "completed_at", "expires_at")},
    }


async def _fetch_counts(
    hook: SendGridHook, family: ExportFamily, exports: Sequence[ContactExport], timeout_seconds: float
) -> dict[str, int | None]:
    counts: dict[str, int | None] = {}

    async def fetch(client: AsyncSendGridClient, export_id: str) -> None:
        flow = protocol.get_export(family, export_id, protocol.RetryPolicy(tries=2), needs_confirmation=lambda _: False)
        try:
            counts[export_id] = (await client.run_flow(flow)).contact_count
        except (SendGridError, ValueError) as error:
            log.info("Could not fetch the contact count of SendGrid export %s: %s", export_id, error)

    async with await hook.aclient() as client:
        tasks = [asyncio.ensure_future(fetch(client, export.id)) for export in exports]
        try:
            await asyncio.wait(tasks, timeout=timeout_seconds)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return counts
