"""Arguments that users may add to S3's calls: checked before the first download, passed to calls that accept them."""

from __future__ import annotations

import ast
import base64
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, Final

# Arguments whose values no log and no rendered field may show.
SECRET_ARGUMENTS: Final = ("SSECustomerKey", "CopySourceSSECustomerKey", "SSEKMSEncryptionContext")
# A template of Jinja's.
UNRENDERED: Final = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)
_SECRET_IN_TEXT: Final = re.compile(
    rf"(?:{'|'.join(SECRET_ARGUMENTS)})[\"']?\s*[:=]\s*b?(?:'([^']+)'|\"([^\"]+)\"|([^\s\"',}}]+))"
)
# They prevent deletes: helper objects, which a delivery deletes at its end, do not get them.
_LOCK_ARGUMENTS: Final = ("ObjectLockMode", "ObjectLockRetainUntilDate", "ObjectLockLegalHoldStatus")
_HELPER_OBJECTS: Final = "_receipts/"
# They describe the bytes of the files; the manifest and helper objects, whose names begin with "_", are plain JSON.
_CONTENT_ARGUMENTS: Final = ("ContentType", "ContentEncoding", "ContentLanguage", "ContentDisposition")
# The calls that create an object; one of them must take an argument.
_MAKING: Final = ("PutObject", "CreateMultipartUpload")
_WHERE: Final = "the operator's own parameters say where objects go"
_BYTES: Final = "the delivery sends and checks the bytes"
_CONDITION: Final = "the delivery decides what may be overwritten, see replace"
_OWN_ARGUMENTS: Final = {
    "Bucket": _WHERE,
    "Key": _WHERE,
    "Body": _BYTES,
    "ContentLength": _BYTES,
    "ContentMD5": _BYTES,
    "WriteOffsetBytes": _BYTES,
    "UploadId": _BYTES,
    "PartNumber": _BYTES,
    "MultipartUpload": _BYTES,
    "MpuObjectSize": _BYTES,
    "IfMatch": _CONDITION,
    "IfNoneMatch": _CONDITION,
    "IfModifiedSince": _CONDITION,
    "IfUnmodifiedSince": _CONDITION,
}
_ACCESS_POINT: Final = re.compile(
    r"(?P<bucket>arn:aws[^:]*:s3(?:-object-lambda)?:[a-z0-9-]*:\d{12}:accesspoint[:/][^:/]+"
    r"|arn:aws[^:]*:s3-outposts:[a-z0-9-]+:\d{12}:outpost[:/][^:/]+[:/]accesspoint[:/][^:/]+)"
    r"(?:/(?P<key>.*))?",
    re.DOTALL,
)


def split_s3_uri(uri: str) -> tuple[str, str]:
    """Bucket and prefix of ``s3://bucket/prefix``; the bucket may be the ARN of an access point.

    The prefix is a folder, see `folder_prefix`.

    Raises:
        ValueError: it is no such URI, or names no bucket.
    """
    scheme, _, rest = uri.partition("://")
    access_point = _ACCESS_POINT.fullmatch(rest)
    bucket, key = (access_point["bucket"], access_point["key"]) if access_point else rest.partition("/")[::2]
    if scheme.lower() != "s3" or bucket in ("", "None") or (":" in bucket and access_point is None):
        shown = uri.partition("?")[0]
        raise ValueError(
            f"An S3 location must be s3://bucket/prefix/ or s3://<ARN of an access point>/, not {shown!r}."
        )
    return bucket, folder_prefix(key or "")


def folder_prefix(prefix: str) -> str:
    """`prefix` as a folder: without slashes at its start, with one at its end; empty for the whole bucket."""
    folder = prefix.strip("/")
    return f"{folder}/" if folder else ""


def secret_texts(arguments: Any) -> list[str]:
    """The texts in which the secrets among `arguments` may appear: as they are, and as in S3's headers.

    A template may render `arguments` to a text, which also holds them.
    """
    values: list[Any] = []
    if isinstance(arguments, Mapping):
        values = [arguments.get(name) for name in SECRET_ARGUMENTS]
    elif isinstance(arguments, str) and any(name in arguments for name in SECRET_ARGUMENTS):
        values = [text for match in _SECRET_IN_TEXT.finditer(arguments) for text in match.groups() if text]
        values += secret_texts(_parsed(arguments))
    texts = set()
    for value in values:
        if isinstance(value, str | bytes | bytearray) and value:
            content = value.encode() if isinstance(value, str) else bytes(value)
            texts |= {content.decode(errors="replace"), repr(content)[2:-1], base64.b64encode(content).decode()}
    return sorted(texts)


