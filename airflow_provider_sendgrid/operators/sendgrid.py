"""Starts a SendGrid contact export, once."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from airflow_provider_sendgrid import lineage
from airflow_provider_sendgrid._compat import (
    AirflowFailException,
    BaseOperator,
    Context,
    XComArg,
    mapped_arguments,
    task_states,
    xcoms_of_run,
)
from airflow_provider_sendgrid.exceptions import SendGridError, is_non_retryable
from airflow_provider_sendgrid.exports.arguments import require_bool
from airflow_provider_sendgrid.exports.export import ExportFamily, ExportSelection
from airflow_provider_sendgrid.exports.start_attempt import Attempt, Baseline, Clock, ConcurrentStarts, PendingStart
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook
from airflow_provider_sendgrid.links.sendgrid import SendGridExportsLink
from airflow_provider_sendgrid.stopping import StopSignal
from airflow_provider_sendgrid.triggers.sendgrid import STARTED_KEY

log = logging.getLogger(__name__)

# Under this key a task keeps its record (see `_StartRecord`) in its state store, and announces it as an XCom.
_KEY = "sendgrid_export"
_KEPT = ("began", "since", "clock", "known_ids", "earlier_ids", "id")
# Announcements of so many other runs are read at most, unfinished runs first.
_MAX_RUNS = 100
_FINISHED_STATES = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
_TRIED_STATES = frozenset({"running", "up_for_retry", "restarting"})

_SELECTION = ("list_ids", "segment_ids", "list_names", "segment_names")
# What templates make of nothing.
_EMPTY_TEXTS = frozenset({"", "none", "null", "[]", "()", "{}", "set()"})


class SendGridExportContactsOperator(BaseOperator):
    """Start an export of contacts and return its id.

    If none of `list_ids`, `segment_ids`, `list_names` and `segment_names` is passed, all contacts of the account are
    exported. An argument that is passed must name at least one list or segment: if it renders to nothing (``None``, an
    empty list, empty text), or an entry of it does, the task fails and starts nothing. A literal ``None`` counts as not
    passed, except in a mapped task.

    Wrong arguments, and what SendGrid refuses (400, 401, 403, 404), fail the task without a retry.

    With ``durable`` no export is started twice. Before the start, the task reads SendGrid's list of exports. If the
    response to the start is lost, or the task is retried, it takes the export that has the same lists and segments,
    was not there before, and does not belong to another task of this DAG. If several exports or tasks remain, or if
    the export seems to be older than the start, it waits up to six minutes for the list and the other tasks to tell,
    then fails and names them. An export of the same lists that a person or another DAG created just then (while
    SendGrid answers 429, up to ten minutes) cannot be distinguished from this one: it is taken, unless there are both.
    It holds the same contacts; its file type shows only once it is ready.

    From Airflow 3.3 on, the task's state store keeps what a retry needs. Older versions keep nothing between tries: a
    retry then looks for exports since the run began, and an export up to ten minutes older leaves a doubt.

    A retry returns the same export. If you clear a task that succeeded, it starts a new one. Before Airflow 3.3 this
    holds if the run had ended when you cleared the task; else it counts as a retry. From 3.3 on, a start that was
    refused leaves nothing behind: it starts again when cleared. One whose outcome is unknown is looked for.

    Args:
        list_ids: ids of the lists to export (uuids; numbers in the legacy family).
        segment_ids: ids of the segments to export.
        list_names: names of lists to export, exactly as in SendGrid; looked up when the task runs.
        segment_names: names of segments to export, likewise.
        file_type: ``"csv"`` or ``"json"`` (one object per line).
        max_file_size: in MB; a larger export is split into several files. SendGrid's default is 5000.
        notify_by_email: have SendGrid mail a link to the files to the account's owner.
        durable: look for an export that an earlier try started, before starting another.
        family: ``"marketing"`` or ``"legacy"``.
        sendgrid_conn_id: connection of type ``sendgrid``.

    Returns:
        The export's id, for `SendGridExportSensor` and the transfer operators.
    """

    template_fields: Sequence[str] = (
        "list_ids",
        "segment_ids",
        "list_names",
        "segment_names",
        "file_type",
        "max_file_size",
        "family",
        "sendgrid_conn_id",
    )
    template_fields_renderers = dict.fromkeys(  # Airflow's own form
        ("list_ids", "segment_ids", "list_names", "segment_names"), "json"
    )
    operator_extra_links = (SendGridExportsLink(),)
    ui_color = "#d1eefc"

    def __init__(
        self,
        *,
        list_ids: Sequence[str | int] | XComArg | None = None,
        segment_ids: Sequence[str | int] | XComArg | None = None,
        list_names: Sequence[str] | XComArg | None = None,
        segment_names: Sequence[str] | XComArg | None = None,
        file_type: str = "csv",
        max_file_size: int | None = None,
        notify_by_email: bool = False,
        durable: bool = True,
        family: str = ExportFamily.MARKETING.value,
        sendgrid_conn_id: str = SendGridHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # Airflow renders templates and XComs before these are used.
        self.list_ids: Sequence[str | int] | None = list_ids  # type: ignore[assignment]
        self.segment_ids: Sequence[str | int] | None = segment_ids  # type: ignore[assignment]
        self.list_names: Sequence[str] | None = list_names  # type: ignore[assignment]
        self.segment_names: Sequence[str] | None = segment_names  # type: ignore[assignment]
        self.file_type = file_type
        self.max_file_size = max_file_size
        self.notify_by_email = notify_by_email
        self.durable = durable
        self.family = family
        self.sendgrid_conn_id = sendgrid_conn_id
        self._passed = self._not_none()
        self._started: tuple[lineage.SendGridAccount, ExportSelection, str] | None = None

    def render_template_fields(self, context: Context, jinja_env: Any = None) -> None:
        """Remember which arguments were set before rendering, also by assignment."""
        self._passed |= self._not_none()
        super().render_template_fields(context, jinja_env)

    def execute(self, context: Context) -> str:
        """Start the export, or find it."""
        try:
            hook = SendGridHook(self.sendgrid_conn_id, self.family)
            require_bool("durable", self.durable)
            hook.stop = self._stop
            SendGridExportsLink.keep_for(context, self.family)
            selection = self._selection(hook)
            export_id, is_found = self._start(hook, selection, context)
        except (SendGridError, ValueError, TypeError) as error:
            if isinstance(error, SendGridError) and not is_non_retryable(error):
                raise
            raise AirflowFailException(str(error)) from error
        how = "Found the export that an earlier request started" if is_found else "SendGrid accepted the export"
        self.log.info("%s; its id is %s.", how, export_id)
        self._started = (hook.account, selection, export_id)
        self._leave_word(context, export_id)
        return export_id

    def on_kill(self) -> None:
        """Stop at once; a retry finds the export if its start was sent. Called by Airflow when it ends the task."""
        self._stop.set()

    @cached_property
    def _stop(self) -> StopSignal:
        """Made when the task runs: an operator is copied before that."""
        return StopSignal()

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> lineage.Lineage:
        """From the lists and segments to the export; called by Airflow's OpenLineage provider."""
        return lineage.lineage_of_start(*self._started) if self._started else lineage.empty_lineage()

    def _leave_word(self, context: Context, export_id: str) -> None:
        """Tell a `SendGridNewExportTrigger` that watches for one of our inlets whose export this is (Airflow 3.3)."""
        stores: Any = context.get("asset_state_store")
        for inlet in self.inlets if stores is not None else ():
            try:
                stores[inlet].set(f"{STARTED_KEY}{export_id}", self.task_id)
            except (KeyError, TypeError):  # not an asset
                continue

    def _not_none(self) -> frozenset[str]:
        return frozenset(name for name in _SELECTION if getattr(self, name) is not None)

    def _selection(self, hook: SendGridHook) -> ExportSelection:
        passed = {*self._passed, *self._not_none(), *mapped_arguments(self)}
        given = {name: _items(name, getattr(self, name)) for name in _SELECTION if name in passed}
        if not given:
            self.log.info("Neither lists nor segments were passed: exporting all contacts.")
        return ExportSelection(
            list_ids=_unique([*given.get("list_ids", ()), *hook.ids_of_lists(given.get("list_names", []))]),
            segment_ids=_unique([*given.get("segment_ids", ()), *hook.ids_of_segments(given.get("segment_names", []))]),
            file_type=self.file_type,
            max_file_size=None if _is_empty(self.max_file_size) else self.max_file_size,
            notify_by_email=self.notify_by_email,
        )

    def _start(self, hook: SendGridHook, selection: ExportSelection, context: Context) -> tuple[str, bool]:
        account = hook.connection
        selection.to_payload(hook.account.family)  # wrong arguments and settings are refused before any request
        same = self._fingerprint(selection, f"{account.base_url} {account.on_behalf_of}")
        record = _StartRecord(context, same, self._old_fingerprint(selection), selection)
        if not self.durable:
            record.announce()  # other tasks must not take this export for theirs
            export_id = hook.start_selection(selection)
            record.announce(export_id)
            return export_id, False
        try:
            export_id, is_found = hook.start_export_once(selection, record.attempt())
        except SendGridError as error:
            if not error.may_have_been_accepted:
                record.forget()
            raise
        except (ValueError, TypeError) as error:  # not of an argument: the export may have been started
            raise SendGridError(
                f"Starting the export was ended by an unforeseen {type(error).__name__}: {error}. Run the task again: "
                "it looks for the export before it starts another.",
                may_have_been_accepted=True,
            ) from error
        record.keep_id(export_id)
        return export_id, is_found

    def _fingerprint(self, selection: ExportSelection, account: str = "") -> str:
        """The same for exports that the list of exports cannot tell apart, whatever their file type and size."""
        return _hash([account, getattr(self.family, "value", self.family), *_sorted_ids(selection)])

    def _old_fingerprint(self, selection: ExportSelection) -> str:
        """What versions before this one kept: a task that is retried after an upgrade finds its record."""
        ids = _sorted_ids(selection)
        return _hash([self.sendgrid_conn_id, str(self.family), *ids, selection.file_type, str(selection.max_file_size)])


