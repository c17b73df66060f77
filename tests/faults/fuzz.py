"""Fuzzes every parser of external data, and compares the results with an oracle.

    python -m tests.faults.fuzz --minutes 5

Guided by coverage where `atheris` is installed (``pip install atheris``; not on every Python), else by hypothesis.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from itertools import pairwise
from types import SimpleNamespace
from typing import Final

from tests.faults.fuzz_imports import import_instrumented

_ours = import_instrumented()

FAMILIES: Final = list(_ours.ExportFamily)


def fuzz_csv(data: bytes) -> None:
    """Any bytes in any pieces, compared with a plain state machine."""
    content, pieces = _cut(data)
    counter = _ours.record_counter("csv")
    for piece in pieces:
        counter.feed(piece)
    counted = counter.finish()
    records, first = _csv_oracle(content)
    assert counted.records == records, (counted.records, records)
    if first is not None:
        digest = hashlib.sha256(first.rstrip(b"\r\n")).hexdigest() if first else ""
        assert counted.first_record_sha256 == digest


def _csv_oracle(content: bytes) -> tuple[int, bytes | None]:
    """Blank lines at the start and end are not records, nor is a byte order mark."""
    content = content.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n")
    ends = _ends_of_records(content)
    if ends is None:
        ends = _ends_of_records(content + b'"') or []
        return len(ends) + 1, content if not ends else content[: ends[0] + 1]
    content = content.rstrip(b"\r\n")
    ends = _ends_of_records(content) or []
    return len(ends) + bool(content), content if not ends else content[: ends[0] + 1]


def _ends_of_records(content: bytes) -> list[int] | None:
    """The positions of line feeds outside quotes; None if it ends within quotes."""
    in_quotes, ends = False, []
    for at, byte in enumerate(content):
        in_quotes ^= byte == ord('"')
        if byte == ord("\n") and not in_quotes:
            ends.append(at)
    return None if in_quotes else ends


def fuzz_json_lines(data: bytes) -> None:
    content, pieces = _cut(data)
    counter = _ours.record_counter("json")
    for piece in pieces:
        counter.feed(piece)
    assert counter.finish().records == sum(bool(line.strip()) for line in content.split(b"\n"))


def fuzz_gunzip(data: bytes) -> None:
    """Only a complete, undamaged file is accepted."""
    content, pieces = _cut(data)
    gunzip, plain = _ours.Gunzip(), bytearray()
    try:
        for piece in pieces:
            for out in gunzip.feed(memoryview(piece)):
                assert len(out) <= 1024 * 1024
                plain += out
        gunzip.close()
    except _ours.ExportIncompleteError:
        return
    try:
        expected = gzip.decompress(content.lstrip(b"\0"))
    except (OSError, EOFError, zlib.error) as error:
        raise AssertionError(f"accepted, though damaged: {error}") from error
    assert expected == plain


def fuzz_gunzip_of_whole_files(data: bytes) -> None:
    """Members of any bytes, split anywhere, are decompressed to the same bytes."""
    content, pieces = _cut(data)
    gzipped = b"".join(gzip.compress(piece, 1, mtime=0) for piece in pieces)
    gunzip = _ours.Gunzip()
    step = 1 + len(data) % 97
    plain = b"".join(
        out for at in range(0, len(gzipped), step) for out in gunzip.feed(memoryview(gzipped[at : at + step]))
    )
    gunzip.close()
    assert plain == content


def fuzz_response(data: bytes) -> None:
    """Any status, headers and body give a result or a SendGridError."""
    status = (200, 200, 202, 429, 500, data[0] * 3 if data else 404)[len(data) % 6]
    head, _, body = data[1:].partition(b"\n\n")
    lines = [line.partition(":") for line in head.decode("latin-1").split("\n")]
    names = ("retry-after", "x-ratelimit-reset", "x-ratelimit-remaining", "date", "content-type")
    headers = {name: value.strip() for name, (*_, value) in zip(names, lines, strict=False)}
    response = _ours.Response(status, headers, body, 1_767_323_045.0)
    for ask in (
        lambda: _ours.protocol.get_export(FAMILIES[len(data) % 2], "an-export"),
        lambda: _ours.protocol.list_exports(FAMILIES[len(data) % 2]),
        lambda: _ours.protocol.start_export(FAMILIES[0], _ours.ExportSelection()),
        _ours.protocol.get_scopes,
    ):
        result = _run_flow(ask(), response)
        for export in result if isinstance(result, list) else [result]:
            if isinstance(export, _ours.ContactExport):
                json.dumps(export.summary())
                export.is_expired_at(_ours.now)
                _ours.outcome_of(export, _ours.now)
    wait = _ours.protocol.rate_limit_wait_seconds(response)
    assert wait is None or 0 <= wait < float("inf")
    limit = _ours.protocol.RateLimit()
    limit.record(response)
    assert 0 <= limit.wait_seconds(0.0) <= 120.0


def _run_flow(flow: object, response: object) -> object:
    """Run a flow with the same response to every request."""
    try:
        next(flow)  # type: ignore[call-overload]
        for _ in range(2_000):
            flow.send(response)  # type: ignore[attr-defined]
    except StopIteration as end:
        return end.value
    except _ours.SendGridError as error:
        json.dumps(error.to_event())
        return None
    raise AssertionError("a flow without end")


def fuzz_payload(data: bytes) -> None:
    """JSON objects with known names and any values."""
    values = [_value(part) for part in data.split(b"\0")]
    names = (
        "status", "urls", "created_at", "expires_at", "completedAt", "contact_count", "recipientCount", "message", "id",
        "_metadata", "lists", "segments", "export_type",
    )  # fmt: skip
    payload = dict(zip(names, values, strict=False))
    export = _ours.ContactExport.from_payload(payload, export_id="an-export")
    json.dumps(export.summary())
    _ours.outcome_of(export, _ours.now)
    assert export.contact_count is None or export.contact_count >= 0
    if isinstance(payload.get("urls"), list):
        assert len(export.urls) == len(payload["urls"])


def _value(part: bytes) -> object:
    try:
        return json.loads(part)
    except (ValueError, RecursionError):
        return part.decode("latin-1")


def fuzz_content_range(data: bytes) -> None:
    """A Content-Range is parsed to three numbers, or retried."""
    texts = [*data.decode("latin-1").split("\n"), "", ""][:2]
    headers = {"Content-Range": texts[0], "Content-Length": texts[1]}
    response = SimpleNamespace(headers=headers, status_code=206 if len(data) % 3 else 200)
    try:
        first, end, total = _ours.parse_content_range(response, "a file")
    except (_ours.RetryableError, _ours.ExportIncompleteError):
        return
    assert first >= 0
    assert total >= 0
    assert end >= 0


def fuzz_manifest(data: bytes) -> None:
    known = _ours.KnownManifest.from_content(data)
    assert all(isinstance(uri, str) for uri in (*known.uris, *known.replaced, known.export_id))


def fuzz_redact(data: bytes) -> None:
    """A key is redacted in any context, quickly."""
    text = data.decode("utf-8", "replace")
    key = "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"
    half = len(text) // 2
    shown = _ours.redact(f"{text[:half]}{key}{text[half:]}")
    assert "N4dHs9KjE6oGq0VtAiXwBz1CyMnRlPf8UeSgTh3J5k7" not in shown


def _cut(data: bytes) -> tuple[bytes, list[bytes]]:
    """The content, and its pieces, as determined by the first bytes."""
    count = data[0] % 8 if data else 0
    content = data[1 + count :]
    positions = sorted({byte * (len(content) + 1) // 256 for byte in data[1 : 1 + count]})
    edges = [0, *positions, len(content)]
    return content, [content[a:b] for a, b in pairwise(edges)]


TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    name.removeprefix("fuzz_"): function for name, function in list(globals().items()) if name.startswith("fuzz_")
}
# The engines' first inputs.
SEEDS: Final = (
    b'\x03\x10\x80\xf0EMAIL,NAME\na@b.c,"x\ny"\n"""",""\n',
    b'\x02\x10\x80{"email": "a"}\n\n{"email": "b"}',
    b"\x01\x40" + gzip.compress(b"EMAIL\na\n", mtime=0),
    b'\x007\n1767323099\n0\nFri, 02 Jan 2026 03:04:05 GMT\n\n{"id": "e", "status": "ready", "urls": ["https://x/y"]}',
    b'ready\0["https://x/y?X-Amz-Signature=1"]\x00"2026-01-02T03:04:05Z"\x001767323045\x00null\x0012',
    b"bytes 0-99/200\n100",
    b'{"entries": [{"url": "s3://a/b"}], "sendgrid_export": {"id": "e"}, "facts": {"b": {"size": "1"}}}',
    b"https://user:pass@proxy?X-Amz-Signature=1&X-Amz-Credential=2 Bearer abcdef",
)


