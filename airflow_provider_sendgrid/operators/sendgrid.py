"""Starts a SendGrid contact export."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow_provider_sendgrid._compat import AirflowFailException, BaseOperator, Context, XComArg
from airflow_provider_sendgrid.exceptions import HOPELESS_ERRORS
from airflow_provider_sendgrid.exports.export import ExportFamily
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook


class SendGridExportContactsOperator(BaseOperator):
    """Start an export of contacts and return its id.

    Neither lists nor segments means every contact of the account. Fails for good, without another try, on
    what SendGrid refuses (400, 401, 403, 404).

    Args:
        list_ids: ids of the lists to export (uuids; numbers in the legacy family).
        segment_ids: ids of the segments to export.
        file_type: ``"csv"`` or ``"json"`` (one object per line).
        max_file_size: in MB; a larger export is split into several files. SendGrid's default is 5000.
        notify_by_email: have SendGrid mail a link to the files to the account's owner.
        family: ``"marketing"`` or ``"legacy"``.
        sendgrid_conn_id: connection of type ``sendgrid``.

    Returns:
        The export's id, for `SendGridExportSensor` and the transfer operators.
    """

    template_fields: Sequence[str] = (
        "list_ids",
        "segment_ids",
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
        file_type: str = "csv",
        max_file_size: int | None = None,
        notify_by_email: bool = False,
        family: str = ExportFamily.MARKETING.value,
        sendgrid_conn_id: str = SendGridHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # Airflow renders templates and XComs before these are used.
        self.list_ids: Sequence[str | int] | None = list_ids  # type: ignore[assignment]
        self.segment_ids: Sequence[str | int] | None = segment_ids  # type: ignore[assignment]
        self.file_type = file_type
        self.max_file_size = max_file_size
        self.notify_by_email = notify_by_email
        self.family = family
        self.sendgrid_conn_id = sendgrid_conn_id

    def execute(self, context: Context) -> str:
        """Start the export."""
        hook = SendGridHook(self.sendgrid_conn_id, self.family)
        try:
            export_id = hook.start_export(
                self.list_ids or (),
                self.segment_ids or (),
                file_type=self.file_type,
                max_file_size=self.max_file_size,
                notify_by_email=self.notify_by_email,
            )
        except HOPELESS_ERRORS as error:
            raise AirflowFailException(str(error)) from error
        self.log.info("SendGrid accepted the export; its id is %s.", export_id)
        return export_id