def _parsed(text: str) -> Any:
    """The mapping in a text of Python or JSON, None without one."""
    for parse in (ast.literal_eval, json.loads):
        with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            if isinstance(found := parse(text.strip()), Mapping):
                return found
    return None


class ExtraArguments:
    """Further arguments of S3's calls; each call gets those that it takes.

    The checksum is always CRC32 and always computed by the delivery. S3 would refuse another one besides it, so
    checksum arguments are left out.

    Raises:
        TypeError: they are no mapping, or a value has the wrong type.
        ValueError: a name is unknown or not for users to set, or a value is empty.
    """

    def __init__(self, given: Mapping[str, Any] | None, service_model: Any) -> None:
        if not isinstance(given, Mapping | None):
            raise TypeError(f"extra_args must be a mapping of S3's arguments, not a {type(given).__name__}.")
        self._values = dict(given or {})
        if self._values:
            shapes: dict[str, Any] = {}
            for operation in _MAKING:
                shapes |= service_model.operation_model(operation).input_shape.members
            _check(self._values, shapes)
        self._values = {name: value for name, value in self._values.items() if not name.startswith("Checksum")}

    def __iter__(self) -> Any:
        return iter(self._values)

    def get(self, name: str, default: Any = None) -> Any:
        """The value of one of them."""
        return self._values.get(name, default)

    def without_values(self, text: str) -> str:
        """A message of boto3's with the values of these arguments removed."""
        hidden = {*secret_texts(self._values), *_texts_of(self._values)}
        for value in sorted(hidden, key=len, reverse=True):
            text = text.replace(f"value: {value}", "value: ***").replace(f'value: "{value}"', "value: ***")
        return text

    def known(self, members: Any, name: str = "") -> dict[str, Any]:
        """Those among a call's `members` that apply to the object `name`."""
        left_out = {
            *(_CONTENT_ARGUMENTS if name.startswith("_") else ()),
            *(_LOCK_ARGUMENTS if name.startswith(_HELPER_OBJECTS) else ()),
        }
        return {key: value for key, value in self._values.items() if key in members and key not in left_out}


def _texts_of(value: Any) -> Iterator[str]:
    """A value and everything in it, as texts."""
    yield str(value)
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for each in inner:
        yield from _texts_of(each)


def _check(values: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
    from botocore.validate import ParamValidator

    allowed = sorted(set(shapes) - set(_OWN_ARGUMENTS))
    for name, value in values.items():
        if name in _OWN_ARGUMENTS:
            raise ValueError(f"extra_args must not contain {name}: {_OWN_ARGUMENTS[name]}.")
        if name not in shapes:
            raise ValueError(f"extra_args contains {name!r}, which S3 does not know.{_nearest(str(name), allowed)}")
        if value in (None, b"") or (isinstance(value, str) and value.strip() in ("", "None")):
            raise ValueError(f"extra_args: {name} was passed but is empty; leave it out or give it a value.")
        if any(UNRENDERED.search(text) for text in _texts_of(value)):
            raise ValueError(f"extra_args: {name} contains a template that was not rendered; give it a value.")
        if name == "SSECustomerKey" and isinstance(value, bytes | bytearray):
            continue  # boto3 encodes it
        # The report would show the value, which may be a secret.
        if ParamValidator().validate(value, shapes[name]).has_errors():
            if isinstance(value, Mapping) and shapes[name].type_name == "map":
                raise TypeError(f"extra_args: {name} must be a mapping of texts to texts.")
            raise TypeError(f"extra_args: {name} must be a {shapes[name].type_name}, not a {type(value).__name__}.")


def _nearest(name: str, allowed: list[str]) -> str:
    by_lower_case = {each.lower(): each for each in allowed}
    found = get_close_matches(name.lower().replace("_", ""), by_lower_case, n=1, cutoff=0.5)
    return f" Did you mean {by_lower_case[found[0]]}?" if found else f" It knows {', '.join(allowed)}."
