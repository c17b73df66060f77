"""Calls of boto3's methods for one bucket, and its listings, with the users' arguments.

boto3's exceptions become this package's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from airflow_provider_sendgrid.exceptions import DestinationError, DestinationRefusedError
from airflow_provider_sendgrid.stopping import StopSignal
from airflow_provider_sendgrid.storage.s3_arguments import ExtraArguments
from airflow_provider_sendgrid.storage.s3_errors import (
    DAMAGED,
    code_and_message,
    connection_error,
    error_from_code,
    not_s3_error,
)

log = logging.getLogger(__name__)

# How often a body is sent, or read, before damage in transit is an error.
ATTEMPTS_IF_DAMAGED = 3
DAMAGE_MESSAGE = "S3 received different bytes than were sent"
_NOT_WHEN_STOPPED = ("CreateMultipartUpload", "UploadPart")
# boto3's settings, by their names in its configuration; in capitals those of environment variables.
_CALCULATION, _VALIDATION = "request_checksum_calculation", "response_checksum_validation"
_WHEN_REQUIRED = "when_required"
_DIRECTORY_BUCKETS = ("--x-s3", "--xa-s3")


def client_config(config: Any, connections: int) -> Any:
    """The client's botocore ``Config``: the user's, with connections for all threads.

    botocore keeps 10 and would open the others for each call. Whether bodies are signed is decided by `S3Calls`, which
    knows the endpoint; a ``payload_signing_enabled`` in the connection's ``config_kwargs`` wins. A server that refuses
    checksum headers in requests also refuses the header that requests checksums in responses. Therefore, unless
    ``response_checksum_validation`` is set, it follows ``request_checksum_calculation``.
    """
    from botocore.config import Config

    options: dict[str, Any] = {"max_pool_connections": max(10, connections)}
    follows = not getattr(config, _VALIDATION, None) and not os.environ.get(f"AWS_{_VALIDATION.upper()}")
    if follows and _calculation(config) == _WHEN_REQUIRED and _VALIDATION in Config.OPTION_DEFAULTS:
        options[_VALIDATION] = _WHEN_REQUIRED
    return config.merge(Config(**options))


def _calculation(config: Any) -> str:
    """When boto3 computes checksums, by the configuration or the environment; empty if neither decides."""
    calculation = getattr(config, _CALCULATION, None) or os.environ.get(f"AWS_{_CALCULATION.upper()}", "")
    return str(calculation).lower()


class S3Calls:
    """Calls boto3's methods for one bucket and prefix.

    Args:
        client: boto3's client for S3; shared by all threads.
        bucket: name of the bucket, or the ARN of an access point.
        prefix: what all names begin with, ``path/to/`` or empty.
        extra_args: see `ExtraArguments`.
        stop: once it is set, no upload is started and no part is sent, also not by boto3's own retries.

    Attributes:
        is_https: whether the endpoint uses TLS.
        sends_checksums: whether bodies are sent with their CRC32; the client's configuration may exclude that.
        is_signed: whether bodies are signed.
    """

    def __init__(
        self, client: Any, bucket: str, prefix: str, extra_args: Mapping[str, Any] | None, stop: StopSignal | None
    ) -> None:
        self._client = client
        self.bucket = bucket
        self.prefix = prefix
        self.extra_args = ExtraArguments(extra_args, client.meta.service_model if client is not None else None)
        self.stop = stop or StopSignal()
        self.is_https = self.sends_checksums = self.is_signed = True
        self._logged: set[str] = set()
        if client is not None:
            self._decide_checksums_and_signing()
        if stop is not None:
            # Emitted before each attempt: boto3 waits between them and would continue after the upload was aborted.
            self.on_event("before-send", _NOT_WHEN_STOPPED, lambda **_: self.stop.raise_if_set())

    @property
    def endpoint_url(self) -> str:
        """The server's URL, for messages."""
        return str(self._client.meta.endpoint_url)

    def uri(self, name: str) -> str:
        """The object's ``s3://`` URI."""
        return f"s3://{self.bucket}/{self.prefix}{name}"

    def on_event(self, event: str, operations: Sequence[str], handler: Callable[..., None]) -> None:
        """Register a handler of one of boto3's events of these operations."""
        for operation in operations if self._client is not None else ():
            self._client.meta.events.register(f"{event}.s3.{operation}", handler)

    def members(self, method: str) -> Any:
        """The arguments of a method that this boto3 knows."""
        operation = self._client.meta.method_to_api_mapping[method]
        return self._client.meta.service_model.operation_model(operation).input_shape.members

    def extra_args_of(self, method: str, name: str) -> dict[str, Any]:
        """Those extra arguments that a method takes for the object `name`."""
        return self.extra_args.known(self.members(method), name)

    def call(self, method: str, name: str | None, **arguments: Any) -> Any:
        """Call one of boto3's methods, see `send`."""
        return self.send(method, name, arguments)

    def send(
        self,
        method: str,
        name: str | None,
        arguments: Mapping[str, Any],
        is_damaged: Callable[[Any], bool] = lambda _response: False,
    ) -> Any:
        """Call one of boto3's methods, with those of the extra arguments that it takes.

        Args:
            method: the name of the method.
            name: the name of the object, None for the bucket.
            arguments: the arguments of the call.
            is_damaged: whether the response shows that S3 received other bytes; then they are sent again.

        Raises:
            DestinationChangedError: a condition failed.
            DestinationRefusedError: S3 refuses, and no retry helps.
            DestinationError: S3 failed or did not answer.
        """
        key = {} if name is None else {"Key": self.prefix + name}
        given = {**self.extra_args_of(method, name or ""), **arguments, "Bucket": self.bucket, **key}
        uri = self.uri(name or "")
        for attempts_left in reversed(range(ATTEMPTS_IF_DAMAGED)):
            code = "BadDigest"
            try:
                response = self._send_once(method, uri, given)
                if not is_damaged(response):
                    return response
            except DestinationError as error:
                if error.code not in DAMAGED or not attempts_left:
                    raise
                code = error.code
            log.warning("%s was damaged in transit to S3 (%s); sending it again.", uri, code)
        raise error_from_code(method, uri, "BadDigest", DAMAGE_MESSAGE, given, is_signed=self.is_signed)

    def damage_error(self, method: str, name: str, message: str) -> Exception:
        """The exception for bytes that were damaged in each attempt."""
        return error_from_code(method, self.uri(name), "BadDigest", message, {}, is_signed=True)

    def field(self, response: Mapping[str, Any], field: str, method: str, name: str) -> Any:
        """A field that S3 always sends.

        Raises:
            DestinationError: it is missing.
        """
        value = response.get(field)
        if value is None or value == "":
            raise not_s3_error(f"{method} of {self.uri(name)}: the response has no {field}")
        return value

    def log_once(self, what: str, level: int, message: str, *arguments: Any) -> None:
        """Log what holds for the whole delivery."""
        if what not in self._logged:
            self._logged.add(what)
            log.log(level, message, *arguments)

    def _send_once(self, method: str, uri: str, given: Mapping[str, Any]) -> Any:
        """Call a method; raise boto3's exceptions as this package's."""
        from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError
        from botocore.parsers import ResponseParserError

        try:
            return getattr(self._client, method)(**given)
        except ClientError as error:
            code, message = code_and_message(error)
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            raise error_from_code(method, uri, code, message, given, is_signed=self.is_signed, status=status) from error
        except ParamValidationError as error:
            # Not `from error`: its text shows the values, some of which are secret.
            reason = self.extra_args.without_values(str(error))
            raise DestinationRefusedError(f"{method} of {uri}: boto3 rejects its arguments. {reason}") from None
        except (ResponseParserError, RecursionError) as error:  # boto3 follows a redirect to itself without end
            raise not_s3_error(f"{method} of {uri}: the response could not be read") from error
        except BotoCoreError as error:
            raise connection_error(method, uri, error) from error

    def _decide_checksums_and_signing(self) -> None:
        """Send bodies without a signature only where TLS and a checksum protect them, as botocore does itself.

        botocore would also sign those that carry a checksum of ours, which takes 0.9 s of CPU per GiB.
        """
        config = self._client.meta.config
        self.is_https = self.endpoint_url.lower().startswith("https")
        self.sends_checksums = _calculation(config) != _WHEN_REQUIRED
        chosen = (config.s3 or {}).get("payload_signing_enabled")
        self.is_signed = not (self.is_https and self.sends_checksums) if chosen is None else bool(chosen)
        config.s3 = {**(config.s3 or {}), "payload_signing_enabled": self.is_signed}


def list_objects(calls: S3Calls, beginning: str) -> Iterator[Mapping[str, Any]]:
    """All entries whose names begin like this, without a slash after that; directory buckets may list more."""
    prefix, following = listing_prefix(calls, calls.prefix + beginning), dict[str, Any]()
    what = f"list_objects_v2 of {calls.uri('')}"
    while True:
        response = calls.call("list_objects_v2", None, Delimiter="/", **prefix, **following)
        if not response.keys() & {"Name", "IsTruncated", "KeyCount", "Contents"}:
            raise not_s3_error(f"{what}: the response is not a listing")
        yield from response.get("Contents") or []
        if not response.get("IsTruncated"):
            return
        token = calls.field(response, "NextContinuationToken", "list_objects_v2", "")
        if token == following.get("ContinuationToken"):
            raise not_s3_error(f"{what}: the listing has no end")
        following = {"ContinuationToken": token}


def listing_prefix(calls: S3Calls, key: str) -> dict[str, str]:
    """The argument that lists what begins with `key`; directory buckets take only a folder."""
    if calls.bucket.endswith(_DIRECTORY_BUCKETS):
        key = key[: key.rfind("/") + 1]
    return {"Prefix": key} if key else {}
