"""The base of all transfer operators. Knows Airflow and the delivery; subclasses add the storage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from airflow_provider_sendgrid import lineage, metrics
from airflow_provider_sendgrid._compat import AirflowFailException, BaseOperator, Context, XComArg
from airflow_provider_sendgrid.delivery.export import ArgumentError, Delivery, DeliveryOptions, deliver_export
from airflow_provider_sendgrid.exceptions import SendGridError, is_non_retryable
from airflow_provider_sendgrid.exports.export import ExportFamily, parse_export_id
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook
from airflow_provider_sendgrid.links.sendgrid import DeliveredObjectsLink, SendGridExportsLink
from airflow_provider_sendgrid.stopping import StopSignal
from airflow_provider_sendgrid.storage.base import Storage
from airflow_provider_sendgrid.storage.s3_arguments import UNRENDERED

DEFAULTS = DeliveryOptions()


class DeliveringOperator(BaseOperator, ABC):
    """Deliver all files of a ready export, verified, then write a manifest.

    The files are streamed: memory is about (`max_concurrency` + 1) times `part_size`, whatever their size. The task
    fetches signed URLs itself, right before use. An object is published only when its length and checksums agree; the
    manifest is written only when the rows of all files agree with SendGrid's count.

    Objects are named ``<prefix><export id>-00001-of-00003.csv.gz`` (``.csv``, ``.json.gz``, ``.json``); the manifest
    is ``<prefix>_manifest.json``, in the form that Redshift's ``COPY ... MANIFEST`` reads.

    Args:
        export_id: the id of an export that is ready; put a `SendGridExportSensor` before this task. One id: for
            one task per export, use ``.partial(...).expand(export_id=...)``.
        replace: replace the export whose manifest is at the prefix. When the new manifest is written, the old export's
            objects are deleted, and so are all other objects at the prefix that this provider stored and no manifest
            names, such as those of a killed run. Without it, the task fails if the manifest of another export exists:
            before the first download, or at the end if another run writes that manifest meanwhile.
        compression: ``"gzip"`` stores gzip whatever SendGrid sends, ``"none"`` stores uncompressed files.
        part_size: size of the parts that are uploaded, in bytes, 5 MiB or more.
        max_concurrency: parts downloaded at once, while one more is uploaded.
        verify_row_count: count the rows and compare them with SendGrid's count. Lengths, checksums and gzip are
            verified without it, too.
        write_manifest: write the manifest. Without it, what a retry needs stays below ``_receipts/``.
        file_index: deliver only this file (from 0), and no manifest: for mapped tasks that share an export. A task
            without it, after them, finds their files, compares the rows and writes the manifest. An index that is
            passed but renders to nothing fails the task.
        partition_key: the partition of the assets among the `outlets`, from Airflow 3.3 on. Default: the DAG run's
            partition, if it has one.
        family: ``"marketing"`` or ``"legacy"``.
        sendgrid_conn_id: connection of type ``sendgrid``.

    Returns:
        The URIs of the files, in SendGrid's order. The `extra` of the events of the assets (datasets) among the
        `outlets` contains ``export_id``, ``files``, ``rows``, ``bytes``, ``manifest`` and, if there is one,
        ``partition``.

    Raises:
        AirflowFailException: an argument or a connection is wrong, the export failed or expired, another export is at
            the prefix, or SendGrid answered 400, 401, 403 or 404. Airflow does not retry.
        SendGridError: the export is not ready, a file is incomplete, or an outage. Airflow retries, and the retry
            delivers only what is missing.
    """

    template_fields: Sequence[str] = ("export_id", "file_index", "partition_key", "family", "sendgrid_conn_id")
    operator_extra_links = (SendGridExportsLink(), DeliveredObjectsLink())
    # URL of the storage's API, set by `_storage`; the link to the console depends on it.
    _endpoint_url: str | None = None
    ui_color = "#d1eefc"

    def __init__(
        self,
        *,
        export_id: str | XComArg,
        replace: bool = DEFAULTS.replace,
        compression: str = DEFAULTS.compression,
        part_size: int = DEFAULTS.part_bytes,
        max_concurrency: int = DEFAULTS.max_concurrency,
        verify_row_count: bool = DEFAULTS.verify_row_count,
        write_manifest: bool = DEFAULTS.write_manifest,
        file_index: int | XComArg | None = None,
        partition_key: str | XComArg | None = None,
        family: str = ExportFamily.MARKETING.value,
        sendgrid_conn_id: str = SendGridHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # Rendered before they are used, then no XComArgs.
        self.export_id: str = export_id  # type: ignore[assignment]
        self.replace = replace
        self.compression = compression
        self.part_size = part_size
        self.max_concurrency = max_concurrency
        self.verify_row_count = verify_row_count
        self.write_manifest = write_manifest
        self.file_index: int | str | None = file_index  # type: ignore[assignment]
        self.partition_key: str | None = partition_key  # type: ignore[assignment]
        self._passed = self._not_none()
        self.family = family
        self.sendgrid_conn_id = sendgrid_conn_id
        self._delivered: tuple[lineage.SendGridAccount, Delivery] | None = None

    def render_template_fields(self, context: Context, jinja_env: Any = None) -> None:
        """Render, and remember which arguments were set before, in the constructor or by assignment."""
        self._passed |= self._not_none()
        super().render_template_fields(context, jinja_env)

    def execute(self, context: Context) -> list[str]:
        """Deliver the files; return their URIs."""
        SendGridExportsLink.keep_for(context, self.family)
        DeliveredObjectsLink.leave_out(context)  # its address is not known yet
        hook = SendGridHook(self.sendgrid_conn_id, self.family)
        with _without_retry():
            options = self._options()
            self.export_id = parse_export_id(self.export_id)
            file_index = _parse_file_index(self.file_index) if self._is_passed("file_index") else None
            has_partition_key = self._is_passed("partition_key")
            self.partition_key = _parse_partition_key(self.partition_key) if has_partition_key else None
            _ = hook.account  # raises for a wrong connection or family
        try:
            with hook.source(self.export_id, self._stop) as source:
                with _without_retry():
                    # In a thread, because fetching credentials (STS, Google, a metadata server) may hang.
                    storage = self._stop.call(self._storage, name="sendgrid-storage")
                DeliveredObjectsLink.keep_for(context, storage.uri(""), self._endpoint_url)
                delivery = deliver_export(source, storage, options, file_index, self._stop)
        except (SendGridError, ArgumentError) as error:
            if isinstance(error, SendGridError) and not is_non_retryable(error):
                raise
            raise AirflowFailException(str(error)) from error
        self.log.info("%s", delivery.describe())
        self._report(hook, delivery, context)
        return [file.uri for file in delivery.files]

    def on_kill(self) -> None:
        """Stop within seconds, and leave no upload open."""
        self._stop.set()

    @cached_property
    def _stop(self) -> StopSignal:
        """Created when the task runs: Airflow copies operators before."""
        return StopSignal()

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> lineage.Lineage:
        """The input is the export, outputs are its objects with rows and bytes."""
        return lineage.lineage_of_delivery(*self._delivered) if self._delivered else lineage.empty_lineage()

    def _options(self) -> DeliveryOptions:
        return DeliveryOptions(
            compression=self.compression,
            part_bytes=self.part_size,
            max_concurrency=self.max_concurrency,
            verify_row_count=self.verify_row_count,
            write_manifest=self.write_manifest,
            replace=self.replace,
        )

    def _not_none(self) -> frozenset[str]:
        return frozenset(name for name in ("file_index", "partition_key") if getattr(self, name) is not None)

    def _is_passed(self, name: str) -> bool:
        """Whether an optional argument was passed. It must then not render to nothing."""
        return name in self._passed or name in self._not_none()

    def _report(self, hook: SendGridHook, delivery: Delivery, context: Context) -> None:
        """Report the delivery to metrics, lineage and the assets."""
        self._delivered = (hook.account, delivery)
        metrics.delivered(self.family, delivery)
        lineage.report_hook_lineage(hook, outputs=lineage.object_uris(delivery))
        lineage.describe_in_asset_events(self.outlets, context, delivery, self.partition_key)

    @abstractmethod
    def _storage(self) -> Storage:
        """The destination. `execute` calls it once, in a thread.

        Raises:
            ValueError: an argument is wrong.
            TypeError: an argument has the wrong type.
        """


@contextmanager
def _without_retry() -> Iterator[None]:
    """Fail the task without a retry if an argument or a setting is wrong."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise AirflowFailException(str(error)) from error


