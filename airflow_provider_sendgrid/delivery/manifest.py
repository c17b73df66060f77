"""The proof of a delivery: what was stored, counted and hashed, written last.

Its form is the one that Redshift's ``COPY ... MANIFEST`` reads and its ``UNLOAD ... MANIFEST VERBOSE`` writes:
``entries`` with ``url``, ``mandatory`` and ``meta`` (``content_length``, ``record_count``), and the totals in
``meta``. Ours are added: the SHA-256 of each object and the summary of the export.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MANIFEST_NAME = "_manifest.json"
_AUTHOR = "airflow-provider-sendgrid"


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What is known of one stored file; kept in its metadata or a receipt until the manifest holds it.

    Attributes:
        size: stored bytes.
        sha256: of the stored bytes, in hexadecimal.
        records: counted, a header included; None where they were not counted.
        first_record_sha256: of the first record, empty where there is none.
        upload: the id of the upload that stored it, which is in the object's metadata; empty in earlier versions.
        path: of the file's URL at SendGrid, which identifies the file; empty in earlier versions.
        has_header: whether the first record is known to be SendGrid's header; never in earlier versions.
    """

    size: int
    sha256: str
    records: int | None = None
    first_record_sha256: str = ""
    upload: str = ""
    path: str = ""
    has_header: bool = False

    def to_metadata(self) -> dict[str, str]:
        """The same as short texts, fit for an object's metadata, without what is there already."""
        facts = {"size": str(self.size), "sha256": self.sha256}
        if self.records is not None:
            facts |= {"records": str(self.records), "first-record-sha256": self.first_record_sha256}
        return facts | ({"has-header": "true"} if self.has_header else {})

    def to_json(self) -> dict[str, str]:
        """All of them, for the manifest and receipts."""
        texts = {"upload": self.upload, "path": self.path}
        return self.to_metadata() | {name: text for name, text in texts.items() if text}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> FileFacts | None:
        """Read them again; None where they are not there or not whole."""
        try:
            records = metadata.get("records")
            return cls(
                int(metadata["size"]),
                str(metadata["sha256"]),
                None if records is None else int(records),
                str(metadata.get("first-record-sha256") or ""),
                str(metadata.get("upload") or ""),
                str(metadata.get("path") or ""),
                metadata.get("has-header") == "true",
            )
        except (KeyError, TypeError, ValueError, OverflowError):
            return None


@dataclass(frozen=True, slots=True)
class DeliveredFile:
    """One file of an export as it was stored.

    Attributes:
        name: of the object, below the prefix.
        uri: its full address.
        size: stored bytes.
        rows: contacts in it, a header not counted; None where they were not counted.
        sha256: of the stored bytes, in hexadecimal.
    """

    name: str
    uri: str
    size: int
    rows: int | None
    sha256: str


def manifest_content(
    files: Sequence[DeliveredFile],
    export_summary: Mapping[str, Any],
    facts: Mapping[str, FileFacts],
    replaced: Mapping[str, str] | None = None,
) -> bytes:
    """The manifest of one delivery, as JSON.

    Args:
        files: in SendGrid's order.
        export_summary: of the export.
        facts: of each file by its name: a task tried again finds there what it need not fetch.
        replaced: URIs of the objects that are deleted when this is written, and the versions that they have.
    """
    manifest = {
        "entries": [
            {"url": file.uri, "mandatory": True, "meta": {**_meta([file]), "sha256": file.sha256}} for file in files
        ],
        "meta": _meta(files),
        "author": {"name": _AUTHOR},
        "sendgrid_export": dict(export_summary),
        "facts": {name: fact.to_json() for name, fact in facts.items()},
        "replaces": list(replaced or ()),
        "replaced_versions": dict(replaced or {}),
    }
    return to_json(manifest)


def withdrawn_content(export_id: str) -> bytes:
    """What takes the place of a manifest that is no longer true, where objects cannot be deleted.

    It has no `entries`, so that nothing reads it as a manifest.
    """
    return to_json({"withdrawn": True, "author": {"name": _AUTHOR}, "sendgrid_export": {"id": export_id}})


def to_json(value: Any) -> bytes:
    """As readable JSON; half a surrogate pair, which is no UTF-8, is escaped."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode(errors="backslashreplace")


def _meta(files: Sequence[DeliveredFile]) -> dict[str, int]:
    meta = {"content_length": sum(file.size for file in files)}
    rows = [file.rows for file in files if file.rows is not None]
    return meta | ({"record_count": sum(rows)} if len(rows) == len(files) else {})


@dataclass(frozen=True, slots=True)
class KnownManifest:
    """What an existing manifest says.

    Attributes:
        export_id: of the export that it is the proof of; empty where the file is not one of ours.
        uris: of the objects that it names.
        facts: of its files, by their names; those of earlier versions have none.
        replaced: URIs of the objects that were to be deleted when it was written, and the versions that they had;
            None in manifests of earlier versions.
        rows: in all files; None where they were not counted.
    """

    export_id: str
    uris: tuple[str, ...] = ()
    facts: Mapping[str, FileFacts] = field(default_factory=dict)
    replaced: Mapping[str, str | None] = field(default_factory=dict)
    rows: int | None = None

    @property
    def names(self) -> set[str]:
        """The names of the objects that it names, all at its own prefix.

        They are compared instead of URIs: one place may have several, by an access point or by another mount point.
        """
        return set(map(name_of, self.uris))

    @property
    def paths(self) -> list[str]:
        """The paths of its files' URLs, in order; not all are there if an earlier version wrote it."""
        return [fact.path for fact in self.facts.values() if fact.path]

    @classmethod
    def from_content(cls, content: bytes) -> KnownManifest:
        """Read a manifest of ours, of this or an earlier version, or anything else that stands in its place."""
        try:
            payload = json.loads(content)
        except (ValueError, RecursionError):
            payload = None
        if not isinstance(payload, dict):
            return cls("")
        export_id = _mapping(payload.get("sendgrid_export")).get("id")
        versions = _mapping(payload.get("replaced_versions"))
        facts = {
            name: fact
            for name, metadata in _mapping(payload.get("facts")).items()
            if (fact := FileFacts.from_metadata(_mapping(metadata))) is not None
        }
        return cls(
            export_id if isinstance(export_id, str) else "",
            _texts(_mapping(entry).get("url") for entry in _list(payload.get("entries"))),
            facts,
            {uri: _text(versions.get(uri)) for uri in _texts(_list(payload.get("replaces")))},
            rows if type(rows := _mapping(payload.get("meta")).get("record_count")) is int else None,
        )


def name_of(uri: str) -> str:
    """The name of an object at its prefix."""
    return uri.rpartition("/")[2]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _texts(values: Iterable[Any]) -> tuple[str, ...]:
    return tuple(value for value in values if isinstance(value, str))
