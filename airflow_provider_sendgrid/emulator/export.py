"""One export and its life.

Knows what an export is by now, when told the time. Must not know its files, nor JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .audience import Audience, Family
from .contacts import FileType
from .spool import Ranges

FILE_LIFETIME_SECONDS: Final = 12 * 3600


@dataclass(frozen=True, slots=True)
class Export:
    """One export as it was started; what it is by now is a question of the time."""

    id: str
    family: Family
    created: float
    audiences: tuple[Audience, ...]
    ranges: Ranges
    file_type: FileType
    ready_after: float

    @property
    def export_type(self) -> str:
        """What was chosen: `contacts_export`, `list_export` or `segment_export`."""
        kinds = {audience.kind for audience in self.audiences}
        return "list_export" if "list" in kinds else "segment_export" if kinds else "contacts_export"

    @property
    def culprit(self) -> Audience | None:
        """The first chosen list or segment that spoils the export."""
        return next((audience for audience in self.audiences if audience.outcome != "ready"), None)

    @property
    def outcome(self) -> str:
        """What it comes to."""
        return self.culprit.outcome if self.culprit else "ready"

    @property
    def completed(self) -> float:
        """The epoch at which it is ready or has failed."""
        return self.created + self.ready_after

    @property
    def shown_created(self) -> float:
        """The epoch that SendGrid shows as `created_at`; an expired export is shown as old as its files."""
        return self.created - (FILE_LIFETIME_SECONDS + 1 if self.outcome == "expired" else 0)

    @property
    def expires(self) -> float:
        """The epoch at which the files are gone."""
        return self.shown_created + FILE_LIFETIME_SECONDS

    def status(self, now: float, *, is_spooled: bool) -> str:
        """Return the status that SendGrid gives at this time."""
        kind, _, name = self.outcome.partition(":")
        if kind == "stuck" or now < self.completed:
            return "pending"
        if kind in ("failure", "unknown"):
            return name or "failure"
        return "ready" if is_spooled else "pending"
