"""Keeps which exports have fired, across restarts of the triggerer, in the watched asset's state store."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from asgiref.sync import sync_to_async

from airflow_provider_sendgrid.exceptions import redact
from airflow_provider_sendgrid.exports.export import ContactExport
from airflow_provider_sendgrid.exports.new_exports import SeenExports

log = logging.getLogger(__name__)

# Prefix of the key, followed by an export's id, under which a start task marks its export in an asset's store.
STARTED_KEY = "sendgrid_started_"


class FiredExports:
    """What one trigger keeps in the state store of its asset; other triggers may watch the same asset.

    Args:
        store: Airflow's, of the asset; None before Airflow 3.3, which has none. Then nothing is kept.
        trigger_hash: identifies the trigger's arguments.
    """

    def __init__(self, store: Any, trigger_hash: str) -> None:
        self._store = store
        self._fired_key = f"sendgrid_seen_{trigger_hash}"
        # All exports that were listed, so that the marks of start tasks are deleted when they are no longer needed.
        self._listed_key = f"sendgrid_listed_{trigger_hash}"
        self._began_key = f"sendgrid_began_{trigger_hash}"

    @property
    def is_kept(self) -> bool:
        """Whether there is a store."""
        return self._store is not None

    async def load(self, since: float | None) -> SeenExports:
        """What was kept; without a store only `since`, in seconds since the epoch."""
        if self._store is None:
            return SeenExports(since=since)
        try:
            fired, listed, began_at = [
                await sync_to_async(self._store.get)(key)
                for key in (self._fired_key, self._listed_key, self._began_key)
            ]
        except ValueError:  # Airflow's error if several assets share the trigger
            log.warning(
                "Several assets have a SendGridNewExportTrigger with the same arguments: which exports have fired "
                "cannot be kept across restarts of the triggerer. Use one asset, and schedule the DAGs on it."
            )
            self._store = None
            return SeenExports(since=since)
        return SeenExports(
            since=since,
            ids=dict(fired) if isinstance(fired, Mapping) else None,
            listed=dict(listed) if isinstance(listed, Mapping) else {},
            began_at=began_at if isinstance(began_at, int | float) else None,
        )

    async def save(self, seen: SeenExports) -> None:
        """Keep `seen` if it changed. What cannot be kept is tried again at the next call."""
        if self._store is None or not seen.is_changed:
            return
        undeleted = await self._delete_marks(seen)
        try:
            await sync_to_async(self._store.set)(self._fired_key, seen.ids)
            # Listed as long gone, so that a mark that could not be deleted now is deleted after a restart.
            listed = seen.listed | dict.fromkeys(undeleted, 1.0)
            await sync_to_async(self._store.set)(self._listed_key, listed)
            await sync_to_async(self._store.set)(self._began_key, seen.began_at)
            seen.is_changed = bool(undeleted)
        except Exception as error:  # noqa: BLE001 - a watcher must not end
            log.warning(
                "Which SendGrid exports have fired could not be stored; trying again: %s: %s",
                type(error).__name__,
                redact(str(error)),
            )

    async def without_own(self, exports: Sequence[ContactExport]) -> list[ContactExport]:
        """The exports that no start task has marked as its own."""
        if self._store is None:
            return list(exports)
        return [each for each in exports if not await sync_to_async(self._store.get)(f"{STARTED_KEY}{each.id}")]

    async def _delete_marks(self, seen: SeenExports) -> set[str]:
        """Delete the marks of forgotten exports; return the exports whose mark could not be deleted."""
        for each in list(seen.forgotten):
            try:
                await sync_to_async(self._store.delete)(f"{STARTED_KEY}{each}")
                seen.forgotten.discard(each)
            except Exception as error:  # noqa: BLE001 - the rest is stored all the same
                log.warning("The mark of SendGrid export %s could not be deleted: %s", each, redact(str(error)))
        return seen.forgotten


def parse_since(text: str | float | None) -> float | None:
    """Parse `since` to seconds since the epoch.

    Raises:
        ValueError: it is not a time.
    """
    if text is None or (isinstance(text, int | float) and not isinstance(text, bool) and math.isfinite(text)):
        return text
    try:
        moment = datetime.fromisoformat(str(text).strip().replace("Z", "+00:00"))
    except ValueError:
        raise ValueError(f"since must be a time in ISO 8601, or seconds since the epoch, not {text!r}.") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
