"""Starts an export of SendGrid contacts, once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from airflow_provider_sendgrid import lineage
from airflow_provider_sendgrid._compat import (
    AirflowFailException,
    BaseOperator,
    Context,
    XComArg,
    is_missing_in_airflow,
    mapped_arguments,
)
from airflow_provider_sendgrid.exceptions import SendGridError, is_non_retryable
from airflow_provider_sendgrid.exports.arguments import require_bool
from airflow_provider_sendgrid.exports.export import ExportFamily, ExportSelection
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook
from airflow_provider_sendgrid.links.sendgrid import SendGridExportsLink
from airflow_provider_sendgrid.operators.selection import is_empty, parse_items, unique_ids
from airflow_provider_sendgrid.operators.start_record import StartRecord, fingerprint, old_fingerprint
from airflow_provider_sendgrid.stopping import StopSignal
from airflow_provider_sendgrid.triggers.fired_exports import STARTED_KEY

_SELECTION = ("list_ids", "segment_ids", "list_names", "segment_names")


class SendGridExportContactsOperator(BaseOperator):
    """Start an export of contacts and return its id.

    If none of `list_ids`, `segment_ids`, `list_names` and `segment_names` is passed, all contacts of the account are
    exported. An argument that is passed must name at least one list or segment: if it renders to nothing (``None``, an
    empty list, an empty string), or an entry of it does, the task fails and starts nothing. A literal ``None`` counts
    as not passed, except in a mapped task.

    With ``durable``, a lost response or a retry starts no second export. The task reads SendGrid's list of exports
    before the start. If the response to the start is lost, or the task is retried, it takes the export that has the
    same lists and segments, was not listed before, and does not belong to another task of this DAG. If several exports
    or tasks remain, or if the export seems to be older than the start, the task reads the list and the other tasks
    again for up to six minutes, then fails and names them.

    If a person or another DAG starts an export of the same lists at the same time (within ten minutes while SendGrid
    answers 429), the task cannot distinguish that export from its own. If only one of the two exists, the task takes
    it. Both contain the same contacts; SendGrid shows the file type only when an export is ready.

    From Airflow 3.3 on, the task's state store keeps what a retry needs. Older versions keep nothing between tries.
    There, a retry looks for exports that were created after the run began. It fails if the export seems to be up to ten
    minutes older than the run.

    A retry returns the same export. Clearing a task that succeeded starts a new one; before Airflow 3.3 only if the run
    had ended by then, otherwise it counts as a retry. From 3.3 on, clearing a task whose start was refused starts
    again; if the outcome is unknown, the task looks for the export first.

    Args:
        list_ids: ids of the lists to export (UUIDs; integers in the legacy family).
        segment_ids: ids of the segments to export.
        list_names: names of lists to export, exactly as in SendGrid; looked up when the task runs.
        segment_names: names of segments to export, likewise.
        file_type: ``"csv"`` or ``"json"`` (one object per line).
        max_file_size: in MB; a larger export is split into several files. SendGrid's default is 5000.
        notify_by_email: let SendGrid send an email with links to the files to the owner of the account.
        durable: look for an export that an earlier try started before starting another.
        family: ``"marketing"`` or ``"legacy"``.
        sendgrid_conn_id: connection of type ``sendgrid``.

    Returns:
        The export's id, for `SendGridExportSensor` and the transfer operators.

    Raises:
        AirflowFailException: an argument is wrong, SendGrid answered 400, 401, 403 or 404, or it is unclear which
            export belongs to this task. Airflow does not retry.
        SendGridError: an outage, or a refusal by a proxy. Airflow retries.
    """

    template_fields: Sequence[str] = (*_SELECTION, "file_type", "max_file_size", "family", "sendgrid_conn_id")
    template_fields_renderers = dict.fromkeys(_SELECTION, "json")
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
        # Rendered before they are used, then no XComArgs.
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
        """Render, and remember which arguments were set before, in the constructor or by assignment."""
        self._passed |= self._not_none()
        super().render_template_fields(context, jinja_env)

    def execute(self, context: Context) -> str:
        """Start the export, or find the one that an earlier try started; return its id."""
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
        self._mark_as_started(context, export_id)
        return export_id

    def on_kill(self) -> None:
        """Stop at once. A retry finds the export if the request that starts it was sent."""
        self._stop.set()

    @cached_property
    def _stop(self) -> StopSignal:
        """Created when the task runs: Airflow copies operators before."""
        return StopSignal()

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> lineage.Lineage:
        """Inputs are the lists and segments, the output is the export."""
        return lineage.lineage_of_start(*self._started) if self._started else lineage.empty_lineage()

    def _mark_as_started(self, context: Context, export_id: str) -> None:
        """Mark the export in the state stores of the inlets (Airflow 3.3), so that no `SendGridNewExportTrigger` fires.

        The trigger watches one of these assets.
        """
        stores: Any = context.get("asset_state_store")
        for inlet in self.inlets if stores is not None else ():
            try:
                stores[inlet].set(f"{STARTED_KEY}{export_id}", self.task_id)
            except (KeyError, TypeError):  # not an asset
                continue
            except Exception as error:
                if not is_missing_in_airflow(error):
                    raise  # a retry returns the same export and marks it
                self.log.warning("The export was not marked for triggers: no active DAG uses the inlet %r.", inlet)

    def _not_none(self) -> frozenset[str]:
        return frozenset(name for name in _SELECTION if getattr(self, name) is not None)

    def _selection(self, hook: SendGridHook) -> ExportSelection:
        passed = {*self._passed, *self._not_none(), *mapped_arguments(self)}
        given = {name: parse_items(name, getattr(self, name)) for name in _SELECTION if name in passed}
        if not given:
            self.log.info("Neither lists nor segments were passed: exporting all contacts.")
        list_ids = [*given.get("list_ids", ()), *hook.ids_of_lists(given.get("list_names", []))]
        segment_ids = [*given.get("segment_ids", ()), *hook.ids_of_segments(given.get("segment_names", []))]
        return ExportSelection(
            list_ids=unique_ids(list_ids),
            segment_ids=unique_ids(segment_ids),
            file_type=self.file_type,
            max_file_size=None if is_empty(self.max_file_size) else self.max_file_size,
            notify_by_email=self.notify_by_email,
        )

    def _start(self, hook: SendGridHook, selection: ExportSelection, context: Context) -> tuple[str, bool]:
        selection.to_payload(hook.account.family)  # wrong arguments and settings are refused before any request
        record = self._record(hook, selection, context)
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
        except (ValueError, TypeError) as error:  # not about an argument: the export may have been started
            raise SendGridError(
                f"Starting the export failed with an unexpected {type(error).__name__}: {error}. Run the task again: "
                "it looks for the export before it starts another.",
                may_have_been_accepted=True,
            ) from error
        record.keep_id(export_id)
        return export_id, is_found

    def _record(self, hook: SendGridHook, selection: ExportSelection, context: Context) -> StartRecord:
        connection = hook.connection
        dag = context.get("dag")
        return StartRecord(
            context,
            same=fingerprint(
                selection,
                f"{connection.base_url} {connection.on_behalf_of}",
                getattr(self.family, "value", self.family),
            ),
            old=old_fingerprint(selection, self.sendgrid_conn_id, str(self.family)),
            selection=selection,
            start_task_ids=[task.task_id for task in dag.tasks if _starts_exports(task)] if dag else [],
        )


def _starts_exports(task: Any) -> bool:
    """Whether it is a start task. In some Airflow versions a mapped task knows only the name of its class."""
    found = getattr(task, "operator_class", type(task))
    is_start = isinstance(found, type) and issubclass(found, SendGridExportContactsOperator)
    return is_start or task.task_type == SendGridExportContactsOperator.__name__
