"""Starts a SendGrid contact export, once."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from typing import Any

from airflow_provider_sendgrid._compat import AirflowFailException, BaseOperator, Context, XComArg
from airflow_provider_sendgrid.exceptions import HOPELESS_ERRORS, SendGridNotFoundError
from airflow_provider_sendgrid.exports.export import FAILURE, ExportFamily, ExportSelection
from airflow_provider_sendgrid.exports.start import Attempt
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook

_ID_KEY = "sendgrid_export_id"
_BEGAN_KEY = "sendgrid_export_began"


class SendGridExportContactsOperator(BaseOperator):
    """Start an export of contacts and return its id.

    Neither lists nor segments means every contact of the account. Fails for good, without another try, on what SendGrid
    refuses (400, 401, 403, 404).

    With ``durable`` no export is started twice: where the answer to a start was lost, or the task is tried again, the
    export that was started is found and taken. On Airflow 3.3 its id is kept in the task's state store; on older ones,
    and where a worker died in between, the list of exports tells: begun since this task (on older Airflows: this run)
    began, of the same lists and segments. Where several could be the one, the task fails and names them.

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

    def execute(self, context: Context) -> str:
        """Start the export, or find it."""
        hook = SendGridHook(self.sendgrid_conn_id, self.family)
        try:
            selection = self._selection(hook)
            if not self.durable:
                return self._told(hook.start_selection(selection), is_found=False)
            return self._start_once(hook, selection, context)
        except HOPELESS_ERRORS as error:
            raise AirflowFailException(str(error)) from error

    def _selection(self, hook: SendGridHook) -> ExportSelection:
        return ExportSelection(
            list_ids=[*_given("list_ids", self.list_ids), *hook.ids_of_lists(_given("list_names", self.list_names))],
            segment_ids=[
                *_given("segment_ids", self.segment_ids),
                *hook.ids_of_segments(_given("segment_names", self.segment_names)),
            ],
            file_type=self.file_type,
            max_file_size=self.max_file_size,
            notify_by_email=self.notify_by_email,
        )

    def _start_once(self, hook: SendGridHook, selection: ExportSelection, context: Context) -> str:
        store: Any = context.get("task_state_store")  # from Airflow 3.3 on
        claimed_ids = _ids_of_other_tasks(context)
        now = time.time()
        if store is None:
            since, is_retry = _first_try(context, now)
            return self._told(*hook.start_export_once(selection, Attempt(since, is_retry, claimed_ids)))
        began = store.get(_BEGAN_KEY)
        if known := store.get(_ID_KEY):
            if _is_usable(hook, known):
                return self._told(known, is_found=True)
            store.delete(_ID_KEY)
            began = None
        if began is None:
            store.set(_BEGAN_KEY, now)
        attempt = Attempt(float(began or now), is_retry=began is not None, claimed_ids=claimed_ids)
        export_id, is_found = hook.start_export_once(selection, attempt)
        store.set(_ID_KEY, export_id)
        return self._told(export_id, is_found)

    def _told(self, export_id: str, is_found: bool) -> str:
        how = "An earlier try started the export already" if is_found else "SendGrid accepted the export"
        self.log.info("%s; its id is %s.", how, export_id)
        return export_id


def _given(name: str, value: Sequence[Any] | None) -> list[Any]:
    """A rendered argument as a list.

    Raises:
        TypeError: it is a single text: an empty one would mean every contact.
    """
    if isinstance(value, str | bytes):
        raise TypeError(f"{name} must be a list, not the single text {value!r}.")
    return list(value or ())


def _first_try(context: Context, now: float) -> tuple[float, bool]:
    """When the first try began at the earliest, and whether this is another; Airflow before 3.3 keeps no more."""
    if "ti" not in context:  # called by a test, without a run
        return now, False
    started_at = context["dag_run"].start_date
    return (started_at.timestamp() if started_at else now), context["ti"].try_number > 1


def _ids_of_other_tasks(context: Context) -> set[str]:
    """The exports that other tasks of this run have started, which are none of ours."""
    if "ti" not in context:  # called by a test, without a run
        return set()
    instance: Any = context["ti"]
    others = [
        task.task_id
        for task in context["dag"].tasks
        if task.task_type == SendGridExportContactsOperator.__name__ and task.task_id != instance.task_id
    ]
    return set(_texts(instance.xcom_pull(task_ids=others))) if others else set()


def _texts(value: Any) -> Iterator[str]:
    """The texts in a value and in what it holds: XComs of mapped tasks come as lists of lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Iterable):
        for item in value:
            yield from _texts(item)


def _is_usable(hook: SendGridHook, export_id: str) -> bool:
    """Whether an export that was started is on its way or ready, and not failed, expired or gone."""
    try:
        export = hook.get_export(export_id)
    except SendGridNotFoundError:
        return False
    return export.status != FAILURE and not export.is_expired_at(datetime.now(timezone.utc))
