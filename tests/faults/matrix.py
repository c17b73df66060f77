"""The fault matrix: what can go wrong, and what a user of each door then gets. Pure data; `cells.py` proves it.

An outcome is ``ok`` (retried to success, or found), ``again <error>`` (the task fails with this error, and Airflow's
next try may well succeed), or ``never <error>`` (it fails for good, as `AirflowFailException`: somebody has to mend
something first). The hook raises the error itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from airflow_provider_sendgrid.emulator import Fault
from tests.faults.storage_proxy import StorageFault

Side = Literal["api", "files", "storage"]

# Under each of these, every fault that strikes a delivery strikes it again.
CONDITIONS: Final = ("overlapping run", "reordered URLs", "flipped byte", "checksums ignored", "no delete permission")
DOORS: Final = ("hook", "poke", "reschedule", "deferrable", "start", "deliver", *CONDITIONS)
_READS: Final = ("hook", "poke", "reschedule", "deferrable")
PASSING: Final = "twice"
LASTING: Final = "always"


@dataclass(frozen=True, slots=True)
class Row:
    """One fault, and what comes of it at each door that it can reach."""

    side: Side
    said: str
    times: str
    fault: Fault | StorageFault
    outcomes: Mapping[str, str]
    is_quick: bool = False

    @property
    def name(self) -> str:
        return f"{self.side}: {self.said}, {self.times}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One fault at one door."""

    row: Row
    door: str

    @property
    def outcome(self) -> str:
        outcome = self.row.outcomes[self.door]
        is_waited_out = self.door in _WAITS and self.row.times == LASTING and outcome in _MAY_PASS
        return "again AirflowSensorTimeout" if is_waited_out else outcome

    @property
    def name(self) -> str:
        return f"{self.row.name} at {self.door}"

    @property
    def outcomes(self) -> frozenset[str]:
        """What may come of it: a server that sends too much may close the connection that the next try is sent on."""
        closes = self.row.said == "a length too small" and self.outcome == _SERVER
        return frozenset({self.outcome, *([_UNAVAILABLE] if closes else [])})

    @property
    def is_quick(self) -> bool:
        """Whether it is part of the quick tests: some of every kind."""
        if self.door in CONDITIONS:
            return self.row.is_quick and self.row.said in _QUICK_UNDER_CONDITIONS
        return self.row.is_quick and (self.row.side != "api" or self.door in _QUICK_DOORS)


def _doors(reads: str, start: str, deliver: str | None = None) -> dict[str, str]:
    return {**dict.fromkeys(_READS, reads), "start": start, "deliver": deliver or reads}


_UNAVAILABLE: Final = "again SendGridUnavailableError"
_SERVER: Final = "again SendGridServerError"
_LIMITED: Final = "again SendGridRateLimitError"
_INCOMPLETE: Final = "again ExportIncompleteError"
# A wait goes on through these until its timeout.
_MAY_PASS: Final = frozenset({_UNAVAILABLE, _SERVER, _LIMITED})
_WAITS: Final = frozenset({"poke", "reschedule", "deferrable"})


def _refusal(error: str) -> dict[str, str]:
    return _doors(f"again {error}", f"never {error}", f"never {error}")


