"""What is measured: the cases of the issue's table, who takes part, and the bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.runs import GIB, MIB, Bar, cpu_bar, memory_bar, rate_bar, ratio_bar, speedup_bar

PART_BYTES, MAX_CONCURRENCY = 8 * MIB, 8  # ours by default
_TUNED = {
    "config": {"request_checksum_calculation": "when_required", "max_pool_connections": 10},
    "transfer": {"multipart_chunksize": 16 * MIB, "max_concurrency": 4},
}


@dataclass(frozen=True)
class Contender:
    """Who takes part.

    Attributes:
        name: in the table.
        peer: its program, a module of `benchmarks.peers`.
        options: the program's.
        counts_rows: whether ours is told how many rows to find.
        size: of its file, where it is not the case's.
        most_rounds: for those that take long and are here for orientation only.
    """

    name: str
    peer: str
    options: dict[str, Any] = field(default_factory=dict)
    counts_rows: bool = False
    size: int | None = None
    most_rounds: int = 100


@dataclass(frozen=True)
class Case:
    """One setting for all who take part in it.

    Attributes:
        name: on the command line.
        title: for people.
        size: of each file, in bytes, as the source has it.
        contenders: who takes part, in turn.
        bars: what must be seen.
        files: how many.
        kind: of content, ``gzip`` or ``plain``.
        block_bytes: what the source repeats.
        tls: at both ends.
        latency_seconds: of each request, at both ends.
        bytes_per_second: of each connection to the source.
    """

    name: str
    title: str
    size: int
    contenders: Sequence[Contender]
    bars: Sequence[Bar] = ()
    files: int = 1
    kind: str = "gzip"
    block_bytes: int = 64 * MIB
    tls: bool = False
    latency_seconds: float = 0.0
    bytes_per_second: float | None = None


@dataclass(frozen=True)
class Scale:
    """How large: `large` is one file, `block_bytes` what it consists of."""

    large: int = 2 * GIB
    largest: int = 5 * GIB
    limited: int = 1 * GIB
    block_bytes: int = 64 * MIB
    small_files: int = 200


QUICK = Scale(large=32 * MIB, largest=64 * MIB, limited=32 * MIB, block_bytes=8 * MIB, small_files=20)

_OURS = Contender("ours", "ours")
_UPLOAD_FILEOBJ = Contender("upload_fileobj", "upload_fileobj")
_CURL_CURL = Contender("curl | curl", "curl_pipes", {"into": "curl"})
_LEAST = Contender("the least: sockets, SHA-256", "least")
_LEAST_GUNZIP = Contender("the least: sockets, SHA-256, gunzip", "least", {"gunzip": True})
_PEERS = (
    Contender("upload_fileobj, tuned", "upload_fileobj", _TUNED),
    Contender("obstore", "obstore_put"),
    Contender("curl | aws s3 cp", "curl_pipes", {"into": "aws"}, most_rounds=3),
    Contender("temporary file, upload_file", "temporary_file", most_rounds=3),
    Contender("smart_open", "smart_open_copy", most_rounds=3),
    Contender("HttpToS3Operator", "http_to_s3", most_rounds=3),
)


def all_cases(scale: Scale, hashing_seconds_per_gib: float, plain_bytes: Callable[[int], int]) -> list[Case]:
    """Every case; `plain_bytes` answers how much CSV a gzip file of so many bytes holds."""
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
    bars = (
        ratio_bar("wall ≤ 0.5 x upload_fileobj", "ours", "upload_fileobj", most=0.5),
        ratio_bar("wall ≤ 1.0 x curl | curl", "ours", "curl | curl", most=1.0),
        cpu_bar(
            f"CPU ≤ 1.5 s per GiB plus hashing ({hashing:.2f} s: SHA-256 and CRC32 once)",
            "ours",
            scale.large,
            most=1.5 + hashing,
        ),
    )
    contenders = (_OURS, _UPLOAD_FILEOBJ, _CURL_CURL, _LEAST, *_PEERS)
    return Case("one-file", "One file, passed through", scale.large, contenders, bars, block_bytes=scale.block_bytes)


def _tls(scale: Scale) -> Case:
    bars = (ratio_bar("wall ≤ 0.75 x upload_fileobj", "ours", "upload_fileobj", most=0.75),)
    contenders = (_OURS, _UPLOAD_FILEOBJ, _CURL_CURL, _LEAST)
    return Case(
        "tls", "One file over TLS at both ends", scale.large, contenders, bars, block_bytes=scale.block_bytes, tls=True
    )


def _rows(scale: Scale, plain_size: int) -> Case:
    counting = Contender("ours, rows counted", "ours", counts_rows=True)
    bars = (
        ratio_bar("wall ≤ 1.6 x upload_fileobj, which counts nothing", counting.name, "upload_fileobj", most=1.6),
        rate_bar("gunzip and counting: ≥ 300 MB of CSV per CPU second", counting.name, "ours", plain_size, least=300),
    )
    title = f"One file of gzip with its rows counted ({plain_size / 1e9:.1f} GB of CSV)"
    contenders = (counting, _UPLOAD_FILEOBJ, _OURS, _LEAST_GUNZIP)
    return Case("rows", title, scale.large, contenders, bars, block_bytes=scale.block_bytes)


def _limited(scale: Scale) -> Case:
    one = Contender("ours, 1 connection", "ours", {"max_concurrency": 1}, most_rounds=3)
    bars = (speedup_bar("≥ 6 x as fast with 8 connections", "ours", one.name, least=6),)
    return Case(
        "limited",
        "A source that gives 50 MB/s to each connection",
        scale.limited,
        (_OURS, one),
        bars,
        block_bytes=scale.block_bytes,
        bytes_per_second=50e6,
    )


def _small_files(scale: Scale) -> Case:
    one = Contender("ours, one by one", "ours", {"max_concurrency": 1}, most_rounds=3)
    bars = (ratio_bar("wall ≤ 0.2 x one by one", "ours", one.name, most=0.2),)
    return Case(
        "small-files",
        f"{scale.small_files} files of 256 KiB, 20 ms per request",
        256 * 1024,
        (_OURS, one, Contender("upload_fileobj", "upload_fileobj", most_rounds=3)),
        bars,
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
    bars = [
        memory_bar(
            f"{each.name}: ≤ imports + {in_flight:.0f} MiB in flight + 16 MiB",
            each.name,
            imports.name,
            most=in_flight + 16,
        )
        for each in ours
    ]
    return Case("memory", "Peak memory", scale.large, (imports, *ours), bars, block_bytes=scale.block_bytes)
