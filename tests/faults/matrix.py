"""The fault matrix: each fault, and its outcome at each entry point. Only data; `cell_checks.py` checks it.

An outcome is ``ok`` (retried to success, or found), ``fail <error>`` (the task fails with this error, and Airflow's
next try may succeed), or ``stop <error>`` (it fails permanently, as `AirflowFailException`: someone must fix something
first). The hook raises the error itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from airflow_provider_sendgrid.emulator import Fault
from tests.support.storage_proxy import StorageFault

Side = Literal["api", "files", "storage"]

# Every fault of a delivery is repeated under each of these conditions.
CONDITIONS: Final = ("overlapping run", "reordered URLs", "flipped byte", "checksums ignored", "no delete permission")
ENTRY_POINTS: Final = ("hook", "poke", "reschedule", "deferrable", "start", "deliver", *CONDITIONS)
_READS: Final = ("hook", "poke", "reschedule", "deferrable")
PASSING: Final = "twice"
LASTING: Final = "always"


@dataclass(frozen=True, slots=True)
class Row:
    """One fault, and its outcome at each entry point that it can affect."""

    side: Side
    title: str
    times: str
    fault: Fault | StorageFault
    outcomes: Mapping[str, str]
    is_quick: bool = False

    @property
    def name(self) -> str:
        return f"{self.side}: {self.title}, {self.times}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One fault at one entry point."""

    row: Row
    entry_point: str

    @property
    def outcome(self) -> str:
        outcome = self.row.outcomes[self.entry_point]
        is_waited_out = self.entry_point in _WAITS and self.row.times == LASTING and outcome in _TEMPORARY
        return "fail AirflowSensorTimeout" if is_waited_out else outcome

    @property
    def name(self) -> str:
        return f"{self.row.name} at {self.entry_point}"

    @property
    def outcomes(self) -> frozenset[str]:
        """The possible outcomes: a server that sends too much may close the connection before the next try uses it."""
        closes = self.row.title == "a length too small" and self.outcome == _SERVER
        return frozenset({self.outcome, *([_UNAVAILABLE] if closes else [])})

    @property
    def is_quick(self) -> bool:
        """Whether it is one of the quick tests, which have some cells of every kind."""
        if self.entry_point in CONDITIONS:
            return self.row.is_quick and self.row.title in _QUICK_UNDER_CONDITIONS
        return self.row.is_quick and (self.row.side != "api" or self.entry_point in _QUICK_ENTRY_POINTS)


def _outcomes(reads: str, start: str, deliver: str | None = None) -> dict[str, str]:
    return {**dict.fromkeys(_READS, reads), "start": start, "deliver": deliver or reads}


_UNAVAILABLE: Final = "fail SendGridUnavailableError"
_SERVER: Final = "fail SendGridServerError"
_LIMITED: Final = "fail SendGridRateLimitError"
_INCOMPLETE: Final = "fail ExportIncompleteError"
# A wait continues through these until its timeout.
_TEMPORARY: Final = frozenset({_UNAVAILABLE, _SERVER, _LIMITED})
_WAITS: Final = frozenset({"poke", "reschedule", "deferrable"})


def _refusal(error: str) -> dict[str, str]:
    return _outcomes(f"fail {error}", f"stop {error}", f"stop {error}")


