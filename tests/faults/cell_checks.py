"""Checks one cell of the fault matrix: the outcome is the declared one; no data is lost, duplicated or left over."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from airflow_provider_sendgrid.emulator import Fault
from tests.faults.matrix import CONDITIONS, LASTING, Cell
from tests.support.fault_services import EXPORTS, EmulatedSendGrid, Services, all_texts, is_ours, outcome_of
from tests.support.storage_proxy import StorageFault

# Only these faults wait for the timeout.
_SILENT: Final = ("hang", "trickle")
_SHORT_SECONDS, _LONG_SECONDS = 0.8, 30.0
# The next step in a message.
NEXT_STEP: Final = re.compile(
    r"\b([Cc]heck|Run|run|Start|Mend|Correct|Poll|Wait|Choose|try again|look for|Look for|One of three causes)\b"
)
_WRITES: Final = ("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload")
_SUBJECT: Final = re.compile(r"export|/v3/|s3://")


def check_cell(services: Services, cell: Cell) -> None:
    """Inject the fault and check the outcome, remove it and check the retry."""
    variants = [services.gzipped]
    # Conditions do not affect how a file is read, so gzip is enough for them.
    if cell.row.side == "files" and "gzip" not in cell.row.title and cell.entry_point not in CONDITIONS:
        variants.append(services.plain)
    for sendgrid in variants:
        services.reset()
        services.connect(sendgrid, _SHORT_SECONDS if cell.row.fault.kind in _SILENT else _LONG_SECONDS)
        _CHECKS[cell.entry_point](services, sendgrid, cell)
        assert [] == sendgrid.emulator.leaks()
        assert [] == services.s3.open_uploads()


def _inject(services: Services, sendgrid: EmulatedSendGrid, cell: Cell) -> None:
    fault = cell.row.fault
    if isinstance(fault, StorageFault):
        services.proxy.inject(fault)
        return
    if cell.row.side == "files":
        # Not the files of the overlapping run.
        target = {"listener": "files", "path": f"{sendgrid.export_id}-*"}
    elif cell.entry_point == "start":
        target = {"method": "POST"}
    else:
        target = {"path": f"{EXPORTS}/*", "method": "GET"}
    sendgrid.emulator.inject(Fault.from_payload({**fault.as_json(), **target}))


def _run_and_compare(sendgrid: EmulatedSendGrid, cell: Cell, act: Callable[[], Any]) -> Any:
    """Run `act` and compare its outcome. An error must be ours, with the next step and without secrets."""
    result, error = None, None
    try:
        result = act()
    except Exception as caught:  # noqa: BLE001 - any error is checked
        error = caught
    assert outcome_of(error) in cell.outcomes, all_texts(error)
    if error is not None:
        text = all_texts(error)
        assert is_ours(error) or type(error).__name__ == "AirflowSensorTimeout"
        assert NEXT_STEP.search(str(error)), str(error)
        assert _SUBJECT.search(str(error)), str(error)
        assert sendgrid.emulator.api_key not in text
        assert "X-Amz-Signature=" not in text.replace("X-Amz-Signature=***", "")
    return result


def _check_request(services: Services, sendgrid: EmulatedSendGrid, cell: Cell) -> None:
    _inject(services, sendgrid, cell)
    export = _run_and_compare(sendgrid, cell, lambda: services.ask(sendgrid))
    assert export is None or (export.status, len(export.urls)) == ("ready", len(sendgrid.expected_files))
    services.reset()
    assert "ready" == services.ask(sendgrid).status


def _check_wait(services: Services, sendgrid: EmulatedSendGrid, cell: Cell) -> None:
    list_id = sendgrid.emulator.add_list("Some", contacts=3)
    export_id = sendgrid.emulator.start_export([list_id])
    timeout = 3.0 if cell.row.times == LASTING else 60.0
    inject = lambda: _inject(services, sendgrid, cell)  # noqa: E731
    summary = _run_and_compare(sendgrid, cell, lambda: services.wait(cell.entry_point, export_id, inject, timeout))
    assert summary is None or (summary["id"], summary["contact_count"]) == (export_id, 3)
    assert [export_id] == sendgrid.exports_of(list_id)
    sendgrid.emulator.clear_faults()
    assert 3 == services.wait(cell.entry_point, export_id, lambda: None)["contact_count"]


def _check_start(services: Services, sendgrid: EmulatedSendGrid, cell: Cell) -> None:
    list_id = sendgrid.emulator.add_list("Wanted", contacts=3)
    _inject(services, sendgrid, cell)
    export_id = _run_and_compare(sendgrid, cell, lambda: services.start(list_id))
    started = sendgrid.exports_of(list_id)
    assert started == ([export_id] if export_id else [])


def _check_delivery(services: Services, sendgrid: EmulatedSendGrid, cell: Cell) -> None:
    prefix = services.new_prefix()
    run = _CONDITIONS.get(cell.entry_point, Condition)(services, sendgrid, prefix)
    _inject(services, sendgrid, cell)
    run.before_first_try()
    uris = _run_and_compare(sendgrid, cell, run.deliver)
    if uris is None:
        _assert_nothing_incomplete(services, sendgrid, cell, run)
    else:
        run.assert_delivered(uris)
        run.assert_applied()
    services.reset()
    services.connect(sendgrid, _LONG_SECONDS)
    run.before_retry()
    run.assert_delivered(run.deliver())


@dataclass
class Condition:
    """A condition under which a delivery runs; this one changes nothing."""

    may_delete: ClassVar[bool] = True

    services: Services
    sendgrid: EmulatedSendGrid
    prefix: str

    def before_first_try(self) -> None:
        """Before the first try, with the fault."""

    def before_retry(self) -> None:
        """Before the second try, without it."""

    def deliver(self) -> list[str]:
        return self.services.deliver(self.sendgrid.export_id, self.prefix)

    def allowed_contents(self, number: int) -> list[bytes]:
        """The allowed contents of the object with this number, from 1."""
        return [self.sendgrid.expected_files[number - 1]]

    def others(self) -> set[str]:
        """The objects of other runs with the same prefix."""
        return set()

    def assert_delivered(self, uris: Sequence[str]) -> None:
        assert_delivered(self.services, self.sendgrid.expected_files, self.prefix, uris)

    def assert_applied(self) -> None:
        """After a successful first try: the condition took effect."""


class Overlap(Condition):
    """Before the first object is stored, another export is delivered to the same prefix, without faults."""

    def before_first_try(self) -> None:
        self.other_uris: list[str] = []
        self.services.proxy.before = self._intercept

    def _intercept(self, operation: str, path: str) -> None:
        if operation in _WRITES and "-of-" in path and "/_receipts/" not in path:
            self.services.proxy.before = None
            self._deliver_other()

    def _deliver_other(self) -> None:
        self.other_uris = self.services.deliver(
            self.sendgrid.other_export_id, self.prefix, aws_conn_id="aws_direct", replace=True
        )

    def assert_applied(self) -> None:
        assert self.other_uris

    def before_retry(self) -> None:
        if not self.other_uris:
            self._deliver_other()

    def deliver(self) -> list[str]:
        return self.services.deliver(self.sendgrid.export_id, self.prefix, replace=True)

    def others(self) -> set[str]:
        """The other export's manifest and its objects, checked."""
        if not self.other_uris:
            return set()
        found = self.services.keys(self.prefix)
        manifest = json.loads(found[f"{self.prefix}_manifest.json"])
        assert self.other_uris == [entry["url"] for entry in manifest["entries"]]
        keys = [uri.removeprefix(f"s3://{self.services.s3.bucket}/") for uri in self.other_uris]
        sums = [hashlib.sha256(found[key]).hexdigest() for key in keys]
        assert sums == [entry["meta"]["sha256"] for entry in manifest["entries"]]
        return {*keys, f"{self.prefix}_manifest.json"}


