"""Waits for SendGrid exports in the triggerer, where waiting costs no worker: for one, or for any new one."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Hashable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async

from airflow_provider_sendgrid._compat import HAS_EVENT_TRIGGERS, BaseEventTrigger, BaseTrigger, TriggerEvent
from airflow_provider_sendgrid.exceptions import SendGridError, SendGridUnavailableError, redact
from airflow_provider_sendgrid.exports import protocol
from airflow_provider_sendgrid.exports.arguments import parse_conn_id
from airflow_provider_sendgrid.exports.export import (
    ContactExport,
    ExportFamily,
    parse_export_id,
    parse_family,
    typed_ids,
)
from airflow_provider_sendgrid.exports.new_exports import SeenExports
from airflow_provider_sendgrid.exports.polling import Outcome, PollResult, PollSchedule, require_seconds
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook

if TYPE_CHECKING:
    from airflow_provider_sendgrid.exports.client import AsyncSendGridClient

log = logging.getLogger(__name__)

EXPORT_TYPES = ("contacts_export", "list_export", "segment_export")
# Under this key and an export's id an asset's state store keeps that one of our own tasks started it.
STARTED_KEY = "sendgrid_started_"

# A smaller difference of clocks is not corrected.
_CLOCKS_AGREE_SECONDS = 60.0
# The listing holds no counts; so many exports that become ready at once are asked for theirs.
_COUNTS_AT_ONCE = 10


class SendGridExportTrigger(BaseTrigger):
    """Fires one event when an export is ready, has failed, has expired, or its time is up.

    The event holds JSON values and no URL: Airflow logs it whole and stores it unencrypted.

    Args:
        export_id: the id that starting the export returned.
        family: ``"marketing"`` or ``"legacy"``.
        sendgrid_conn_id: connection of type ``sendgrid``.
        poll_interval: longest time between two polls, in seconds; with `exponential_backoff` the first one.
        end_time: when to stop waiting, in seconds since the epoch: absolute, so that neither a restart of
            the triggerer nor another try of the trigger moves it. None: wait without a deadline, through any outage.
        start_time: when the wait began, likewise; None means now.
        exponential_backoff: begin with `poll_interval` and double the time between polls.
        max_wait: longest time between two polls with `exponential_backoff`, in seconds.
        silent_fail: log SendGrid's refusals and go on waiting.
        not_before: when SendGrid may be polled first, in seconds since the epoch, because it has asked to wait.
        clock_ahead: seconds by which the clock that `end_time` was read from is ahead of SendGrid's.
    """

    # Between attempts to read a connection that is not found: the secrets backend may fail for a moment.
    connection_waits_seconds = (1.0, 5.0, 15.0, 30.0, 60.0)

    def __init__(
        self,
        export_id: str,
        family: str = ExportFamily.MARKETING.value,
        sendgrid_conn_id: str = SendGridHook.default_conn_name,
        poll_interval: float = 60.0,
        end_time: float | None = None,
        start_time: float | None = None,
        exponential_backoff: bool = False,
        max_wait: float | None = None,
        silent_fail: bool = False,
        not_before: float | None = None,
        clock_ahead: float = 0.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.export_id = export_id
        self.family = family
        self.sendgrid_conn_id = sendgrid_conn_id
        self.poll_interval = poll_interval
        self.end_time = end_time
        self.start_time = start_time
        self.exponential_backoff = exponential_backoff
        self.max_wait = max_wait
        self.silent_fail = silent_fail
        self.not_before = not_before
        self.clock_ahead = clock_ahead

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The path of this class and its arguments, for the metadata database."""
        names = ("export_id", "family", "sendgrid_conn_id", "poll_interval", "end_time", "start_time")
        defaults = {
            "exponential_backoff": False,
            "max_wait": None,
            "silent_fail": False,
            "not_before": None,
            "clock_ahead": 0.0,
        }
        # What has its default is left out: a triggerer with an older version of the provider accepts the rest.
        chosen = [name for name, default in defaults.items() if getattr(self, name) != default]
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        return path, {name: getattr(self, name) for name in (*names, *chosen)}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait and fire once."""
        try:
            event = sighting_event(await self._wait())
        except SendGridError as error:
            event = {"outcome": "error", "error": error.to_event()}
        except (ValueError, TypeError) as error:  # an argument, or a setting of the connection
            refused = SendGridError(str(error))
            event = {"outcome": "error", "error": refused.to_event(), "is_setting": True}
        except Exception as error:
            self.log.exception("Waiting for SendGrid export %s ended by an unforeseen error.", self.export_id)
            broken = SendGridError(redact(f"{type(error).__name__}: {error}"))
            event = {"outcome": "error", "error": broken.to_event()}
        yield TriggerEvent(event)

    async def _wait(self) -> PollResult:
        export_id = parse_export_id(self.export_id)
        for name in ("end_time", "start_time", "not_before"):
            if (value := getattr(self, name)) is not None:
                require_seconds(name, value)
        schedule = PollSchedule.for_sensor(
            self.poll_interval, exponential_backoff=self.exponential_backoff, max_wait=self.max_wait
        )
        hook = SendGridHook(self.sendgrid_conn_id, self.family)
        await self._load_connection(hook)
        started_at = time.time() if self.start_time is None else self.start_time
        end_time = float("inf") if self.end_time is None else self.end_time
        async with hook.watch() as watch:

            async def wait(seconds_ahead: float) -> PollResult:
                return await watch.wait(
                    export_id,
                    schedule,
                    started_at=started_at + seconds_ahead,
                    end_time=end_time + seconds_ahead,
                    ignores_refusals=self.silent_fail,
                    not_before=self.not_before,
                    has_polled=self.start_time is not None,  # by the sensor
                )

            sighting = await wait(0.0)
            if (seconds_ahead := self._seconds_ahead(sighting)) > _CLOCKS_AGREE_SECONDS:
                self.log.warning(
                    "This triggerer's clock is %.0f s ahead of the worker's, compared with SendGrid's. The wait goes "
                    "on until its timeout.",
                    seconds_ahead,
                )
                sighting = await wait(seconds_ahead)
            return sighting

    def _seconds_ahead(self, sighting: PollResult) -> float:
        """How much too early time was up, because this machine's clock is ahead of the worker's."""
        as_of = sighting.export.as_of
        if sighting.outcome is not Outcome.TIMEOUT or sighting.last_error or as_of is None:
            return 0.0
        return time.time() - as_of.timestamp() - self.clock_ahead

    async def _load_connection(self, hook: SendGridHook) -> None:
        """Read the connection; a few times if it is not found, until the deadline of the wait."""
        for seconds in self.connection_waits_seconds:
            try:
                await hook.aload_connection()
            except SendGridUnavailableError as error:
                seconds_left = float("inf") if self.end_time is None else self.end_time - time.time()
                if seconds_left <= 0:
                    raise
                wait = min(seconds, seconds_left)
                self.log.warning("%s Trying again in %.0f s.", error, wait)
                await asyncio.sleep(wait)
            else:
                return
        await hook.aload_connection()


def sighting_event(sighting: PollResult) -> dict[str, Any]:
    """What the event says of a wait that ended."""
    error = sighting.error()
    return {
        "outcome": sighting.outcome.value,
        "export": sighting.summary(),
        "description": sighting.describe(),
        "error": error.to_event() if error else None,
    }


class SendGridNewExportTrigger(BaseEventTrigger):
    """Fires for each export that becomes ready, whoever began it; for an ``AssetWatcher``, from Airflow 3 on.

    Made for exports that nobody in Airflow started, say those that a marketer begins in SendGrid's own pages. SendGrid
    does not tell who began an export. So either choose by `export_type`, `list_id` or `segment_id` what your own tasks
    do not export; or, from Airflow 3.3 on, give the `SendGridExportContactsOperator` a reference to the watched asset
    among its ``inlets`` (``Asset.ref(name=...)``): it then leaves word there, and its exports do not fire.

    The event says ``id``, ``family``, ``export_type``, ``list_ids``, ``segment_ids``, ``contact_count``,
    ``created_at``, ``completed_at`` and ``expires_at``: JSON values and no URL. ``contact_count`` is null where it
    could not be fetched within seconds. Several exports may be ready at once, and one DAG run may then serve several
    events: let it look at all of them.

    Each export fires once. From Airflow 3.3 on what has fired is remembered in the asset's state store, so a restart of
    the triggerer neither repeats nor loses one (the two seconds around an event excepted: if the triggerer is killed
    then, the event may come twice), and triggers on one connection share one poll. What the store holds of an export is
    deleted a day after it failed, expired or was last listed. What was ready before the first look does not fire later,
    even if that look lacked it. From 3.0 to 3.2 nothing is
    remembered: after a restart, what became ready meanwhile is missed; with `since` it fires, and with it all that has
    become ready since then.

    Args:
        sendgrid_conn_id: connection of type ``sendgrid``.
        family: ``"marketing"`` or ``"legacy"``.
        export_type: only ``"contacts_export"``, ``"list_export"`` or ``"segment_export"``.
        list_id: only exports that hold this list.
        segment_id: only exports that hold this segment.
        poll_interval: longest time between two looks at the list of exports, in seconds.
        since: exports that became ready from this moment on (ISO 8601, UTC where it names no zone; or seconds since the
            epoch) fire when the trigger first runs. Without it, those that are ready then do not.
    """

    # An event is in the database about a second after it was fired; only then it is remembered as fired.
    stored_after_seconds = 2.0
    # Longest wait for the counts of new exports.
    count_seconds = 5.0

    def __init__(
        self,
        sendgrid_conn_id: str = SendGridHook.default_conn_name,
        family: str = ExportFamily.MARKETING.value,
        export_type: str | None = None,
        list_id: str | int | None = None,
        segment_id: str | int | None = None,
        poll_interval: float = 60.0,
        since: str | float | None = None,
    ) -> None:
        if not HAS_EVENT_TRIGGERS:
            raise RuntimeError("SendGridNewExportTrigger needs Airflow 3: Airflow 2 starts no DAG from a trigger.")
        super().__init__()  # type: ignore[no-untyped-call]
        if export_type not in (None, *EXPORT_TYPES):
            raise ValueError(f"export_type must be one of {', '.join(EXPORT_TYPES)}, not {export_type!r}.")
        require_seconds("poll_interval", poll_interval)
        if not 0 < poll_interval < float("inf"):
            raise ValueError(f"poll_interval must be a number of seconds above 0, not {poll_interval!r}.")
        parse_conn_id(sendgrid_conn_id)
        known_family = parse_family(family)
        for name, chosen in (("list_id", list_id), ("segment_id", segment_id)):
            if chosen is not None:  # a value that is no id never matches
                typed_ids(name, [chosen], known_family)
        _moment(since)
        self.sendgrid_conn_id = sendgrid_conn_id
        self.family = family
        self.export_type = export_type
        self.list_id = list_id
        self.segment_id = segment_id
        self.poll_interval = poll_interval
        self.since = since

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The path of this class and its arguments, for the metadata database."""
        names = ("sendgrid_conn_id", "family", "export_type", "list_id", "segment_id", "poll_interval", "since")
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        return path, {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Fire for each new export, for ever; before Airflow 3.3, which shares no streams."""
        async with (
            aclosing(self.open_shared_stream(self.serialize()[1])) as stream,
            aclosing(self.filter_shared_stream(stream)) as events,
        ):
            async for event in events:
                yield event

    def shared_stream_key(self) -> Hashable:
        """Triggers with the same key share one poll."""
        return (type(self).__qualname__, self.sendgrid_conn_id, self.family, self.poll_interval)

    @classmethod
    async def open_shared_stream(cls, kwargs: dict[str, Any]) -> AsyncGenerator[Sequence[ContactExport], None]:
        """The list of exports, again and again; whatever fails is tried again with the connection read anew."""
        family, interval = ExportFamily(kwargs["family"]), float(kwargs["poll_interval"])
        while True:
            try:
                async with await SendGridHook(kwargs["sendgrid_conn_id"], family).aclient() as client:
                    while True:
                        yield await client.run_flow(protocol.list_exports(family))
                        await _sleep(interval)
            except Exception as error:  # noqa: BLE001 - a watcher must not end, whatever broke
                log.warning(
                    "Looking for new SendGrid exports failed and goes on: %s: %s",
                    type(error).__name__,
                    redact(str(error)),
                )
            await _sleep(interval)

    async def filter_shared_stream(
        self, shared_stream: AsyncIterator[Sequence[ContactExport]]
    ) -> AsyncGenerator[TriggerEvent, None]:
        """Fire for each export that became ready, is of what was asked for, and has not fired yet."""
        seen: SeenExports | None = None
        async for listed in shared_stream:
            try:
                seen = seen or await self._recall()
                wanted = [each for each in listed if self._is_wanted(each)]
                payloads = await self._payloads(await self._not_our_own(seen.find_new(wanted)))
            except Exception as error:  # noqa: BLE001 - likewise
                log.warning("A look for new SendGrid exports failed: %s: %s", type(error).__name__, redact(str(error)))
                continue
            for payload in payloads:
                yield TriggerEvent(payload)
            seen.record(wanted, listed if self._store is not None else ())
            if payloads:
                await asyncio.sleep(self.stored_after_seconds)
            await self._remember(seen)

    def _is_wanted(self, export: ContactExport) -> bool:
        return (
            self.export_type in (None, _type_of(export))
            and (self.list_id is None or str(self.list_id).strip() in export.list_ids)
            and (self.segment_id is None or str(self.segment_id).strip() in export.segment_ids)
        )

    async def _payloads(self, news: Sequence[ContactExport]) -> list[dict[str, Any]]:
        if not news:
            return []
        counts = await self._counts(news[:_COUNTS_AT_ONCE])
        return [self._payload(export, counts.get(export.id, export.contact_count)) for export in news]

    async def _counts(self, news: Sequence[ContactExport]) -> dict[str, int | None]:
        """What could be learnt in a few seconds: no event waits for a count."""
        counts: dict[str, int | None] = {}
        family = ExportFamily(self.family)

        async def ask(client: AsyncSendGridClient, export_id: str) -> None:
            flow = protocol.get_export(
                family, export_id, protocol.RetryPolicy(tries=2), needs_confirmation=lambda _: False
            )
            try:
                counts[export_id] = (await client.run_flow(flow)).contact_count
            except (SendGridError, ValueError) as error:
                log.info("Could not fetch the contact count of SendGrid export %s: %s", export_id, error)

        async with await SendGridHook(self.sendgrid_conn_id, self.family).aclient() as client:
            tasks = [asyncio.ensure_future(ask(client, export.id)) for export in news]
            try:
                await asyncio.wait(tasks, timeout=self.count_seconds)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return counts

    def _payload(self, export: ContactExport, contact_count: int | None) -> dict[str, Any]:
        summary = export.summary()
        times = {name: summary[name] for name in ("created_at", "completed_at", "expires_at")}
        return {
            "id": export.id,
            "family": ExportFamily(self.family).value,
            "export_type": _type_of(export),
            "list_ids": list(export.list_ids),
            "segment_ids": list(export.segment_ids),
            "contact_count": contact_count,
            **times,
        }

    @property
    def _key(self) -> str:
        """Of what this trigger has seen, in the store of its asset, which other triggers may watch for, too."""
        chosen = (self.sendgrid_conn_id, self.family, self.export_type, self.list_id, self.segment_id)
        return f"sendgrid_seen_{hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:16]}"

    @property
    def _listed_key(self) -> str:
        """Of all exports that this trigger has seen listed: their marks are deleted when they are of no more use."""
        return self._key.replace("seen", "listed")

    @property
    def _began_key(self) -> str:
        """Of the moment of the first look."""
        return self._key.replace("seen", "began")

    @property
    def _store(self) -> Any:
        """The state store of the asset that is watched; None before Airflow 3.3."""
        return getattr(self, "asset_state_store", None)

    async def _recall(self) -> SeenExports:
        since = _moment(self.since)
        if self._store is None:
            return SeenExports(since=since)
        try:
            kept = await sync_to_async(self._store.get)(self._key)
            listed = await sync_to_async(self._store.get)(self._listed_key)
            began_at = await sync_to_async(self._store.get)(self._began_key)
        except ValueError:  # says Airflow of a trigger that several assets share
            log.warning(
                "Several assets are watched by one SendGridNewExportTrigger with the same arguments: what has fired "
                "cannot be remembered over a restart of the triggerer. Watch by one asset, and let DAGs share it."
            )
            self.asset_state_store = None
            return SeenExports(since=since)
        return SeenExports(
            since=since,
            ids=dict(kept) if isinstance(kept, Mapping) else None,
            listed=dict(listed) if isinstance(listed, Mapping) else {},
            began_at=began_at if isinstance(began_at, int | float) else None,
        )

    async def _remember(self, seen: SeenExports) -> None:
        if self._store is None or not seen.is_changed:
            return
        refused = await self._delete_marks(seen)
        try:
            await sync_to_async(self._store.set)(self._key, seen.ids)
            # A mark that could not be deleted is listed as long gone, so that it is deleted after a restart, too.
            listed = seen.listed | dict.fromkeys(refused, 1.0)
            await sync_to_async(self._store.set)(self._listed_key, listed)
            await sync_to_async(self._store.set)(self._began_key, seen.began_at)
            seen.is_changed = bool(refused)
        except Exception as error:  # noqa: BLE001 - likewise
            log.warning(
                "Which SendGrid exports have fired could not be stored; trying again: %s: %s",
                type(error).__name__,
                redact(str(error)),
            )

    async def _delete_marks(self, seen: SeenExports) -> set[str]:
        """Delete the marks of exports that are forgotten; returns those whose mark could not be deleted."""
        for each in list(seen.forgotten):
            try:
                await sync_to_async(self._store.delete)(f"{STARTED_KEY}{each}")
                seen.forgotten.discard(each)
            except Exception as error:  # noqa: BLE001 - what has fired is stored all the same
                log.warning("The mark of SendGrid export %s could not be deleted: %s", each, redact(str(error)))
        return seen.forgotten

    async def _not_our_own(self, news: Sequence[ContactExport]) -> list[ContactExport]:
        """Without those of which one of our own tasks left word."""
        if self._store is None:
            return list(news)
        return [each for each in news if not await sync_to_async(self._store.get)(f"{STARTED_KEY}{each.id}")]


def _type_of(export: ContactExport) -> str:
    chosen = "list_export" if export.list_ids else "segment_export" if export.segment_ids else "contacts_export"
    return export.export_type or chosen


def _moment(text: str | float | None) -> float | None:
    """A moment as seconds since the epoch.

    Raises:
        ValueError: it is none.
    """
    if text is None or (isinstance(text, int | float) and not isinstance(text, bool) and math.isfinite(text)):
        return text
    try:
        moment = datetime.fromisoformat(str(text).strip().replace("Z", "+00:00"))
    except ValueError:
        raise ValueError(f"since must be a time in ISO 8601, or seconds since the epoch, not {text!r}.") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


async def _sleep(interval_seconds: float) -> None:
    """A little shorter than the interval, so that several triggerers do not ask in step."""
    await asyncio.sleep(interval_seconds * (1 - random.random() / 10))  # noqa: S311
