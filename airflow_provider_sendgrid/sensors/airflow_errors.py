"""How the errors of a wait end a task in Airflow, by the same rules in every mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from airflow_provider_sendgrid._compat import (
    AirflowFailException,
    AirflowRescheduleException,
    AirflowSensorTimeout,
    AirflowSkipException,
    is_deferral_timeout,
)
from airflow_provider_sendgrid.exceptions import (
    ExportExpiredError,
    ExportFailedError,
    ExportWithoutFilesError,
    SendGridError,
)
from airflow_provider_sendgrid.stopping import StoppedError


@contextmanager
def airflow_errors(*, soft_fail: bool, never_fail: bool) -> Iterator[None]:
    """Translate errors by the rules of Airflow's poke mode, and keep their messages.

    Raises:
        AirflowFailException: an argument or a setting is wrong.
        AirflowSensorTimeout: Airflow ended a deferral at the task's ``execution_timeout``.
        AirflowSkipException: instead of the error, if `soft_fail` or `never_fail` says so.
    """
    try:
        yield
    except (AirflowRescheduleException, AirflowSkipException, StoppedError):
        raise
    except Exception as error:
        is_setting = isinstance(error, ValueError | TypeError) or isinstance(error.__cause__, ValueError | TypeError)
        is_timeout = isinstance(error, AirflowSensorTimeout) or is_deferral_timeout(error)
        is_soft = not is_setting and (is_timeout or isinstance(error, AirflowFailException))
        if (soft_fail and is_soft) or (never_fail and not is_timeout):
            raise AirflowSkipException(str(error)) from error
        if isinstance(error, ValueError | TypeError):
            raise AirflowFailException(str(error)) from error
        if is_timeout and not isinstance(error, AirflowSensorTimeout):
            raise AirflowSensorTimeout(str(error)) from error
        raise


def raise_error(error: SendGridError | None) -> None:
    """Raise `error`, if any; as Airflow's own, which is not retried, if the export will never be ready."""
    if isinstance(error, ExportFailedError | ExportExpiredError | ExportWithoutFilesError):
        raise AirflowFailException(str(error)) from error
    if error is not None:
        raise error
