"""What is known about the start of an export: earlier attempts, concurrent starts and whose clock was read.

Holds values only; the rules that use them are in `start_search` and `start`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit

from airflow_provider_sendgrid.exports.export import ContactExport


class Clock(str, Enum):
    """Whose clock `Attempt.since` was read from."""

    SENDGRID = "sendgrid"
    WORKER = "worker"
    RUN = "run"


# SendGrid's times are whole seconds.
ROUNDING_SECONDS = 2.0
# How much earlier than `since` an export of this start may appear to be, in seconds. SendGrid's machines differ a
# little; clocks of different machines may be minutes apart.
MARGIN_SECONDS = {Clock.SENDGRID: 30.0, Clock.WORKER: 600.0 + ROUNDING_SECONDS, Clock.RUN: 600.0 + ROUNDING_SECONDS}


@dataclass(frozen=True, slots=True)
class PendingStart:
    """Another task that is starting an export of the same lists and segments and has no export id yet.

    Attributes:
        name: of the task.
        since: SendGrid's time before its first POST, in seconds since the epoch; None if unknown.
        file_type: of its export; empty if unknown.
    """

    name: str
    since: float | None = None
    file_type: str = ""

    def may_own(self, export: ContactExport) -> bool:
        """Whether this task may have started `export`."""
        is_too_old = self.since is not None and created_seconds(export) < self.since - MARGIN_SECONDS[Clock.SENDGRID]
        return not is_too_old and (not self.file_type or file_types(export) <= {self.file_type})


@dataclass(frozen=True, slots=True)
class ConcurrentStarts:
    """The starts in other tasks.

    Attributes:
        ids: exports that belong to other tasks.
        starting: tasks that are starting an export of the same lists and segments.
        file_types: of all exports of the same lists and segments that other tasks started or are starting.
        is_complete: whether all other tasks could be read.
    """

    ids: Collection[str] = ()
    starting: Sequence[PendingStart] = ()
    file_types: Collection[str] = ()
    is_complete: bool = True


@dataclass(frozen=True, slots=True)
class Baseline:
    """SendGrid's time and exports before the first POST of a start.

    Attributes:
        since: seconds since the epoch.
        clock: SendGrid's; the worker's if SendGrid sent no time.
        known_ids: exports of the same lists and segments that existed before; None if they could not be listed.
    """

    since: float
    clock: Clock
    known_ids: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a task to start an export, and what earlier attempts recorded.

    Attributes:
        since: the start began at this time or later, in seconds since the epoch.
        is_retry: an earlier attempt may have started the export.
        concurrent_starts: reads the announcements of other tasks; called each time an export was found.
        clock: whose clock `since` is from.
        known_ids: exports of the same lists and segments that existed before the first attempt. In the first attempt:
            those that its baseline may lack. None if unknown. If it is None or the clock is `Clock.RUN`, an export
            that is older than `since` leaves the start in doubt, even within the margin.
        export_id: the export that an earlier attempt started. It is kept if it is usable.
        save_baseline: receives the baseline before the first POST; without it, no baseline is read.
    """

    since: float
    is_retry: bool = False
    concurrent_starts: Callable[[], ConcurrentStarts] = ConcurrentStarts
    clock: Clock = Clock.WORKER
    known_ids: Collection[str] | None = ()
    export_id: str = ""
    save_baseline: Callable[[Baseline], None] | None = None

    @property
    def has_baseline(self) -> bool:
        """Whether `known_ids` are all exports that existed before."""
        has_read_baseline = self.is_retry or self.save_baseline is not None
        return self.known_ids is not None and self.clock is not Clock.RUN and has_read_baseline


def created_seconds(export: ContactExport) -> float:
    """When the export was created, in seconds since the epoch; infinite if unknown."""
    return export.created_at.timestamp() if export.created_at else float("inf")


def file_types(export: ContactExport) -> set[str]:
    """The types in the names of its files; empty before it is ready."""
    names = [urlsplit(url).path.rpartition("/")[2].lower() for url in export.urls]
    return {kind for name in names for kind in ("csv", "json") if f".{kind}" in name}