class _StartRecord:
    """What a durable start keeps for later tries of its task, and announces to other tasks.

    The record is a JSON mapping: ``of`` (account, lists and segments, hashed), ``form`` (file type and size), ``run``
    and ``task`` (whose it is), ``max_tries`` (changes when the task is cleared), ``began`` (by the worker's clock).
    Once known, it also holds ``since`` and ``clock`` (see `Baseline`), ``known_ids``, ``id`` of the export, and
    ``earlier_ids`` of those before a clear. Airflow 3.3 keeps it in the task's state store. As an XCom other tasks can
    read it; Airflow deletes that before a retry.

    Args:
        context: of the task.
        same: equal for exports that the list of exports cannot tell apart.
        old: what older versions kept in the place of `same`.
        selection: what to export.
    """

    def __init__(self, context: Context, same: str, old: str, selection: ExportSelection) -> None:
        self._context = context
        self._store: Any = context.get("task_state_store")  # from Airflow 3.3 on
        self._ti: Any = context.get("ti")
        self._old = old
        self.record: dict[str, Any] = {
            "of": same,
            "form": [selection.file_type, str(selection.max_file_size)],
            "run": getattr(self._ti, "run_id", "") or "",
            "task": _name_of(context),
            "max_tries": getattr(self._ti, "max_tries", None),
            "began": time.time(),
        }

    def attempt(self) -> Attempt:
        """What is known of earlier tries."""
        if self._store is None:
            return self._attempt_without_store()
        kept = self._kept()
        if kept.get("id") and self._was_cleared_since(kept):
            self.record["earlier_ids"] = [*kept.get("earlier_ids", ()), kept["id"]]
            kept = {}
        if not kept:
            earlier = self.record.get("earlier_ids", ())
            return Attempt(
                self.record["began"],
                concurrent_starts=self._rivals,
                known_ids=earlier,
                save_baseline=self.keep_baseline,
            )
        self.record |= {name: kept[name] for name in _KEPT if name in kept}
        known = kept.get("known_ids")
        self.announce()  # before looking: another task must not take this task's export
        return Attempt(
            kept.get("since", kept.get("began", self.record["began"])),
            is_retry=not kept.get("id"),
            concurrent_starts=self._rivals,
            clock=Clock(kept.get("clock", Clock.WORKER)),
            known_ids=None if known is None else [*known, *kept.get("earlier_ids", ())],
            export_id=kept.get("id", ""),
            save_baseline=self.keep_baseline,
        )

    def keep_baseline(self, baseline: Baseline) -> None:
        """Keep what a later try needs; called before the first POST."""
        self.record.pop("id", None)
        self.record |= {
            "began": time.time(),
            "since": baseline.since,
            "clock": baseline.clock.value,
            "known_ids": None if baseline.known_ids is None else list(baseline.known_ids),
        }
        self._save()

    def keep_id(self, export_id: str) -> None:
        """Keep the id of the export."""
        self.record["id"] = export_id
        self._save()

    def announce(self, export_id: str | None = None) -> None:
        """Let other tasks know what this one is starting, or has started."""
        _announce(self._context, self.record | ({"id": export_id} if export_id else {}))

    def forget(self) -> None:
        """Remove the record: nothing was started."""
        if self._store is not None and self._store.get(_KEY) is not None:
            self._store.delete(_KEY)
        earlier = {"earlier_ids": self.record["earlier_ids"]} if "earlier_ids" in self.record else {}
        _announce(self._context, earlier)

    def _save(self) -> None:
        if self._store is not None:
            self._store.set(_KEY, self.record)
        self.announce()

    def _kept(self) -> dict[str, Any]:
        """What earlier tries kept of the same export; empty where they kept nothing."""
        kept = self._store.get(_KEY)
        if not isinstance(kept, Mapping):
            return {}
        if kept.get("of") == self.record["of"] and kept.get("form") != self.record["form"]:
            log.warning(
                "An earlier try started, or may have started, the same export with other file_type and max_file_size "
                "(%s). This try starts its own.",
                kept.get("form"),
            )
            return {}
        return dict(kept) if kept.get("of") in (self.record["of"], self._old) else {}

    def _was_cleared_since(self, kept: Mapping[str, Any]) -> bool:
        """Clearing a task raises its ``max_tries``; retrying it does not."""
        return kept.get("max_tries") is not None and kept["max_tries"] != self.record["max_tries"]

    def _attempt_without_store(self) -> Attempt:
        if not self._is_retry():
            return Attempt(self.record["began"], concurrent_starts=self._rivals, save_baseline=self.keep_baseline)
        self.announce()
        started_at = self._context["dag_run"].start_date
        since = started_at.timestamp() if started_at else self.record["began"]
        return Attempt(since, is_retry=True, concurrent_starts=self._rivals, clock=Clock.RUN, known_ids=None)

    def _is_retry(self) -> bool:
        """Whether an earlier try may have started the export; without a state store.

        Clearing a task sets ``max_tries`` to the number of tries so far plus ``retries``, which gives the first try
        since. Whether the run was cleared after it ended is counted; without that, lowered retries look the same.
        """
        if self._ti is None:
            return False
        is_cleared_run = (getattr(self._context["dag_run"], "clear_number", 0) or 0) > 0
        retries = getattr(self._context.get("task"), "retries", None)
        if not is_cleared_run or retries is None or self.record["max_tries"] is None:
            return bool(self._ti.try_number > 1)
        first_try = self.record["max_tries"] - retries + 1
        return bool(self._ti.try_number != max(first_try, 1))

    def _rivals(self) -> ConcurrentStarts:
        return _rivals(self._context, self.record)