# Title, fault, outcome if it is temporary, outcome if it is permanent (None: the same as if temporary).
_Api = tuple[str, Fault, dict[str, str], dict[str, str] | None]
_OK: Final = _outcomes("ok", "ok")
_API: Final[tuple[_Api, ...]] = (
    ("connection closed", Fault("refuse"), _OK, _outcomes(_UNAVAILABLE, _UNAVAILABLE)),
    ("connection reset", Fault("reset"), _OK, _outcomes(_UNAVAILABLE, _UNAVAILABLE)),
    ("no response", Fault("hang"), _OK, _outcomes(_UNAVAILABLE, _UNAVAILABLE)),
    ("a late response", Fault("delay", seconds=0.05), _OK, _OK),
    ("a slow response", Fault("trickle", bytes_per_second=50), _OK, _outcomes(_UNAVAILABLE, "ok")),
    (
        "429, Reset is an epoch",
        Fault("status", status=429, seconds=1, rate_limit_reset="epoch"),
        _OK,
        _outcomes(_LIMITED, _LIMITED),
    ),
    (
        "429, Reset is seconds",
        Fault("status", status=429, seconds=1, rate_limit_reset="seconds"),
        _OK,
        _outcomes(_LIMITED, _LIMITED),
    ),
    ("429, Retry-After", Fault("status", status=429, retry_after=7), _OK, _outcomes(_LIMITED, _LIMITED)),
    ("429 without headers", Fault("status", status=429), _OK, _outcomes(_LIMITED, _LIMITED)),
    ("400", Fault("status", status=400), _refusal("SendGridBadRequestError"), None),
    ("401", Fault("status", status=401), _refusal("SendGridAuthError"), None),
    ("403", Fault("status", status=403), _OK, _refusal("SendGridPermissionError")),
    (
        "404",
        Fault("status", status=404),
        _outcomes("ok", "stop SendGridNotFoundError"),
        _refusal("SendGridNotFoundError"),
    ),
    ("500", Fault("status", status=500), _OK, _outcomes(_SERVER, _SERVER)),
    ("502 with a page of HTML", Fault("html", status=502), _OK, _outcomes(_SERVER, _SERVER)),
    ("503", Fault("status", status=503), _OK, _outcomes(_SERVER, _SERVER)),
    ("200 with a page of HTML", Fault("html"), _OK, _outcomes(_SERVER, _SERVER)),
    ("200 with null", Fault("body", message="null"), _OK, _outcomes(_SERVER, _SERVER)),
    ("an empty response", Fault("empty"), _OK, _outcomes(_SERVER, "ok")),
    ("half of the JSON", Fault("broken_json"), _OK, _outcomes(_SERVER, "ok")),
    ("a damaged byte", Fault("corrupt", at=0), _OK, _outcomes(_SERVER, "ok")),
    ("a lost response", Fault("lost"), _OK, _outcomes(_UNAVAILABLE, "ok")),
    ("a lost response, reset", Fault("lost", with_reset=True), _OK, _outcomes(_UNAVAILABLE, "ok")),
    ("a response cut in the middle", Fault("cut"), _OK, _outcomes(_UNAVAILABLE, "ok")),
    ("a length too large", Fault("wrong_length"), _OK, _outcomes(_UNAVAILABLE, "ok")),
    ("a length too small", Fault("wrong_length", at=-10), _OK, _outcomes(_SERVER, "ok")),
    (
        "a redirect to another host",
        Fault("redirect", location="http://elsewhere.example/"),
        _OK,
        _outcomes(_SERVER, _SERVER),
    ),
    ("JSON without end", Fault("endless"), _OK, _outcomes(_SERVER, _SERVER)),
    ("a header without end", Fault("endless_header"), _OK, _outcomes(_UNAVAILABLE, _UNAVAILABLE)),
    ("1 GB of blanks in 1 MB of gzip", Fault("bomb"), _OK, _outcomes(_SERVER, _SERVER)),
    (
        "files offered over plain HTTP",
        Fault("other_host", location="http://elsewhere.example"),
        {"deliver": _SERVER},
        None,
    ),
)
_QUICK_UNDER_CONDITIONS: Final = ("a damaged byte to UploadPart", "a lost response to CompleteMultipartUpload")
_QUICK_ENTRY_POINTS: Final = ("hook", "deferrable", "start")
_API_QUICK: Final = ("no response", "429, Reset is an epoch", "500", "a lost response", "401", "half of the JSON")

