"""The names that moved between Airflow 2.10 and 3.x; the only file that knows versions.

Each name is taken from where the newest Airflow keeps it, and from its older place where that fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow.sdk import BaseHook, BaseOperator, BaseSensorOperator, Context, PokeReturnValue, XComArg
    from airflow.sdk.exceptions import (
        AirflowFailException,
        AirflowNotFoundException,
        AirflowSensorTimeout,
        AirflowSkipException,
    )
    from airflow.sdk.log import mask_secret
    from airflow.triggers.base import BaseEventTrigger
else:
    try:
        from airflow.sdk import BaseOperator, BaseSensorOperator, Context, PokeReturnValue, XComArg
    except ImportError:
        from airflow.models import BaseOperator
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
        from airflow.sdk.exceptions import AirflowNotFoundException
    except ImportError:
        from airflow.exceptions import AirflowNotFoundException
    try:
        from airflow.sdk.log import mask_secret
    except ImportError:
        from airflow.utils.log.secrets_masker import mask_secret
    try:
        from airflow.triggers.base import BaseEventTrigger
    except ImportError:
        from airflow.triggers.base import BaseTrigger as BaseEventTrigger

from airflow.configuration import conf
from airflow.triggers.base import BaseTrigger, TriggerEvent

# Airflow 2 knows no triggers that start DAGs.
HAS_EVENT_TRIGGERS = BaseEventTrigger is not BaseTrigger

__all__ = [
    "HAS_EVENT_TRIGGERS",
    "AirflowFailException",
    "AirflowNotFoundException",
    "AirflowSensorTimeout",
    "AirflowSkipException",
    "BaseEventTrigger",
    "BaseHook",
    "BaseOperator",
    "BaseSensorOperator",
    "BaseTrigger",
    "Context",
    "PokeReturnValue",
    "TriggerEvent",
    "XComArg",
    "conf",
    "mask_secret",
]