class Reordered(Condition):
    """SendGrid lists the files in another order in each response."""

    def before_first_try(self) -> None:
        path = f"{EXPORTS}/{self.sendgrid.export_id}"
        self.sendgrid.emulator.inject(*(Fault("reorder", path=path, nth=number) for number in range(2, 40, 2)))

    def before_retry(self) -> None:
        self.sendgrid.emulator.inject(Fault("reorder", path=f"{EXPORTS}/{self.sendgrid.export_id}"))

    def allowed_contents(self, _number: int) -> list[bytes]:
        return self.sendgrid.expected_files

    def assert_delivered(self, uris: Sequence[str]) -> None:
        """Every file once, in either order."""
        found = self.services.keys(self.prefix)
        stored = [found[uri.removeprefix(f"s3://{self.services.s3.bucket}/")] for uri in uris]
        expected_files = self.sendgrid.expected_files
        assert_delivered(
            self.services, expected_files if stored == expected_files else expected_files[::-1], self.prefix, uris
        )


class Flipped(Condition):
    """One byte of the first object, and of the first part, is flipped in transit."""

    def before_first_try(self) -> None:
        self.services.proxy.inject(*(StorageFault("corrupt", name, first=1) for name in ("PutObject", "UploadPart")))

    before_retry = before_first_try

    def assert_applied(self) -> None:
        assert self.services.proxy.applied["corrupt"] >= 2


