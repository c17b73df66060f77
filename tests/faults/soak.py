"""Random weather: hundreds of pipelines (start, wait, deliver) under random faults, of a seed that is printed.

    python -m tests.faults.soak --pipelines 300 --seed 7 --minutes 10

Each has three tries for each of its tasks, as in Airflow, and ends complete and right, or failed with a clear error and
nothing left behind: bytes compared, exports, objects and open uploads counted.
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

from tests.conftest import S3, AirflowVersion, take_no_time  # first: it makes Airflow's settings

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
from tests.faults.cells import NEXT_STEP
from tests.faults.storage_proxy import ERRORS, TROUBLES, StorageFault
from tests.faults.world import Sendgrid, World, all_texts, is_ours, without_waits
from tests.operators.test_sendgrid import Run

TRIES: Final = 3
OPERATIONS: Final = (
    "PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "AbortMultipartUpload", "HeadObject",
    "GetObject", "ListMultipartUploads", "DeleteObject", "*",
)  # fmt: skip
# Of a plain file nobody can tell: its bytes have no checksum.
_UNSEEN_IN_PLAIN: Final = ("corrupt", "truncate", "wrong_length")
_API_ALONE: Final = ("other_host", "broken_json")
# Here files are compared by their place.
_MATRIX_ALONE: Final = ("reorder",)
_FILES_ALONE: Final = ("wrong_range", "no_ranges", "changed", "expire", "truncate")


@dataclass
class Pipeline:
    """One of them: what it is to do, and in which weather."""

    number: int
    chance: random.Random
    sendgrid: Sendgrid
    contacts: int = 0
    mode: str = "poke"
    compression: str = "gzip"
    faults: list[Fault | StorageFault] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def has_fault_at(self, *operations: str) -> bool:
        """Whether the storage fails one of these requests."""
        names = [fault.operation for fault in self.faults if isinstance(fault, StorageFault)]
        return any(fnmatch(operation, name) for operation in operations for name in names)

    @classmethod
    def of(cls, number: int, seed: int, world: World) -> Pipeline:
        chance = random.Random(f"{seed}/{number}")
        made = cls(number, chance, chance.choice([world.packed, world.packed, world.plain]))
        made.contacts = chance.choice([0, 1, 50, 500, 500, 26_050])
        made.mode = chance.choice(["poke", "reschedule", "deferrable"])
        made.compression = chance.choice(["gzip", "none"])
        is_plain = made.sendgrid is world.plain
        made.faults = [_any_fault(chance, is_plain) for _ in range(chance.choice([0, 1, 1, 2, 3, 5]))]
        return made

    def describe(self) -> str:
        weather = ", ".join(
            f"{each.kind} {getattr(each, 'operation', '') or getattr(each, 'listener', '')}"
            f" nth={each.nth} first={each.first} at={getattr(each, 'at', '')}"
            for each in self.faults
        )
        return f"#{self.number} {self.contacts} contacts, {self.mode}, {self.compression}: {weather or 'fair'}"


def _any_fault(chance: random.Random, is_plain: bool) -> Fault | StorageFault:
    times: dict[str, Any] = chance.choice(
        [{"nth": chance.randint(1, 6)}, {"nth": chance.randint(1, 3)}, {"first": chance.randint(1, 4)}, {}]
    )
    if chance.random() < 0.35:
        kind = chance.choice([*ERRORS, *TROUBLES])
        operation = "CompleteMultipartUpload" if kind == "error_in_200" else chance.choice(OPERATIONS)
        return StorageFault(kind, operation, seconds=0.05, **times)
    listener = chance.choice(["api", "files"])
    other = _FILES_ALONE if listener == "api" else (*_API_ALONE, *(_UNSEEN_IN_PLAIN if is_plain else ()))
    kind = chance.choice([kind for kind in KINDS if kind not in (*other, *_MATRIX_ALONE)])
    if kind in ("hang", "trickle"):  # each costs real time
        times = {"nth": chance.randint(1, 3)}
    details = {
        "status": {
            "status": chance.choice([400, 401, 403, 404, 409, 418, 429, 429, 500, 502, 503, 504]),
            "seconds": 5.0,
            "rate_limit_reset": chance.choice(["", "epoch", "seconds"]),
            "retry_after": chance.choice([None, 2.0]),
        },
        "delay": {"seconds": 0.03},
        "trickle": {"bytes_per_second": 400},
        "redirect": {"location": chance.choice(["http://elsewhere.example/", "/elsewhere", "?"])},
        "other_host": {"location": "http://elsewhere.example"},
        "bomb": {"at": 40},
        "cut": {"at": chance.randint(0, 5_000), "with_reset": chance.random() < 0.5},
        "lost": {"with_reset": chance.random() < 0.5},
        "corrupt": {"at": chance.randint(0, 2_000) if listener == "files" else 0},
        "truncate": {"at": chance.randint(0, 2_000)},
        "wrong_length": {"at": chance.choice([1_000, -10])},
        "wrong_range": {"at": chance.randint(1, 9)},
    }.get(kind, {})
    method = chance.choice(["POST", "", ""]) if listener == "api" else ""
    return Fault(kind, listener=listener, method=method, **details, **times)


def play(world: World, pipeline: Pipeline) -> str:
    """Run one to its end and look at everything; answers the outcome."""
    sendgrid = pipeline.sendgrid
    world.calm()
    is_silent = any(each.kind in ("hang", "trickle") for each in pipeline.faults)
    world.connect(sendgrid, 0.8 if is_silent else 30.0)
    list_id = sendgrid.emulator.add_list(f"List {pipeline.number}", contacts=pipeline.contacts)
    prefix = world.new_prefix()
    for fault in pipeline.faults:
        (world.proxy if isinstance(fault, StorageFault) else sendgrid.emulator).inject(fault)
    uris, error = None, None
    try:
        uris = _all_tasks(world, pipeline, list_id, prefix)
    except Exception as caught:  # noqa: BLE001 - that is what is looked at
        error = caught
    struck = len(pipeline.faults)
    world.calm()
    exports = sendgrid.exports_of(list_id)
    assert len(exports) <= 1, f"{len(exports)} exports"
    assert [] == sendgrid.emulator.leaks()
    assert [] == world.s3.open_uploads(), "an upload is left open"
    found = world.keys(prefix)
    if error is not None:
        # What could not be deleted is named by the error of the try that stored it.
        kept = "\n".join(pipeline.errors)
        unnamed = {key: content for key, content in found.items() if f"/{key}" not in kept}
        _look_at_failure(sendgrid, error, unnamed, exports)
        how = "failed permanently" if isinstance(error, AirflowFailException) else "failed"
        return f"{how}: {_name_of(error)}"
    if pipeline.has_fault_at("DeleteObject"):  # a receipt that cannot be deleted stays
        found = {key: content for key, content in found.items() if "/_receipts/" not in key}
    _look_at_success(world, sendgrid, uris or [], found, prefix, exports[0])
    return "complete" if struck else "complete, fair weather"


def _all_tasks(world: World, pipeline: Pipeline, list_id: str, prefix: str) -> list[str]:
    run = Run(has_stores=pipeline.chance.random() < 0.5)
    run.add("start", list_ids=[list_id])
    export_id = _task(pipeline, lambda: run.execute("start"))
    _task(pipeline, lambda: world.wait(pipeline.mode, export_id, lambda: None))
    uris: list[str] = _task(pipeline, lambda: world.deliver(export_id, prefix, compression=pipeline.compression))
    return uris


def _task(pipeline: Pipeline, act: Callable[[], Any]) -> Any:
    """What Airflow does with a task: another try after a failure, none after one for good."""
    for tries_left in reversed(range(TRIES)):
        try:
            return act()
        except Exception as error:
            pipeline.errors.append(str(error))
            if not tries_left or isinstance(error, AirflowFailException):
                raise
    raise RuntimeError("a loop that returns or raises has ended")


def _look_at_success(world: Any, sendgrid: Any, uris: list[str], found: dict, prefix: str, export_id: str) -> None:
    keys = [uri.removeprefix(f"s3://{world.s3.bucket}/") for uri in uris]
    assert sorted([*keys, f"{prefix}_manifest.json"]) == sorted(found), "objects that nobody names, or too few"
    versions = _versions(sendgrid, export_id)
    for number, key in enumerate(keys):
        assert _plain(key, found[key]) in [truth[number] for truth in versions], f"{key} is not what SendGrid has"


def _look_at_failure(sendgrid: Any, error: Exception, found: dict, exports: list[str]) -> None:
    text = all_texts(error)
    assert is_ours(error) or isinstance(error, AirflowSensorTimeout), f"not an error of ours: {error!r}"
    assert NEXT_STEP.search(str(error)) or isinstance(error, AirflowSensorTimeout), f"no next step: {error}"
    assert sendgrid.emulator.api_key not in text
    assert "X-Amz-Signature=" not in text.replace("X-Amz-Signature=***", "")
    for key, content in found.items():
        if key.endswith("_manifest.json"):
            # Only what came after it failed: deleting receipts, say.
            continue
        if "/_receipts/" in key:
            continue
        number = int(re.search(r"-(\d{5})-of-", key)[1]) - 1  # type: ignore[index]
        assert _plain(key, content) in [truth[number] for truth in _versions(sendgrid, exports[0])], (
            f"{key} is not whole"
        )


def _versions(sendgrid: Sendgrid, export_id: str) -> list[list[bytes]]:
    """What the export holds, and what it holds once it has changed."""
    backend = sendgrid.emulator._backend
    export = backend.account.export(export_id)
    versions = [
        [_unpacked(file.path.read_bytes()[: file.stored_bytes]) for file in backend.files(export, version)]
        for version in (0, 1)
    ]
    # An export of nobody may be a header or nothing at all: both agree with SendGrid's count.
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
    parser.add_argument("--only", type=int, default=None, help="play this one alone")
    given = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if given.seed is None else given.seed
    print(f"seed {seed}: up to {given.pipelines} pipelines, {given.minutes:g} minutes at most", flush=True)
    outcomes, faults, wrong, began = Counter[str](), Counter[str](), [], time.monotonic()
    with ExitStack() as stack:
        world = stack.enter_context(_world(stack))
        for number in [given.only] if given.only is not None else range(given.pipelines):
            if time.monotonic() - began > 60 * given.minutes:
                break
            pipeline = Pipeline.of(number, seed, world)
            faults.update(each.kind for each in pipeline.faults)
            try:
                outcomes[play(world, pipeline)] += 1
            except Exception as error:  # noqa: BLE001 - the next ones are played all the same
                outcomes["WRONG"] += 1
                wrong.append(pipeline)
                print(f"WRONG {pipeline.describe()}\n{''.join(traceback.format_exception(error)[-2:])}", flush=True)
    print(table(outcomes, faults, seed, time.monotonic() - began))
    sys.exit(1 if wrong else 0)


def table(outcomes: Counter[str], faults: Counter[str], seed: int, seconds: float) -> str:
    """In Markdown."""
    rows = [f"| {outcome} | {count} |" for outcome, count in outcomes.most_common()]
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(faults.items()))
    head = ["", "| outcome | pipelines |", "|---|---:|"]
    told = f"seed {seed}: {outcomes.total()} pipelines, {faults.total()} faults, {seconds:.0f} s"
    return "\n".join([*head, *rows, "", told, f"faults: {kinds}"])


def _world(stack: ExitStack) -> Any:
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
    return World.open(S3(client, "lake", url), AirflowVersion(), patch)


if __name__ == "__main__":
    main()