def _is_empty(value: Any) -> bool:
    """Whether a rendered value is nothing."""
    if isinstance(value, str | bytes):
        text = value if isinstance(value, str) else value.decode(errors="replace")
        return "".join(text.split()).lower() in _EMPTY_TEXTS
    return value is None or (hasattr(value, "__len__") and len(value) == 0)


def _items(name: str, value: Any) -> list[Any]:
    """A rendered argument of the selection, as a list.

    Raises:
        ValueError: it is empty, or an entry is: that must not mean all contacts, nor fewer lists than were meant.
        TypeError: it is not a list.
    """
    is_list = isinstance(value, Iterable) and not isinstance(value, str | bytes | bytearray | memoryview | Mapping)
    items = list(value) if is_list else []
    if _is_empty(value) or (is_list and not items):
        raise ValueError(
            f"{name} was passed, but rendered to nothing ({value!r}); nothing was exported. Pass at least one, skip "
            f"the task when there is none, or leave {name} out to export all contacts."
        )
    if not is_list:
        raise TypeError(
            f"{name} must be a list, not {value!r}. A template gives a list with render_template_as_native_obj=True, "
            "or pass the output of the task that returns one."
        )
    for item in items:
        if _is_empty(item):
            raise ValueError(f"{name} holds an empty entry ({item!r} in {items!r}); nothing was exported.")
        if isinstance(item, bool) or not isinstance(item, str | int):
            raise TypeError(f"{name} must hold texts or numbers, not {item!r}.")
    # SendGrid's ids have no blanks around them; names are taken to the letter.
    return [str(item) if name.endswith("names") else item.strip() if isinstance(item, str) else item for item in items]


