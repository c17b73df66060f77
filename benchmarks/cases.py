"""The cases that are measured: their programs and goals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.measurements import GIB, MIB, Goal, cpu_goal, memory_goal, rate_goal, ratio_goal, speedup_goal

PART_BYTES, MAX_CONCURRENCY = 8 * MIB, 8  # ours by default
_TUNED = {
    "config": {"request_checksum_calculation": "when_required", "max_pool_connections": 10},
    "transfer": {"multipart_chunksize": 16 * MIB, "max_concurrency": 4},
}


@dataclass(frozen=True)
class Contender:
    """One program with its options.

    Attributes:
        name: its name in the table.
        peer: its module in `benchmarks.peers`.
        options: of the program.
        counts_rows: whether ours counts and compares rows.
        size: of its file in bytes, if not the case's.
        most_rounds: the maximum number of rounds, for slow programs.
    """

    name: str
    peer: str
    options: dict[str, Any] = field(default_factory=dict)
    counts_rows: bool = False
    size: int | None = None
    most_rounds: int = 100


@dataclass(frozen=True)
class Case:
    """One task for several programs.

    Attributes:
        name: its name on the command line.
        title: its title in the report.
        size: of each file at the source, in bytes.
        contenders: the programs, in turn.
        goals: the expected results.
        files: the number of files.
        kind: of content, ``gzip`` or ``plain``.
        block_bytes: size of the block that the source repeats.
        tls: whether source and sink use TLS.
        latency_seconds: of each request to source and sink.
        bytes_per_second: of each connection to the source.
    """

    name: str
    title: str
    size: int
    contenders: Sequence[Contender]
    goals: Sequence[Goal] = ()
    files: int = 1
    kind: str = "gzip"
    block_bytes: int = 64 * MIB
    tls: bool = False
    latency_seconds: float = 0.0
    bytes_per_second: float | None = None


@dataclass(frozen=True)
class Scale:
    """Sizes in bytes: `large` is one file, `block_bytes` the block that it repeats."""

    large: int = 2 * GIB
    largest: int = 5 * GIB
    limited: int = 1 * GIB
    block_bytes: int = 64 * MIB
    small_files: int = 200


QUICK = Scale(large=32 * MIB, largest=64 * MIB, limited=32 * MIB, block_bytes=8 * MIB, small_files=20)

_OURS = Contender("ours", "ours")
_UPLOAD_FILEOBJ = Contender("upload_fileobj", "upload_fileobj")
_CURL_CURL = Contender("curl | curl", "curl_pipes", {"into": "curl"})
_RAW_SOCKETS = Contender("raw sockets, SHA-256", "raw_sockets")
_RAW_SOCKETS_GUNZIP = Contender("raw sockets, SHA-256, gunzip", "raw_sockets", {"gunzip": True})
_PEERS = (
    Contender("upload_fileobj, tuned", "upload_fileobj", _TUNED),
    Contender("obstore", "obstore_put"),
    Contender("curl | aws s3 cp", "curl_pipes", {"into": "aws"}, most_rounds=3),
    Contender("temporary file, upload_file", "temporary_file", most_rounds=3),
    Contender("smart_open", "smart_open_copy", most_rounds=3),
    Contender("HttpToS3Operator", "http_to_s3", most_rounds=3),
)


def all_cases(scale: Scale, hashing_seconds_per_gib: float, plain_bytes: Callable[[int], int]) -> list[Case]:
    """Every case; `plain_bytes` returns the uncompressed size of a gzip file of so many bytes."""
    return [
        _one_file(scale, hashing_seconds_per_gib),
        _tls(scale),
        _rows(scale, plain_bytes(scale.large)),
        _limited(scale),
        _small_files(scale),
        _recoded(scale),
        _from_plain(scale),
        _memory(scale),
    ]


def _one_file(scale: Scale, hashing: float) -> Case:
    goals = (
        ratio_goal("wall ≤ 0.5 x upload_fileobj", "ours", "upload_fileobj", most=0.5),
        ratio_goal("wall ≤ 1.0 x curl | curl", "ours", "curl | curl", most=1.0),
        cpu_goal(
            f"CPU ≤ 1.5 s per GiB plus hashing ({hashing:.2f} s: SHA-256 and CRC32 once)",
            "ours",
            scale.large,
            most=1.5 + hashing,
        ),
    )
    contenders = (_OURS, _UPLOAD_FILEOBJ, _CURL_CURL, _RAW_SOCKETS, *_PEERS)
    return Case("one-file", "One file, passed through", scale.large, contenders, goals, block_bytes=scale.block_bytes)


def _tls(scale: Scale) -> Case:
    goals = (ratio_goal("wall ≤ 0.75 x upload_fileobj", "ours", "upload_fileobj", most=0.75),)
    contenders = (_OURS, _UPLOAD_FILEOBJ, _CURL_CURL, _RAW_SOCKETS)
    return Case(
        "tls", "One file over TLS at both ends", scale.large, contenders, goals, block_bytes=scale.block_bytes, tls=True
    )


def _rows(scale: Scale, plain_size: int) -> Case:
    counting = Contender("ours, rows counted", "ours", counts_rows=True)
    goals = (
        ratio_goal("wall ≤ 1.6 x upload_fileobj, which counts nothing", counting.name, "upload_fileobj", most=1.6),
        rate_goal("gunzip and counting: ≥ 300 MB of CSV per CPU second", counting.name, "ours", plain_size, least=300),
    )
    title = f"One file of gzip with its rows counted ({plain_size / 1e9:.1f} GB of CSV)"
    contenders = (counting, _UPLOAD_FILEOBJ, _OURS, _RAW_SOCKETS_GUNZIP)
    return Case("rows", title, scale.large, contenders, goals, block_bytes=scale.block_bytes)


def _limited(scale: Scale) -> Case:
    one = Contender("ours, 1 connection", "ours", {"max_concurrency": 1}, most_rounds=3)
    goals = (speedup_goal("≥ 6 x as fast with 8 connections", "ours", one.name, least=6),)
    return Case(
        "limited",
        "A source with 50 MB/s per connection",
        scale.limited,
        (_OURS, one),
        goals,
        block_bytes=scale.block_bytes,
        bytes_per_second=50e6,
    )


def _small_files(scale: Scale) -> Case:
    one = Contender("ours, one by one", "ours", {"max_concurrency": 1}, most_rounds=3)
    goals = (ratio_goal("wall ≤ 0.2 x one by one", "ours", one.name, most=0.2),)
    return Case(
        "small-files",
        f"{scale.small_files} files of 256 KiB, 20 ms per request",
        256 * 1024,
        (_OURS, one, Contender("upload_fileobj", "upload_fileobj", most_rounds=3)),
        goals,
        files=scale.small_files,
        block_bytes=256 * 1024,
        latency_seconds=0.02,
    )


def _recoded(scale: Scale) -> Case:
    gunzipped = {"compression": "none"}
    contenders = (
        Contender("passed through", "ours"),
        Contender("passed through, rows counted", "ours", counts_rows=True),
        Contender("gunzipped", "ours", gunzipped),
        Contender("gunzipped, rows counted", "ours", gunzipped, counts_rows=True),
    )
    return Case("from-gzip", "From gzip", scale.large // 4, contenders, block_bytes=scale.block_bytes)


def _from_plain(scale: Scale) -> Case:
    passed = {"compression": "none"}
    contenders = (
        Contender("passed through", "ours", passed),
        Contender("passed through, rows counted", "ours", passed, counts_rows=True),
        Contender("gzipped", "ours"),
        Contender("gzipped, rows counted", "ours", counts_rows=True),
    )
    return Case(
        "from-plain", "From plain CSV", scale.large // 2, contenders, kind="plain", block_bytes=scale.block_bytes
    )


def _memory(scale: Scale) -> Case:
    imports = Contender("imports alone", "ours", {"imports_only": True})
    sizes = (scale.block_bytes, scale.large, scale.largest)
    ours = [Contender(f"ours, {size // MIB} MiB", "ours", size=size, most_rounds=3) for size in sizes]
    in_flight = MAX_CONCURRENCY * PART_BYTES / MIB
    goals = [
        memory_goal(
            f"{each.name}: ≤ imports + {in_flight:.0f} MiB in flight + 16 MiB",
            each.name,
            imports.name,
            most=in_flight + 16,
        )
        for each in ours
    ]
    return Case("memory", "Peak memory", scale.large, (imports, *ours), goals, block_bytes=scale.block_bytes)