# The same for SendGrid's file storage, at the only entry point that downloads files.
_Files = tuple[str, Fault, str, str | None]
_FILES: Final[tuple[_Files, ...]] = (
    ("connection closed", Fault("refuse"), "ok", _INCOMPLETE),
    ("connection reset", Fault("reset"), "ok", _INCOMPLETE),
    ("no response", Fault("hang"), "ok", _INCOMPLETE),
    ("a late response", Fault("delay", seconds=0.05), "ok", "ok"),
    ("a slow response", Fault("trickle", bytes_per_second=500), "ok", _INCOMPLETE),
    ("the URL has expired", Fault("expire"), "ok", _INCOMPLETE),
    ("403", Fault("status", status=403), "ok", _INCOMPLETE),
    ("404", Fault("status", status=404), "ok", _INCOMPLETE),
    ("429", Fault("status", status=429), "ok", _INCOMPLETE),
    ("500", Fault("status", status=500), "ok", _INCOMPLETE),
    ("503", Fault("status", status=503), "ok", _INCOMPLETE),
    ("a lost response", Fault("lost"), "ok", _INCOMPLETE),
    ("an empty response with a matching length", Fault("empty"), _INCOMPLETE, _INCOMPLETE),
    ("cut after 1.2 MB", Fault("cut", at=1_200_000), "ok", "ok"),
    ("cut after 1.2 MB by a reset", Fault("cut", at=1_200_000, with_reset=True), "ok", None),
    ("cut after 100 kB", Fault("cut", at=100_000), "ok", _INCOMPLETE),
    ("cut after 50 bytes", Fault("cut", at=50), "ok", _INCOMPLETE),
    ("a length too large", Fault("wrong_length"), "ok", "fail FileChangedError"),
    ("a length too small (gzip)", Fault("wrong_length", at=-10), _INCOMPLETE, _INCOMPLETE),
    ("a wrong range", Fault("wrong_range"), "ok", "ok"),
    ("a redirect to plain HTTP elsewhere", Fault("redirect", location="http://elsewhere.example/"), _SERVER, _SERVER),
    ("a redirect loop", Fault("redirect", location="?"), "ok", _INCOMPLETE),
    ("ranges ignored", Fault("no_ranges"), "ok", "ok"),
    ("a header without end", Fault("endless_header"), "ok", _INCOMPLETE),
    ("a body without end", Fault("endless"), _INCOMPLETE, _INCOMPLETE),
    ("truncated, with a matching length", Fault("truncate", at=60_000), _INCOMPLETE, _INCOMPLETE),
    ("a damaged byte (gzip)", Fault("corrupt", at=30_000), _INCOMPLETE, _INCOMPLETE),
    ("200 with a page of HTML", Fault("html"), _INCOMPLETE, _INCOMPLETE),
    ("64 MB of blanks in 64 kB of gzip", Fault("bomb", at=64), _INCOMPLETE, _INCOMPLETE),
)
_FILES_QUICK: Final = ("cut after 100 kB", "a damaged byte (gzip)")

# The same for S3, by operation; a fault that applies twice is retried by boto3 or by this provider.
_FAILED: Final = "fail DestinationError"
_REFUSED: Final = "stop DestinationRefusedError"
_PARTS: Final = ("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload")
_READING: Final = ("HeadObject", "GetObject")
_Storage = tuple[str, str, tuple[str, ...], str, str | None]
_STORAGE: Final[tuple[_Storage, ...]] = (
    ("503 SlowDown", "slow_down", (*_PARTS, *_READING), "ok", _FAILED),
    ("500", "internal_error", _PARTS, "ok", _FAILED),
    ("500 inside a 200", "error_in_200", ("CompleteMultipartUpload",), "ok", _FAILED),
    ("connection reset", "reset", (*_PARTS, "HeadObject"), "ok", _FAILED),
    ("a lost response", "lost", ("UploadPart", "CreateMultipartUpload"), "ok", _FAILED),
    # The stored object is found.
    ("a lost response", "lost", ("PutObject", "CompleteMultipartUpload"), "ok", "ok"),
    ("a late response", "delay", _PARTS, "ok", "ok"),
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
    ("a lost response", "CompleteMultipartUpload"),
    ("a lost response", "CreateMultipartUpload"),
)


