"""What differs between Airflow 2.10 and 3.x; no other module checks Airflow's version.

Each name is imported from its place in the newest Airflow, or else from its older place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.sdk import (
        Asset,
        BaseHook,
        BaseOperator,
        BaseOperatorLink,
        BaseSensorOperator,
        Context,
        ObjectStoragePath,  # only for annotations: it imports fsspec
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

# Airflow 2 has no triggers that start DAGs.
HAS_EVENT_TRIGGERS = BaseEventTrigger is not BaseTrigger


def read_xcom(ti_key: Any, key: str) -> Any:
    """The XCom of one task instance, or None; usable in a task, and in Airflow 2's webserver."""
    try:
        from airflow.sdk.execution_time.xcom import XCom
    except ImportError:
        from airflow.models import XCom
    return XCom.get_value(ti_key=ti_key, key=key)


def mapped_arguments(operator: Any) -> Collection[str]:
    """Names of the arguments that a mapped task passed to `operator`, even if they are None; empty if not mapped."""
    is_mapped = getattr(operator, "_BaseOperator__from_mapped", False)
    return frozenset(getattr(operator, "_BaseOperator__init_kwargs", ())) if is_mapped else frozenset()


def task_states(ti: Any, task_ids: Iterable[str]) -> dict[str, dict[str, str | None]]:
    """States of these tasks in all runs of their DAG, by run id and by task id.

    The key of a mapped task is ``<task id>_<map index>``. Empty if `ti` is not a task instance of a running Airflow.
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
    """The XComs that these tasks pushed under `key` in another run of the same DAG, mapped tasks included."""
    if hasattr(ti, "get_task_states"):  # Airflow 3
        return ti.xcom_pull(task_ids=list(task_ids), key=key, run_id=run_id)
    from airflow.models.xcom import XCom
    from airflow.utils.session import create_session

    with create_session() as session:
        found = XCom.get_many(key=key, task_ids=list(task_ids), dag_ids=ti.dag_id, run_id=run_id, session=session)
        # Loading an XCom object would replace its stored bytes by the value, which cannot be deserialized again.
        return [XCom.deserialize_value(row) for row in found.with_entities(XCom.value)]


def is_deferral_timeout(error: Exception) -> bool:
    """Whether a deferral ended at the task's ``execution_timeout``; Airflow 2 says so only in the message."""
    return type(error).__name__ == "TaskDeferralTimeout" or (
        type(error).__name__ == "TaskDeferralError" and "timeout" in str(error)
    )


def is_missing_in_airflow(error: Exception) -> bool:
    """Whether Airflow's API server answered a task's request with 404, such as for an asset that no DAG uses."""
    detail = getattr(getattr(error, "error", None), "detail", None)
    return isinstance(detail, dict) and detail.get("status_code") == HTTPStatus.NOT_FOUND


def note_hook_lineage(context: Any, inputs: Iterable[str] = (), outputs: Iterable[str] = ()) -> None:
    """Report to Airflow's hook lineage which assets a hook read and wrote. Airflow 2 calls assets datasets.

    Args:
        context: the hook.
        inputs: URIs of the assets that it read.
        outputs: URIs of the assets that it wrote.
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
    "is_deferral_timeout",
    "is_missing_in_airflow",
    "mapped_arguments",
    "mask_secret",
    "note_hook_lineage",
    "read_xcom",
    "task_states",
    "xcoms_of_run",
]
