"""Triggers that wait in the triggerer, without a worker: for one export, or for each new one."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Hashable, Sequence
from contextlib import aclosing
from typing import Any

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
from airflow_provider_sendgrid.exports.start_search import is_one_of
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook
from airflow_provider_sendgrid.triggers.fired_exports import FiredExports, parse_since
from airflow_provider_sendgrid.triggers.new_export_events import new_export_events, type_of_export

log = logging.getLogger(__name__)

EXPORT_TYPES = ("contacts_export", "list_export", "segment_export")
# A smaller difference between two clocks is not corrected: a response takes some seconds, too.
CLOCKS_AGREE_SECONDS = 60.0


class SendGridExportTrigger(BaseTrigger):
    """Fires one event when an export is ready, has failed or has expired, or at the deadline.

    The event is a JSON object without URLs, because Airflow logs it and stores it unencrypted:

    | key | value |
    |---|---|
    | ``outcome`` | ``ready``, ``failure``, ``expired``, ``without_files``, ``timeout`` or ``error`` |
    | ``export`` | the export's summary, with ``polls`` and ``waited_seconds``; absent with ``error`` |
    | ``description`` | one sentence for the log; absent with ``error`` |
    | ``error`` | why the export will never be ready, see `SendGridError.to_event`; null otherwise |
    | ``is_setting`` | true if an argument or the connection is wrong; absent otherwise |

    Args:
        export_id: the id that starting the export returned.
        family: ``"marketing"`` or ``"legacy"``.
        sendgrid_conn_id: connection of type ``sendgrid``.
        poll_interval: longest time between two polls, in seconds; with `exponential_backoff` the first one.
        end_time: the deadline, in seconds since the epoch. A restart of the triggerer does not move it. None: wait
            without a deadline, through any outage.
        start_time: when the wait began, in seconds since the epoch; None means now.
        exponential_backoff: begin with `poll_interval` and double the time between polls.
        max_wait: longest time between two polls with `exponential_backoff`, in seconds.
        silent_fail: log SendGrid's refusals and keep waiting.
        not_before: earliest time of the first poll, in seconds since the epoch, after SendGrid sent ``Retry-After``.
        clock_ahead: seconds by which the clock that `end_time` was read from is ahead of SendGrid's.
    """

    # Waits between attempts to read a connection that is not found: the secrets backend may fail for a moment.
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
        """The path of this class, and its arguments."""
        names = ("export_id", "family", "sendgrid_conn_id", "poll_interval", "end_time", "start_time")
        defaults = {
            "exponential_backoff": False,
            "max_wait": None,
            "silent_fail": False,
            "not_before": None,
            "clock_ahead": 0.0,
        }
        # Defaults are left out, so that a triggerer with an older version of the provider accepts the arguments.
        chosen = [name for name, default in defaults.items() if getattr(self, name) != default]
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        return path, {name: getattr(self, name) for name in (*names, *chosen)}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and fire one event."""
        try:
            event = result_event(await self._wait())
        except SendGridError as error:
            event = {"outcome": "error", "error": error.to_event()}
        except (ValueError, TypeError) as error:  # an argument, or a setting of the connection
            refused = SendGridError(str(error))
            event = {"outcome": "error", "error": refused.to_event(), "is_setting": True}
        except Exception as error:
            self.log.exception("Waiting for SendGrid export %s failed with an unexpected error.", self.export_id)
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

            result = await wait(0.0)
            if (seconds_ahead := self._seconds_ahead(result)) > CLOCKS_AGREE_SECONDS:
                self.log.warning(
                    "This triggerer's clock is %.0f s further ahead of SendGrid's than the worker's. The wait goes on "
                    "until its timeout.",
                    seconds_ahead,
                )
                result = await wait(seconds_ahead)
            return result

    def _seconds_ahead(self, result: PollResult) -> float:
        """How much too early the wait ended, because this machine's clock is ahead of the worker's."""
        as_of = result.export.as_of
        if result.outcome is not Outcome.TIMEOUT or result.last_error or as_of is None:
            return 0.0
        return time.time() - as_of.timestamp() - self.clock_ahead

    async def _load_connection(self, hook: SendGridHook) -> None:
        """Read the connection. If it is not found, try again a few times, until the deadline."""
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


def result_event(result: PollResult) -> dict[str, Any]:
    """The event of a wait that ended, see `SendGridExportTrigger`."""
    error = result.error()
    return {
        "outcome": result.outcome.value,
        "export": result.summary(),
        "description": result.describe(),
        "error": error.to_event() if error else None,
    }


