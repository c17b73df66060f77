"""One export and its status over time.

Knows an export's status at a given time. Must not know its files, nor JSON.
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
    """One export as it was started; `status` depends on the time."""

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
    def failing_audience(self) -> Audience | None:
        """The first chosen list or segment whose outcome is not `ready`."""
        return next((audience for audience in self.audiences if audience.outcome != "ready"), None)

    @property
    def outcome(self) -> str:
        """The outcome; see `audience.py`."""
        return self.failing_audience.outcome if self.failing_audience else "ready"

    @property
    def completed(self) -> float:
        """When it is ready or has failed, as an epoch."""
        return self.created + self.ready_after

    @property
    def shown_created(self) -> float:
        """SendGrid's `created_at`, as an epoch; that of an expired export is more than a file's lifetime ago."""
        return self.created - (FILE_LIFETIME_SECONDS + 1 if self.outcome == "expired" else 0)

    @property
    def expires(self) -> float:
        """When the files are deleted, as an epoch."""
        return self.shown_created + FILE_LIFETIME_SECONDS

    def status(self, now: float, *, is_spooled: bool) -> str:
        """Return the status that SendGrid gives at this time."""
        kind, _, name = self.outcome.partition(":")
        if kind == "stuck" or now < self.completed:
            return "pending"
        if kind in ("failure", "unknown"):
            return name or "failure"
        return "ready" if is_spooled else "pending"
