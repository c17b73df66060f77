"""Proves one cell of the fault matrix: the outcome is the declared one, and nothing is lost, doubled or left behind."""

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
from tests.faults.storage_proxy import StorageFault
from tests.faults.world import EXPORTS, Sendgrid, World, all_texts, is_ours, outcome_of

# Silence is waited for; everything else is answered at once, however busy this machine is.
_SILENT: Final = ("hang", "trickle")
_SHORT_SECONDS, _LONG_SECONDS = 0.8, 30.0
# A message says what to do next.
NEXT_STEP: Final = re.compile(
    r"\b([Cc]heck|Run|run|Start|Mend|Correct|Poll|Wait|Choose|try again|look for|Look for|One of three causes)\b"
)
_WRITES: Final = ("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload")
_THING: Final = re.compile(r"export|/v3/|s3://")


def prove(world: World, cell: Cell) -> None:
    """Break, look, mend, look again."""
    variants = [world.packed]
    # The conditions change nothing in how a file is read: gzip is enough for them.
    if cell.row.side == "files" and "gzip" not in cell.row.said and cell.door not in CONDITIONS:
        variants.append(world.plain)
    for sendgrid in variants:
        world.calm()
        world.connect(sendgrid, _SHORT_SECONDS if cell.row.fault.kind in _SILENT else _LONG_SECONDS)
        _DOORS[cell.door](world, sendgrid, cell)
        assert [] == sendgrid.emulator.leaks()
        assert [] == world.s3.open_uploads()


def _break(world: World, sendgrid: Sendgrid, cell: Cell) -> None:
    fault = cell.row.fault
    if isinstance(fault, StorageFault):
        world.proxy.inject(fault)
        return
    if cell.row.side == "files":
        # The overlapping run's files are sound.
        aimed = {"listener": "files", "path": f"{sendgrid.export_id}-*"}
    elif cell.door == "start":
        aimed = {"method": "POST"}
    else:
        aimed = {"path": f"{EXPORTS}/*", "method": "GET"}
    sendgrid.emulator.inject(Fault.from_payload({**fault.as_json(), **aimed}))


def _try(sendgrid: Sendgrid, cell: Cell, act: Callable[[], Any]) -> Any:
    """Act, and compare what comes of it with what is declared; a failure is ours, clear, and tells no secret."""
    result, error = None, None
    try:
        result = act()
    except Exception as caught:  # noqa: BLE001 - that is what is looked at
        error = caught
    assert outcome_of(error) in cell.outcomes, all_texts(error)
    if error is not None:
        text = all_texts(error)
        assert is_ours(error) or type(error).__name__ == "AirflowSensorTimeout"
        assert NEXT_STEP.search(str(error)), str(error)
        assert _THING.search(str(error)), str(error)
        assert sendgrid.emulator.api_key not in text
        assert "X-Amz-Signature=" not in text.replace("X-Amz-Signature=***", "")
    return result


def _ask(world: World, sendgrid: Sendgrid, cell: Cell) -> None:
    _break(world, sendgrid, cell)
    export = _try(sendgrid, cell, lambda: world.ask(sendgrid))
    assert export is None or (export.status, len(export.urls)) == ("ready", len(sendgrid.truth))
    world.calm()
    assert "ready" == world.ask(sendgrid).status


def _wait(world: World, sendgrid: Sendgrid, cell: Cell) -> None:
    list_id = sendgrid.emulator.add_list("Some", contacts=3)
    export_id = sendgrid.emulator.start_export([list_id])
    timeout = 3.0 if cell.row.times == LASTING else 60.0
    broken = lambda: _break(world, sendgrid, cell)  # noqa: E731
    summary = _try(sendgrid, cell, lambda: world.wait(cell.door, export_id, broken, timeout))
    assert summary is None or (summary["id"], summary["contact_count"]) == (export_id, 3)
    assert [export_id] == sendgrid.exports_of(list_id)
    sendgrid.emulator.clear_faults()
    assert 3 == world.wait(cell.door, export_id, lambda: None)["contact_count"]


