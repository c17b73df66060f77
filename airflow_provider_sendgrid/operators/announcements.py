"""The XCom `sendgrid_export`, in which each start task of a DAG announces the export that it starts.

Other start tasks of the same DAG read it, in this run and in others, so that no task takes another task's export for
its own. `start_record` describes the form of a record.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from airflow_provider_sendgrid._compat import Context, task_states, xcoms_of_run
from airflow_provider_sendgrid.exports.start_attempt import Clock, ConcurrentStarts, PendingStart

# Key of the XCom, and of the record in the task's state store.
RECORD_KEY = "sendgrid_export"
# Announcements of at most this many other runs are read, unfinished runs first.
_MAX_RUNS = 100
_FINISHED_STATES = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
_STARTED_STATES = frozenset({"running", "up_for_retry", "restarting"})


def announce(context: Context, record: Mapping[str, Any]) -> None:
    """Push `record` as the task's announcement."""
    if "ti" in context:
        context["ti"].xcom_push(key=RECORD_KEY, value=dict(record))


def task_name(context: Context) -> str:
    """``task_id``, or ``task_id[map_index]`` of a mapped task."""
    if "ti" not in context:
        return ""
    instance = context["ti"]
    is_mapped = instance.map_index is not None and instance.map_index >= 0
    return f"{instance.task_id}[{instance.map_index}]" if is_mapped else instance.task_id


def concurrent_starts(context: Context, own: Mapping[str, Any], task_ids: Sequence[str]) -> ConcurrentStarts:
    """Exports that other tasks have started or are starting, in this run and in other runs of the DAG.

    Args:
        context: of the task.
        own: the task's own record.
        task_ids: ids of the DAG's tasks that start exports.
    """
    if "ti" not in context:
        return ConcurrentStarts()
    ti, own_run, own_type = context["ti"], own.get("run", ""), (own.get("form") or [""])[0]
    states = task_states(ti, task_ids)
    runs, are_all = _runs_to_read(states, own_run)
    announced = [{"run": own_run, **each} for each in _mappings(ti.xcom_pull(task_ids=task_ids, key=RECORD_KEY))]
    for run_id in runs:
        announced += [{**each, "run": run_id} for each in _mappings(xcoms_of_run(ti, task_ids, RECORD_KEY, run_id))]
    others = [each for each in announced if (each["run"], each.get("task")) != (own_run, own["task"])]
    starting = [
        PendingStart(
            _describe_task(each["run"], each.get("task"), own_run),
            each.get("since") if each.get("clock") == Clock.SENDGRID else None,
            (each.get("form") or [""])[0],
        )
        for each in others
        if not each.get("id") and each.get("of") == own["of"] and not _is_finished(each, states)
    ]
    # Airflow deletes the announcement before a retry, so a task without one may have started an export.
    known = {(each["run"], _state_key(each.get("task"))) for each in announced} | {(own_run, _state_key(own["task"]))}
    unannounced = [
        PendingStart(_describe_task(run, task, own_run))
        for run in (own_run, *runs)
        for task, state in states.get(run, {}).items()
        if state in _STARTED_STATES and (run, task) not in known
    ]
    ids = {each["id"] for each in others if each.get("id")}
    ids.update(*(each.get("earlier_ids", ()) for each in others))
    file_types = {(each.get("form") or [own_type])[0] for each in others if each.get("of") == own["of"]}
    return ConcurrentStarts(ids, [*starting, *unannounced], file_types, are_all)


def _runs_to_read(states: Mapping[str, Mapping[str, str | None]], own_run: str) -> tuple[list[str], bool]:
    """Other runs to read, and whether they include all unfinished ones.

    Unfinished runs come first, then the newest by the date in their id.
    """
    begun = {run for run, tasks in states.items() if run != own_run and any(tasks.values())}
    unfinished = {run for run in begun if not _FINISHED_STATES.issuperset(states[run].values())}
    by_name = sorted(begun, key=lambda run: run.rpartition("__")[2], reverse=True)
    return sorted(by_name, key=lambda run: run not in unfinished)[:_MAX_RUNS], len(unfinished) <= _MAX_RUNS


def _is_finished(record: Mapping[str, Any], states: Mapping[str, Mapping[str, str | None]]) -> bool:
    """Whether the task of a record has ended, so that it takes no export any more."""
    return states.get(record["run"], {}).get(_state_key(record.get("task"))) in _FINISHED_STATES


def _state_key(task: Any) -> str:
    """Convert a name of `task_name` to the form of `task_states`."""
    return str(task).replace("[", "_").removesuffix("]")


def _describe_task(run: str, task: Any, own_run: str) -> str:
    return str(task) if run == own_run else f"{task} of run {run}"


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    """All mappings in nested lists: XComs of mapped tasks come as lists of lists."""
    if isinstance(value, Mapping):
        yield value
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes):
        for item in value:
            yield from _mappings(item)
