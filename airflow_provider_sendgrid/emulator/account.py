"""A SendGrid account: its lists, its segments and its exports.

Knows which contacts are on which list. Must not know HTTP, JSON, files or clocks.
"""

from __future__ import annotations

import threading
import uuid
from typing import Final

from .audience import Audience, Family, Kind, NewAudience
from .contacts import FileType
from .export import Export
from .spool import Ranges

_ID_NAMESPACE: Final = uuid.UUID("5e4d9a1d-0000-4000-8000-000000000000")


class Account:
    """Lists, segments and exports of both families; safe to use from many threads."""

    def __init__(self, seed: int, contacts: int = 0) -> None:
        self._seed = seed
        self._min_contacts = contacts
        self._audiences: list[Audience] = []
        self._exports: dict[str, Export] = {}
        self._lock = threading.RLock()

    def add_audience(self, kind: Kind, new: NewAudience) -> Audience:
        """Add a list, which has its own contacts, or a segment, which holds the account's first contacts."""
        with self._lock:
            audience = Audience(
                kind=kind,
                id=self._new_id(kind, new.name, new.family),
                first=0 if kind == "segment" else self._end_of_lists(new.family),
                family=new.family,
                name=new.name,
                contacts=new.contacts,
                outcome=new.outcome,
                message=new.message,
                ready_after=new.ready_after,
                first_api=new.first_api,
            )
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
        return str(uuid.uuid5(_ID_NAMESPACE, f"{self._seed}/{kind}/{name}/{number}"))

    def _ranges(self, family: Family, audiences: tuple[Audience, ...]) -> Ranges:
        """Return the contacts of the chosen lists and segments, each once."""
        if audiences:
            return _merged([(each.first, each.first + each.contacts) for each in audiences])
        segments = [each.contacts for each in self.audiences(family, "segment")]
        return _merged([(0, max([self._min_contacts, self._end_of_lists(family), *segments]))])


def _merged(ranges: list[tuple[int, int]]) -> Ranges:
    merged: list[tuple[int, int]] = []
    for first, end in sorted(each for each in ranges if each[0] < each[1]):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((first, end))
    return tuple(merged)
