"""Waits until a SendGrid export is ready, in any of Airflow's modes, with the same outcome in each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import Any

from airflow_provider_sendgrid import lineage, metrics
from airflow_provider_sendgrid._compat import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    Context,
    PokeReturnValue,
    XComArg,
    conf,
)
from airflow_provider_sendgrid.exceptions import ExportExpiredError, ExportFailedError, SendGridError
from airflow_provider_sendgrid.exports.export import ExportFamily
from airflow_provider_sendgrid.exports.watch import Outcome, PollSchedule, Sighting, look_at
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook
from airflow_provider_sendgrid.links.sendgrid import SendGridExportsLink
from airflow_provider_sendgrid.triggers.sendgrid import SendGridExportTrigger, sighting_event


class SendGridExportSensor(BaseSensorOperator):
    """Wait until an export is ready and return its summary.

    | what SendGrid says | what the task does |
    |---|---|
    | ``ready`` | succeeds; the summary is its XCom: no URLs; with polls and waited_seconds |
    | ``pending`` | waits; polls after 2 s at first, then slower, up to `poke_interval` |
    | any other status | waits as for ``pending`` and names the status when time is up |
    | ``failure`` | fails with SendGrid's message, without another try |
    | files expired | fails and says so, without another try |
    | 401, 403, 404, ... | fails with the reason; Airflow's retries apply |

    With ``soft_fail`` a failed or expired export and a timeout skip the task; a refused key never does.

    Args:
        export_id: the id that starting the export returned.
        family: ``"marketing"`` or ``"legacy"``.
        sendgrid_conn_id: connection of type ``sendgrid``.
        deferrable: wait in the triggerer, without a worker; the default is Airflow's
            ``[operators] default_deferrable``.
        poke_interval: longest time between two polls, in seconds.

    Other arguments are those of Airflow's ``BaseSensorOperator``: ``timeout`` (longest wait in all, in seconds; a week
    where it is not given), ``mode``, ``soft_fail``, ...
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
        poke_interval: float = 60.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, **kwargs)
        self.export_id: str = export_id  # type: ignore[assignment]  # rendered before it is used
        self.family = family
        self.sendgrid_conn_id = sendgrid_conn_id
        self.deferrable = deferrable
        self._began = 0.0
        self._last_seen: Sighting | None = None

    @cached_property
    def hook(self) -> SendGridHook:
        """The hook, made when it is first used."""
        return SendGridHook(self.sendgrid_conn_id, self.family)

    def execute(self, context: Context) -> Any:
        """Wait."""
        SendGridExportsLink.keep_for(context, self.family)
        if self.deferrable:
            with self._skipping():
                return self._look_then_defer()
        try:
            return super().execute(context)
        except (AirflowSensorTimeout, AirflowSkipException) as error:
            if error.__cause__ is None:  # time is up, and nothing else
                metrics.wait_ended(self.family, Outcome.TIMEOUT.value, self._waited_seconds())
            # Airflow's text names neither the export nor its status.
            raise type(error)(f"{error.__cause__ or self._last_status()} {error}") from error

    def poke(self, context: Context) -> PokeReturnValue:
        """Look once."""
        sighting = self._look()
        if sighting.outcome is not Outcome.WAITING:
            metrics.wait_ended(self.family, sighting.outcome.value, self._waited_seconds())
        self._raise_if_hopeless(sighting.error())
        summary = sighting.summary()
        if self.reschedule:  # each look is a process of its own, that knows of no other
            summary |= {"polls": None, "waited_seconds": None}
        return PokeReturnValue(sighting.outcome is Outcome.READY, summary)

    def execute_complete(self, context: Context, event: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Turn the trigger's event into this task's end.

        Raises:
            SendGridError: the event is missing or not one of ours; nothing unknown passes as a success.
        """
        with self._skipping():
            told = event if isinstance(event, Mapping) else {}
            if isinstance(export := told.get("export"), Mapping):
                metrics.polled(self.family, int(export.get("polls") or 0))
            return self._end_of(told)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> lineage.Lineage:
        """The export that was waited for; called by Airflow's OpenLineage provider."""
        return lineage.lineage_of_wait(self.hook.account, self.export_id)

    def _end_of(self, event: Mapping[str, Any]) -> dict[str, Any]:
        outcome, error, export = (event.get(name) for name in ("outcome", "error", "export"))
        if isinstance(export, Mapping):
            metrics.wait_ended(self.family, str(outcome), export.get("waited_seconds"))
        if isinstance(error, Mapping) and error:
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
    def _skipping(self) -> Iterator[None]:
        """Turn errors into skips as Airflow does it for a poke, and with the reason."""
        try:
            yield
        except Exception as error:
            is_soft = isinstance(error, AirflowFailException | AirflowSensorTimeout)
            if self.never_fail or (self.soft_fail and is_soft):
                raise AirflowSkipException(str(error)) from error
            raise

    def _waited_seconds(self) -> float | None:
        """Since the first look; None in reschedule mode, where each look is a process that knows of no other."""
        return None if self.reschedule else time.time() - self._began

    def _last_status(self) -> str:
        seen = self._last_seen
        return f"SendGrid export {self.export_id} was {seen.export.status!r} when last seen." if seen else ""

    def _look(self) -> Sighting:
        self._began = self._began or time.time()
        export = self.hook.get_export(self.export_id)
        metrics.polled(self.family)
        polls = self._last_seen.polls + 1 if self._last_seen else 1
        self._last_seen = look_at(export, now=time.time(), started_at=self._began, polls=polls)
        return self._last_seen

    def _look_then_defer(self) -> dict[str, Any]:
        """Defer only where one look does not decide: an export that is ready costs no detour."""
        started_at = time.time()
        sighting = self._look()
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
                ),
                method_name="execute_complete",
            )
        return self._end_of(sighting_event(sighting))

    def _raise_if_hopeless(self, error: SendGridError | None) -> None:
        """A dead export fails for good; any other error is raised as it is, for Airflow to try again."""
        if isinstance(error, ExportFailedError | ExportExpiredError):
            raise AirflowFailException(str(error)) from error
        if error is not None:
            raise error

    def _get_next_poke_interval(
        self, started_at: datetime | float, run_duration: Callable[[], float], *args: Any, **kwargs: Any
    ) -> float:
        """Airflow asks this between two pokes, in poke and in reschedule mode alike."""
        waited = run_duration()
        wait = PollSchedule(self.poke_interval).wait_seconds(waited)
        if self._last_seen:
            self._last_seen = replace(self._last_seen, waited_seconds=waited)
            self.log.info("%s Next poll in %.1f s.", self._last_seen.describe(), wait)
        return wait