class Unchecked(Condition):
    """The storage ignores checksums, and returns none."""

    def before_first_try(self) -> None:
        self.services.proxy.ignores_checksums = True

    before_retry = before_first_try


class Undeletable(Condition):
    """Deletes are denied: receipts stay, and files with a wrong row count until the next try replaces them."""

    may_delete = False

    def before_first_try(self) -> None:
        self.services.proxy.inject(StorageFault("access_denied", "DeleteObject"))

    before_retry = before_first_try

    def deliver(self) -> list[str]:
        with _warnings() as warnings:
            uris = super().deliver()
        assert 1 >= sum("delete" in warning for warning in warnings), warnings
        return uris

    def assert_applied(self) -> None:
        assert self.services.proxy.applied["access_denied"]

    def assert_delivered(self, uris: Sequence[str]) -> None:
        receipts = {key for key in self.services.keys(self.prefix) if "/_receipts/" in key}
        assert_delivered(self.services, self.sendgrid.expected_files, self.prefix, uris, receipts)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collects the provider's warnings."""
    texts: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("airflow_provider_sendgrid")
    logger.addHandler(handler)
    try:
        yield texts
    finally:
        logger.removeHandler(handler)


def assert_delivered(
    services: Services,
    expected_files: Sequence[bytes],
    prefix: str,
    uris: Sequence[str],
    others: Set[str] = frozenset(),
) -> None:
    """The objects are the expected files, with their manifest, and nothing else."""
    keys = [uri.removeprefix(f"s3://{services.s3.bucket}/") for uri in uris]
    found = services.keys(prefix)
    assert sorted([*keys, f"{prefix}_manifest.json", *others]) == sorted(found)
    assert list(expected_files) == [found[key] for key in keys]
    manifest = json.loads(found[f"{prefix}_manifest.json"])
    assert list(uris) == [entry["url"] for entry in manifest["entries"]]
    sums = [hashlib.sha256(content).hexdigest() for content in expected_files]
    assert sums == [entry["meta"]["sha256"] for entry in manifest["entries"]]
    assert [] == services.s3.open_uploads()


def _assert_nothing_incomplete(services: Services, sendgrid: EmulatedSendGrid, cell: Cell, run: Condition) -> None:
    """A failed delivery leaves only complete files, for the next try, and no manifest.

    A plain file that the storage truncated outside quotes is only detected when all rows are compared.
    """
    is_undetected_cut = cell.row.fault.kind == "truncate" and sendgrid is services.plain
    found = {key: content for key, content in services.keys(run.prefix).items() if "/_receipts/" not in key}
    found = {key: content for key, content in found.items() if key not in run.others()}
    assert f"{run.prefix}_manifest.json" not in found
    for key, content in found.items() if run.may_delete else ():
        number = int(re.search(r"-(\d{5})-of-", key)[1])  # type: ignore[index]
        allowed_contents = run.allowed_contents(number)
        assert content in allowed_contents or (
            is_undetected_cut and any(each.startswith(content) for each in allowed_contents)
        )
    assert [] == services.s3.open_uploads()


_CHECKS: Final[dict[str, Callable[[Services, EmulatedSendGrid, Cell], None]]] = {
    "hook": _check_request,
    "poke": _check_wait,
    "reschedule": _check_wait,
    "deferrable": _check_wait,
    "start": _check_start,
    "deliver": _check_delivery,
    **dict.fromkeys(CONDITIONS, _check_delivery),
}
_CONDITIONS: Final[dict[str, type[Condition]]] = dict(
    zip(CONDITIONS, (Overlap, Reordered, Flipped, Unchecked, Undeletable), strict=True)
)