# What is said of it, the fault, what comes of it when it passes, what when it lasts (None: the same as when it passes).
_Api = tuple[str, Fault, dict[str, str], dict[str, str] | None]
_FINE: Final = _doors("ok", "ok")
_API: Final[tuple[_Api, ...]] = (
    ("connection closed", Fault("refuse"), _FINE, _doors(_UNAVAILABLE, _UNAVAILABLE)),
    ("connection reset", Fault("reset"), _FINE, _doors(_UNAVAILABLE, _UNAVAILABLE)),
    ("no answer", Fault("hang"), _FINE, _doors(_UNAVAILABLE, _UNAVAILABLE)),
    ("a late answer", Fault("delay", seconds=0.05), _FINE, _FINE),
    ("a trickle of an answer", Fault("trickle", bytes_per_second=50), _FINE, _doors(_UNAVAILABLE, "ok")),
    (
        "429, Reset is an epoch",
        Fault("status", status=429, seconds=1, rate_limit_reset="epoch"),
        _FINE,
        _doors(_LIMITED, _LIMITED),
    ),
    (
        "429, Reset is seconds",
        Fault("status", status=429, seconds=1, rate_limit_reset="seconds"),
        _FINE,
        _doors(_LIMITED, _LIMITED),
    ),
    ("429, Retry-After", Fault("status", status=429, retry_after=7), _FINE, _doors(_LIMITED, _LIMITED)),
    ("429, that is all", Fault("status", status=429), _FINE, _doors(_LIMITED, _LIMITED)),
    ("400", Fault("status", status=400), _refusal("SendGridBadRequestError"), None),
    ("401", Fault("status", status=401), _refusal("SendGridAuthError"), None),
    ("403", Fault("status", status=403), _FINE, _refusal("SendGridPermissionError")),
    (
        "404",
        Fault("status", status=404),
        _doors("ok", "never SendGridNotFoundError"),
        _refusal("SendGridNotFoundError"),
    ),
    ("500", Fault("status", status=500), _FINE, _doors(_SERVER, _SERVER)),
    ("502 with a page of HTML", Fault("html", status=502), _FINE, _doors(_SERVER, _SERVER)),
    ("503", Fault("status", status=503), _FINE, _doors(_SERVER, _SERVER)),
    ("200 with a page of HTML", Fault("html"), _FINE, _doors(_SERVER, _SERVER)),
    ("200 with null", Fault("body", message="null"), _FINE, _doors(_SERVER, _SERVER)),
    ("an empty answer", Fault("empty"), _FINE, _doors(_SERVER, "ok")),
    ("half of the JSON", Fault("broken_json"), _FINE, _doors(_SERVER, "ok")),
    ("a damaged byte", Fault("corrupt", at=0), _FINE, _doors(_SERVER, "ok")),
    ("a lost answer", Fault("lost"), _FINE, _doors(_UNAVAILABLE, "ok")),
    ("a lost answer, reset", Fault("lost", with_reset=True), _FINE, _doors(_UNAVAILABLE, "ok")),
    ("an answer cut in the middle", Fault("cut"), _FINE, _doors(_UNAVAILABLE, "ok")),
    ("a length too large", Fault("wrong_length"), _FINE, _doors(_UNAVAILABLE, "ok")),
    ("a length too small", Fault("wrong_length", at=-10), _FINE, _doors(_SERVER, "ok")),
    (
        "a redirect to another host",
        Fault("redirect", location="http://elsewhere.example/"),
        _FINE,
        _doors(_SERVER, _SERVER),
    ),
    ("JSON without end", Fault("endless"), _FINE, _doors(_SERVER, _SERVER)),
    ("a header without end", Fault("endless_header"), _FINE, _doors(_UNAVAILABLE, _UNAVAILABLE)),
    ("1 GB of blanks in 1 MB of gzip", Fault("bomb"), _FINE, _doors(_SERVER, _SERVER)),
    (
        "files offered over plain HTTP",
        Fault("other_host", location="http://elsewhere.example"),
        {"deliver": _SERVER},
        None,
    ),
)
_QUICK_UNDER_CONDITIONS: Final = ("a damaged byte to UploadPart", "a lost answer to CompleteMultipartUpload")
_QUICK_DOORS: Final = ("hook", "deferrable", "start")
_API_QUICK: Final = ("no answer", "429, Reset is an epoch", "500", "a lost answer", "401", "half of the JSON")

