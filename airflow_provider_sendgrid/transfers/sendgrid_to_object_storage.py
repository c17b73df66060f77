"""Delivers a SendGrid contact export to a folder in any storage of an `ObjectStoragePath`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_sendgrid._compat import XComArg, mapped_arguments
from airflow_provider_sendgrid.exports.export import ExportFamily
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook
from airflow_provider_sendgrid.storage.base import Storage
from airflow_provider_sendgrid.storage.local import LocalStorage
from airflow_provider_sendgrid.storage.location import Location, Provider
from airflow_provider_sendgrid.transfers.base import DEFAULTS, DeliveringOperator, parse_text

if TYPE_CHECKING:
    from airflow_provider_sendgrid._compat import ObjectStoragePath


class SendGridToObjectStorageOperator(DeliveringOperator):
    """Deliver all files of a ready export to any storage, verified, then write a manifest.

    | path | default connection | extra to install |
    |---|---|---|
    | ``file:///folder`` | | |
    | ``s3://conn_id@bucket/folder`` | ``aws_default`` | |
    | ``gs://conn_id@bucket/folder`` | ``google_cloud_default`` | ``airflow-provider-sendgrid[google]`` |
    | ``abfs://conn_id@container/folder`` | ``wasb_default`` | ``airflow-provider-sendgrid[azure]`` |

    No incomplete file appears under its final name: a local file is renamed when it is written, and the clouds publish
    an upload when it is completed.

    `DeliveringOperator` describes the parameters from `replace` to `sendgrid_conn_id`, and the errors.

    Args:
        export_id: the id of an export that is ready.
        path: the folder, a string or an `ObjectStoragePath`. Slashes at its start and end do not matter. An S3 bucket
            may be the ARN of an access point, ``s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/name/folder``. Use
            one folder per export or per run. Azure's own form, ``abfss://container@account.dfs.core.windows.net/folder``,
            must name the connection's account. A template that renders to nothing or to None fails the task.
        conn_id: connection of the storage, if `path` names none. A template that renders to nothing or to None fails
            the task.
        kwargs: arguments of Airflow's ``BaseOperator``.

    Returns:
        The URIs of the files, in SendGrid's order, without the connection's id.
    """

    template_fields: Sequence[str] = (*DeliveringOperator.template_fields, "path", "conn_id")

    def __init__(
        self,
        *,
        export_id: str | XComArg,
        path: str | ObjectStoragePath | XComArg,
        conn_id: str | None = None,
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
        super().__init__(
            export_id=export_id,
            replace=replace,
            compression=compression,
            part_size=part_size,
            max_concurrency=max_concurrency,
            verify_row_count=verify_row_count,
            write_manifest=write_manifest,
            file_index=file_index,
            partition_key=partition_key,
            family=family,
            sendgrid_conn_id=sendgrid_conn_id,
            **kwargs,
        )
        # Rendered before they are used, then no XComArgs.
        self.path: str | ObjectStoragePath = path  # type: ignore[assignment]
        self.conn_id = conn_id
        self._has_conn_id = conn_id is not None

    def _storage(self) -> Storage:
        location = Location.of(parse_text("path", str(self.path), "Name a folder, such as s3://bucket/folder."))
        if self._has_conn_id or "conn_id" in mapped_arguments(self):
            parse_text("conn_id", self.conn_id, "Leave it out for the storage's default connection.")
        make = {
            Provider.LOCAL: self._local,
            Provider.S3: self._s3,
            Provider.GCS: self._gcs,
            Provider.AZURE: self._azure,
        }
        return make[location.provider](location, location.conn_id or self.conn_id)

    def _local(self, location: Location, _conn_id: str | None) -> Storage:
        return LocalStorage(Path(location.prefix))

    def _s3(self, location: Location, conn_id: str | None) -> Storage:
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        from airflow_provider_sendgrid.storage.s3 import S3Storage, client_config

        hook = S3Hook(aws_conn_id=conn_id or S3Hook.default_conn_name)
        client = hook.get_client_type(config=client_config(hook.config, 2 * self.max_concurrency))
        self._endpoint_url = client.meta.endpoint_url
        return S3Storage(client, location.bucket, location.prefix, stop=self._stop)

    def _gcs(self, location: Location, conn_id: str | None) -> Storage:
        try:
            from airflow.providers.google.cloud.hooks.gcs import GCSHook
        except ImportError as error:
            raise _missing("Google Cloud Storage", "google") from error
        from airflow_provider_sendgrid.storage.gcs import GcsStorage

        client = GCSHook(gcp_conn_id=conn_id or GCSHook.default_conn_name).get_conn()
        return GcsStorage(client, location.bucket, location.prefix, sleep=self._stop.wait)

    def _azure(self, location: Location, conn_id: str | None) -> Storage:
        try:
            from airflow.providers.microsoft.azure.hooks.wasb import WasbHook
        except ImportError as error:
            raise _missing("Azure Blob Storage", "azure") from error
        from airflow_provider_sendgrid.storage.azure import AzureStorage

        service = WasbHook(wasb_conn_id=conn_id or WasbHook.default_conn_name).get_conn()
        location.require_account(service.primary_hostname)
        container = service.get_container_client(location.bucket)
        return AzureStorage(container, location.address, location.prefix, sleep=self._stop.wait)


def _missing(storage: str, extra: str) -> ImportError:
    return ImportError(
        f"Airflow's provider for {storage} is not installed; run pip install airflow-provider-sendgrid[{extra}]"
    )
