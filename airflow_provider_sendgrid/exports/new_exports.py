"""Which exports were ready already, so that only new ones fire.

Knows what SendGrid lists. Its owner keeps it over a restart.
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
# What is known of an export is kept for so long after it was last of use; files live for 12 hours.
_KEEP_SECONDS = 24 * 3600.0


@dataclass(slots=True)
class SeenExports:
    """Exports that were seen ready, and all others that were listed.

    Attributes:
        since: exports that became ready from then on are news at the first look; None: none is.
        ids: when each was first seen ready, in seconds since the epoch; None before the first look.
        listed: every export that was listed: 0 while it may become ready or is ready, else since when it has been
            missing, failed or expired.
        clock: seconds since the epoch.
        began_at: when the first look was, in SendGrid's time: exports that were ready before, and not listed then, are
            not news later. None before it, and in state that an older version kept.
        is_changed: whether `ids` and `listed` are still to be kept.
        forgotten: ids that are no longer in either.
    """

    since: float | None = None
    ids: dict[str, float] | None = None
    listed: dict[str, float] = field(default_factory=dict)
    clock: Callable[[], float] = time.time
    began_at: float | None = None
    is_changed: bool = False
    forgotten: set[str] = field(default_factory=set)
    _looked_at: float | None = None

    def find_new(self, listed: Sequence[ContactExport]) -> list[ContactExport]:
        """Those that have become ready, the first one first; nothing is noted yet."""
        self._learn_sendgrids_time(listed)
        ready = sorted(filter(self._is_ready, listed), key=_ready_at)
        if self.ids is not None:
            return [each for each in ready if each.id not in self.ids and not self._was_ready_before(each)]
        return [each for each in ready if self._is_since(each)]

    def _is_since(self, export: ContactExport) -> bool:
        # SendGrid's times are whole seconds.
        return self.since is not None and _ready_at(export) >= math.floor(self.since)

    def _was_ready_before(self, export: ContactExport) -> bool:
        """Whether it was ready before the first look, although that lacked it."""
        if self.began_at is None or export.completed_at is None or self._is_since(export):
            return False
        return export.completed_at.timestamp() < self.began_at - _LISTED_LATE_SECONDS

    def _learn_sendgrids_time(self, listed: Sequence[ContactExport]) -> None:
        """An empty listing does not hold SendGrid's time: then the first look was at this machine's time, if later."""
        if self.began_at is None or self._looked_at is None:
            return
        if (as_of := next((each.as_of for each in listed if each.as_of), None)) is not None:
            self.began_at = min(self.began_at, as_of.timestamp() - (self.clock() - self._looked_at))
            self._looked_at = None

    def record(self, wanted: Sequence[ContactExport], others: Sequence[ContactExport] = ()) -> None:
        """All of `wanted` that is ready has been seen; what has long been of no use is forgotten."""
        now, known = self.clock(), self.ids or {}
        useful = {each.id for each in (*wanted, *others) if each.status != FAILURE and not self._is_expired(each)}
        # State that an older version kept has no `listed`: then the time it was first seen counts.
        of_no_use = {each: self.listed.get(each, known.get(each, 0.0)) or now for each in {*known, *self.listed}}
        of_no_use |= {each.id: self.listed.get(each.id) or now for each in (*wanted, *others)}
        kept = {each: 0.0 if each in useful else since for each, since in of_no_use.items()}
        listed = {each: since for each, since in kept.items() if not since or since > now - _KEEP_SECONDS}
        # At the first look also what seems to be expired: a wrong `Date` of one response makes nothing new.
        is_seen = self._is_seen_at_first if self.ids is None else self._is_seen
        ready = {each.id: known.get(each.id, round(now)) for each in wanted if is_seen(each)}
        ids = {each: when for each, when in known.items() if each in listed} | ready
        self.forgotten |= {*known, *self.listed} - listed.keys()
        self.forgotten -= listed.keys()
        self.is_changed = self.is_changed or ids != self.ids or listed != self.listed
        if self.ids is None:
            self.began_at = self._looked_at = now
            self._learn_sendgrids_time([*wanted, *others])
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
