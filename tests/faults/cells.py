"""Proves one cell of the fault matrix: the outcome is the declared one, and nothing is lost, doubled or left behind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from airflow_provider_sendgrid.emulator import Fault
from tests.faults.matrix import Cell
from tests.faults.storage_proxy import StorageFault
from tests.faults.world import EXPORTS, Sendgrid, World, all_texts, is_ours, outcome_of

# Silence is waited for; everything else is answered at once, however busy this machine is.
_SILENT: Final = ("hang", "trickle")
_SHORT_SECONDS, _LONG_SECONDS = 0.8, 30.0
# A message says what to do next.
NEXT_STEP: Final = re.compile(
    r"\b(Check|Run|run|Start|Mend|Correct|Poll|Wait|Choose|try again|look for|Look for|One of three causes)\b"
)
_THING: Final = re.compile(r"export|/v3/|s3://")


def prove(world: World, cell: Cell) -> None:
    """Break, look, mend, look again."""
    variants = [world.packed]
    if cell.row.side == "files" and "gzip" not in cell.row.said:
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
        aimed = {"listener": "files"}
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
    assert cell.outcome == outcome_of(error), all_texts(error)
    if error is not None:
        text = all_texts(error)
        assert is_ours(error)
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
    summary = _try(sendgrid, cell, lambda: world.wait(cell.door, export_id, lambda: _break(world, sendgrid, cell)))
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
    _break(world, sendgrid, cell)
    uris = _try(sendgrid, cell, lambda: world.deliver(sendgrid.export_id, prefix))
    if uris is None:
        _assert_nothing_incomplete(world, sendgrid, cell, prefix)
    else:
        assert_delivered(world, sendgrid.truth, prefix, uris)
    world.calm()
    world.connect(sendgrid, _LONG_SECONDS)
    assert_delivered(world, sendgrid.truth, prefix, world.deliver(sendgrid.export_id, prefix))


def assert_delivered(world: World, truth: Sequence[bytes], prefix: str, uris: Sequence[str]) -> None:
    """Every byte is there, once, and the manifest says so; nothing else is."""
    keys = [uri.removeprefix(f"s3://{world.s3.bucket}/") for uri in uris]
    found = world.keys(prefix)
    assert sorted([*keys, f"{prefix}_manifest.json"]) == sorted(found)
    assert list(truth) == [found[key] for key in keys]
    manifest = json.loads(found[f"{prefix}_manifest.json"])
    assert list(uris) == [entry["url"] for entry in manifest["entries"]]
    assert [] == world.s3.open_uploads()


def _assert_nothing_incomplete(world: World, sendgrid: Sendgrid, cell: Cell, prefix: str) -> None:
    """What a failed delivery leaves are whole files, for the next try to find, and no manifest.

    Or a plain file that the storage cut outside quotes and calls whole: until all rows are compared, nobody can tell.
    """
    is_cut_unseen = cell.row.fault.kind == "truncate" and sendgrid is world.plain
    found = {key: content for key, content in world.keys(prefix).items() if "/_receipts/" not in key}
    assert f"{prefix}_manifest.json" not in found
    for key, content in found.items():
        number = int(re.search(r"-(\d{5})-of-", key)[1])  # type: ignore[index]
        truth = sendgrid.truth[number - 1]
        assert truth == content or (is_cut_unseen and truth.startswith(content))
    assert [] == world.s3.open_uploads()


_DOORS: Final[dict[str, Callable[[World, Sendgrid, Cell], None]]] = {
    "hook": _ask,
    "poke": _wait,
    "reschedule": _wait,
    "deferrable": _wait,
    "start": _start,
    "deliver": _deliver,
}
