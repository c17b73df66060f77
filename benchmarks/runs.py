"""What runs say: medians, ratios of runs in turn, and whether a bar is met. Pure arithmetic."""

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
    """One run of one contender: seconds, CPU seconds, bytes of memory at the highest."""

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
    """Of runs in turn: each run of `name` against the run of `other` in the same round."""
    pairs = zip(values(runs, name, quantity), values(runs, other, quantity), strict=False)
    return Spread.of([one / another for one, another in pairs])


@dataclass(frozen=True)
class Bar:
    """What must be seen.

    Attributes:
        text: the bar in words.
        needs: the contenders it is about; where one is missing, it cannot be judged.
        measure: answers the number to judge.
        most: the highest number that meets the bar, or
        least: the lowest.
    """

    text: str
    needs: tuple[str, ...]
    measure: Callable[[Runs], Spread]
    most: float | None = None
    least: float | None = None

    def judge(self, runs: Runs) -> Judgement:
        if any(not runs.get(name) for name in self.needs):
            return Judgement(self.text, None, None)
        seen = self.measure(runs)
        is_low_enough = self.most is None or seen.middle <= self.most
        is_high_enough = self.least is None or seen.middle >= self.least
        return Judgement(self.text, seen, is_low_enough and is_high_enough)


@dataclass(frozen=True)
class Judgement:
    """A bar beside what was seen; None where nothing was."""

    text: str
    seen: Spread | None
    is_met: bool | None


def ratio_bar(text: str, name: str, other: str, *, most: float | None = None, least: float | None = None) -> Bar:
    return Bar(text, (name, other), lambda runs: ratio(runs, name, other), most, least)


def speedup_bar(text: str, name: str, other: str, *, least: float) -> Bar:
    """How many times as fast as the other."""
    return Bar(text, (name, other), lambda runs: ratio(runs, other, name), least=least)


def cpu_bar(text: str, name: str, size: int, *, most: float) -> Bar:
    """CPU seconds per GiB."""
    return Bar(
        text,
        (name,),
        lambda runs: Spread.of([seconds * GIB / size for seconds in values(runs, name, "cpu")]),
        most=most,
    )


def rate_bar(text: str, name: str, without: str, size: int, *, least: float) -> Bar:
    """MB a CPU second, of the CPU time that `name` uses more than `without`."""

    def rates(runs: Runs) -> Spread:
        pairs = zip(values(runs, name, "cpu"), values(runs, without, "cpu"), strict=False)
        return Spread.of([size / 1e6 / max(one - another, 1e-9) for one, another in pairs])

    return Bar(text, (name, without), rates, least=least)


def memory_bar(text: str, name: str, imports: str, *, most: float) -> Bar:
    """MiB that a run needs more than imports alone."""

    def more(runs: Runs) -> Spread:
        floor = median(values(runs, imports, "peak"))
        return Spread.of([(peak - floor) / MIB for peak in values(runs, name, "peak")])

    return Bar(text, (name, imports), more, most=most)
