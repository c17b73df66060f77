"""Waits until a SendGrid export is ready, in any of Airflow's modes, with the same outcome in each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import cached_property
from typing import Any

from airflow_provider_sendgrid import lineage, metrics
from airflow_provider_sendgrid._compat import (
    AirflowFailException,
    AirflowRescheduleException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseOperator,
    BaseSensorOperator,
    Context,
    PokeReturnValue,
    XComArg,
    conf,
)
from airflow_provider_sendgrid.exceptions import (
    ExportExpiredError,
    ExportFailedError,
    ExportWithoutFilesError,
    SendGridError,
)
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
from airflow_provider_sendgrid.stopping import StoppedError, StopSignal
from airflow_provider_sendgrid.triggers.sendgrid import SendGridExportTrigger, sighting_event

# How late the last poll, which comes at the deadline, may be answered.
_LAST_LOOK_SECONDS = 30.0
# A smaller difference of clocks is not corrected: a response takes some seconds, too.
_CLOCKS_AGREE_SECONDS = 60.0
# A whole response may take so many times as long as the wait for its next bytes.
_TIMEOUTS_OF_A_RESPONSE = 4


class SendGridExportSensor(BaseSensorOperator):
    """Wait until an export is ready and return its summary.

    | what SendGrid says | what the task does |
    |---|---|
    | ``ready`` | succeeds; the summary is its XCom: no URLs; with polls and waited_seconds |
    | ``pending`` | waits; polls after 2 s at first, then slower, up to `poke_interval` |
    | ``ready`` with a count of 0 and no files | polls again after 5 s, then succeeds |
    | ``ready``, but no files and no count of 0 | waits up to 5 minutes, then fails (`ExportWithoutFilesError`) |
    | any other status | waits as for ``pending`` and names the status when time is up |
    | 5xx, 429, no answer | waits until `timeout`, which names the error; respects ``Retry-After``, up to 10 minutes |
    | ``failure`` | fails with SendGrid's message, without another try |
    | files expired | fails and says so, without another try |
    | a single 403 or 404 after the first poll | waits; after 4 in a row it fails (in reschedule mode at once) |
    | a proxy's refusal after the first poll | likewise |
    | 401, 403, 404, ... | fails with the reason; Airflow's retries apply |

    An `export_id` that cannot be one, and a connection that cannot be right, fail the task without another try.

    With ``soft_fail`` a failed or expired export, one without files and a timeout skip the task; a refused key, a wrong
    argument or connection never does. ``never_fail`` skips the task on any error except a timeout. ``silent_fail`` goes
    on waiting after any error of SendGrid's. All of Airflow's arguments mean the same with ``deferrable=True``.

    Args:
        export_id: the id that starting the export returned.
        family: ``"marketing"`` or ``"legacy"``.
        sendgrid_conn_id: connection of type ``sendgrid``.
        deferrable: wait in the triggerer, without a worker; the default is Airflow's
            ``[operators] default_deferrable``.
        poke_interval: longest time between two polls, in seconds or as a timedelta; no poll follows another within 1 s.
            With ``exponential_backoff`` it is the first wait; the waits double, up to ``max_wait``.

    Other arguments are those of Airflow's ``BaseSensorOperator``: ``timeout`` (longest wait in all, in seconds; a week
    where it is not given or None), ``mode``, ``soft_fail``, ...
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
        if timeout is not None:  # Airflow 2 has its default in the signature and refuses None
            kwargs["timeout"] = timeout
        super().__init__(poke_interval=poke_interval, **kwargs)
        self.export_id: str = export_id  # type: ignore[assignment]  # rendered before it is used
        self.family = family
        self.sendgrid_conn_id = sendgrid_conn_id
        self.deferrable = deferrable
        self._state: WaitState | None = None

    @cached_property
    def hook(self) -> SendGridHook:
        """The hook, made when it is first used."""
        hook = SendGridHook(self.sendgrid_conn_id, self.family)
        hook.stop = self._stop
        return hook

    def on_kill(self) -> None:
        """Stop at once; called by Airflow when it ends the task."""
        self._stop.set()

    @cached_property
    def _stop(self) -> StopSignal:
        """Made when the task runs: an operator is copied before that."""
        return StopSignal()

    def execute(self, context: Context) -> Any:
        """Wait."""
        SendGridExportsLink.keep_for(context, self.family)
        with self._ending():
            self.export_id = parse_export_id(self.export_id)
            _ = self.hook.account  # refuses a wrong connection or family before the first poll
            return self._look_then_defer() if self.deferrable else self._poke_until_done(context)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Without the rules of Airflow's sensors, which differ from those of a poke and hide the reason of a skip."""
        with self._ending():
            return BaseOperator.resume_execution(self, next_method, next_kwargs, context)

    def poke(self, context: Context) -> PokeReturnValue:
        """Poll once."""
        sighting = self._poll()
        if sighting.outcome is not Outcome.WAITING:
            metrics.wait_ended(self.family, sighting.outcome.value, self._waited_seconds())
        self._raise_if_hopeless(sighting.error())
        summary = sighting.summary()
        if self.reschedule:  # each poll runs in a new process that knows no other
            summary |= {"polls": None, "waited_seconds": None}
        return PokeReturnValue(sighting.outcome is Outcome.READY, summary)

    def execute_complete(self, context: Context, event: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Turn the trigger's event into this task's end.

        Raises:
            SendGridError: the event is missing or not one of ours; nothing unknown passes as a success.
        """
        with self._ending():
            ours = event if isinstance(event, Mapping) else {}
            if isinstance(export := ours.get("export"), Mapping):
                metrics.polled(self.family, int(export.get("polls") or 0))
            return self._end_of(ours)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> lineage.Lineage:
        """The export that was waited for; called by Airflow's OpenLineage provider."""
        return lineage.lineage_of_wait(self.hook.account, self.export_id)

    def _end_of(self, event: Mapping[str, Any]) -> dict[str, Any]:
        outcome, error, export = (event.get(name) for name in ("outcome", "error", "export"))
        if isinstance(export, Mapping):
            metrics.wait_ended(self.family, str(outcome), export.get("waited_seconds"))
        if isinstance(error, Mapping) and error:
            if event.get("is_setting"):
                raise ValueError(str(error.get("message")))
            self._raise_if_hopeless(SendGridError.from_event(error))
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

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Decide how the task ends, by the same rules in every mode: those of Airflow's poke, and with the reason."""
        try:
            yield
        except (AirflowRescheduleException, AirflowSkipException, StoppedError):
            raise
        except Exception as error:
            is_setting = isinstance(error, ValueError | TypeError) or isinstance(
                error.__cause__, ValueError | TypeError
            )
            is_timeout = isinstance(error, AirflowSensorTimeout) or _is_deferral_timeout(error)
            is_soft = not is_setting and (is_timeout or isinstance(error, AirflowFailException))
            if (self.soft_fail and is_soft) or (self.never_fail and not is_timeout):
                raise AirflowSkipException(str(error)) from error
            if isinstance(error, ValueError | TypeError):
                raise AirflowFailException(str(error)) from error
            if is_timeout and not isinstance(error, AirflowSensorTimeout):
                raise AirflowSensorTimeout(str(error)) from error
            raise

    def _poke_until_done(self, context: Context) -> Any:
        """Airflow's own loop; its skips are taken back to what caused them, for `_ending` to decide."""
        try:
            return super().execute(context)
        except (AirflowSensorTimeout, AirflowSkipException) as error:
            if error.__cause__ is None:  # time is up, and nothing else
                metrics.wait_ended(self.family, Outcome.TIMEOUT.value, self._waited_seconds())
                # Airflow's text names neither the export nor its status.
                raise AirflowSensorTimeout(f"{self._last_status()} {error}") from error
            if not isinstance(error.__cause__, Exception):  # Airflow's limit of the task's run time
                raise
            reason = error.__cause__
        raise reason

    def _waited_seconds(self) -> float | None:
        """Since the first poll; None in reschedule mode, where each poll is a process that knows of no other."""
        return None if self.reschedule or self._state is None else time.time() - self._state.started_at

    def _last_status(self) -> str:
        seen = self._wait_state().last_result
        reason = f" The last poll failed: {seen.last_error}" if seen.last_error else ""
        if not seen.polls:
            return f"SendGrid export {self.export_id} could not be polled.{reason}"
        return f"SendGrid export {self.export_id} was {describe_status(seen.export)} when last seen.{reason}"

    def _wait_state(self) -> WaitState:
        if self._state is None:
            self._state = WaitState(str(self.export_id), time.time())
        return self._state

    def _poll(self) -> PollResult:
        """The result of a poll; of the one before it, with the error, if this one failed in a way that may pass."""
        try:
            return self._look()
        except (ValueError, TypeError) as error:
            raise AirflowFailException(str(error)) from error
        except SendGridError as error:
            seen = self._wait_state().record_failure(error, time.time())
            self.log.warning("Polling SendGrid export %s failed, and the wait goes on: %s", self.export_id, error)
            return seen

    def _look(self) -> PollResult:
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
        """In reschedule mode no later poll remembers this one."""
        return self.reschedule and needs_confirmation(export, datetime.now(timezone.utc))

    def _seconds_left(self) -> float:
        """Until the deadline; in reschedule mode only Airflow knows that, and retries within a poll are few."""
        return float("inf") if self.reschedule else self._wait_state().started_at + self.timeout - time.time()

    def _bounded(self, connection: SendGridConnection) -> SendGridConnection:
        """The connection for one poll: its requests must not outlast the deadline by more than half a minute."""
        longest = (max(0.0, self._seconds_left()) + _LAST_LOOK_SECONDS) / _TIMEOUTS_OF_A_RESPONSE
        return replace(connection, timeout_seconds=min(connection.timeout_seconds, longest))

    def _look_then_defer(self) -> dict[str, Any]:
        """Defer only if one poll does not decide: an export that is ready needs no triggerer."""
        started_at = time.time()
        try:
            sighting = self._poll()
        except SendGridError as error:
            if not self.silent_fail:
                raise
            self.log.error("Polling SendGrid export %s failed: %s", self.export_id, error)
            sighting = self._wait_state().last_result
        if sighting.outcome is Outcome.WAITING:
            self.log.info("%s Deferring to the triggerer.", sighting.describe())
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
                    not_before=_not_before(sighting),
                    clock_ahead=_clock_ahead(sighting),
                ),
                method_name="execute_complete",
            )
        return self._end_of(sighting_event(sighting))

    def _raise_if_hopeless(self, error: SendGridError | None) -> None:
        """A dead export fails for good; any other error is raised as it is, for Airflow to try again."""
        if isinstance(error, ExportFailedError | ExportExpiredError | ExportWithoutFilesError):
            raise AirflowFailException(str(error)) from error
        if error is not None:
            raise error

    def _get_next_poke_interval(
        self, started_at: datetime | float, run_duration: Callable[[], float], *args: Any, **kwargs: Any
    ) -> float:
        """Airflow asks this between two pokes, in poke and in reschedule mode alike."""
        waited = run_duration()
        if self.reschedule:
            self._fail_if_settled_without_files(waited)
        wait = self._seconds_to_next_poll(waited)
        if self.reschedule:
            return wait
        self._stop.wait(wait)  # Airflow's own sleep would go on after the task was killed
        return 0.0

    def _seconds_to_next_poll(self, waited: float) -> float:
        schedule = PollSchedule.for_sensor(
            self.poke_interval,
            exponential_backoff=bool(self.exponential_backoff),
            max_wait=self._max_wait_seconds,
        )
        state = self._wait_state()
        # The last poll comes at the deadline, not after it.
        wait = state.pause_seconds(schedule, waited, max(0.0, self.timeout - waited) + 0.001)
        self.log.info("%s Next poll in %.1f s.", replace(state.last_result, waited_seconds=waited).describe(), wait)
        return wait

    @property
    def _max_wait_seconds(self) -> float | None:
        return self.max_wait.total_seconds() if self.max_wait is not None else None

    def _fail_if_settled_without_files(self, waited: float) -> None:
        """Fail an export that has been ready without files for minutes; one response alone does not settle that.

        For reschedule mode, where no poll remembers another: the wait has to have lasted as long, too.
        """
        seen = self._wait_state().last_result
        seconds = min(waited, seconds_without_files(seen.export, seen_seconds=waited))
        if seen.last_error or not lacks_files(seen.export) or seconds < WITHOUT_FILES_SECONDS:
            return
        seen = self._poll()
        if lacks_files(seen.export) and not seen.last_error:
            metrics.wait_ended(self.family, Outcome.WITHOUT_FILES.value, None)
            self._raise_if_hopeless(replace(seen, outcome=Outcome.WITHOUT_FILES).error())


def _not_before(sighting: PollResult) -> float | None:
    """When SendGrid wants to be asked again, in seconds since the epoch."""
    asked = sighting.last_error.retry_after_seconds if sighting.last_error else None
    return time.time() + min(asked, LONGEST_PAUSE_SECONDS) if asked else None


def _clock_ahead(sighting: PollResult) -> float:
    """By how many seconds this worker's clock is ahead of SendGrid's; 0 where both agree, or SendGrid sent no time."""
    as_of = sighting.export.as_of
    ahead = time.time() - as_of.timestamp() if as_of and not sighting.last_error else 0.0
    return round(ahead) if abs(ahead) > _CLOCKS_AGREE_SECONDS else 0.0


def _is_deferral_timeout(error: Exception) -> bool:
    """Whether Airflow ended the deferral for the task's ``execution_timeout``; Airflow 2 has only a text for it."""
    return type(error).__name__ == "TaskDeferralTimeout" or (
        type(error).__name__ == "TaskDeferralError" and "timeout" in str(error)
    )
