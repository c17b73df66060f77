"""Medians and ratios of runs, and whether goals are met."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, TypeAlias

GIB = 1024**3
MIB = 1024**2

Quantity: TypeAlias = Literal["wall", "cpu", "peak"]


@dataclass(frozen=True)
class Run:
    """One run of one program: seconds, CPU seconds, bytes of peak memory."""

    wall: float
    cpu: float
    peak: float


Runs: TypeAlias = Mapping[str, Sequence[Run]]


@dataclass(frozen=True)
class Spread:
    """A median, with the lowest and the highest."""

    middle: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))


def values(runs: Runs, name: str, quantity: Quantity) -> list[float]:
    return [getattr(run, quantity) for run in runs[name]]


def ratio(runs: Runs, name: str, other: str, quantity: Quantity = "wall") -> Spread:
    """The ratio of each run of `name` to the run of `other` in the same round."""
    pairs = zip(values(runs, name, quantity), values(runs, other, quantity), strict=False)
    return Spread.of([one / another for one, another in pairs])


@dataclass(frozen=True)
class Goal:
    """An expected result.

    Attributes:
        text: its description.
        needs: its programs; if one is missing, it is not evaluated.
        measure: returns the number to evaluate.
        most: the highest number that meets the goal, or
        least: the lowest.
    """

    text: str
    needs: tuple[str, ...]
    measure: Callable[[Runs], Spread]
    most: float | None = None
    least: float | None = None

    def evaluate(self, runs: Runs) -> GoalResult:
        if any(not runs.get(name) for name in self.needs):
            return GoalResult(self.text, None, None)
        seen = self.measure(runs)
        is_low_enough = self.most is None or seen.middle <= self.most
        is_high_enough = self.least is None or seen.middle >= self.least
        return GoalResult(self.text, seen, is_low_enough and is_high_enough)


@dataclass(frozen=True)
class GoalResult:
    """A goal and the measured number; None without runs."""

    text: str
    seen: Spread | None
    is_met: bool | None


def ratio_goal(text: str, name: str, other: str, *, most: float | None = None, least: float | None = None) -> Goal:
    return Goal(text, (name, other), lambda runs: ratio(runs, name, other), most, least)


def speedup_goal(text: str, name: str, other: str, *, least: float) -> Goal:
    """How many times as fast as the other."""
    return Goal(text, (name, other), lambda runs: ratio(runs, other, name), least=least)


def cpu_goal(text: str, name: str, size: int, *, most: float) -> Goal:
    """CPU seconds per GiB."""
    return Goal(
        text,
        (name,),
        lambda runs: Spread.of([seconds * GIB / size for seconds in values(runs, name, "cpu")]),
        most=most,
    )


def rate_goal(text: str, name: str, without: str, size: int, *, least: float) -> Goal:
    """MB per CPU second, of the CPU time that `name` needs in addition to `without`."""

    def rates(runs: Runs) -> Spread:
        pairs = zip(values(runs, name, "cpu"), values(runs, without, "cpu"), strict=False)
        return Spread.of([size / 1e6 / max(one - another, 1e-9) for one, another in pairs])

    return Goal(text, (name, without), rates, least=least)


def memory_goal(text: str, name: str, imports: str, *, most: float) -> Goal:
    """MiB that a run needs more than imports alone."""

    def more(runs: Runs) -> Spread:
        floor = median(values(runs, imports, "peak"))
        return Spread.of([(peak - floor) / MIB for peak in values(runs, name, "peak")])

    return Goal(text, (name, imports), more, most=most)