def _start(world: World, sendgrid: Sendgrid, cell: Cell) -> None:
    list_id = sendgrid.emulator.add_list("Wanted", contacts=3)
    _break(world, sendgrid, cell)
    export_id = _try(sendgrid, cell, lambda: world.start(list_id))
    begun = sendgrid.exports_of(list_id)
    assert begun == ([export_id] if export_id else [])


def _deliver(world: World, sendgrid: Sendgrid, cell: Cell) -> None:
    prefix = world.new_prefix()
    run = _CONDITIONS.get(cell.door, Condition)(world, sendgrid, prefix)
    _break(world, sendgrid, cell)
    run.begin()
    uris = _try(sendgrid, cell, run.deliver)
    if uris is None:
        _assert_nothing_incomplete(world, sendgrid, cell, run)
    else:
        run.assert_delivered(uris)
        run.assert_was_met()
    world.calm()
    world.connect(sendgrid, _LONG_SECONDS)
    run.begin_again()
    run.assert_delivered(run.deliver())


@dataclass
class Condition:
    """Under which a delivery runs; here none."""

    may_delete: ClassVar[bool] = True

    world: World
    sendgrid: Sendgrid
    prefix: str

    def begin(self) -> None:
        """Before the first try, with the fault."""

    def begin_again(self) -> None:
        """Before the second try, without it."""

    def deliver(self) -> list[str]:
        return self.world.deliver(self.sendgrid.export_id, self.prefix)

    def truths(self, number: int) -> list[bytes]:
        """What the object of this number may hold, the first one being 1."""
        return [self.sendgrid.truth[number - 1]]

    def others(self) -> set[str]:
        """Objects at the prefix that are not this run's, and are sound."""
        return set()

    def assert_delivered(self, uris: Sequence[str]) -> None:
        assert_delivered(self.world, self.sendgrid.truth, self.prefix, uris)

    def assert_was_met(self) -> None:
        """After a first try that succeeded: the condition was not only declared."""


class Overlap(Condition):
    """Another export is delivered to the same prefix, past all faults, when the first object is about to be stored."""

    def begin(self) -> None:
        self.other_uris: list[str] = []
        self.world.proxy.before = self._meanwhile

    def _meanwhile(self, operation: str, path: str) -> None:
        if operation in _WRITES and "-of-" in path and "/_receipts/" not in path:
            self.world.proxy.before = None
            self._deliver_other()

    def _deliver_other(self) -> None:
        self.other_uris = self.world.deliver(
            self.sendgrid.other_export_id, self.prefix, aws_conn_id="aws_direct", replace=True
        )

    def assert_was_met(self) -> None:
        assert self.other_uris

    def begin_again(self) -> None:
        if not self.other_uris:
            self._deliver_other()

    def deliver(self) -> list[str]:
        return self.world.deliver(self.sendgrid.export_id, self.prefix, replace=True)

    def others(self) -> set[str]:
        """The other export's manifest, which holds what it says, and its objects."""
        if not self.other_uris:
            return set()
        found = self.world.keys(self.prefix)
        manifest = json.loads(found[f"{self.prefix}_manifest.json"])
        assert self.other_uris == [entry["url"] for entry in manifest["entries"]]
        keys = [uri.removeprefix(f"s3://{self.world.s3.bucket}/") for uri in self.other_uris]
        sums = [hashlib.sha256(found[key]).hexdigest() for key in keys]
        assert sums == [entry["meta"]["sha256"] for entry in manifest["entries"]]
        return {*keys, f"{self.prefix}_manifest.json"}


class Reordered(Condition):
    """SendGrid lists the files in another order with each answer."""

    def begin(self) -> None:
        path = f"{EXPORTS}/{self.sendgrid.export_id}"
        self.sendgrid.emulator.inject(*(Fault("reorder", path=path, nth=number) for number in range(2, 40, 2)))

    def begin_again(self) -> None:
        self.sendgrid.emulator.inject(Fault("reorder", path=f"{EXPORTS}/{self.sendgrid.export_id}"))

    def truths(self, _number: int) -> list[bytes]:
        return self.sendgrid.truth

    def assert_delivered(self, uris: Sequence[str]) -> None:
        """Every file once, in either order."""
        found = self.world.keys(self.prefix)
        stored = [found[uri.removeprefix(f"s3://{self.world.s3.bucket}/")] for uri in uris]
        truth = self.sendgrid.truth
        assert_delivered(self.world, truth if stored == truth else truth[::-1], self.prefix, uris)


