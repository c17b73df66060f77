"""Calls SendGrid's export APIs with the settings of an Airflow connection."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async

from airflow_provider_sendgrid import metrics
from airflow_provider_sendgrid._compat import BaseHook, mask_secret
from airflow_provider_sendgrid.exceptions import SendGridError, redact
from airflow_provider_sendgrid.exports import protocol
from airflow_provider_sendgrid.exports.arguments import parse_conn_id
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.export import (
    FAMILIES,
    ContactExport,
    ExportFamily,
    ExportSelection,
    parse_export_id,
    parse_family,
)
from airflow_provider_sendgrid.exports.name_lookup import ids_of_names, ids_of_segments
from airflow_provider_sendgrid.exports.network import resolve_network
from airflow_provider_sendgrid.exports.start import start_export_once
from airflow_provider_sendgrid.exports.start_attempt import Attempt
from airflow_provider_sendgrid.files.source import ExportFiles
from airflow_provider_sendgrid.hooks.airflow_connection import form_widgets, read_connection
from airflow_provider_sendgrid.lineage import SendGridAccount, report_hook_lineage
from airflow_provider_sendgrid.provider_info import CONNECTION_TYPE
from airflow_provider_sendgrid.stopping import StopSignal

if TYPE_CHECKING:
    import requests

    from airflow_provider_sendgrid.exports.client import AsyncSendGridClient, SendGridClient
    from airflow_provider_sendgrid.exports.shared_poller import SharedPoller


class _NotPassed(tuple[str | int, ...]):
    """Distinguishes the default from an empty tuple that was passed."""

    __slots__ = ()


_NOT_PASSED = _NotPassed()


class SendGridHook(BaseHook):
    """Call SendGrid's contact-export APIs, from a worker or on an event loop.

    Supports both families: Marketing Campaigns (``/v3/marketing/contacts/exports``) and Legacy Marketing Campaigns
    (``/v3/contactdb/exports``). Requests are retried a limited number of times after 429, 5xx and network failures; a
    request that starts an export only if SendGrid certainly did not accept it.

    Args:
        sendgrid_conn_id: connection of type ``sendgrid``; its password is the API key. Optional: host (a host name or a
            URL) and, in extra, ``region`` (``global``, ``eu``), ``on_behalf_of`` (a subuser), ``timeout`` (seconds),
            ``verify`` (bool, or path of a file or folder of CA certificates), ``proxy`` (a URL).
        family: ``"marketing"`` or ``"legacy"``.

    Attributes:
        stop: ends requests, and the waits between them, when it is set; operators set it when Airflow kills the task.

    Raises:
        SendGridError: every method that sends requests raises a subclass, whose message names the next step.
        ValueError: an argument or a setting of the connection is wrong.

    Source:
        https://www.twilio.com/docs/sendgrid/api-reference/contacts
    """

    conn_name_attr = "sendgrid_conn_id"
    default_conn_name = "sendgrid_default"
    conn_type = "sendgrid"
    hook_name = "SendGrid"

    def __init__(
        self,
        sendgrid_conn_id: str = default_conn_name,
        family: ExportFamily | str = ExportFamily.MARKETING,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sendgrid_conn_id = sendgrid_conn_id
        self.family = family
        self.stop: StopSignal | None = None

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Labels of the connection form, for Airflow before 3.2; later versions read `provider_info`."""
        form = CONNECTION_TYPE["ui-field-behaviour"]
        return {name.replace("-", "_"): value for name, value in form.items()}  # as this method must spell them

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Fields of the connection form for the settings in extra, for Airflow before 3.2."""
        return form_widgets()

    @cached_property
    def connection(self) -> SendGridConnection:
        """The settings, read once; from then on Airflow masks the key in logs.

        Raises:
            SendGridUnavailableError: there is no such connection, or the secrets backend did not return it. Airflow
                does not distinguish the two, so a retry may find it. It is not Airflow's own exception, because a
                sensor with ``soft_fail`` skips on that.
            ValueError: the connection cannot be parsed, or one of its settings, or a proxy or CA file named in the
                environment, is wrong. The message names the setting and a correct value.
        """
        self.sendgrid_conn_id = parse_conn_id(self.sendgrid_conn_id)
        connection = read_connection(self.sendgrid_conn_id, self.get_connection)
        mask_secret(connection.api_key)
        resolve_network(connection)  # raises for a wrong proxy or CA file before the first request
        if connection.verify is False:
            self.log.warning(
                "Connection %s turns off the verification of TLS certificates: anyone on the network path can read "
                "the API key and the contacts.",
                self.sendgrid_conn_id,
            )
        return connection

    def get_conn(self) -> requests.Session:
        """A session for your own requests; it sends the API key to the API's host only."""
        from airflow_provider_sendgrid.exports.sessions import new_session

        return new_session(self.connection)

    def client(self) -> SendGridClient:
        """A client for the flows of `exports.protocol`; use it in a ``with`` block."""
        from airflow_provider_sendgrid.exports.client import SendGridClient

        return SendGridClient(self.connection, on_retry=self._note_retry, stop=self.stop)

    async def aclient(self) -> AsyncSendGridClient:
        """`client` for an event loop; use it in an ``async with`` block."""
        from airflow_provider_sendgrid.exports.client import AsyncSendGridClient

        return AsyncSendGridClient(await self.aload_connection(), on_retry=self._note_retry)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[SharedPoller]:
        """The poller that all waits on this event loop share if connection and family are the same."""
        from airflow_provider_sendgrid.exports.client import AsyncSendGridClient
        from airflow_provider_sendgrid.exports.poller_pool import acquire_poller

        connection = await self.aload_connection()
        # Waits that begin after CA certificates were renewed use a new poller.
        key = (self.sendgrid_conn_id, connection, resolve_network(connection).tls)
        async with acquire_poller(
            key, self._family, lambda: AsyncSendGridClient(connection, on_retry=self._note_retry)
        ) as watch:
            yield watch

    async def aload_connection(self) -> SendGridConnection:
        """`connection`, read without blocking the event loop.

        The look-up and the parsing of extra run in asgiref's thread: on Airflow 3.0, either one on the event loop or in
        a plain thread ends the trigger or even the triggerer.
        """
        return await sync_to_async(lambda: self.connection)()

    @contextmanager
    def source(self, export_id: str, stop: StopSignal | None = None) -> Iterator[ExportFiles]:
        """The files of an export, for `airflow_provider_sendgrid.delivery.export`.

        Args:
            export_id: id of a ready export.
            stop: ends all requests when it is set; by default `stop` of this hook.
        """
        from airflow_provider_sendgrid.exports.sessions import new_download_session

        export_id = parse_export_id(export_id)
        connection = self.connection
        report_hook_lineage(self, inputs=[self.account.export_uri(export_id)])
        self.stop = stop or self.stop
        with self.client() as client, new_download_session(connection) as session:
            files = ExportFiles(
                lambda: client.run_flow(protocol.get_export(self._family, export_id)),
                session,
                allow_http=connection.is_local,
                timeout_seconds=connection.timeout_seconds,
                stop=self.stop,
            )
            try:
                yield files
            finally:
                metrics.fetched(self._family, files.downloads, files.renewals)

    def start_export(
        self,
        list_ids: Sequence[str | int] = _NOT_PASSED,
        segment_ids: Sequence[str | int] = _NOT_PASSED,
        *,
        file_type: str = "csv",
        max_file_size: int | None = None,
        notify_by_email: bool = False,
    ) -> str:
        """Start an export and return its id.

        All contacts are exported if neither `list_ids` nor `segment_ids` is passed.

        Args:
            list_ids: ids of lists.
            segment_ids: ids of segments.
            file_type: ``csv`` or ``json`` (one object per line).
            max_file_size: in MB; a larger export is split into several files. SendGrid's default is 5000.
            notify_by_email: let SendGrid send an email with links to the files to the owner of the account.

        Raises:
            ValueError: an argument is wrong, or `list_ids` and `segment_ids` were passed without any id.
            SendGridError: SendGrid did not accept the start; if ``may_have_been_accepted`` is set, that is unknown.
        """
        selection = ExportSelection(list_ids, segment_ids, file_type, max_file_size, notify_by_email)
        is_passed = list_ids is not _NOT_PASSED or segment_ids is not _NOT_PASSED
        if is_passed and not selection.list_ids and not selection.segment_ids:
            raise ValueError(
                "list_ids and segment_ids hold no id; nothing was exported. Pass at least one, or pass neither "
                "argument to export all contacts."
            )
        return self.start_selection(selection)

    def start_selection(self, selection: ExportSelection) -> str:
        """`start_export`, with its arguments in one value."""
        with self.client() as client:
            return self._report_start(client.run_flow(protocol.start_export(self._family, selection)), is_found=False)

    def start_export_once(self, selection: ExportSelection, attempt: Attempt) -> tuple[str, bool]:
        """Start an export, or find the one that an earlier try started.

        Returns:
            The export's id, and whether it was found.
        """
        with self.client() as client:
            export_id, is_found = client.run_flow(start_export_once(self._family, selection, attempt))
        return self._report_start(export_id, is_found=is_found), is_found

    def ids_of_lists(self, names: Sequence[str]) -> list[str | int]:
        """The ids of the lists with these names.

        Raises:
            SendGridNotFoundError: no list has one of the names.
            SendGridBadRequestError: several lists have one of the names.
        """
        return ids_of_names("list", names, self.get_lists()) if names else []

    def ids_of_segments(self, names: Sequence[str]) -> list[str | int]:
        """The ids of the segments with these names, in both of SendGrid's segments APIs.

        Raises:
            SendGridNotFoundError: no segment has one of the names.
            SendGridBadRequestError: several segments have one of the names.
        """
        with self.client() as client:
            return client.run_flow(ids_of_segments(self._family, names))

    def get_export(self, export_id: str) -> ContactExport:
        """The status of one export; with newly signed URLs if it is ready."""
        with self.client() as client:
            return client.run_flow(protocol.get_export(self._family, parse_export_id(export_id)))

    def list_exports(self) -> list[ContactExport]:
        """All pending and recently completed exports, without counts and messages."""
        with self.client() as client:
            return client.run_flow(protocol.list_exports(self._family))

    def get_lists(self) -> list[dict[str, Any]]:
        """All contact lists, as SendGrid describes them: ``id``, ``name`` and a count each."""
        with self.client() as client:
            return client.run_flow(protocol.get_lists(self._family))

    def get_segments(self) -> list[dict[str, Any]]:
        """All segments, as SendGrid describes them; in the marketing family only those of the segments API 2.0."""
        with self.client() as client:
            return client.run_flow(protocol.get_segments(self._family))

    def get_scopes(self) -> list[str]:
        """The scopes of the API key."""
        with self.client() as client:
            return client.run_flow(protocol.get_scopes())

    async def aget_export(self, export_id: str) -> ContactExport:
        """`get_export` on an event loop."""
        async with await self.aclient() as client:
            return await client.run_flow(protocol.get_export(self._family, parse_export_id(export_id)))

    async def alist_exports(self) -> list[ContactExport]:
        """`list_exports` on an event loop."""
        async with await self.aclient() as client:
            return await client.run_flow(protocol.list_exports(self._family))

    def test_connection(self) -> tuple[bool, str]:
        """Whether the key works, and which families it may export or what to do. Called by the form's "Test" button."""
        try:
            with self.client() as client:
                scopes = client.run_flow(protocol.get_scopes(protocol.RetryPolicy(tries=2)))
        except (SendGridError, ValueError) as error:
            return False, redact(str(error))
        except Exception as error:  # noqa: BLE001 - the form needs a text
            return False, f"The connection cannot be tested: {type(error).__name__}."
        families = [family.value for family, traits in FAMILIES.items() if traits.scope in scopes]
        if not families:
            needed = " or ".join(traits.scope for traits in FAMILIES.values())
            return False, f"The API key works, but cannot export contacts: it lacks the scope {needed}."
        hint = f" {protocol.LEGACY_EXPORTS}" if ExportFamily.LEGACY.value in families else ""
        text = f"The API key works; it may export: {', '.join(families)}.{hint} Scopes: {', '.join(scopes)}."
        return True, redact(text)

    @property
    def account(self) -> SendGridAccount:
        """The account in lineage."""
        return SendGridAccount(self.connection.base_url, self._family)

    def _report_start(self, export_id: str, *, is_found: bool) -> str:
        metrics.export_started(self._family, is_found=is_found)
        report_hook_lineage(self, outputs=[self.account.export_uri(export_id)])
        return export_id

    def _note_retry(self) -> None:
        metrics.request_retried(self._family)

    @property
    def _family(self) -> ExportFamily:
        return parse_family(self.family)