# The same for SendGrid's file storage, at the one door that fetches files.
_Files = tuple[str, Fault, str, str | None]
_FILES: Final[tuple[_Files, ...]] = (
    ("connection closed", Fault("refuse"), "ok", _INCOMPLETE),
    ("connection reset", Fault("reset"), "ok", _INCOMPLETE),
    ("no answer", Fault("hang"), "ok", _INCOMPLETE),
    ("a late answer", Fault("delay", seconds=0.05), "ok", "ok"),
    ("a trickle", Fault("trickle", bytes_per_second=500), "ok", _INCOMPLETE),
    ("the URL has expired", Fault("expire"), "ok", _INCOMPLETE),
    ("403", Fault("status", status=403), "ok", _INCOMPLETE),
    ("404", Fault("status", status=404), "ok", _INCOMPLETE),
    ("429", Fault("status", status=429), "ok", _INCOMPLETE),
    ("500", Fault("status", status=500), "ok", _INCOMPLETE),
    ("503", Fault("status", status=503), "ok", _INCOMPLETE),
    ("a lost answer", Fault("lost"), "ok", _INCOMPLETE),
    ("an empty answer, and honest about it", Fault("empty"), _INCOMPLETE, _INCOMPLETE),
    ("cut after 1.2 MB", Fault("cut", at=1_200_000), "ok", "ok"),
    ("cut after 1.2 MB by a reset", Fault("cut", at=1_200_000, with_reset=True), "ok", None),
    ("cut after 100 kB", Fault("cut", at=100_000), "ok", _INCOMPLETE),
    ("cut after 50 bytes", Fault("cut", at=50), "ok", _INCOMPLETE),
    ("a length too large", Fault("wrong_length"), "ok", "again FileChangedError"),
    ("a length too small (gzip)", Fault("wrong_length", at=-10), _INCOMPLETE, _INCOMPLETE),
    ("another range than asked for", Fault("wrong_range"), "ok", "ok"),
    ("a redirect to plain HTTP elsewhere", Fault("redirect", location="http://elsewhere.example/"), _SERVER, _SERVER),
    ("a redirect in a circle", Fault("redirect", location="?"), "ok", _INCOMPLETE),
    ("ranges ignored", Fault("no_ranges"), "ok", "ok"),
    ("a header without end", Fault("endless_header"), "ok", _INCOMPLETE),
    ("a body without end", Fault("endless"), _INCOMPLETE, _INCOMPLETE),
    ("truncated, and honest about it", Fault("truncate", at=60_000), _INCOMPLETE, _INCOMPLETE),
    ("a damaged byte (gzip)", Fault("corrupt", at=30_000), _INCOMPLETE, _INCOMPLETE),
    ("200 with a page of HTML", Fault("html"), _INCOMPLETE, _INCOMPLETE),
    ("64 MB of blanks in 64 kB of gzip", Fault("bomb", at=64), _INCOMPLETE, _INCOMPLETE),
)
_FILES_QUICK: Final = ("cut after 100 kB", "a damaged byte (gzip)")

# The same for S3, by operation; those that come twice are repeated by boto3 or by us.
_FAILED: Final = "again DestinationError"
_REFUSED: Final = "never DestinationRefusedError"
_PARTS: Final = ("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload")
_READING: Final = ("HeadObject", "GetObject")
_Storage = tuple[str, str, tuple[str, ...], str, str | None]
_STORAGE: Final[tuple[_Storage, ...]] = (
    ("503 SlowDown", "slow_down", (*_PARTS, *_READING), "ok", _FAILED),
    ("500", "internal_error", _PARTS, "ok", _FAILED),
    ("500 inside a 200", "error_in_200", ("CompleteMultipartUpload",), "ok", _FAILED),
    ("connection reset", "reset", (*_PARTS, "HeadObject"), "ok", _FAILED),
    ("a lost answer", "lost", ("UploadPart", "CreateMultipartUpload"), "ok", _FAILED),
    # What was stored all the same is found.
    ("a lost answer", "lost", ("PutObject", "CompleteMultipartUpload"), "ok", "ok"),
    ("a late answer", "delay", _PARTS, "ok", "ok"),
    ("a damaged byte", "corrupt", ("PutObject", "UploadPart"), "ok", _FAILED),
    ("another CRC32", "wrong_crc32", ("PutObject", "UploadPart"), "ok", _FAILED),
    ("ExpiredToken", "expired_token", (*_PARTS, "GetObject"), _FAILED, _FAILED),
    ("AccessDenied", "access_denied", (*_PARTS, *_READING), _REFUSED, _REFUSED),
    ("AccessDenied", "access_denied", ("ListMultipartUploads",), "ok", "ok"),
    ("NoSuchBucket", "no_such_bucket", ("PutObject", "CreateMultipartUpload", "GetObject"), _REFUSED, _REFUSED),
    ("InvalidAccessKeyId", "unknown_key", ("GetObject", "UploadPart"), _REFUSED, _REFUSED),
)
_STORAGE_QUICK: Final = (
    ("500 inside a 200", "CompleteMultipartUpload"),
    ("a damaged byte", "UploadPart"),
    ("NoSuchBucket", "GetObject"),
    ("a lost answer", "CompleteMultipartUpload"),
    ("a lost answer", "CreateMultipartUpload"),
)


