"""An Airflow connection turned into a client for SendGrid's export APIs."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async

from airflow_provider_sendgrid import metrics
from airflow_provider_sendgrid._compat import AirflowNotFoundException, BaseHook, mask_secret
from airflow_provider_sendgrid.exceptions import SendGridError, SendGridUnavailableError, redact
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
from airflow_provider_sendgrid.lineage import SendGridAccount, report_hook_lineage
from airflow_provider_sendgrid.provider_info import CONNECTION_TYPE
from airflow_provider_sendgrid.stopping import StopSignal

if TYPE_CHECKING:
    import requests

    from airflow_provider_sendgrid.exports.client import AsyncSendGridClient, SendGridClient
    from airflow_provider_sendgrid.exports.shared_poller import SharedPoller


class _NotPassed(tuple[str | int, ...]):
    """A default that differs from an empty tuple that was passed."""

    __slots__ = ()


_NOT_PASSED = _NotPassed()


class SendGridHook(BaseHook):
    """Talks to SendGrid's contact-export APIs, in a worker and on an event loop.

    Both families are served: Marketing Campaigns (``/v3/marketing/contacts/exports``) and Legacy Marketing
    Campaigns (``/v3/contactdb/exports``). Requests are repeated within bounds on 429, 5xx and network
    failures; a start only when it surely was not accepted.

    Args:
        sendgrid_conn_id: connection of type ``sendgrid``; its password is the API key. Optional: host (a
            host name or a full URL) and, in extra, ``region`` (``global``, ``eu``), ``on_behalf_of`` (a
            subuser), ``timeout`` (seconds), ``verify`` (bool, or path of a file or folder of CA certificates),
            ``proxy`` (a URL).
        family: ``"marketing"`` or ``"legacy"``.

    Attributes:
        stop: set by an operator that is killed: ends requests, and pauses between them, at once.

    Every method that asks SendGrid raises a subclass of
    `airflow_provider_sendgrid.exceptions.SendGridError` that says what to do next.
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
        """What the connection form shows, for Airflow before 3.2; later ones read it in `provider_info`.

        The metadata spells its names with hyphens, this method with underscores.
        """
        form = CONNECTION_TYPE["ui-field-behaviour"]
        return {name.replace("-", "_"): value for name, value in form.items()}

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """The form's fields for what extra holds, for Airflow before 3.2, and where it has its form's parts."""
        try:
            from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
            from wtforms import IntegerField, StringField
            from wtforms.validators import Optional, any_of
        except ImportError:
            return {}
        widgets = {}
        for name, field in CONNECTION_TYPE["conn-fields"].items():
            schema = field["schema"]
            widgets[name] = (IntegerField if "integer" in schema["type"] else StringField)(
                field["label"],
                description=field["description"],
                validators=[Optional(), *([any_of(schema["enum"])] if "enum" in schema else [])],
                widget=BS3TextFieldWidget(),
            )
        return widgets

    @cached_property
    def connection(self) -> SendGridConnection:
        """Who we are and whom we ask, read once; the key is masked in logs from here on.

        Raises:
            SendGridUnavailableError: there is no such connection, or the secrets backend did not return it, which
                Airflow does not distinguish: another try may find it. A sensor with ``soft_fail`` would be skipped on
                Airflow's own exception.
            ValueError: it cannot be parsed; or a setting of it, or of the environment's proxy or trust, is wrong; names
                the setting and the right value.
        """
        self.sendgrid_conn_id = parse_conn_id(self.sendgrid_conn_id)
        airflow_connection = self._airflow_connection()
        connection = SendGridConnection.from_fields(
            name=self.sendgrid_conn_id,
            password=airflow_connection.password,
            host=airflow_connection.host,
            port=airflow_connection.port,
            schema=airflow_connection.schema,
            extra=_extra(self.sendgrid_conn_id, airflow_connection),
        )
        mask_secret(connection.api_key)
        resolve_network(connection)  # a wrong proxy or CA file is an error now, not at the first request
        if connection.verify is False:
            self.log.warning(
                "Connection %s switches the verification of TLS certificates off: anyone on the way can read "
                "the API key and the contacts.",
                self.sendgrid_conn_id,
            )
        return connection

    def _airflow_connection(self) -> Any:
        name = self.sendgrid_conn_id
        variable = f"AIRFLOW_CONN_{name.upper()}"
        try:
            return self.get_connection(name)
        except AirflowNotFoundException:
            if not os.environ.get(variable):
                raise SendGridUnavailableError(
                    f"There is no connection {name!r}, or Airflow's secrets backend did not return it: add one of type "
                    "'sendgrid', with the API key as its password, in Airflow or in its secrets backend, or name "
                    "another in sendgrid_conn_id. If it exists, look for the secrets backend's error in the log."
                ) from None
            problem = f"the environment variable {variable}"  # Airflow logs why, and goes on to look elsewhere
        except (ValueError, TypeError, AttributeError) as error:
            problem = type(error).__name__
        except Exception as error:
            raise SendGridUnavailableError(
                f"Connection {name!r} could not be read ({type(error).__name__}). Look for the secrets backend's "
                "error in the log, and run the task again."
            ) from error
        raise ValueError(
            f"Connection {name!r} cannot be parsed ({problem}). It must be a JSON object such as "
            '{"conn_type": "sendgrid", "password": "SG.…"}, or a URI whose parts are percent-encoded.'
        )

    def get_conn(self) -> requests.Session:
        """A session for your own requests; it adds the key for the API's host only."""
        from airflow_provider_sendgrid.exports.sessions import new_session

        return new_session(self.connection)

    def client(self) -> SendGridClient:
        """A client that speaks the protocol, for a ``with`` block."""
        from airflow_provider_sendgrid.exports.client import SendGridClient

        return SendGridClient(self.connection, on_retry=self._note_retry, stop=self.stop)

    async def aclient(self) -> AsyncSendGridClient:
        """The same for an ``async with`` block on an event loop."""
        from airflow_provider_sendgrid.exports.client import AsyncSendGridClient

        return AsyncSendGridClient(await self.aload_connection(), on_retry=self._note_retry)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[SharedPoller]:
        """One poll for all who wait for exports of this connection and family on this event loop."""
        from airflow_provider_sendgrid.exports.client import AsyncSendGridClient
        from airflow_provider_sendgrid.exports.poller_pool import acquire_poller

        connection = await self.aload_connection()
        # Renewed certificates count for the waits that begin then.
        key = (self.sendgrid_conn_id, connection, resolve_network(connection).tls)
        async with acquire_poller(
            key, self._family, lambda: AsyncSendGridClient(connection, on_retry=self._note_retry)
        ) as watch:
            yield watch

    async def aload_connection(self) -> SendGridConnection:
        """`connection`, read without blocking the event loop.

        One thread does it all, from look-up to parsing the extra: on Airflow 3.0 either, done on the loop
        or in a plain thread, ends the trigger or even the triggerer.
        """
        return await sync_to_async(lambda: self.connection)()

    @contextmanager
    def source(self, export_id: str, stop: StopSignal | None = None) -> Iterator[ExportFiles]:
        """The files of an export, for `airflow_provider_sendgrid.delivery.export`.

        Args:
            export_id: of the export.
            stop: ends all requests at once; by default `stop` of this hook.
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
        """Start an export and return its id; if neither `list_ids` nor `segment_ids` is passed, of every contact.

        Args:
            list_ids: ids of lists.
            segment_ids: ids of segments. If what is passed holds no id at all, nothing is exported.
            file_type: ``csv`` or ``json`` (one object per line).
            max_file_size: in MB; a larger export is split into several files (SendGrid's default: 5000).
            notify_by_email: have SendGrid mail a link to the account's owner.

        Raises:
            ValueError: an argument is wrong, or no id was passed.
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
        """The same, with what to export in one value."""
        with self.client() as client:
            return self._noted(client.run_flow(protocol.start_export(self._family, selection)), is_found=False)

    def start_export_once(self, selection: ExportSelection, attempt: Attempt) -> tuple[str, bool]:
        """Start an export, or find the one that an earlier try started; its id, and whether it was found."""
        with self.client() as client:
            export_id, is_found = client.run_flow(start_export_once(self._family, selection, attempt))
        return self._noted(export_id, is_found=is_found), is_found

    def ids_of_lists(self, names: Sequence[str]) -> list[str | int]:
        """The ids of the lists with these names."""
        return ids_of_names("list", names, self.get_lists()) if names else []

    def ids_of_segments(self, names: Sequence[str]) -> list[str | int]:
        """The ids of the segments with these names, of the segments API 2.0 and of the first one."""
        with self.client() as client:
            return client.run_flow(ids_of_segments(self._family, names))

    def get_export(self, export_id: str) -> ContactExport:
        """The status of one export, with freshly signed URLs once it is ready."""
        with self.client() as client:
            return client.run_flow(protocol.get_export(self._family, parse_export_id(export_id)))

    def list_exports(self) -> list[ContactExport]:
        """All exports in flight or recently completed (without counts and messages)."""
        with self.client() as client:
            return client.run_flow(protocol.list_exports(self._family))

    def get_lists(self) -> list[dict[str, Any]]:
        """All contact lists: ``id``, ``name`` and a count each."""
        with self.client() as client:
            return client.run_flow(protocol.get_lists(self._family))

    def get_segments(self) -> list[dict[str, Any]]:
        """All segments: ``id``, ``name`` and a count each; of the marketing family those of the API 2.0."""
        with self.client() as client:
            return client.run_flow(protocol.get_segments(self._family))

    def get_scopes(self) -> list[str]:
        """What the API key may do."""
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
        """Whether the key works and which families it may export; what to do where it does not."""
        try:
            with self.client() as client:
                scopes = client.run_flow(protocol.get_scopes(protocol.RetryPolicy(tries=2)))
        except (SendGridError, ValueError) as error:
            return False, redact(str(error))
        except Exception as error:  # noqa: BLE001 - the form must get an answer, whatever broke
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
        """Whose datasets lineage speaks of."""
        return SendGridAccount(self.connection.base_url, self._family)

    def _noted(self, export_id: str, *, is_found: bool) -> str:
        metrics.export_started(self._family, is_found=is_found)
        report_hook_lineage(self, outputs=[self.account.export_uri(export_id)])
        return export_id

    def _note_retry(self) -> None:
        metrics.request_retried(self._family)

    @property
    def _family(self) -> ExportFamily:
        return parse_family(self.family)


def _extra(name: str, connection: Any) -> dict[str, Any]:
    """What extra holds. Airflow's `extra_dejson` masks the secrets in it, but reads what is not JSON as empty."""
    try:
        extra = json.loads(connection.extra or "{}", object_pairs_hook=lambda pairs: _once_each(name, pairs))
    except _RepeatedKeyError:
        raise
    except (ValueError, RecursionError):
        extra = connection.extra
    if extra is None:
        return {}
    if not isinstance(extra, dict):
        raise ValueError(  # noqa: TRY004 - a setting is wrong, not an argument
            f'Connection {name!r}: extra must be a JSON object, such as {{"region": "eu"}}.'
        )
    connection.extra_dejson  # noqa: B018 - masks
    return extra


class _RepeatedKeyError(ValueError):
    """A key is twice in one JSON object: the last value would win, also a null."""


def _once_each(name: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise _RepeatedKeyError(f"Connection {name!r}: extra has the key {redact(repeated)!r} twice; remove one.")
    return found
