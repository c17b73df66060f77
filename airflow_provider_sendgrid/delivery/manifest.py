"""The manifest: what a delivery stored, counted and hashed; written last.

It has the form that Redshift's ``COPY ... MANIFEST`` reads and its ``UNLOAD ... MANIFEST VERBOSE`` writes: ``entries``
with ``url``, ``mandatory`` and ``meta`` (``content_length``, ``record_count``), and totals in ``meta``. It also holds
the SHA-256 of each object, the summary of the export, and what retries need to know.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_sendgrid.delivery.object_names import name_of_uri
from airflow_provider_sendgrid.delivery.stored_file import StoredFile, total_rows

_AUTHOR = "airflow-provider-sendgrid"


def manifest_content(
    files: Sequence[StoredFile], export_summary: Mapping[str, Any], replaced: Mapping[str, str] | None = None
) -> bytes:
    """The manifest of one delivery, as JSON.

    Args:
        files: in SendGrid's order.
        export_summary: summary of the export.
        replaced: versions of the objects that are deleted when the manifest is written, by URI.
    """
    manifest = {
        "entries": [
            {"url": file.uri, "mandatory": True, "meta": {**_meta([file]), "sha256": file.sha256}} for file in files
        ],
        "meta": _meta(files),
        "author": {"name": _AUTHOR},
        "sendgrid_export": dict(export_summary),
        "facts": {file.name: file.to_json() for file in files},
        "replaces": list(replaced or ()),
        "replaced_versions": dict(replaced or {}),
    }
    return to_json(manifest)


def withdrawn_content(export_id: str) -> bytes:
    """Replaces a manifest that is no longer true, where objects cannot be deleted.

    It has no `entries`, so nothing reads it as a manifest.
    """
    return to_json({"withdrawn": True, "author": {"name": _AUTHOR}, "sendgrid_export": {"id": export_id}})


def to_json(value: Any) -> bytes:
    """Readable JSON; lone surrogates, which UTF-8 cannot encode, are escaped."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode(errors="backslashreplace")


def _meta(files: Sequence[StoredFile]) -> dict[str, int]:
    rows = total_rows(files)
    return {"content_length": sum(file.size for file in files)} | ({} if rows is None else {"record_count": rows})


@dataclass(frozen=True, slots=True)
class KnownManifest:
    """What an existing manifest says.

    Attributes:
        export_id: the export that was delivered; empty if the file was not written by this provider.
        uris: URIs of the objects that it names.
        files: what it says of them, by name; manifests of earlier versions say nothing.
        replaced: versions of the objects that were to be deleted when it was written, by URI; the versions are None in
            manifests of earlier versions.
        rows: contacts in all files; None if they were not counted.
    """

    export_id: str
    uris: tuple[str, ...] = ()
    files: Mapping[str, StoredFile] = field(default_factory=dict)
    replaced: Mapping[str, str | None] = field(default_factory=dict)
    rows: int | None = None

    @property
    def names(self) -> set[str]:
        """The names of the objects that it names, all at its own prefix.

        Names are compared instead of URIs: one place may have several URIs, by an access point or a mount point.
        """
        return set(map(name_of_uri, self.uris))

    @property
    def paths(self) -> list[str]:
        """The paths of its files' URLs, in order; incomplete if an earlier version wrote it."""
        return [file.path for file in self.files.values() if file.path]

    @classmethod
    def from_content(cls, content: bytes) -> KnownManifest:
        """Read a manifest of this or an earlier version, or any other content of an object of that name."""
        try:
            payload = json.loads(content)
        except (ValueError, RecursionError):
            payload = None
        if not isinstance(payload, dict):
            return cls("")
        export_id = _mapping(payload.get("sendgrid_export")).get("id")
        versions = _mapping(payload.get("replaced_versions"))
        files = {
            name: file
            for name, texts in _mapping(payload.get("facts")).items()
            if (file := StoredFile.parse(name, _mapping(texts))) is not None
        }
        return cls(
            export_id if isinstance(export_id, str) else "",
            _texts(_mapping(entry).get("url") for entry in _list(payload.get("entries"))),
            files,
            {uri: _text(versions.get(uri)) for uri in _texts(_list(payload.get("replaces")))},
            rows if type(rows := _mapping(payload.get("meta")).get("record_count")) is int else None,
        )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _texts(values: Iterable[Any]) -> tuple[str, ...]:
    return tuple(value for value in values if isinstance(value, str))
