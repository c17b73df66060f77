"""Distinguishes new exports from those that were seen before.

Knows only listings. The trigger stores `SeenExports` across restarts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone

from airflow_provider_sendgrid.exports.export import FAILURE, READY, ContactExport

# SendGrid's listing may lack an export for a moment after it became ready.
_LISTED_LATE_SECONDS = 60.0
# How long an id is kept after the export was last ready or pending; files exist for 12 hours.
_KEEP_SECONDS = 24 * 3600.0


@dataclass(slots=True)
class SeenExports:
    """Exports that were seen ready, and all others that were listed.

    Attributes:
        since: in the first listing, exports that became ready at this time or later are new; None if none is.
        ids: when each export was first seen ready, in seconds since the epoch; None before the first listing.
        listed: every export that was listed: 0 while it is ready or may become ready, else since when it has been
            missing, failed or expired.
        clock: seconds since the epoch.
        began_at: SendGrid's time of the first listing. Exports that were ready before, and missing in it, are not new
            later. None before it, and in state that an older version stored.
        is_changed: whether `ids` and `listed` have changes that are not stored yet.
        forgotten: ids that are no longer in `ids` and `listed`.
    """

    since: float | None = None
    ids: dict[str, float] | None = None
    listed: dict[str, float] = field(default_factory=dict)
    clock: Callable[[], float] = time.time
    began_at: float | None = None
    is_changed: bool = False
    forgotten: set[str] = field(default_factory=set)
    _began_at_local: float | None = None

    def find_new(self, listed: Sequence[ContactExport]) -> list[ContactExport]:
        """The exports that have become ready, the oldest first; records nothing."""
        self._correct_began_at(listed)
        ready = sorted(filter(self._is_ready, listed), key=_ready_at)
        if self.ids is not None:
            return [each for each in ready if each.id not in self.ids and not self._was_ready_before(each)]
        return [each for each in ready if self._is_since(each)]

    def _is_since(self, export: ContactExport) -> bool:
        # SendGrid's times are whole seconds.
        return self.since is not None and _ready_at(export) >= math.floor(self.since)

    def _was_ready_before(self, export: ContactExport) -> bool:
        """Whether it was ready before the first listing, which lacked it."""
        if self.began_at is None or export.completed_at is None or self._is_since(export):
            return False
        return export.completed_at.timestamp() < self.began_at - _LISTED_LATE_SECONDS

    def _correct_began_at(self, listed: Sequence[ContactExport]) -> None:
        """Replace this machine's time by SendGrid's, if the first listing was empty and had none."""
        if self.began_at is None or self._began_at_local is None:
            return
        if (as_of := next((each.as_of for each in listed if each.as_of), None)) is not None:
            self.began_at = min(self.began_at, as_of.timestamp() - (self.clock() - self._began_at_local))
            self._began_at_local = None

    def record(self, wanted: Sequence[ContactExport], others: Sequence[ContactExport] = ()) -> None:
        """Record the ready exports of `wanted` as seen, and forget those that were of no use for a day."""
        now, known = self.clock(), self.ids or {}
        active = {each.id for each in (*wanted, *others) if each.status != FAILURE and not self._is_expired(each)}
        # In state that an older version stored, `listed` is empty: then the time it was first seen counts.
        inactive_since = {each: self.listed.get(each, known.get(each, 0.0)) or now for each in {*known, *self.listed}}
        inactive_since |= {each.id: self.listed.get(each.id) or now for each in (*wanted, *others)}
        kept = {each: 0.0 if each in active else since for each, since in inactive_since.items()}
        listed = {each: since for each, since in kept.items() if not since or since > now - _KEEP_SECONDS}
        # In the first listing, also exports that seem expired: one wrong `Date` must not make them new.
        is_seen = self._is_seen_at_first if self.ids is None else self._is_seen
        ready = {each.id: known.get(each.id, round(now)) for each in wanted if is_seen(each)}
        ids = {each: when for each, when in known.items() if each in listed} | ready
        self.forgotten |= {*known, *self.listed} - listed.keys()
        self.forgotten -= listed.keys()
        self.is_changed = self.is_changed or ids != self.ids or listed != self.listed
        if self.ids is None:
            self.began_at = self._began_at_local = now
            self._correct_began_at([*wanted, *others])
        self.ids, self.listed = ids, listed

    def _is_ready(self, export: ContactExport) -> bool:
        return export.status == READY and not self._is_expired(export)

    def _is_seen(self, export: ContactExport) -> bool:
        return self._is_ready(export) and not self._was_ready_before(export)

    def _is_seen_at_first(self, export: ContactExport) -> bool:
        return self._is_ready(export) or (export.status == READY and not self._is_since(export))

    def _is_expired(self, export: ContactExport) -> bool:
        return export.is_expired_at(export.as_of or datetime.fromtimestamp(self.clock(), timezone.utc))


def _ready_at(export: ContactExport) -> float:
    moment = export.completed_at or export.created_at
    return moment.timestamp() if moment else 0.0