class SendGridNewExportTrigger(BaseEventTrigger):
    """Fires for each export that becomes ready, for an ``AssetWatcher``, from Airflow 3 on.

    Made for exports that are started outside Airflow, for example in SendGrid's web pages. SendGrid does not show who
    started an export. There are two ways to exclude the exports of your own tasks. Either set `export_type`, `list_id`
    or `segment_id` to something that they do not export. Or, from Airflow 3.3 on, add a reference to the watched asset
    to the ``inlets`` of the `SendGridExportContactsOperator` (``Asset.ref(name=...)``). It then marks its exports in
    the asset's state store, and they do not fire.

    The event is a JSON object with ``id``, ``family``, ``export_type``, ``list_ids``, ``segment_ids``,
    ``contact_count``, ``created_at``, ``completed_at`` and ``expires_at``, and without URLs. ``contact_count`` is null
    if it could not be fetched within seconds. If several exports become ready at once, one DAG run may receive several
    events: let it process all of them.

    Each export fires once. From Airflow 3.3 on, the asset's state store keeps which exports have fired, so a restart of
    the triggerer neither repeats nor loses one. If the triggerer is killed within two seconds after an event, that
    event may fire twice. Triggers on one connection share one poll. The store's entry of an export is deleted a day
    after the export failed, expired or was last listed. Exports that were ready before the first poll do not fire
    later, even if SendGrid's list lacked them then.

    From Airflow 3.0 to 3.2 nothing is kept: exports that become ready during a restart are missed. With `since` they
    fire, and so do all others that became ready since then.

    Args:
        sendgrid_conn_id: connection of type ``sendgrid``.
        family: ``"marketing"`` or ``"legacy"``.
        export_type: only ``"contacts_export"``, ``"list_export"`` or ``"segment_export"``.
        list_id: only exports that contain this list.
        segment_id: only exports that contain this segment.
        poll_interval: longest time between two polls of the list of exports, in seconds.
        since: exports that became ready at this time or later fire when the trigger first runs. ISO 8601 (UTC if it has
            no zone), or seconds since the epoch. Without it, exports that are ready then do not fire.

    Raises:
        RuntimeError: on Airflow 2.
        ValueError: an argument is wrong.
        TypeError: `poll_interval` is not a number.
    """

    # An event is in the database about a second after it was fired. Only then is the export stored as fired.
    stored_after_seconds = 2.0
    # Longest wait for the contact counts of new exports.
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
            raise RuntimeError("SendGridNewExportTrigger needs Airflow 3: Airflow 2 cannot start a DAG from a trigger.")
        super().__init__()  # type: ignore[no-untyped-call]
        if export_type not in (None, *EXPORT_TYPES):
            raise ValueError(f"export_type must be one of {', '.join(EXPORT_TYPES)}, not {export_type!r}.")
        require_seconds("poll_interval", poll_interval)
        if not 0 < poll_interval < float("inf"):
            raise ValueError(f"poll_interval must be a number of seconds above 0, not {poll_interval!r}.")
        parse_conn_id(sendgrid_conn_id)
        known_family = parse_family(family)
        for name, chosen in (("list_id", list_id), ("segment_id", segment_id)):
            if chosen is not None:
                typed_ids(name, [chosen], known_family)
        parse_since(since)
        self.sendgrid_conn_id = sendgrid_conn_id
        self.family = family
        self.export_type = export_type
        self.list_id = list_id
        self.segment_id = segment_id
        self.poll_interval = poll_interval
        self.since = since

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The path of this class, and its arguments."""
        names = ("sendgrid_conn_id", "family", "export_type", "list_id", "segment_id", "poll_interval", "since")
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        return path, {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Fire for each new export, without end. Used before Airflow 3.3, which introduced shared streams."""
        async with (
            aclosing(self.open_shared_stream(self.serialize()[1])) as stream,
            aclosing(self.filter_shared_stream(stream)) as events,
        ):
            async for event in events:
                yield event

    def shared_stream_key(self) -> Hashable:
        """Airflow opens one stream for all triggers with the same key."""
        return (type(self).__qualname__, self.sendgrid_conn_id, self.family, self.poll_interval)

    @classmethod
    async def open_shared_stream(cls, kwargs: dict[str, Any]) -> AsyncGenerator[Sequence[ContactExport], None]:
        """Yield SendGrid's list of exports at each poll. After an error the connection is read again."""
        family, interval = ExportFamily(kwargs["family"]), float(kwargs["poll_interval"])
        while True:
            try:
                async with await SendGridHook(kwargs["sendgrid_conn_id"], family).aclient() as client:
                    while True:
                        yield await client.run_flow(protocol.list_exports(family))
                        await _sleep(interval)
            except Exception as error:  # noqa: BLE001 - a watcher must not end
                problem = f"{type(error).__name__}: {redact(str(error))}"
                log.warning("Polling for new SendGrid exports failed; trying again: %s", problem)
            await _sleep(interval)

    async def filter_shared_stream(
        self, shared_stream: AsyncIterator[Sequence[ContactExport]]
    ) -> AsyncGenerator[TriggerEvent, None]:
        """Fire for each export that became ready, matches the arguments, and has not fired yet."""
        fired = self._fired_exports()
        seen: SeenExports | None = None
        async for listed in shared_stream:
            try:
                seen = seen or await fired.load(parse_since(self.since))
                wanted = [each for each in listed if self._is_wanted(each)]
                new = await fired.without_own(seen.find_new(wanted))
                hook = SendGridHook(self.sendgrid_conn_id, self.family)
                payloads = await new_export_events(hook, new, self.count_seconds)
            except Exception as error:  # noqa: BLE001 - a watcher must not end
                problem = f"{type(error).__name__}: {redact(str(error))}"
                log.warning("Evaluating a list of SendGrid exports failed; trying again: %s", problem)
                continue
            for payload in payloads:
                yield TriggerEvent(payload)
            seen.record(wanted, listed if fired.is_kept else ())
            if payloads:
                await asyncio.sleep(self.stored_after_seconds)
            await fired.save(seen)

    def _fired_exports(self) -> FiredExports:
        chosen = (self.sendgrid_conn_id, self.family, self.export_type, self.list_id, self.segment_id)
        trigger_hash = hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:16]
        return FiredExports(getattr(self, "asset_state_store", None), trigger_hash)  # set by Airflow

    def _is_wanted(self, export: ContactExport) -> bool:
        return (
            self.export_type in (None, type_of_export(export))
            and (self.list_id is None or is_one_of(str(self.list_id), export.list_ids))
            and (self.segment_id is None or is_one_of(str(self.segment_id), export.segment_ids))
        )


async def _sleep(interval_seconds: float) -> None:
    """Sleep up to a tenth less than the interval, so that several triggerers do not poll in step."""
    await asyncio.sleep(interval_seconds * (1 - random.random() / 10))  # noqa: S311
