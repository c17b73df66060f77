"""Which exports were ready already: what tells news from what was there before.

Knows what SendGrid lists. Where it is kept over a restart is its owner's business.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone

from airflow_provider_sendgrid.exports.export import READY, ContactExport

# An id is kept at least so long; files live for 12 hours.
_KEEP_SECONDS = 24 * 3600.0


@dataclass(slots=True)
class SeenExports:
    """Exports that were seen ready.

    Attributes:
        since: exports that became ready from then on are news at the first look; None: none is.
        ids: when each was first seen ready, in seconds since the epoch; None before the first look.
        clock: seconds since the epoch.
        is_changed: whether `ids` is still to be kept.
        forgotten: ids that are no longer among them.
    """

    since: float | None = None
    ids: dict[str, float] | None = None
    clock: Callable[[], float] = time.time
    is_changed: bool = False
    forgotten: set[str] = field(default_factory=set)

    def news(self, listed: Sequence[ContactExport]) -> list[ContactExport]:
        """Those that have become ready, the first one first; nothing is noted yet."""
        ready = sorted(filter(self._is_ready, listed), key=_ready_at)
        if self.ids is not None:
            return [each for each in ready if each.id not in self.ids]
        # SendGrid's times are whole seconds.
        return [] if self.since is None else [each for each in ready if _ready_at(each) >= math.floor(self.since)]

    def note(self, listed: Sequence[ContactExport]) -> None:
        """All that is ready has been seen; what is long gone is forgotten."""
        now, known = self.clock(), self.ids or {}
        recent = {each: when for each, when in known.items() if when > now - _KEEP_SECONDS}
        ids = recent | {each.id: known.get(each.id, round(now)) for each in listed if self._is_ready(each)}
        self.forgotten |= known.keys() - ids.keys()
        self.is_changed = self.is_changed or ids != self.ids
        self.ids = ids

    def _is_ready(self, export: ContactExport) -> bool:
        return export.status == READY and not export.is_expired_at(datetime.fromtimestamp(self.clock(), timezone.utc))


def _ready_at(export: ContactExport) -> float:
    moment = export.completed_at or export.created_at
    return moment.timestamp() if moment else 0.0
