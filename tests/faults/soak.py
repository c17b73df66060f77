"""Runs hundreds of pipelines (start, wait, deliver) under random faults; prints the seed.

    python -m tests.faults.soak --pipelines 300 --seed 7 --minutes 10

Each task has three tries, as in Airflow. A pipeline must deliver the right bytes, or fail with a clear error and leave
nothing: bytes are compared; exports, objects and open uploads are counted.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any, Final

from tests.conftest import S3, AirflowVersion, take_no_time  # first: it sets Airflow's variables

# isort: split
import logging
import os
import secrets

import pytest

os.environ["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "CRITICAL"

# isort: split
from airflow_provider_sendgrid._compat import AirflowFailException, AirflowSensorTimeout
from airflow_provider_sendgrid.emulator import Fault
from airflow_provider_sendgrid.emulator.faults import KINDS
from tests.faults.cell_checks import NEXT_STEP
from tests.support.dag_run import DagRun
from tests.support.fault_services import EmulatedSendGrid, Services, all_texts, is_ours, without_waits
from tests.support.storage_proxy import ERRORS, TRANSPORT_FAULTS, StorageFault

TRIES: Final = 3
OPERATIONS: Final = (
    "PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "AbortMultipartUpload", "HeadObject",
    "GetObject", "ListMultipartUploads", "DeleteObject", "*",
)  # fmt: skip
# A plain file has no checksum.
_UNDETECTABLE_IN_PLAIN: Final = ("corrupt", "truncate", "wrong_length")
_API_ONLY: Final = ("other_host", "broken_json")
# Here files are compared by their order.
_MATRIX_ONLY: Final = ("reorder",)
_FILES_ONLY: Final = ("wrong_range", "no_ranges", "changed", "expire", "truncate")


@dataclass
class Pipeline:
    """One pipeline and its faults."""

    number: int
    rng: random.Random
    sendgrid: EmulatedSendGrid
    contacts: int = 0
    mode: str = "poke"
    compression: str = "gzip"
    faults: list[Fault | StorageFault] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def has_fault_at(self, *operations: str) -> bool:
        """Whether a storage fault affects one of these operations."""
        names = [fault.operation for fault in self.faults if isinstance(fault, StorageFault)]
        return any(fnmatch(operation, name) for operation in operations for name in names)

    @classmethod
    def of(cls, number: int, seed: int, services: Services) -> Pipeline:
        rng = random.Random(f"{seed}/{number}")
        made = cls(number, rng, rng.choice([services.gzipped, services.gzipped, services.plain]))
        made.contacts = rng.choice([0, 1, 50, 500, 500, 26_050])
        made.mode = rng.choice(["poke", "reschedule", "deferrable"])
        made.compression = rng.choice(["gzip", "none"])
        is_plain = made.sendgrid is services.plain
        made.faults = [_any_fault(rng, is_plain) for _ in range(rng.choice([0, 1, 1, 2, 3, 5]))]
        return made

    def describe(self) -> str:
        faults = ", ".join(
            f"{each.kind} {getattr(each, 'operation', '') or getattr(each, 'listener', '')}"
            f" nth={each.nth} first={each.first} at={getattr(each, 'at', '')}"
            for each in self.faults
        )
        return f"#{self.number} {self.contacts} contacts, {self.mode}, {self.compression}: {faults or 'no faults'}"


def _any_fault(rng: random.Random, is_plain: bool) -> Fault | StorageFault:
    times: dict[str, Any] = rng.choice(
        [{"nth": rng.randint(1, 6)}, {"nth": rng.randint(1, 3)}, {"first": rng.randint(1, 4)}, {}]
    )
    if rng.random() < 0.35:
        kind = rng.choice([*ERRORS, *TRANSPORT_FAULTS])
        operation = "CompleteMultipartUpload" if kind == "error_in_200" else rng.choice(OPERATIONS)
        return StorageFault(kind, operation, seconds=0.05, **times)
    listener = rng.choice(["api", "files"])
    other = _FILES_ONLY if listener == "api" else (*_API_ONLY, *(_UNDETECTABLE_IN_PLAIN if is_plain else ()))
    kind = rng.choice([kind for kind in KINDS if kind not in (*other, *_MATRIX_ONLY)])
    if kind in ("hang", "trickle"):  # each takes real time
        times = {"nth": rng.randint(1, 3)}
    details = {
        "status": {
            "status": rng.choice([400, 401, 403, 404, 409, 418, 429, 429, 500, 502, 503, 504]),
            "seconds": 5.0,
            "rate_limit_reset": rng.choice(["", "epoch", "seconds"]),
            "retry_after": rng.choice([None, 2.0]),
        },
        "delay": {"seconds": 0.03},
        "trickle": {"bytes_per_second": 400},
        "redirect": {"location": rng.choice(["http://elsewhere.example/", "/elsewhere", "?"])},
        "other_host": {"location": "http://elsewhere.example"},
        "bomb": {"at": 40},
        "cut": {"at": rng.randint(0, 5_000), "with_reset": rng.random() < 0.5},
        "lost": {"with_reset": rng.random() < 0.5},
        "corrupt": {"at": rng.randint(0, 2_000) if listener == "files" else 0},
        "truncate": {"at": rng.randint(0, 2_000)},
        "wrong_length": {"at": rng.choice([1_000, -10])},
        "wrong_range": {"at": rng.randint(1, 9)},
    }.get(kind, {})
    method = rng.choice(["POST", "", ""]) if listener == "api" else ""
    return Fault(kind, listener=listener, method=method, **details, **times)


def run_pipeline(services: Services, pipeline: Pipeline) -> str:
    """Run one pipeline and check everything; return the outcome."""
    sendgrid = pipeline.sendgrid
    services.reset()
    is_silent = any(each.kind in ("hang", "trickle") for each in pipeline.faults)
    services.connect(sendgrid, 0.8 if is_silent else 30.0)
    list_id = sendgrid.emulator.add_list(f"List {pipeline.number}", contacts=pipeline.contacts)
    prefix = services.new_prefix()
    for fault in pipeline.faults:
        (services.proxy if isinstance(fault, StorageFault) else sendgrid.emulator).inject(fault)
    uris, error = None, None
    try:
        uris = _all_tasks(services, pipeline, list_id, prefix)
    except Exception as caught:  # noqa: BLE001 - any error is checked
        error = caught
    applied = len(pipeline.faults)
    services.reset()
    exports = sendgrid.exports_of(list_id)
    assert len(exports) <= 1, f"{len(exports)} exports"
    assert [] == sendgrid.emulator.leaks()
    assert [] == services.s3.open_uploads(), "an upload is left open"
    found = services.keys(prefix)
    if error is not None:
        # An error names what its try stored and could not delete.
        kept = "\n".join(pipeline.errors)
        unnamed = {key: content for key, content in found.items() if f"/{key}" not in kept}
        _check_failure(sendgrid, error, unnamed, exports)
        how = "failed permanently" if isinstance(error, AirflowFailException) else "failed"
        return f"{how}: {_name_of(error)}"
    if pipeline.has_fault_at("DeleteObject"):  # a receipt that cannot be deleted stays
        found = {key: content for key, content in found.items() if "/_receipts/" not in key}
    _check_success(services, sendgrid, uris or [], found, prefix, exports[0])
    return "complete" if applied else "complete, without faults"


def _all_tasks(services: Services, pipeline: Pipeline, list_id: str, prefix: str) -> list[str]:
    run = DagRun(has_stores=pipeline.rng.random() < 0.5)
    run.add("start", list_ids=[list_id])
    export_id = _task(pipeline, lambda: run.execute("start"))
    _task(pipeline, lambda: services.wait(pipeline.mode, export_id, lambda: None))
    uris: list[str] = _task(pipeline, lambda: services.deliver(export_id, prefix, compression=pipeline.compression))
    return uris


def _task(pipeline: Pipeline, act: Callable[[], Any]) -> Any:
    """Run a task as Airflow does: retry after a failure, but not after a permanent one."""
    for tries_left in reversed(range(TRIES)):
        try:
            return act()
        except Exception as error:
            pipeline.errors.append(str(error))
            if not tries_left or isinstance(error, AirflowFailException):
                raise
    raise RuntimeError("a loop that returns or raises has ended")


def _check_success(services: Any, sendgrid: Any, uris: list[str], found: dict, prefix: str, export_id: str) -> None:
    keys = [uri.removeprefix(f"s3://{services.s3.bucket}/") for uri in uris]
    assert sorted([*keys, f"{prefix}_manifest.json"]) == sorted(found), "wrong objects"
    versions = _versions(sendgrid, export_id)
    for number, key in enumerate(keys):
        assert _plain(key, found[key]) in [files[number] for files in versions], f"{key} differs from SendGrid's file"


def _check_failure(sendgrid: Any, error: Exception, found: dict, exports: list[str]) -> None:
    text = all_texts(error)
    assert is_ours(error) or isinstance(error, AirflowSensorTimeout), f"not an error of ours: {error!r}"
    assert NEXT_STEP.search(str(error)) or isinstance(error, AirflowSensorTimeout), f"no next step: {error}"
    assert sendgrid.emulator.api_key not in text
    assert "X-Amz-Signature=" not in text.replace("X-Amz-Signature=***", "")
    for key, content in found.items():
        if key.endswith("_manifest.json"):
            # Only a later step failed, such as deleting receipts.
            continue
        if "/_receipts/" in key:
            continue
        number = int(re.search(r"-(\d{5})-of-", key)[1]) - 1  # type: ignore[index]
        assert _plain(key, content) in [files[number] for files in _versions(sendgrid, exports[0])], (
            f"{key} is incomplete"
        )


def _versions(sendgrid: EmulatedSendGrid, export_id: str) -> list[list[bytes]]:
    """The content of the export, and that of its changed version."""
    backend = sendgrid.emulator._backend
    export = backend.account.export(export_id)
    versions = [
        [_unpacked(file.path.read_bytes()[: file.stored_bytes]) for file in backend.files(export, version)]
        for version in (0, 1)
    ]
    # An empty export may be a header or no bytes.
    return [*versions, [b""] * len(versions[0])] if backend.count(export) == 0 else versions


def _unpacked(content: bytes) -> bytes:
    import gzip

    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def _plain(key: str, content: bytes) -> bytes:
    return _unpacked(content) if key.endswith(".gz") else content


def _name_of(error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error, AirflowFailException) else error
    return type(cause).__name__


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pipelines", type=int, default=300)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", type=int, default=None, help="run only this pipeline")
    options = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    print(f"seed {seed}: up to {options.pipelines} pipelines, {options.minutes:g} minutes at most", flush=True)
    outcomes, faults, wrong, began = Counter[str](), Counter[str](), [], time.monotonic()
    with ExitStack() as stack:
        services = stack.enter_context(_open_services(stack))
        for number in [options.only] if options.only is not None else range(options.pipelines):
            if time.monotonic() - began > 60 * options.minutes:
                break
            pipeline = Pipeline.of(number, seed, services)
            faults.update(each.kind for each in pipeline.faults)
            try:
                outcomes[run_pipeline(services, pipeline)] += 1
            except Exception as error:  # noqa: BLE001 - the next pipelines run nevertheless
                outcomes["WRONG"] += 1
                wrong.append(pipeline)
                print(f"WRONG {pipeline.describe()}\n{''.join(traceback.format_exception(error)[-2:])}", flush=True)
    print(table(outcomes, faults, seed, time.monotonic() - began))
    sys.exit(1 if wrong else 0)


def table(outcomes: Counter[str], faults: Counter[str], seed: int, seconds: float) -> str:
    """The outcomes in Markdown."""
    rows = [f"| {outcome} | {count} |" for outcome, count in outcomes.most_common()]
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(faults.items()))
    head = ["", "| outcome | pipelines |", "|---|---:|"]
    counts = f"seed {seed}: {outcomes.total()} pipelines, {faults.total()} faults, {seconds:.0f} s"
    return "\n".join([*head, *rows, "", counts, f"faults: {kinds}"])


def _open_services(stack: ExitStack) -> Any:
    import boto3
    from moto.server import ThreadedMotoServer

    logging.disable(logging.CRITICAL)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    stack.callback(server.stop)
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    url = f"http://127.0.0.1:{server._server.server_port}"
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **keys)
    client.create_bucket(Bucket="lake")
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    patch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    take_no_time(patch)
    without_waits(patch)
    return Services.open(S3(client, "lake", url), AirflowVersion(), patch)


if __name__ == "__main__":
    main()
