"""The names that moved between Airflow 2.10 and 3.x; the only file that knows versions.

Each name is taken from where the newest Airflow keeps it, and from its older place where that fails.
"""

from __future__ import annotations

from collections.abc import Iterable
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
    "mask_secret",
    "note_hook_lineage",
    "read_xcom",
]