def _unique(ids: Iterable[str | int]) -> list[str | int]:
    """Each id once, in its first place."""
    return list({str(item): item for item in reversed(list(ids))}.values())[::-1]


def _sorted_ids(selection: ExportSelection) -> list[list[str]]:
    return [sorted(map(str, ids)) for ids in (selection.list_ids, selection.segment_ids)]


def _hash(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _name_of(context: Context) -> str:
    if "ti" not in context:
        return ""
    instance = context["ti"]
    is_mapped = instance.map_index is not None and instance.map_index >= 0
    return f"{instance.task_id}[{instance.map_index}]" if is_mapped else instance.task_id


def _announce(context: Context, record: Mapping[str, Any]) -> None:
    """Let other tasks know what this one is starting, or has started."""
    if "ti" in context:
        context["ti"].xcom_push(key=_KEY, value=dict(record))


def _rivals(context: Context, own: Mapping[str, Any]) -> ConcurrentStarts:
    """What other tasks of this run, and of other runs of the DAG, have started, and which are starting the same."""
    if "ti" not in context:
        return ConcurrentStarts()
    ti, own_run, own_type = context["ti"], own.get("run", ""), (own.get("form") or [""])[0]
    task_ids = [task.task_id for task in context["dag"].tasks if _starts_exports(task)]
    states = task_states(ti, task_ids)
    runs, are_all = _runs_to_read(states, own_run)
    announced = [{"run": own_run, **each} for each in _mappings(ti.xcom_pull(task_ids=task_ids, key=_KEY))]
    for run_id in runs:
        announced += [{**each, "run": run_id} for each in _mappings(xcoms_of_run(ti, task_ids, _KEY, run_id))]
    others = [each for each in announced if (each["run"], each.get("task")) != (own_run, own["task"])]
    starting = [
        PendingStart(
            _place(each["run"], each.get("task"), own_run),
            each.get("since") if each.get("clock") == Clock.SENDGRID else None,
            (each.get("form") or [""])[0],
        )
        for each in others
        if not each.get("id") and each.get("of") == own["of"] and not _is_finished(each, states)
    ]
    # Airflow deletes a task's announcement when it is tried again: one that has none may own an export of its last try.
    known = {(each["run"], _key_of(each.get("task"))) for each in announced} | {(own_run, _key_of(own["task"]))}
    silent = [
        PendingStart(_place(run, task, own_run))
        for run in (own_run, *runs)
        for task, state in states.get(run, {}).items()
        if state in _TRIED_STATES and (run, task) not in known
    ]
    ids = {each["id"] for each in others if each.get("id")}
    ids.update(*(each.get("earlier_ids", ()) for each in others))
    file_types = {(each.get("form") or [own_type])[0] for each in others if each.get("of") == own["of"]}
    return ConcurrentStarts(ids, [*starting, *silent], file_types, are_all)


def _runs_to_read(states: Mapping[str, Mapping[str, str | None]], own_run: str) -> tuple[list[str], bool]:
    """Other runs in which these tasks have begun, unfinished ones first, else the newest by name first.

    And whether these are all that are unfinished.
    """
    begun = {run for run, tasks in states.items() if run != own_run and any(tasks.values())}
    unfinished = {run for run in begun if not _FINISHED_STATES.issuperset(states[run].values())}
    by_name = sorted(begun, key=lambda run: run.rpartition("__")[2], reverse=True)
    return sorted(by_name, key=lambda run: run not in unfinished)[:_MAX_RUNS], len(unfinished) <= _MAX_RUNS


def _is_finished(record: Mapping[str, Any], states: Mapping[str, Mapping[str, str | None]]) -> bool:
    """Whether the task of a record has ended: it will not take an export any more."""
    return states.get(record["run"], {}).get(_key_of(record.get("task"))) in _FINISHED_STATES


def _key_of(task: Any) -> str:
    """A task's name as `task_states` spells it."""
    return str(task).replace("[", "_").removesuffix("]")


def _place(run: str, task: Any, own_run: str) -> str:
    return str(task) if run == own_run else f"{task} of run {run}"


def _starts_exports(task: Any) -> bool:
    """Mapped tasks, too; in some Airflows these know the name of their class only."""
    found = getattr(task, "operator_class", type(task))
    is_ours = isinstance(found, type) and issubclass(found, SendGridExportContactsOperator)
    return is_ours or task.task_type == SendGridExportContactsOperator.__name__


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    """The mappings in a value and in what it holds: XComs of mapped tasks come as lists of lists."""
    if isinstance(value, Mapping):
        yield value
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes):
        for item in value:
            yield from _mappings(item)