# Where a condition changes the outcome: the fault, how often, the condition.
_EXCEPTIONS: Final[Mapping[tuple[str, str, str], str]] = {
    # The bytes are right.
    ("another CRC32 to PutObject", LASTING, "checksums ignored"): "ok",
    ("another CRC32 to UploadPart", LASTING, "checksums ignored"): "ok",
}


def rows() -> Iterator[Row]:
    """All of them, in the order of the table."""
    for said, fault, passing, lasting in _API:
        is_quick = said in _API_QUICK
        yield Row("api", said, PASSING, _timed(fault, 2), passing, is_quick)
        if lasting is not None:
            yield Row("api", said, LASTING, fault, lasting)
    for said, fault, once, always in _FILES:
        yield Row("files", said, PASSING, _timed(fault, 2), _delivered(once, said, PASSING), said in _FILES_QUICK)
        if always is not None:
            yield Row("files", said, LASTING, fault, _delivered(always, said, LASTING))
    for said, kind, operations, once, always in _STORAGE:
        for operation in operations:
            is_quick = (said, operation) in _STORAGE_QUICK
            told = f"{said} to {operation}"
            twice = StorageFault(kind, operation, first=2)
            yield Row("storage", told, PASSING, twice, _delivered(once, told, PASSING), is_quick)
            if always is not None:
                yield Row("storage", told, LASTING, StorageFault(kind, operation), _delivered(always, told, LASTING))


def _delivered(outcome: str, said: str, times: str) -> dict[str, str]:
    """The outcome of a delivery, and under each condition: the same, with few exceptions."""
    under = {condition: _EXCEPTIONS.get((said, times, condition), outcome) for condition in CONDITIONS}
    return {"deliver": outcome, **under}


def cells() -> Iterator[Cell]:
    """Each fault at each door that it can reach."""
    for row in rows():
        for door in row.outcomes:
            yield Cell(row, door)


def _timed(fault: Fault, first: int) -> Fault:
    return Fault.from_payload({**fault.as_json(), "first": first})


_TITLES: Final = {"api": "SendGrid's API", "files": "SendGrid's file storage", "storage": "S3"}
_DOOR_TITLES: Final = ("hook", "sensor: poke", "reschedule", "deferrable", "start", "delivery", *CONDITIONS)


def summary() -> str:
    """How many faults and cells there are, and how they end, in Markdown."""
    lines = ["| where | faults | cells | ok | fail | stop |", "|---|---:|---:|---:|---:|---:|"]
    every = list(cells())
    for side, title in {**_TITLES, "": "all"}.items():
        chosen = [cell for cell in every if cell.row.side.startswith(side)]
        ends = Counter(_shown(cell.outcome, cell.door).partition(":")[0] for cell in chosen)
        faults = len({cell.row.name for cell in chosen})
        counts = " | ".join(f"{count:,}" for count in (faults, len(chosen), ends["ok"], ends["fail"], ends["stop"]))
        lines.append(f"| {title} | {counts} |")
    return "\n".join(lines)


def table() -> str:
    """The whole matrix, in Markdown."""
    lines = [f"| what goes wrong | how often | {' | '.join(_DOOR_TITLES)} |", "|---|---|" + "---|" * len(DOORS)]
    side = ""
    for row in rows():
        if row.side != side:
            side = row.side
            lines.append(f"| **{_TITLES[side]}** | | {' | '.join([''] * len(DOORS))} |")
        shown = " | ".join(_shown(row.outcomes.get(door), door) for door in DOORS)
        lines.append(f"| {row.said} | {row.times} | {shown} |")
    return "\n".join(lines)


def _shown(outcome: str | None, door: str) -> str:
    if outcome is None:
        return "—"
    kind, _, error = outcome.partition(" ")
    if kind == "ok":
        return "ok"
    short = error.removeprefix("SendGrid").removesuffix("Error")
    return f"{'stop' if kind == 'never' and door != 'hook' else 'fail'}: {short}"