def by_hypothesis(name: str, seconds: float) -> int:
    """Fuzz for so many seconds; return the number of inputs."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    tried, until = 0, time.monotonic() + seconds
    words = st.sampled_from([*SEEDS, b"\n", b'"', b"\r\n", b"\0", b",", b"[", b"{", b"null"])
    anything = st.lists(st.one_of(st.binary(max_size=64), words), max_size=12).map(b"".join)

    @settings(max_examples=2_000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(anything)
    def one_round(data: bytes) -> None:
        nonlocal tried
        tried += 1
        TARGETS[name](data)

    while time.monotonic() < until:
        one_round()
    return tried


def by_atheris(name: str, seconds: float) -> None:
    """Does not return: the engine ends the process."""
    import atheris

    atheris.Setup(
        [
            sys.argv[0],
            f"-max_total_time={seconds:.0f}",
            "-max_len=2048",
            "-timeout=20",
            "-print_final_stats=1",
            "-verbosity=0",
        ],
        TARGETS[name],
    )
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="in all")
    parser.add_argument("--target", choices=TARGETS, help="this one alone, in this process")
    options = parser.parse_args()
    engine = "atheris" if find_spec("atheris") else "hypothesis"
    if options.target:
        seconds = 60 * options.minutes
        for seed in SEEDS:
            TARGETS[options.target](seed)
        if engine == "atheris":
            by_atheris(options.target, seconds)
        print(f"stat::number_of_executed_units: {by_hypothesis(options.target, seconds)}")
        return
    print(
        f"{len(TARGETS)} targets by {engine}, {options.minutes:g} minutes in all\n\n"
        "| target | seconds | inputs | result |"
    )
    print("|---|---:|---:|---|", flush=True)
    results = [_fuzz_in_subprocess(name, options.minutes / len(TARGETS)) for name in TARGETS]
    sys.exit(0 if all(results) else 1)


def _fuzz_in_subprocess(name: str, minutes: float) -> bool:
    """Fuzz one target in its own process."""
    began = time.monotonic()
    command = [sys.executable, "-m", "tests.faults.fuzz", "--target", name, "--minutes", str(minutes)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    title = done.stdout + done.stderr
    units = [line.split()[-1] for line in title.splitlines() if "number_of_executed_units" in line] or ["?"]
    is_fine = done.returncode == 0
    print(
        f"| {name} | {time.monotonic() - began:.0f} | {units[0]} | {'no finding' if is_fine else 'FINDING'} |",
        flush=True,
    )
    if not is_fine:
        print(title[-4_000:])
    return is_fine


if __name__ == "__main__":
    main()