def _parse_file_index(value: Any) -> int:
    """Parse a rendered index, an integer or its digits.

    Raises:
        TypeError: it is neither an integer nor a string.
        ValueError: it is empty, negative, or not a number.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"file_index must be an integer from 0 on, not {value!r}. {_INDEX_HINT}")
    text = str(value).strip()
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"file_index must be an integer from 0 on, not {value!r}. {_INDEX_HINT}")
    return int(text)


_INDEX_HINT = "For one task per file use .partial(...).expand(file_index=...); leave it out to deliver all files."


def parse_text(name: str, value: Any, hint: str) -> str:
    """Parse a rendered string that was passed, and so must not be empty.

    Args:
        name: of the parameter.
        value: as rendered.
        hint: the next step, for error messages.

    Raises:
        TypeError: it is not a string.
        ValueError: it is empty, a template rendered None, or a template was not rendered.
    """
    if not isinstance(value, str | None):
        raise TypeError(f"{name} must be a string, not a {type(value).__name__}. {hint}")
    if value is None or value.strip() in ("", "None"):
        raise ValueError(f"{name} was passed but is empty. {hint}")
    if UNRENDERED.search(value):
        raise ValueError(f"{name} contains a template that was not rendered; an XCom's value is not rendered. {hint}")
    return value


def _parse_partition_key(value: Any) -> str:
    """Parse a rendered partition key.

    Raises:
        TypeError: it is neither a string nor an integer.
        ValueError: it is empty.
    """
    if isinstance(value, bool) or not isinstance(value, int | str | None):
        raise TypeError(f"partition_key must be a string, not {value!r}.")
    text = str(value).strip()
    if text in ("", "None"):
        raise ValueError("partition_key was passed but is empty; leave it out to use the DAG run's.")
    return text
