"""Delivers a SendGrid contact export to an S3 bucket."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from airflow_provider_sendgrid._compat import XComArg, mapped_arguments, mask_secret
from airflow_provider_sendgrid.exports.export import ExportFamily
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook
from airflow_provider_sendgrid.storage.s3 import S3Storage, client_config
from airflow_provider_sendgrid.storage.s3_arguments import folder_prefix, secret_texts, split_s3_uri
from airflow_provider_sendgrid.transfers.base import DEFAULTS, DeliveringOperator, parse_text

_NAME_IT_ONCE = (
    "Name the bucket once: in s3_bucket beside a plain s3_key_prefix, or in an s3_key_prefix such as "
    "s3://bucket/prefix/; s3://bucket/ is the whole bucket."
)


class SendGridToS3Operator(DeliveringOperator):
    """Deliver all files of a ready export to S3, verified, then write a manifest.

    `DeliveringOperator` describes the parameters from `replace` to `sendgrid_conn_id`, and the errors. A template of
    `s3_bucket`, `s3_key_prefix`, `aws_conn_id` or `extra_args` that renders to nothing or to None fails the task.

    Args:
        export_id: the id of an export that is ready.
        s3_bucket: name of the bucket; leave it out if `s3_key_prefix` is a full ``s3://bucket/prefix/``.
        s3_key_prefix: the folder of all objects, ``path/`` or a full ``s3://bucket/path/``, whose bucket may be the ARN
            of an access point. Slashes at its start are ignored; one is added at its end if it is missing. Use one
            prefix per export or per run. ``""`` beside `s3_bucket`, or ``s3://bucket/``, is the whole bucket; in a
            mapped task only ``s3://bucket/``.
        aws_conn_id: Airflow's connection to AWS; None uses boto3's credential chain, in a mapped task, too.
        encrypt: let S3 encrypt with its own keys (SSE-S3); for KMS use `extra_args`.
        acl_policy: canned ACL of the objects.
        extra_args: further arguments of S3's ``PutObject``: ``StorageClass``, ``SSEKMSKeyId``, ``Tagging``, ... Names
            that S3 does not know, or that the delivery sets itself, are refused before any download. Values of
            ``SSECustomerKey`` and ``SSEKMSEncryptionContext`` are masked. ``ObjectLock...`` applies to files and
            manifest (a versioned bucket keeps a manifest that is replaced), not to the objects below ``_receipts/``,
            which are deleted at the end. ``ContentEncoding``, ``ContentType`` and the like apply only to files.
            Checksums are always the delivery's own CRC32.
        verify: False, or the path of a CA bundle, for connections to S3.
        kwargs: arguments of Airflow's ``BaseOperator``.

    Returns:
        The ``s3://`` URIs of the files, in SendGrid's order.

    Source:
        https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html
    """

    template_fields: Sequence[str] = (
        *DeliveringOperator.template_fields,
        "s3_bucket",
        "s3_key_prefix",
        "aws_conn_id",
        "extra_args",
    )
    template_fields_renderers = {"extra_args": "json"}  # noqa: RUF012 - Airflow's own form

    def __init__(
        self,
        *,
        export_id: str | XComArg,
        s3_key_prefix: str | XComArg,
        s3_bucket: str | XComArg | None = None,
        aws_conn_id: str | None = "aws_default",
        encrypt: bool = False,
        acl_policy: str | None = None,
        extra_args: Mapping[str, Any] | None = None,
        verify: bool | str | None = None,
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
        self.s3_bucket: str | None = s3_bucket  # type: ignore[assignment]
        self.s3_key_prefix: str = s3_key_prefix  # type: ignore[assignment]
        self.aws_conn_id = aws_conn_id
        self._has_bucket, self._has_conn_id = s3_bucket is not None, aws_conn_id is not None
        self._has_extra_args = extra_args is not None
        self._is_whole_bucket = s3_key_prefix == ""
        self.encrypt = encrypt
        self.acl_policy = acl_policy
        self.extra_args = extra_args
        self.verify = verify

    def render_template(self, content: Any, *args: Any, **kwargs: Any) -> Any:
        """Render, and mask secrets in the values before Airflow shows the rendered fields."""
        rendered = super().render_template(content, *args, **kwargs)
        for text in secret_texts(rendered):
            mask_secret(text)
        return rendered

    def _storage(self) -> S3Storage:
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        self._refuse_empty_arguments()
        hook = S3Hook(aws_conn_id=self.aws_conn_id, verify=self.verify)
        bucket, prefix = self._bucket_and_prefix(hook.service_config.get("bucket_name"))
        extra_args = self._put_object_arguments()
        client = hook.get_client_type(config=client_config(hook.config, 2 * self.max_concurrency))
        self._endpoint_url = client.meta.endpoint_url
        return S3Storage(client, bucket, prefix, extra_args, self._stop)

    def _refuse_empty_arguments(self) -> None:
        """Raise for arguments that were passed and are empty. A mapped task may get any of them from an XCom."""
        mapped = mapped_arguments(self)
        if not self._is_whole_bucket or "s3_key_prefix" in mapped:
            parse_text("s3_key_prefix", self.s3_key_prefix, _NAME_IT_ONCE)
            if re.fullmatch(r"(?i)(s3://[^/]+/)?/+", self.s3_key_prefix.strip()):
                raise ValueError(f"s3_key_prefix is {self.s3_key_prefix!r}, which names no folder. {_NAME_IT_ONCE}")
        if self._has_bucket or "s3_bucket" in mapped:
            parse_text("s3_bucket", self.s3_bucket, _NAME_IT_ONCE)
        if self._has_conn_id:
            parse_text("aws_conn_id", self.aws_conn_id, "Pass None, not a template, for boto3's own credentials.")

    def _put_object_arguments(self) -> Mapping[str, Any]:
        extra_args = self.extra_args
        if not extra_args and not isinstance(extra_args, Mapping):
            if self._has_extra_args or "extra_args" in mapped_arguments(self):
                raise ValueError(
                    "extra_args was passed but is empty. Pass {}, not None, to pass no further arguments to S3."
                )
            extra_args = {}
        if not isinstance(extra_args, Mapping):
            return extra_args  # S3Storage refuses it
        encryption = {"ServerSideEncryption": "AES256"} if self.encrypt else {}
        return {**encryption, **extra_args, **({"ACL": self.acl_policy} if self.acl_policy else {})}

    def _bucket_and_prefix(self, bucket_of_connection: str | None) -> tuple[str, str]:
        """Split the arguments into bucket and prefix.

        Raises:
            ValueError: no bucket is named, or two are.
        """
        if self.s3_key_prefix.lower().startswith("s3://") and not self.s3_bucket:
            return split_s3_uri(self.s3_key_prefix)
        bucket = self.s3_bucket or bucket_of_connection
        if "://" in self.s3_key_prefix or not bucket:
            shown = self.s3_key_prefix.partition("?")[0]
            raise ValueError(f"s3_bucket is {self.s3_bucket!r}, s3_key_prefix is {shown!r}. {_NAME_IT_ONCE}")
        return bucket, folder_prefix(self.s3_key_prefix)
