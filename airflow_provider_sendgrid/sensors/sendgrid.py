"""Waits until a SendGrid export is ready, with the same outcome in each of Airflow's modes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import cached_property
from typing import Any

from airflow_provider_sendgrid import lineage, metrics
from airflow_provider_sendgrid._compat import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseOperator,
    BaseSensorOperator,
    Context,
    PokeReturnValue,
    XComArg,
    conf,
)
from airflow_provider_sendgrid.exceptions import SendGridError
from airflow_provider_sendgrid.exports import protocol
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.export import ContactExport, ExportFamily, parse_export_id, parse_family
from airflow_provider_sendgrid.exports.polling import (
    LONGEST_PAUSE_SECONDS,
    POLL_RETRY_POLICY,
    WITHOUT_FILES_SECONDS,
    Outcome,
    PollResult,
    PollSchedule,
    WaitState,
    describe_status,
    lacks_files,
    needs_confirmation,
    seconds_without_files,
)
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook
from airflow_provider_sendgrid.links.sendgrid import SendGridExportsLink
from airflow_provider_sendgrid.sensors.airflow_errors import airflow_errors, raise_error
from airflow_provider_sendgrid.stopping import StopSignal
from airflow_provider_sendgrid.triggers.sendgrid import CLOCKS_AGREE_SECONDS, SendGridExportTrigger, result_event

# The last poll is sent at the deadline; its response may take this long.
_LAST_POLL_SECONDS = 30.0
# A complete response may take this many times the timeout, which limits the wait for its next bytes.
_TIMEOUTS_OF_A_RESPONSE = 4


class SendGridExportSensor(BaseSensorOperator):
    """Wait until an export is ready and return its summary.

    | SendGrid's response | the task |
    |---|---|
    | ``ready`` | succeeds |
    | ``pending`` | waits; polls after 2 s at first, then less often, up to `poke_interval` |
    | ``ready`` with a count of 0 and no files | polls again after 5 s, then succeeds |
    | ``ready``, but no files and no count of 0 | waits up to 5 minutes, then fails (`ExportWithoutFilesError`) |
    | any other status | waits as for ``pending``, and names the status at the timeout |
    | 5xx, 429, no response | waits until `timeout`, which names the error; respects ``Retry-After``, up to 10 minutes |
    | ``failure`` | fails with SendGrid's message, without a retry |
    | expired files | fails without a retry |
    | a single 403 or 404 after the first poll | waits; fails after 4 in a row (in reschedule mode at once) |
    | a refusal by a proxy after the first poll | likewise |
    | 401, 403, 404, ... | fails with the reason; Airflow's retries apply |

    An invalid `export_id` or connection fails the task without a retry.

    With ``soft_fail`` the task is skipped if the export failed, expired or has no files, and at the timeout; never if
    the key is refused, or an argument or the connection is wrong. ``never_fail`` skips the task on any error except a
    timeout. ``silent_fail`` keeps waiting after any error from SendGrid. All of Airflow's arguments have the same
    effect with ``deferrable=True``.

    Args:
        export_id: the id of the export, as the start task returned it.
        family: ``"marketing"`` or ``"legacy"``.
        sendgrid_conn_id: connection of type ``sendgrid``.
        deferrable: wait in the triggerer, without a worker; default: Airflow's ``[operators] default_deferrable``.
        poke_interval: longest time between two polls, in seconds or as a timedelta, 1 s or more. With
            ``exponential_backoff`` it is the first wait; the waits double, up to ``max_wait``.
        timeout: longest wait in all, in seconds or as a timedelta; None: a week, or Airflow's setting.
        kwargs: arguments of Airflow's ``BaseSensorOperator``: ``mode``, ``soft_fail``, ...

    Returns:
        The export's summary, with ``polls`` and ``waited_seconds`` (both None in reschedule mode), and without URLs.

    Raises:
        AirflowFailException: the export failed, expired or has no files, or an argument or the connection is wrong.
            Airflow does not retry.
        AirflowSensorTimeout: at the timeout. Airflow does not retry.
        AirflowSkipException: instead of these, with ``soft_fail`` or ``never_fail``.
        SendGridError: SendGrid refused the request. Airflow retries.
    """

    template_fields: Sequence[str] = ("export_id", "family", "sendgrid_conn_id")
    operator_extra_links = (SendGridExportsLink(),)
    ui_color = "#d1eefc"

    def __init__(
        self,
        *,
        export_id: str | XComArg,
        family: str = ExportFamily.MARKETING.value,
        sendgrid_conn_id: str = SendGridHook.default_conn_name,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poke_interval: float | timedelta = 60.0,
        timeout: float | timedelta | None = None,
        **kwargs: Any,
    ) -> None:
        if timeout is not None:  # Airflow 2 refuses None
            kwargs["timeout"] = timeout
        super().__init__(poke_interval=poke_interval, **kwargs)
        self.export_id: str = export_id  # type: ignore[assignment]  # rendered before it is used
        self.family = family
        self.sendgrid_conn_id = sendgrid_conn_id
        self.deferrable = deferrable
        self._state: WaitState | None = None

    @cached_property
    def hook(self) -> SendGridHook:
        """The hook, created when it is first used, after templates are rendered."""
        hook = SendGridHook(self.sendgrid_conn_id, self.family)
        hook.stop = self._stop
        return hook

    def on_kill(self) -> None:
        """Stop at once."""
        self._stop.set()

    @cached_property
    def _stop(self) -> StopSignal:
        """Created when the task runs: Airflow copies operators before."""
        return StopSignal()

    def execute(self, context: Context) -> Any:
        """Wait until the export is ready; return its summary."""
        SendGridExportsLink.keep_for(context, self.family)
        with airflow_errors(soft_fail=self.soft_fail, never_fail=self.never_fail):
            self.export_id = parse_export_id(self.export_id)
            _ = self.hook.account  # raises for a wrong connection or family before the first poll
            return self._poll_then_defer() if self.deferrable else self._poke_until_done(context)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume without the rules of Airflow's sensors: they differ from a poke's and hide why the task is skipped."""
        SendGridExportsLink.keep_for(context, self.family)
        with airflow_errors(soft_fail=self.soft_fail, never_fail=self.never_fail):
            return BaseOperator.resume_execution(self, next_method, next_kwargs, context)

    def poke(self, context: Context) -> PokeReturnValue:
        """Poll once."""
        result = self._poll()
        if result.outcome is not Outcome.WAITING:
            metrics.wait_ended(self.family, result.outcome.value, self._waited_seconds())
        raise_error(result.error())
        summary = result.summary()
        if self.reschedule:  # each poll runs in a new process
            summary |= {"polls": None, "waited_seconds": None}
        return PokeReturnValue(result.outcome is Outcome.READY, summary)

    def execute_complete(self, context: Context, event: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """End the task as the event of `SendGridExportTrigger` says.

        Raises:
            SendGridError: the event is missing or unknown. An unknown event never counts as a success.
        """
        with airflow_errors(soft_fail=self.soft_fail, never_fail=self.never_fail):
            known = event if isinstance(event, Mapping) else {}
            if isinstance(export := known.get("export"), Mapping):
                metrics.polled(self.family, int(export.get("polls") or 0))
            return self._end_of(known)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> lineage.Lineage:
        """The input is the export."""
        return lineage.lineage_of_wait(self.hook.account, self.export_id)

    def _end_of(self, event: Mapping[str, Any]) -> dict[str, Any]:
        outcome, error, export = (event.get(name) for name in ("outcome", "error", "export"))
        if isinstance(export, Mapping):
            metrics.wait_ended(self.family, str(outcome), export.get("waited_seconds"))
        if isinstance(error, Mapping) and error:
            if event.get("is_setting"):
                raise ValueError(str(error.get("message")))
            raise_error(SendGridError.from_event(error))
        seen = event.get("description") or f"SendGrid export {self.export_id} is not ready."
        if outcome == Outcome.READY.value and isinstance(export, Mapping):
            self.log.info("%s", seen)
            return dict(export)
        if outcome == Outcome.TIMEOUT.value:
            raise AirflowSensorTimeout(f"{seen} The timeout of {self.timeout:.0f} s is over.")
        raise SendGridError(
            f"Waiting for SendGrid export {self.export_id}: the triggerer sent an event that this "
            "version does not know. Run scheduler, triggerer and workers with one version of the provider."
        )

    def _poke_until_done(self, context: Context) -> Any:
        """Run Airflow's loop; replace its skips by the errors that caused them, for `airflow_errors` to translate."""
        try:
            return super().execute(context)
        except (AirflowSensorTimeout, AirflowSkipException) as error:
            if error.__cause__ is None:  # a timeout without another error
                metrics.wait_ended(self.family, Outcome.TIMEOUT.value, self._waited_seconds())
                # Airflow's message names neither the export nor its status.
                raise AirflowSensorTimeout(f"{self._last_status()} {error}") from error
            if not isinstance(error.__cause__, Exception):  # the task's execution_timeout
                raise
            reason = error.__cause__
        raise reason

    def _waited_seconds(self) -> float | None:
        """Seconds since the first poll; None in reschedule mode, where each poll is a new process."""
        return None if self.reschedule or self._state is None else time.time() - self._state.started_at

    def _last_status(self) -> str:
        last = self._wait_state().last_result
        reason = f" The last poll failed: {last.last_error}" if last.last_error else ""
        if not last.polls:
            return f"SendGrid export {self.export_id} could not be polled.{reason}"
        return f"SendGrid export {self.export_id} was {describe_status(last.export)} when last seen.{reason}"

    def _wait_state(self) -> WaitState:
        if self._state is None:
            self._state = WaitState(str(self.export_id), time.time())
        return self._state

    def _poll(self) -> PollResult:
        """Poll. If the poll fails with a retryable error, return the previous result with that error."""
        try:
            return self._request_status()
        except (ValueError, TypeError) as error:
            raise AirflowFailException(str(error)) from error
        except SendGridError as error:
            last = self._wait_state().record_failure(error, time.time())
            self.log.warning("Polling SendGrid export %s failed; continuing to wait: %s", self.export_id, error)
            return last

    def _request_status(self) -> PollResult:
        state = self._wait_state()
        retry_policy = replace(POLL_RETRY_POLICY, seconds_left=self._seconds_left)
        family, export_id = parse_family(self.family), parse_export_id(self.export_id)
        with self.hook.client() as client:
            client.connection = self._bounded(client.connection)
            export = client.run_flow(
                protocol.get_export(family, export_id, retry_policy, needs_confirmation=self._is_checked_at_once)
            )
        metrics.polled(self.family)
        return state.record(export, time.time(), is_checked=self._is_checked_at_once(export))

    def _is_checked_at_once(self, export: ContactExport) -> bool:
        """Whether a doubtful response is checked by a second request in the same poll, as in reschedule mode."""
        return self.reschedule and needs_confirmation(export, datetime.now(timezone.utc))

    def _seconds_left(self) -> float:
        """Seconds until the deadline; unlimited in reschedule mode, where only Airflow knows the deadline."""
        return float("inf") if self.reschedule else self._wait_state().started_at + self.timeout - time.time()

    def _bounded(self, connection: SendGridConnection) -> SendGridConnection:
        """`connection` with a timeout that ends a response at most half a minute after the deadline."""
        longest = (max(0.0, self._seconds_left()) + _LAST_POLL_SECONDS) / _TIMEOUTS_OF_A_RESPONSE
        return replace(connection, timeout_seconds=min(connection.timeout_seconds, longest))

    def _poll_then_defer(self) -> dict[str, Any]:
        """Poll once, and defer only if the export is not ready yet."""
        started_at = time.time()
        try:
            result = self._poll()
        except SendGridError as error:
            if not self.silent_fail:
                raise
            self.log.error("Polling SendGrid export %s failed: %s", self.export_id, error)
            result = self._wait_state().last_result
        if result.outcome is Outcome.WAITING:
            self.log.info("%s Deferring to the triggerer.", result.describe())
            self.defer(
                trigger=SendGridExportTrigger(
                    export_id=self.export_id,
                    family=self.family,
                    sendgrid_conn_id=self.sendgrid_conn_id,
                    poll_interval=self.poke_interval,
                    end_time=started_at + self.timeout,
                    start_time=started_at,
                    exponential_backoff=bool(self.exponential_backoff),
                    max_wait=self._max_wait_seconds,
                    silent_fail=self.silent_fail,
                    not_before=_not_before(result),
                    clock_ahead=_clock_ahead(result),
                ),
                method_name="execute_complete",
            )
        return self._end_of(result_event(result))

    def _get_next_poke_interval(
        self, started_at: datetime | float, run_duration: Callable[[], float], *args: Any, **kwargs: Any
    ) -> float:
        """Called by Airflow between two pokes, in poke and in reschedule mode."""
        waited = run_duration()
        if self.reschedule:
            self._fail_if_settled_without_files(waited)
        wait = self._seconds_to_next_poll(waited)
        if self.reschedule:
            return wait
        self._stop.wait(wait)  # Airflow's own sleep would continue after the task was killed
        return 0.0

    def _seconds_to_next_poll(self, waited: float) -> float:
        schedule = PollSchedule.for_sensor(
            self.poke_interval,
            exponential_backoff=bool(self.exponential_backoff),
            max_wait=self._max_wait_seconds,
        )
        state = self._wait_state()
        # The last poll is at the deadline, not after it.
        wait = state.pause_seconds(schedule, waited, max(0.0, self.timeout - waited) + 0.001)
        self.log.info("%s Next poll in %.1f s.", replace(state.last_result, waited_seconds=waited).describe(), wait)
        return wait

    @property
    def _max_wait_seconds(self) -> float | None:
        return self.max_wait.total_seconds() if self.max_wait is not None else None

    def _fail_if_settled_without_files(self, waited: float) -> None:
        """Fail if the export has been ready without files for minutes, and a second poll confirms it.

        Used in reschedule mode, where each poll is a new process; there the wait must have lasted as long, too.
        """
        last = self._wait_state().last_result
        seconds = min(waited, seconds_without_files(last.export, seen_seconds=waited))
        if last.last_error or not lacks_files(last.export) or seconds < WITHOUT_FILES_SECONDS:
            return
        last = self._poll()
        if lacks_files(last.export) and not last.last_error:
            metrics.wait_ended(self.family, Outcome.WITHOUT_FILES.value, None)
            raise_error(replace(last, outcome=Outcome.WITHOUT_FILES).error())


def _not_before(result: PollResult) -> float | None:
    """When SendGrid's ``Retry-After`` ends, in seconds since the epoch."""
    asked = result.last_error.retry_after_seconds if result.last_error else None
    return time.time() + min(asked, LONGEST_PAUSE_SECONDS) if asked else None


def _clock_ahead(result: PollResult) -> float:
    """Seconds that this worker's clock is ahead of SendGrid's; 0 if they agree or SendGrid sent no time."""
    as_of = result.export.as_of
    ahead = time.time() - as_of.timestamp() if as_of and not result.last_error else 0.0
    return round(ahead) if abs(ahead) > CLOCKS_AGREE_SECONDS else 0.0
