"""A SendGrid account: its lists and segments, and the life of its exports.

Knows who is on which list and what becomes of an export when. Must not know HTTP, JSON or files; the time
is told to it.

| outcome of a list | its export |
|---|---|
| `ready` | pending for `ready_after` seconds, then ready |
| `failure` | pending, then failure with the list's message |
| `stuck` | pending for ever |
| `expired` | ready, with files that are already gone |
| `unknown:<status>` | pending, then a status nobody has heard of |
"""

from __future__ import annotations

import threading
import uuid
from dataclasses import dataclass
from typing import Final, Literal, get_args

from .contacts import FileType
from .spool import Ranges

Family = Literal["marketing", "legacy"]
Kind = Literal["list", "segment"]

FAMILIES: Final[tuple[Family, ...]] = get_args(Family)
FILE_LIFETIME_SECONDS: Final = 12 * 3600
DEFAULT_MESSAGE: Final = "the export failed; please try again"
_OUTCOMES: Final = ("ready", "failure", "stuck", "expired")
_ID_SPACE: Final = uuid.UUID("5e4d9a1d-0000-4000-8000-000000000000")


@dataclass(frozen=True, slots=True)
class Audience:
    """A list or a segment; `first` and `contacts` say which contacts are in it."""

    kind: Kind
    family: Family
    id: str | int
    name: str
    first: int
    contacts: int
    outcome: str = "ready"
    message: str = DEFAULT_MESSAGE
    ready_after: float | None = None


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
    def expires(self) -> float:
        """The epoch at which the files are gone."""
        return self.created + (-1 if self.outcome == "expired" else FILE_LIFETIME_SECONDS)

    def status(self, now: float, *, is_spooled: bool) -> str:
        """Return the status that SendGrid gives at this time."""
        kind, _, name = self.outcome.partition(":")
        if kind == "stuck" or now < self.completed:
            return "pending"
        if kind in ("failure", "unknown"):
            return name or "failure"
        return "ready" if is_spooled else "pending"


class Account:
    """Lists, segments and exports of both families; safe to use from many threads."""

    def __init__(self, seed: int, contacts: int = 0) -> None:
        self._seed = seed
        self._at_least = contacts
        self._audiences: list[Audience] = []
        self._exports: dict[str, Export] = {}
        self._lock = threading.RLock()

    def add_audience(
        self,
        kind: Kind,
        name: str,
        *,
        contacts: int,
        family: Family,
        outcome: str = "ready",
        message: str = DEFAULT_MESSAGE,
        ready_after: float | None = None,
    ) -> Audience:
        """Add a list, which has contacts of its own, or a segment, which holds the account's first ones.

        Raises:
            ValueError: for a family or an outcome that does not exist, or a negative number of contacts.
        """
        _check(family, outcome, contacts)
        with self._lock:
            first = 0 if kind == "segment" else self._end_of_lists(family)
            new_id = self._new_id(kind, name, family)
            audience = Audience(kind, family, new_id, name, first, contacts, outcome, message, ready_after)
            self._audiences.append(audience)
        return audience

    def audiences(self, family: Family, kind: Kind) -> list[Audience]:
        """Return the lists or the segments of a family, in the order they were added."""
        with self._lock:
            return [each for each in self._audiences if (each.family, each.kind) == (family, kind)]

    def start_export(
        self,
        family: Family,
        audiences: tuple[Audience, ...],
        file_type: FileType,
        *,
        now: float,
        ready_after: float,
    ) -> Export:
        """Start an export of these lists and segments, or of every contact when there are none."""
        waits = [each.ready_after for each in audiences if each.ready_after is not None]
        with self._lock:
            export = Export(
                id=str(uuid.uuid4()),
                family=family,
                created=now,
                audiences=audiences,
                ranges=self._ranges(family, audiences),
                file_type=file_type,
                ready_after=max(waits, default=ready_after),
            )
            self._exports[export.id] = export
        return export

    def export(self, export_id: str) -> Export | None:
        """Return an export by its id."""
        with self._lock:
            return self._exports.get(export_id)

    def exports(self, family: Family | None = None) -> list[Export]:
        """Return all exports of a family, the latest first."""
        with self._lock:
            return [each for each in reversed(self._exports.values()) if family in (None, each.family)]

    def _end_of_lists(self, family: Family) -> int:
        return sum(each.contacts for each in self.audiences(family, "list"))

    def _new_id(self, kind: Kind, name: str, family: Family) -> str | int:
        number = len(self._audiences)
        if family == "legacy":
            return 1001 + number
        return str(uuid.uuid5(_ID_SPACE, f"{self._seed}/{kind}/{name}/{number}"))

    def _ranges(self, family: Family, audiences: tuple[Audience, ...]) -> Ranges:
        """Return the contacts of all that was chosen, each once."""
        if audiences:
            return _merged([(each.first, each.first + each.contacts) for each in audiences])
        segments = [each.contacts for each in self.audiences(family, "segment")]
        return _merged([(0, max([self._at_least, self._end_of_lists(family), *segments]))])


def _check(family: str, outcome: str, contacts: int) -> None:
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, not {family!r}")
    if outcome not in _OUTCOMES and not outcome.startswith("unknown:"):
        raise ValueError(
            f"outcome must be one of {', '.join(_OUTCOMES)} or unknown:<status>, not {outcome!r}"
        )
    if contacts < 0:
        raise ValueError(f"contacts must be 0 or more, not {contacts}")


def _merged(ranges: list[tuple[int, int]]) -> Ranges:
    merged: list[tuple[int, int]] = []
    for first, end in sorted(each for each in ranges if each[0] < each[1]):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((first, end))
    return tuple(merged)