# Outcomes that a condition changes: fault, how often, condition.
_EXCEPTIONS: Final[Mapping[tuple[str, str, str], str]] = {
    # The bytes are right.
    ("another CRC32 to PutObject", LASTING, "checksums ignored"): "ok",
    ("another CRC32 to UploadPart", LASTING, "checksums ignored"): "ok",
}


def rows() -> Iterator[Row]:
    """All of them, in the order of the table."""
    for title, fault, temporary, permanent in _API:
        is_quick = title in _API_QUICK
        yield Row("api", title, PASSING, _timed(fault, 2), temporary, is_quick)
        if permanent is not None:
            yield Row("api", title, LASTING, fault, permanent)
    for title, fault, once, always in _FILES:
        yield Row("files", title, PASSING, _timed(fault, 2), _delivered(once, title, PASSING), title in _FILES_QUICK)
        if always is not None:
            yield Row("files", title, LASTING, fault, _delivered(always, title, LASTING))
    for title, kind, operations, once, always in _STORAGE:
        for operation in operations:
            is_quick = (title, operation) in _STORAGE_QUICK
            name = f"{title} to {operation}"
            twice = StorageFault(kind, operation, first=2)
            yield Row("storage", name, PASSING, twice, _delivered(once, name, PASSING), is_quick)
            if always is not None:
                yield Row(
                    "storage",
                    name,
                    LASTING,
                    StorageFault(kind, operation),
                    _delivered(always, name, LASTING),
                )


def _delivered(outcome: str, title: str, times: str) -> dict[str, str]:
    """The outcome of a delivery, with and without each condition."""
    under = {condition: _EXCEPTIONS.get((title, times, condition), outcome) for condition in CONDITIONS}
    return {"deliver": outcome, **under}


def cells() -> Iterator[Cell]:
    """Each fault at each entry point that it can affect."""
    for row in rows():
        for entry_point in row.outcomes:
            yield Cell(row, entry_point)


def _timed(fault: Fault, first: int) -> Fault:
    return Fault.from_payload({**fault.as_json(), "first": first})


_TITLES: Final = {"api": "SendGrid's API", "files": "SendGrid's file storage", "storage": "S3"}
_COLUMNS: Final = ("hook", "sensor: poke", "reschedule", "deferrable", "start", "delivery", *CONDITIONS)


def summary() -> str:
    """The numbers of faults, cells and outcomes, in Markdown."""
    lines = ["| where | faults | cells | ok | fail | stop |", "|---|---:|---:|---:|---:|---:|"]
    every = list(cells())
    for side, title in {**_TITLES, "": "all"}.items():
        chosen = [cell for cell in every if cell.row.side.startswith(side)]
        ends = Counter(_shown(cell.outcome, cell.entry_point).partition(":")[0] for cell in chosen)
        faults = len({cell.row.name for cell in chosen})
        counts = " | ".join(f"{count:,}" for count in (faults, len(chosen), ends["ok"], ends["fail"], ends["stop"]))
        lines.append(f"| {title} | {counts} |")
    return "\n".join(lines)


def table() -> str:
    """The whole matrix, in Markdown."""
    lines = [
        f"| what goes wrong | how often | {' | '.join(_COLUMNS)} |",
        "|---|---|" + "---|" * len(ENTRY_POINTS),
    ]
    side = ""
    for row in rows():
        if row.side != side:
            side = row.side
            lines.append(f"| **{_TITLES[side]}** | | {' | '.join([''] * len(ENTRY_POINTS))} |")
        shown = " | ".join(_shown(row.outcomes.get(entry_point), entry_point) for entry_point in ENTRY_POINTS)
        lines.append(f"| {row.title} | {row.times} | {shown} |")
    return "\n".join(lines)


def _shown(outcome: str | None, entry_point: str) -> str:
    if outcome is None:
        return "—"
    kind, _, error = outcome.partition(" ")
    if kind == "ok":
        return "ok"
    short = error.removeprefix("SendGrid").removesuffix("Error")
    return f"{'stop' if kind == 'stop' and entry_point != 'hook' else 'fail'}: {short}"
