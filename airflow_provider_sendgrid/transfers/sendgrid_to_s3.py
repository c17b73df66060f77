"""Brings every file of a SendGrid contact export into an S3 bucket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_sendgrid._compat import AirflowFailException, BaseOperator, Context, XComArg
from airflow_provider_sendgrid.delivery import DeliveryOptions, deliver_export
from airflow_provider_sendgrid.exceptions import HOPELESS_ERRORS
from airflow_provider_sendgrid.exports.export import ExportFamily
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook
from airflow_provider_sendgrid.storage.s3 import S3Storage, client_config

_DEFAULTS = DeliveryOptions()


class SendGridToS3Operator(BaseOperator):
    """Deliver all files of a ready export to S3, checked and counted, then write a manifest.

    The files are streamed: memory is about `max_concurrency` times `part_size`, whatever their size. Signed URLs
    are fetched by the task itself, right before use. Each object is published only when its length and checksums
    agree; the manifest is written only when all rows agree with SendGrid's count.

    Objects are named ``<prefix><export id>-00001-of-00003.csv.gz`` (``.csv``, ``.json.gz``, ``.json``); the manifest
    is ``<prefix>_manifest.json``, in the form that Redshift's ``COPY ... MANIFEST`` reads.

    Args:
        export_id: the id of an export that is ready; put a `SendGridExportSensor` before this task.
        s3_bucket: name of the bucket; leave it out where `s3_key_prefix` is a full ``s3://bucket/prefix/``.
        s3_key_prefix: what all keys begin with; use one prefix per export or per run.
        aws_conn_id: Airflow's connection to AWS; None uses boto3's own way to find credentials.
        replace: put this export in the place of one whose manifest stands at the prefix: its objects are deleted
            when this one's manifest is written. Without it such a manifest fails the task before any download.
        encrypt: have S3 encrypt with its own keys (SSE-S3); for KMS use `extra_args`.
        acl_policy: canned ACL of the objects.
        extra_args: further arguments of S3's calls: ``StorageClass``, ``SSEKMSKeyId``, ``Tagging``, ...
        verify: False, or the path of a CA bundle, for connections to S3.
        compression: ``"gzip"`` stores gzip whatever came, ``"none"`` stores plain.
        part_size: size of a part on its way, in bytes, 5 MiB or more.
        max_concurrency: parts on their way at once.
        verify_row_count: count the rows and compare them with SendGrid's count.
        write_manifest: write the manifest.
        file_index: deliver this file alone (from 0), and no manifest: for mapped tasks that share an export. A task
            without it, after them, finds their files stored, compares the rows and writes the manifest.
        family: ``"marketing"`` or ``"legacy"``.
        sendgrid_conn_id: connection of type ``sendgrid``.

    Returns:
        The ``s3://`` URIs of the files, in SendGrid's order.
    """

    template_fields: Sequence[str] = (
        "export_id",
        "s3_bucket",
        "s3_key_prefix",
        "aws_conn_id",
        "extra_args",
        "file_index",
        "family",
        "sendgrid_conn_id",
    )
    template_fields_renderers = {"extra_args": "json"}  # noqa: RUF012 - Airflow's own form
    ui_color = "#d1eefc"

    def __init__(
        self,
        *,
        export_id: str | XComArg,
        s3_key_prefix: str | XComArg,
        s3_bucket: str | XComArg | None = None,
        aws_conn_id: str | None = "aws_default",
        replace: bool = False,
        encrypt: bool = False,
        acl_policy: str | None = None,
        extra_args: Mapping[str, Any] | None = None,
        verify: bool | str | None = None,
        compression: str = _DEFAULTS.compression,
        part_size: int = _DEFAULTS.part_bytes,
        max_concurrency: int = _DEFAULTS.max_concurrency,
        verify_row_count: bool = _DEFAULTS.verify_row_count,
        write_manifest: bool = _DEFAULTS.write_manifest,
        file_index: int | XComArg | None = None,
        family: str = ExportFamily.MARKETING.value,
        sendgrid_conn_id: str = SendGridHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # Airflow renders templates and XComs before these are used.
        self.export_id: str = export_id  # type: ignore[assignment]
        self.s3_bucket: str | None = s3_bucket  # type: ignore[assignment]
        self.s3_key_prefix: str = s3_key_prefix  # type: ignore[assignment]
        self.aws_conn_id = aws_conn_id
        self.replace = replace
        self.encrypt = encrypt
        self.acl_policy = acl_policy
        self.extra_args = extra_args
        self.verify = verify
        self.compression = compression
        self.part_size = part_size
        self.max_concurrency = max_concurrency
        self.verify_row_count = verify_row_count
        self.write_manifest = write_manifest
        self.file_index: int | str | None = file_index  # type: ignore[assignment]
        self.family = family
        self.sendgrid_conn_id = sendgrid_conn_id

    def execute(self, context: Context) -> list[str]:
        """Deliver."""
        options = DeliveryOptions(
            compression=self.compression,
            part_bytes=self.part_size,
            max_concurrency=self.max_concurrency,
            verify_row_count=self.verify_row_count,
            write_manifest=self.write_manifest,
            replace=self.replace,
        )
        file_index = None if self.file_index is None else int(self.file_index)
        hook = SendGridHook(self.sendgrid_conn_id, self.family)
        try:
            with hook.source(self.export_id) as source:
                delivery = deliver_export(source, self._storage(), options, file_index)
        except HOPELESS_ERRORS as error:
            raise AirflowFailException(str(error)) from error
        self.log.info("%s", delivery.describe())
        return [file.uri for file in delivery.files]

    def _storage(self) -> S3Storage:
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        hook = S3Hook(aws_conn_id=self.aws_conn_id, verify=self.verify)
        bucket, prefix = self._bucket_and_prefix(hook.service_config.get("bucket_name"))
        extra_args = dict(self.extra_args or {})
        if self.encrypt:
            extra_args.setdefault("ServerSideEncryption", "AES256")
        if self.acl_policy:
            extra_args["ACL"] = self.acl_policy
        client = hook.get_client_type(config=client_config(hook.config, 2 * self.max_concurrency))
        return S3Storage(client, bucket, prefix, extra_args)

    def _bucket_and_prefix(self, bucket_of_connection: str | None) -> tuple[str, str]:
        """Take bucket and prefix apart.

        Raises:
            ValueError: no bucket is named, or two are.
        """
        url = urlsplit(self.s3_key_prefix)
        if url.scheme == "s3" and url.netloc and not self.s3_bucket:
            return url.netloc, self.s3_key_prefix.split("/", 3)[3] if url.path else ""
        bucket = self.s3_bucket or bucket_of_connection
        if "://" in self.s3_key_prefix or not bucket:
            raise ValueError(
                f"Name the bucket once: in s3_bucket ({self.s3_bucket!r}) beside a plain s3_key_prefix, or in an "
                f"s3_key_prefix such as s3://bucket/prefix/ (it is {self.s3_key_prefix!r})."
            )
        return bucket, self.s3_key_prefix.lstrip("/")
