"""Starts a SendGrid contact export, once."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from airflow_provider_sendgrid import lineage, metrics
from airflow_provider_sendgrid._compat import AirflowFailException, BaseOperator, Context, XComArg
from airflow_provider_sendgrid.exceptions import HOPELESS_ERRORS, SendGridNotFoundError
from airflow_provider_sendgrid.exports.export import FAILURE, ExportFamily, ExportSelection
from airflow_provider_sendgrid.exports.start import Attempt, Rivals
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook
from airflow_provider_sendgrid.links.sendgrid import SendGridExportsLink
from airflow_provider_sendgrid.triggers.sendgrid import STARTED_KEY

# Under this key a task keeps, in its state store and as an XCom for other tasks: ``of`` (what it exports), ``began``
# (when its first try did), ``task`` (its name) and, once it is known, ``id``.
_KEY = "sendgrid_export"


class SendGridExportContactsOperator(BaseOperator):
    """Start an export of contacts and return its id.

    Neither lists nor segments means every contact of the account. Fails for good, without another try, on what SendGrid
    refuses (400, 401, 403, 404).

    With ``durable`` no export is started twice: where the answer to a start was lost, or the task is tried again, the
    export that was started is found and taken. On Airflow 3.3 its id is kept in the task's state store; on older ones,
    and where a worker died in between, the list of exports tells: begun since this task (on older Airflows: this run)
    began, of the same lists and segments, and not that of another task of this run. Where several could be the one, the
    task fails and names them. An export of the same lists that other runs, or people, began in just that time cannot be
    told from this one: it is taken, for it holds what this one would, unless there are both.

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
        self._started: tuple[lineage.SendGridAccount, ExportSelection, str] | None = None

    def execute(self, context: Context) -> str:
        """Start the export, or find it."""
        hook = SendGridHook(self.sendgrid_conn_id, self.family)
        SendGridExportsLink.keep_for(context, self.family)
        try:
            selection = self._selection(hook)
            if self.durable:
                export_id = self._start_once(hook, selection, context)
            else:
                export_id = self._told(hook.start_selection(selection), is_found=False)
        except HOPELESS_ERRORS as error:
            raise AirflowFailException(str(error)) from error
        self._started = (hook.account, selection, export_id)
        self._leave_word(context, export_id)
        return export_id

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> lineage.Lineage:
        """From the lists and segments to the export; called by Airflow's OpenLineage provider."""
        return lineage.lineage_of_start(*self._started) if self._started else lineage.no_lineage()

    def _leave_word(self, context: Context, export_id: str) -> None:
        """Tell a `SendGridNewExportTrigger` that watches for one of our inlets whose export this is (Airflow 3.3)."""
        stores: Any = context.get("asset_state_store")
        for inlet in self.inlets if stores is not None else ():
            try:
                stores[inlet].set(f"{STARTED_KEY}{export_id}", self.task_id)
            except (KeyError, TypeError):  # not an asset
                continue

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
        now = time.time()
        record: dict[str, Any] = {"of": self._fingerprint(selection), "task": _name_of(context), "began": now}
        if store is None:
            record["began"], is_retry = _first_try(context, now)
        else:
            known = _known(store, record["of"])
            if export_id := _usable_id(hook, known):
                _announce(context, record | {"id": export_id})
                metrics.export_started(self.family, is_found=True)
                return self._told(export_id, is_found=True)
            is_retry = "began" in known and "id" not in known
            record["began"] = known["began"] if is_retry else now
            store.set(_KEY, record)
        _announce(context, record)
        attempt = Attempt(record["began"], is_retry, lambda: _rivals(context, record))
        export_id, is_found = hook.start_export_once(selection, attempt)
        record["id"] = export_id
        if store is not None:
            store.set(_KEY, record)
        _announce(context, record)
        return self._told(export_id, is_found)

    def _fingerprint(self, selection: ExportSelection) -> str:
        """The same for the same export only: what one try started is of no use to a try that wants another."""
        ids = (sorted(map(str, ids)) for ids in (selection.list_ids, selection.segment_ids))
        wanted = [self.sendgrid_conn_id, str(self.family), *ids, selection.file_type, str(selection.max_file_size)]
        return hashlib.sha256(json.dumps(wanted).encode()).hexdigest()

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


def _known(store: Any, of: str) -> Mapping[str, Any]:
    """What earlier tries of this task kept of the same export."""
    record = store.get(_KEY)
    return record if isinstance(record, Mapping) and record.get("of") == of else {}


def _usable_id(hook: SendGridHook, known: Mapping[str, Any]) -> str | None:
    """The id of the export that an earlier try started, unless it failed, expired or is gone."""
    export_id: str | None = known.get("id")
    if not export_id:
        return None
    try:
        export = hook.get_export(export_id)
    except SendGridNotFoundError:
        return None
    is_usable = export.status != FAILURE and not export.is_expired_at(datetime.now(timezone.utc))
    return export_id if is_usable else None


def _name_of(context: Context) -> str:
    if "ti" not in context:
        return ""
    instance = context["ti"]
    is_mapped = instance.map_index is not None and instance.map_index >= 0
    return f"{instance.task_id}[{instance.map_index}]" if is_mapped else instance.task_id


def _announce(context: Context, record: Mapping[str, Any]) -> None:
    """Let the other tasks of this run know what this one is starting, or has started."""
    if "ti" in context:
        context["ti"].xcom_push(key=_KEY, value=dict(record))


def _rivals(context: Context, own: Mapping[str, Any]) -> Rivals:
    """What the other tasks of this run have started, and which of them are starting the same."""
    if "ti" not in context:
        return Rivals()
    task_ids = [task.task_id for task in context["dag"].tasks if _starts_exports(task)]
    announced = _mappings(context["ti"].xcom_pull(task_ids=task_ids, key=_KEY))
    others = [each for each in announced if each.get("task") != own["task"]]
    return Rivals(
        ids={each["id"] for each in others if each.get("id")},
        starting=[str(each["task"]) for each in others if not each.get("id") and each.get("of") == own["of"]],
    )


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