class Flipped(Condition):
    """One byte of the first object, and of the first part, is flipped on its way."""

    def begin(self) -> None:
        self.world.proxy.inject(*(StorageFault("corrupt", name, first=1) for name in ("PutObject", "UploadPart")))

    begin_again = begin

    def assert_was_met(self) -> None:
        assert self.world.proxy.struck["corrupt"] >= 2


class Unchecked(Condition):
    """The storage ignores checksums, and returns none."""

    def begin(self) -> None:
        self.world.proxy.ignores_checksums = True

    begin_again = begin


class Undeletable(Condition):
    """Nothing may be deleted: receipts stay, and files whose rows disagree until the next try replaces them."""

    may_delete = False

    def begin(self) -> None:
        self.world.proxy.inject(StorageFault("access_denied", "DeleteObject"))

    begin_again = begin

    def deliver(self) -> list[str]:
        with _warnings() as warnings:
            uris = super().deliver()
        assert 1 >= sum("delete" in warning for warning in warnings), warnings
        return uris

    def assert_was_met(self) -> None:
        assert self.world.proxy.struck["access_denied"]

    def assert_delivered(self, uris: Sequence[str]) -> None:
        receipts = {key for key in self.world.keys(self.prefix) if "/_receipts/" in key}
        assert_delivered(self.world, self.sendgrid.truth, self.prefix, uris, receipts)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What the provider warns of meanwhile."""
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
    world: World, truth: Sequence[bytes], prefix: str, uris: Sequence[str], others: Set[str] = frozenset()
) -> None:
    """Every byte is there, once, and the manifest says so; nothing else is."""
    keys = [uri.removeprefix(f"s3://{world.s3.bucket}/") for uri in uris]
    found = world.keys(prefix)
    assert sorted([*keys, f"{prefix}_manifest.json", *others]) == sorted(found)
    assert list(truth) == [found[key] for key in keys]
    manifest = json.loads(found[f"{prefix}_manifest.json"])
    assert list(uris) == [entry["url"] for entry in manifest["entries"]]
    sums = [hashlib.sha256(content).hexdigest() for content in truth]
    assert sums == [entry["meta"]["sha256"] for entry in manifest["entries"]]
    assert [] == world.s3.open_uploads()


def _assert_nothing_incomplete(world: World, sendgrid: Sendgrid, cell: Cell, run: Condition) -> None:
    """What a failed delivery leaves are whole files, for the next try to find, and no manifest.

    Or a plain file that the storage cut outside quotes and calls whole: until all rows are compared, nobody can tell.
    """
    is_cut_unseen = cell.row.fault.kind == "truncate" and sendgrid is world.plain
    found = {key: content for key, content in world.keys(run.prefix).items() if "/_receipts/" not in key}
    found = {key: content for key, content in found.items() if key not in run.others()}
    assert f"{run.prefix}_manifest.json" not in found
    for key, content in found.items() if run.may_delete else ():
        number = int(re.search(r"-(\d{5})-of-", key)[1])  # type: ignore[index]
        truths = run.truths(number)
        assert content in truths or (is_cut_unseen and any(truth.startswith(content) for truth in truths))
    assert [] == world.s3.open_uploads()


_DOORS: Final[dict[str, Callable[[World, Sendgrid, Cell], None]]] = {
    "hook": _ask,
    "poke": _wait,
    "reschedule": _wait,
    "deferrable": _wait,
    "start": _start,
    "deliver": _deliver,
    **dict.fromkeys(CONDITIONS, _deliver),
}
_CONDITIONS: Final[dict[str, type[Condition]]] = dict(
    zip(CONDITIONS, (Overlap, Reordered, Flipped, Unchecked, Undeletable), strict=True)
)
