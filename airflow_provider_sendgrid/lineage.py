"""Lineage of contacts, for hook lineage, OpenLineage and asset events.

Datasets have OpenLineage's namespace and name: an export is ``marketing/contacts/exports/<id>`` in
``sendgrid://api.sendgrid.com``, an object is its key in ``s3://bucket``. None contains an API key or a signed URL.

Only the functions that Airflow's OpenLineage provider calls import OpenLineage.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from airflow_provider_sendgrid._compat import Asset, Context, note_hook_lineage
from airflow_provider_sendgrid.delivery.export import Delivery
from airflow_provider_sendgrid.exports.export import FAMILIES, ExportFamily, ExportSelection

if TYPE_CHECKING:
    from typing import TypeAlias

    from airflow.providers.openlineage.extractors import OperatorLineage
    from openlineage.client.event_v2 import Dataset, InputDataset, OutputDataset

    Lineage: TypeAlias = OperatorLineage[Dataset, Any]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SendGridAccount:
    """The owner of datasets: one product of SendGrid at one host.

    Attributes:
        base_url: of the API.
        family: the product.
    """

    base_url: str
    family: ExportFamily

    @property
    def namespace(self) -> str:
        """The namespace of all its datasets."""
        return f"sendgrid://{urlsplit(self.base_url).netloc}"

    def export_name(self, export_id: str) -> str:
        """The name of an export's dataset."""
        return _name(FAMILIES[self.family].exports_path, export_id)

    def export_uri(self, export_id: str) -> str:
        """The URI of an export's asset."""
        return f"{self.namespace}/{self.export_name(export_id)}"

    def selection_names(self, selection: ExportSelection) -> list[str]:
        """The names of the datasets that are exported: lists and segments, or all contacts."""
        traits = FAMILIES[self.family]
        chosen = [_name(traits.lists_path, each) for each in selection.list_ids]
        chosen += [_name(traits.segments_path, each) for each in selection.segment_ids]
        return chosen or [_name(traits.exports_path.rpartition("/")[0])]


def _name(path: str, *parts: str | int) -> str:
    """An API's path without its version, and an id."""
    return "/".join([path.removeprefix("/v3/"), *(quote(str(part), safe="") for part in parts)])


# Hook lineage


def report_hook_lineage(hook: Any, inputs: Iterable[str] = (), outputs: Iterable[str] = ()) -> None:
    """Report what a hook read and wrote, as URIs, to Airflow's hook lineage; never fails."""
    try:
        note_hook_lineage(hook, inputs, outputs)
    except Exception as error:  # noqa: BLE001 - a lineage collector must not fail an export
        log.warning("Could not report hook lineage: %s", type(error).__name__)


# Asset events


def describe_in_asset_events(
    outlets: Iterable[Any], context: Context, delivery: Delivery, partition_key: str | None
) -> None:
    """Add export, files, rows, bytes and manifest to the asset events of a task's outlets.

    Args:
        outlets: of the task; those that are not assets (datasets in Airflow 2) are ignored.
        context: of the task.
        delivery: what was delivered.
        partition_key: of the assets; by default the run's, if it has one. In Airflow before 3.3, which has no
            partitions, it is only in the extra.
    """
    events: Any = context.get("outlet_events")
    if events is None:
        return
    described = _description(delivery)
    if partition := partition_key or context.get("partition_key"):
        described["partition"] = str(partition)
    for outlet in outlets:
        if not isinstance(outlet, Asset):
            continue
        event = events[outlet]
        event.extra.update(described)
        if partition_key and hasattr(event, "add_partitions"):
            event.add_partitions(partition_key)


def _description(delivery: Delivery) -> dict[str, Any]:
    return {
        "export_id": delivery.export.id,
        "files": len(delivery.files),
        "rows": delivery.rows,
        "bytes": sum(file.size for file in delivery.files),
        "manifest": delivery.manifest_uri,
    }


def object_uris(delivery: Delivery) -> list[str]:
    """The URIs of a delivery's files and of its manifest."""
    return [file.uri for file in delivery.files] + ([delivery.manifest_uri] if delivery.manifest_uri else [])


# OpenLineage


def lineage_of_start(account: SendGridAccount, selection: ExportSelection, export_id: str) -> Lineage:
    """Lineage from lists and segments, or all contacts, to an export."""
    from openlineage.client.event_v2 import InputDataset, OutputDataset

    return _lineage(
        [InputDataset(account.namespace, name) for name in account.selection_names(selection)],
        [OutputDataset(account.namespace, account.export_name(export_id))],
    )


def lineage_of_wait(account: SendGridAccount, export_id: str) -> Lineage:
    """Lineage of a task that waited for an export."""
    from openlineage.client.event_v2 import InputDataset

    return _lineage([InputDataset(account.namespace, account.export_name(export_id))], [])


def lineage_of_delivery(account: SendGridAccount, delivery: Delivery) -> Lineage:
    """Lineage from an export, with its count, to objects, with their rows and bytes."""
    from openlineage.client.event_v2 import InputDataset, OutputDataset
    from openlineage.client.facet_v2 import data_quality_metrics_input_dataset as of_input
    from openlineage.client.facet_v2 import output_statistics_output_dataset as of_output

    export = delivery.export
    counted = of_input.DataQualityMetricsInputDatasetFacet({}, rowCount=export.contact_count)
    source = InputDataset(
        account.namespace, account.export_name(export.id), inputFacets={"dataQualityMetrics": counted}
    )
    objects = []
    for file in delivery.files:
        stored = of_output.OutputStatisticsOutputDatasetFacet(rowCount=file.rows, size=file.size, fileCount=1)
        objects.append(OutputDataset(*_dataset_id(file.uri), outputFacets={"outputStatistics": stored}))
    if delivery.manifest_uri:
        objects.append(OutputDataset(*_dataset_id(delivery.manifest_uri)))
    return _lineage([source], objects)


def _dataset_id(uri: str) -> tuple[str, str]:
    """Namespace and name of an object: ``s3://bucket`` and its key, or ``file`` and its path."""
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    return (f"{scheme}://{bucket}", key) if bucket else (scheme, f"/{key}")


def empty_lineage() -> Lineage:
    """For a task that ended before it had inputs or outputs."""
    return _lineage([], [])


def _lineage(inputs: Sequence[InputDataset], outputs: Sequence[OutputDataset]) -> Lineage:
    from airflow.providers.openlineage.extractors import OperatorLineage

    sources: list[Dataset] = [*inputs]
    targets: list[Dataset] = [*outputs]
    return OperatorLineage(inputs=sources, outputs=targets)
