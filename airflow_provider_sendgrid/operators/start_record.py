"""What a start task keeps for its retries, so that a retry finds the export instead of starting another."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from airflow_provider_sendgrid._compat import Context
from airflow_provider_sendgrid.exports.export import ExportSelection
from airflow_provider_sendgrid.exports.start_attempt import Attempt, Baseline, Clock, ConcurrentStarts
from airflow_provider_sendgrid.operators.announcements import RECORD_KEY, announce, concurrent_starts, task_name

log = logging.getLogger(__name__)

# What a retry takes over from the record of an earlier try.
_KEPT = ("began", "since", "clock", "known_ids", "earlier_ids", "id")


class StartRecord:
    """The record of a durable start.

    It is a JSON mapping:

    | key | value |
    |---|---|
    | ``of`` | hash of account, family, lists and segments |
    | ``form`` | file type and maximum file size |
    | ``run``, ``task`` | which task of which run |
    | ``max_tries`` | Airflow raises it when the task is cleared |
    | ``began`` | start of the try, by the worker's clock |
    | ``since``, ``clock``, ``known_ids`` | see `Baseline`; once it was read |
    | ``id`` | of the export, once it is known |
    | ``earlier_ids`` | exports of this task before it was cleared |

    From Airflow 3.3 on the task's state store keeps it between tries. The XCom announces it to other tasks; Airflow
    deletes that before a retry.

    Args:
        context: of the task.
        same: hash, equal for exports that SendGrid's list of exports cannot distinguish.
        old: the hash that older versions kept as ``of``.
        selection: what to export.
        start_task_ids: ids of the DAG's tasks that start exports.
    """

    def __init__(
        self, context: Context, same: str, old: str, selection: ExportSelection, start_task_ids: Sequence[str]
    ) -> None:
        self._context = context
        self._start_task_ids = start_task_ids
        self._store: Any = context.get("task_state_store")  # from Airflow 3.3 on
        self._ti: Any = context.get("ti")
        self._old = old
        self.record: dict[str, Any] = {
            "of": same,
            "form": [selection.file_type, str(selection.max_file_size)],
            "run": getattr(self._ti, "run_id", "") or "",
            "task": task_name(context),
            "max_tries": getattr(self._ti, "max_tries", None),
            "began": time.time(),
        }

    def attempt(self) -> Attempt:
        """What earlier tries left."""
        if self._store is None:
            return self._attempt_without_store()
        kept = self._kept()
        if kept.get("id") and self._was_cleared_since(kept):
            self.record["earlier_ids"] = [*kept.get("earlier_ids", ()), kept["id"]]
            kept = {}
        if not kept:
            earlier = self.record.get("earlier_ids", ())
            return Attempt(
                self.record["began"],
                concurrent_starts=self._concurrent_starts,
                known_ids=earlier,
                save_baseline=self.keep_baseline,
            )
        self.record |= {name: kept[name] for name in _KEPT if name in kept}
        known = kept.get("known_ids")
        self.announce()  # before the search: another task must not take this task's export
        return Attempt(
            kept.get("since", kept.get("began", self.record["began"])),
            is_retry=not kept.get("id"),
            concurrent_starts=self._concurrent_starts,
            clock=Clock(kept.get("clock", Clock.WORKER)),
            known_ids=None if known is None else [*known, *kept.get("earlier_ids", ())],
            export_id=kept.get("id", ""),
            save_baseline=self.keep_baseline,
        )

    def keep_baseline(self, baseline: Baseline) -> None:
        """Keep what a retry needs; called before the first POST."""
        self.record.pop("id", None)
        self.record |= {
            "began": time.time(),
            "since": baseline.since,
            "clock": baseline.clock.value,
            "known_ids": None if baseline.known_ids is None else list(baseline.known_ids),
        }
        self._save()

    def keep_id(self, export_id: str) -> None:
        """Keep the id of the export that this task started or found."""
        self.record["id"] = export_id
        self._save()

    def announce(self, export_id: str | None = None) -> None:
        """Announce to other tasks what this one is starting, or with `export_id` what it has started."""
        announce(self._context, self.record | ({"id": export_id} if export_id else {}))

    def forget(self) -> None:
        """Delete the record, because nothing was started."""
        if self._store is not None and self._store.get(RECORD_KEY) is not None:
            self._store.delete(RECORD_KEY)
        earlier = {"earlier_ids": self.record["earlier_ids"]} if "earlier_ids" in self.record else {}
        announce(self._context, earlier)

    def _save(self) -> None:
        if self._store is not None:
            self._store.set(RECORD_KEY, self.record)
        self.announce()

    def _kept(self) -> dict[str, Any]:
        """The record that an earlier try kept of the same export; empty if there is none."""
        kept = self._store.get(RECORD_KEY)
        if not isinstance(kept, Mapping):
            return {}
        if kept.get("of") == self.record["of"] and kept.get("form") != self.record["form"]:
            log.warning(
                "An earlier try started, or may have started, the same export with a different file_type or "
                "max_file_size (%s). This try starts its own.",
                kept.get("form"),
            )
            return {}
        return dict(kept) if kept.get("of") in (self.record["of"], self._old) else {}

    def _was_cleared_since(self, kept: Mapping[str, Any]) -> bool:
        """Clearing a task raises its ``max_tries``; retrying it does not."""
        return kept.get("max_tries") is not None and kept["max_tries"] != self.record["max_tries"]

    def _attempt_without_store(self) -> Attempt:
        if not self._is_retry():
            return Attempt(
                self.record["began"], concurrent_starts=self._concurrent_starts, save_baseline=self.keep_baseline
            )
        self.announce()
        started_at = self._context["dag_run"].start_date
        since = started_at.timestamp() if started_at else self.record["began"]
        return Attempt(since, is_retry=True, concurrent_starts=self._concurrent_starts, clock=Clock.RUN, known_ids=None)

    def _is_retry(self) -> bool:
        """Whether an earlier try may have started the export; used without a state store.

        Clearing a task sets ``max_tries`` to the number of tries so far plus ``retries``, which gives the number of the
        first try after the clear. Lowering ``retries`` looks the same, so this counts only if the run was cleared after
        it had ended, which Airflow records.
        """
        if self._ti is None:
            return False
        is_cleared_run = (getattr(self._context["dag_run"], "clear_number", 0) or 0) > 0
        retries = getattr(self._context.get("task"), "retries", None)
        if not is_cleared_run or retries is None or self.record["max_tries"] is None:
            return bool(self._ti.try_number > 1)
        first_try = self.record["max_tries"] - retries + 1
        return bool(self._ti.try_number != max(first_try, 1))

    def _concurrent_starts(self) -> ConcurrentStarts:
        return concurrent_starts(self._context, self.record, self._start_task_ids)


def fingerprint(selection: ExportSelection, account: str, family: str) -> str:
    """A hash that is equal for exports that SendGrid's list of exports cannot distinguish.

    The list shows neither file type nor file size.
    """
    return _hash([account, family, *_sorted_ids(selection)])


def old_fingerprint(selection: ExportSelection, conn_id: str, family: str) -> str:
    """The hash that older versions kept, so that a retry after an upgrade finds its record."""
    ids = _sorted_ids(selection)
    return _hash([conn_id, family, *ids, selection.file_type, str(selection.max_file_size)])


def _sorted_ids(selection: ExportSelection) -> list[list[str]]:
    return [sorted(map(str, ids)) for ids in (selection.list_ids, selection.segment_ids)]


def _hash(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
