"""The names that moved between Airflow 2.10 and 3.x; the only file that knows versions.

Each name is taken from where the newest Airflow keeps it, and from its older place where that fails.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.sdk import (
        Asset,
        BaseHook,
        BaseOperator,
        BaseOperatorLink,
        BaseSensorOperator,
        Context,
        ObjectStoragePath,  # for annotations alone: importing it brings fsspec
        PokeReturnValue,
        XComArg,
    )
    from airflow.sdk.exceptions import (
        AirflowFailException,
        AirflowNotFoundException,
        AirflowRescheduleException,
        AirflowSensorTimeout,
        AirflowSkipException,
    )
    from airflow.sdk.log import mask_secret
    from airflow.sdk.observability.stats import Stats
    from airflow.triggers.base import BaseEventTrigger
else:
    try:
        from airflow.sdk import (
            Asset,
            BaseOperator,
            BaseOperatorLink,
            BaseSensorOperator,
            Context,
            PokeReturnValue,
            XComArg,
        )
    except ImportError:
        from airflow.datasets import Dataset as Asset
        from airflow.models import BaseOperator, BaseOperatorLink
        from airflow.models.xcom_arg import XComArg
        from airflow.sensors.base import BaseSensorOperator, PokeReturnValue
        from airflow.utils.context import Context
    try:
        from airflow.sdk import BaseHook
    except ImportError:
        from airflow.hooks.base import BaseHook
    try:
        from airflow.sdk.exceptions import AirflowFailException, AirflowSensorTimeout, AirflowSkipException
    except ImportError:
        from airflow.exceptions import AirflowFailException, AirflowSensorTimeout, AirflowSkipException
    try:
        from airflow.sdk.exceptions import AirflowNotFoundException, AirflowRescheduleException
    except ImportError:
        from airflow.exceptions import AirflowNotFoundException, AirflowRescheduleException
    try:
        from airflow.sdk.log import mask_secret
    except ImportError:
        from airflow.utils.log.secrets_masker import mask_secret
    try:
        from airflow.sdk.observability.stats import Stats
    except ImportError:
        from airflow.stats import Stats
    try:
        from airflow.triggers.base import BaseEventTrigger
    except ImportError:
        from airflow.triggers.base import BaseTrigger as BaseEventTrigger

from airflow.configuration import conf
from airflow.triggers.base import BaseTrigger, TriggerEvent

# Airflow 2 knows no triggers that start DAGs.
HAS_EVENT_TRIGGERS = BaseEventTrigger is not BaseTrigger


def read_xcom(ti_key: Any, key: str) -> Any:
    """An XCom of one task instance, None where there is none: in a task, or in the pages of Airflow 2."""
    try:
        from airflow.sdk.execution_time.xcom import XCom
    except ImportError:
        from airflow.models import XCom
    return XCom.get_value(ti_key=ti_key, key=key)


def mapped_arguments(operator: Any) -> Collection[str]:
    """Names of the arguments that a mapped task passed to `operator`, also those that are None; else empty."""
    is_mapped = getattr(operator, "_BaseOperator__from_mapped", False)
    return frozenset(getattr(operator, "_BaseOperator__init_kwargs", ())) if is_mapped else frozenset()


def task_states(ti: Any, task_ids: Iterable[str]) -> dict[str, dict[str, str | None]]:
    """States of these tasks in all runs of their DAG: run id, then task id (mapped: ``<task id>_<map index>``).

    Empty where `ti` is no task instance of a running Airflow.
    """
    if hasattr(ti, "get_task_states"):  # Airflow 3
        states: dict[str, dict[str, str | None]] = ti.get_task_states(dag_id=ti.dag_id, task_ids=list(task_ids))
        return states
    try:
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session
    except ImportError:
        return {}
    if not isinstance(ti, TaskInstance):
        return {}
    found: dict[str, dict[str, str | None]] = {}
    columns = (TaskInstance.run_id, TaskInstance.task_id, TaskInstance.map_index, TaskInstance.state)
    with create_session() as session:
        query = session.query(*columns).filter(
            TaskInstance.dag_id == ti.dag_id, TaskInstance.task_id.in_(list(task_ids))
        )
        for run_id, task_id, map_index, state in query:
            found.setdefault(run_id, {})[task_id if map_index < 0 else f"{task_id}_{map_index}"] = state
    return found


def xcoms_of_run(ti: Any, task_ids: Iterable[str], key: str, run_id: str) -> Any:
    """What these tasks of another run of the same DAG pushed under `key`, with the values of mapped tasks."""
    if hasattr(ti, "get_task_states"):  # Airflow 3
        return ti.xcom_pull(task_ids=list(task_ids), key=key, run_id=run_id)
    from airflow.models.xcom import XCom
    from airflow.utils.session import create_session

    with create_session() as session:
        found = XCom.get_many(key=key, task_ids=list(task_ids), dag_ids=ti.dag_id, run_id=run_id, session=session)
        # Rows, not XComs: loading an XCom replaces its stored bytes by its value, which cannot be deserialized again.
        return [XCom.deserialize_value(row) for row in found.with_entities(XCom.value)]


def note_hook_lineage(context: Any, inputs: Iterable[str] = (), outputs: Iterable[str] = ()) -> None:
    """Tell Airflow's collector of hook lineage what `context`, a hook, read and wrote: URIs of assets.

    Airflow 2 calls assets datasets. Where nobody reads what is collected, the collector does nothing.
    """
    try:
        from airflow.sdk.lineage import get_hook_lineage_collector
    except ImportError:
        from airflow.lineage.hook import get_hook_lineage_collector  # type: ignore[import-not-found,no-redef]
    collector: Any = get_hook_lineage_collector()
    kind = "asset" if hasattr(collector, "add_output_asset") else "dataset"
    for uri in inputs:
        getattr(collector, f"add_input_{kind}")(context, uri=uri)
    for uri in outputs:
        getattr(collector, f"add_output_{kind}")(context, uri=uri)


__all__ = [
    "HAS_EVENT_TRIGGERS",
    "AirflowFailException",
    "AirflowNotFoundException",
    "AirflowRescheduleException",
    "AirflowSensorTimeout",
    "AirflowSkipException",
    "Asset",
    "BaseEventTrigger",
    "BaseHook",
    "BaseOperator",
    "BaseOperatorLink",
    "BaseSensorOperator",
    "BaseTrigger",
    "Context",
    "ObjectStoragePath",
    "PokeReturnValue",
    "Stats",
    "TriggerEvent",
    "XComArg",
    "conf",
    "mapped_arguments",
    "mask_secret",
    "note_hook_lineage",
    "read_xcom",
    "task_states",
    "xcoms_of_run",
]
