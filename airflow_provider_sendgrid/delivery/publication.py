"""The manifest at the prefix: what it says before a delivery, and how the delivery replaces it.

Several runs may deliver to one prefix at once. The manifest decides between them:

- It is read before the first byte and written over the version that was read. If another run wrote it meanwhile, the
  delivery reads it again, and decides again.
- Objects are deleted only after the own manifest was written, and only at the versions that they had before. It lists
  these: a run of another export that stored one of them, and finds this manifest in the place of the one that it read,
  stores it again. A delivery that fails deletes nothing that another run may have stored or found, except that it takes
  back its own files if their rows disagree with SendGrid's count.
- An object that the manifest of the same export names is not overwritten by other content, unless the manifest was
  withdrawn before. Another run may write it while an object is being stored; so it is read again after that, and
  withdrawn if it describes other content.
- Without `replace`, no object is dropped that the manifest of the same export names.
- With `replace`, what killed runs of other exports left beside the objects that are deleted goes too: receipts whose
  object is not there, and open uploads. A run of such an export that is underway is not misled by that: it takes no
  receipt for proof, fetches again what it finds no facts of, and finds the manifest changed when it writes its own.
  The order of its files stays: mapped tasks go by it.

A manifest is withdrawn by deleting it. Without the permission to delete, a text takes its place that names no objects.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from airflow_provider_sendgrid.delivery.manifest import (
    MANIFEST_NAME,
    FileFacts,
    KnownManifest,
    name_of,
    withdrawn_content,
)
from airflow_provider_sendgrid.exceptions import (
    DestinationChangedError,
    DestinationConflictError,
    DestinationError,
    DestinationRefusedError,
)
from airflow_provider_sendgrid.storage.base import UPLOAD_KEY, ObjectInfo, Storage, StoredInfo, is_version

log = logging.getLogger(__name__)

EXPORT_ID_KEY = "sendgrid-export-id"
SAFE_ID = re.compile(r"[A-Za-z0-9](?:\.?[A-Za-z0-9_-])*")
# Refused deletes after which no further one is tried.
_MOST_REFUSALS = 10
_OBJECT_NAME = re.compile(rf"({SAFE_ID.pattern})-\d{{5,}}-of-\d{{5,}}\.(csv|json)(\.gz)?")
_MOST_FILES = 10_000


class ManifestChangedError(DestinationChangedError):
    """Another run wrote or deleted the manifest: all decisions that were based on it must be made again."""


class Publication:
    """The manifest as it was read, and what follows from it.

    Args:
        storage: where it is.
        export_id: of the export that is delivered.
        replace: whether another export's manifest may be replaced.
        is_written: whether this delivery writes a manifest.
        look_all: looks at many objects at once, see `Storage.head`.

    Raises:
        DestinationConflictError: there is another export's manifest, and `replace` is off.
    """

    def __init__(
        self,
        storage: Storage,
        export_id: str,
        *,
        replace: bool,
        is_written: bool,
        look_all: Callable[[Collection[str]], Sequence[StoredInfo | None]],
    ) -> None:
        self._storage = storage
        self._look_all = look_all
        self._listed: Mapping[str, str] | None = None
        self._export_id = export_id
        self._replace = replace
        self._lock = threading.RLock()
        self._is_withdrawn = False
        stored = storage.read(MANIFEST_NAME)
        self._version = stored.version if stored else None
        self.known = KnownManifest.from_content(stored.content) if stored else None
        if self.known is not None and self.known.export_id != export_id and is_written and not replace:
            known_id = self.known.export_id
            owner = f"the manifest of export {known_id}" if known_id else "not a manifest of this provider"
            raise DestinationConflictError(
                f"SendGrid export {export_id}: {storage.uri(MANIFEST_NAME)} already exists and is {owner}; nothing "
                "of it was changed. Choose another prefix, or set replace=True to replace it with this export."
            )

    @property
    def own(self) -> KnownManifest | None:
        """The manifest, if it is of the export that is delivered."""
        return self.known if self.known is not None and self.known.export_id == self._export_id else None

    def is_to_be_deleted(self, name: str, info: StoredInfo) -> bool:
        """Whether the run that wrote the manifest may delete this very object at any time."""
        replaced = self.known.replaced if self.known is not None and self.known.export_id else {}
        versions = {name_of(uri): version for uri, version in replaced.items()}
        return name in versions and versions[name] in (None, info.version)

    def facts(self, name: str, info: StoredInfo) -> FileFacts | None:
        """What the manifest of this export says of this very object; None if it does not name it."""
        own = self.own
        facts = own.facts.get(name) if own is not None and name in own.names else None
        return facts if facts is not None and is_of(facts, info) else None

    def raise_if_changed(self) -> None:
        """Raise if the manifest is no longer the one that was read.

        Raises:
            ManifestChangedError: another run wrote or deleted it meanwhile.
        """
        with self._lock:
            now = self._storage.read(MANIFEST_NAME)
            if (now.version if now else None) != self._version:
                raise self._manifest_changed()

    def raise_if_dropped(self, file_count: int, names: Collection[str] | None = None, rows: int | None = None) -> None:
        """Asked before the first byte, and with names and rows before the manifest is written.

        Files that differ in compression only may replace those of the manifest.

        Args:
            file_count: how many files the export has now.
            names: of their objects.
            rows: in all files; None if they were not counted.

        Raises:
            DestinationConflictError: this export's manifest names other objects, and `replace` is off.
        """
        own = self.own
        if own is None or self._replace or not own.uris:
            return
        is_same_count = len(own.uris) == file_count
        if names is None:
            is_kept = is_same_count
        else:
            has_all = own.names <= set(names)
            is_kept = has_all or (is_same_count and rows is not None and rows == own.rows)
        if not is_kept:
            now = f"{file_count} files" + ("" if rows is None else f" with {rows} rows")
            raise DestinationConflictError(
                f"SendGrid export {self._export_id}: {self._storage.uri(MANIFEST_NAME)} names {len(own.uris)} files of "
                f"it{'' if own.rows is None else f' with {own.rows} rows'}, SendGrid offers {now} now; no file that "
                "the manifest names was changed. Choose another prefix, or set replace=True to replace them."
            )

    def raise_unless_replaceable(self, name: str, info: StoredInfo) -> None:
        """Asked before other content is stored under the name of an object.

        Raises:
            DestinationConflictError: this export's manifest names the object, and `replace` is off.
            DestinationChangedError: another run wrote a manifest meanwhile.
        """
        self.raise_if_changed()
        if self.facts(name, info) is None:
            return
        manifest = self._storage.uri(MANIFEST_NAME)
        if not self._replace:
            raise DestinationConflictError(
                f"SendGrid export {self._export_id}: what SendGrid sends now differs from {self._storage.uri(name)}, "
                f"which {manifest} names; the object was not changed. Choose another prefix, or set replace=True."
            )
        with self._lock:
            if self._version is None or self._is_withdrawn:
                return
            log.warning("Withdrawing %s: a file that it names has changed at SendGrid.", manifest)
            self._version = self._withdraw(self._version)
            self._is_withdrawn = True

    def withdraw_if_false(self, stored: Mapping[str, FileFacts]) -> None:
        """Asked after objects were stored: the manifest must not describe what they were stored over.

        Raises:
            ManifestChangedError: it did, and was withdrawn.
        """
        with self._lock:
            now = self._storage.read(MANIFEST_NAME) if stored else None
            if now is None:
                return
            known = KnownManifest.from_content(now.content)
            for name in known.names & stored.keys():
                named, facts = known.facts.get(name), stored[name]
                if named is not None and (named.size, named.sha256) == (facts.size, facts.sha256):
                    continue
                log.warning("Withdrawing %s: %s was stored again.", self._storage.uri(MANIFEST_NAME), name)
                self._withdraw(now.version)
                raise self._manifest_changed()

    def write(
        self, content: bytes, stored: Mapping[str, tuple[FileFacts, str]], replaced: Mapping[str, str]
    ) -> Mapping[str, str]:
        """Write the manifest; return what is to be deleted now: versions by URIs.

        Args:
            content: of the manifest.
            stored: the objects that it names, each with its facts and version.
            replaced: what `replaced` returned.

        Raises:
            DestinationChangedError: another run changed the manifest or an object meanwhile.
        """
        self._raise_if_changed(stored, self._listed)
        info = ObjectInfo("application/json", {EXPORT_ID_KEY: self._export_id})
        try:
            version = self._storage.put(MANIFEST_NAME, content, info, self._version)
        except DestinationChangedError:
            # By another run, or by this one: the storage's client sends a request again whose response was lost.
            written = self._manifest_of(stored)
            if written is None:
                raise
            self._raise_if_changed(stored)
            return {uri: version for uri, version in written.replaced.items() if version and self._name(uri)}
        now = self._storage.read(MANIFEST_NAME)
        if now is None or now.content != content:
            raise self._manifest_changed()
        try:
            self._raise_if_changed(stored, self._list_own() if len(stored) > 1 else None)
        except DestinationChangedError:
            self._withdraw(version)
            raise
        return replaced

    def delete(self, versions: Mapping[str, str]) -> bool:
        """Delete what the manifest replaces, by name, at these versions; False if the credentials may not do so.

        Raises:
            DestinationError: the storage failed. A task that loads the whole prefix would load both exports, so this
                one must not succeed; its next try deletes what the manifest says.
            ManifestChangedError: another run's manifest was withdrawn, and there is none now.
        """
        try:
            is_done = delete_all(self._storage, versions, is_needed=True)
        except BaseException:
            self.withdraw_if_deleted(versions)
            raise
        if self.withdraw_if_deleted(versions):
            raise self._manifest_changed()
        return is_done

    def withdraw_if_deleted(self, versions: Mapping[str, str]) -> bool:
        """Asked after objects were deleted: by name, at these versions; whether a manifest had to be withdrawn.

        Another run may have stored one of them again and named it in its manifest, between the look and the delete. S3
        deletes it nevertheless if its bytes are the same, for then its ETag is the same, too. That run has looked at
        its objects before or after the delete: in the second case it has noticed, in the first its manifest is here.
        """
        if not versions or (now := self._storage.read(MANIFEST_NAME)) is None:
            return False
        named = KnownManifest.from_content(now.content).names
        for name in versions:
            if name in named and self._storage.head(name) is None:
                manifest, uri = self._storage.uri(MANIFEST_NAME), self._storage.uri(name)
                log.warning("Withdrawing %s: another run stored or found %s while this one deleted it.", manifest, uri)
                try:
                    self._withdraw(now.version)
                except ManifestChangedError:
                    return False
                return True
        return False

    def replaced(self, names: Sequence[str]) -> dict[str, str]:
        """The objects that are to be deleted when a manifest of these objects is written: versions by URIs.

        Those that the manifest before named or replaced, and all others of this export at the prefix. With `replace`,
        also those of other exports that this provider stored, such as what a killed run left.
        """
        found = dict[str, str]()
        known = self.known if self.known is not None and self.known.export_id else KnownManifest("")
        candidates = {**known.replaced, **dict.fromkeys(known.uris)}
        for uri, version in candidates.items():
            name = self._name(uri)
            if name is not None and name not in names:
                info = self._storage.head(name)
                if info is not None and version in (None, info.version):
                    found[uri] = info.version
        self._listed = self._storage.versions() if self._replace else self._list_own()
        for name in self._listed or {}:
            match = _OBJECT_NAME.fullmatch(name)
            is_ours = match is not None and (self._replace or match[1] == self._export_id)
            if match and is_ours and name not in names and (uri := self._storage.uri(name)) not in found:
                info = self._storage.head(name)
                # A prefix without a slash at its end is the beginning of others, too.
                if info is not None and info.metadata.get(EXPORT_ID_KEY) == match[1]:
                    found[uri] = info.version
        return found

    def _list_own(self) -> Mapping[str, str] | None:
        return self._storage.versions(f"{self._export_id}-")

    def _raise_if_changed(
        self, stored: Mapping[str, tuple[FileFacts, str]], listed: Mapping[str, str] | None = None
    ) -> None:
        """Raise if an object is not there at its version; those need no look that a fresh listing shows at it."""
        unsure = [name for name, (_, version) in stored.items() if not is_version((listed or {}).get(name), version)]
        for name, info in zip(unsure, self._look_all(unsure), strict=True):
            facts, version = stored[name]
            if info is None or info.version != version or info.size != facts.size:
                raise _changed(self._export_id, self._storage.uri(name))

    def _withdraw(self, version: str) -> str | None:
        """Delete the manifest at this version; return the version of the text that is there instead, if any is.

        Raises:
            ManifestChangedError: it has another version.
        """
        try:
            self._storage.delete(MANIFEST_NAME, version)
        except DestinationRefusedError:
            info = ObjectInfo("application/json", {EXPORT_ID_KEY: self._export_id})
            try:
                return self._storage.put(MANIFEST_NAME, withdrawn_content(self._export_id), info, version)
            except DestinationChangedError:
                raise self._manifest_changed() from None
        if self._storage.head(MANIFEST_NAME) is not None:
            raise self._manifest_changed()
        return None

    def _manifest_changed(self) -> ManifestChangedError:
        return ManifestChangedError(str(_changed(self._export_id, self._storage.uri(MANIFEST_NAME))))

    def _manifest_of(self, stored: Mapping[str, tuple[FileFacts, str]]) -> KnownManifest | None:
        """The manifest that is there now, if it is of this export and names these very objects."""
        now = self._storage.read(MANIFEST_NAME)
        known = KnownManifest.from_content(now.content) if now else KnownManifest("")
        is_same = (
            known.export_id == self._export_id
            and set(known.uris) == {self._storage.uri(name) for name in stored}
            and known.facts == {name: facts for name, (facts, _) in stored.items()}
        )
        return known if is_same else None

    def _name(self, uri: str) -> str | None:
        """The name of an object at the prefix, if it is one that this provider gives."""
        name = uri.removeprefix(self._storage.uri(""))
        return name if name != uri and _OBJECT_NAME.fullmatch(name) else None


@dataclass(frozen=True, slots=True)
class FileName:
    """The parts of an object's name, as this provider gives them.

    Attributes:
        export_id: of the export.
        count: how many files it has.
        ending: of the name.
    """

    export_id: str
    count: int
    ending: str

    @classmethod
    def parse(cls, name: str) -> FileName | None:
        """The parts; None if it is not such a name."""
        match = _OBJECT_NAME.fullmatch(name)
        if match is None:
            return None
        count, _, ending = name.rpartition("-of-")[2].partition(".")
        return cls(match[1], int(count), f".{ending}")

    def of_all_files(self) -> list[str]:
        """The names of all files of the export; none if there are more than any export has."""
        numbers = range(1, self.count + 1) if self.count <= _MOST_FILES else ()
        return [f"{self.export_id}-{number:05d}-of-{self.count:05d}{self.ending}" for number in numbers]


def is_of(facts: FileFacts, info: StoredInfo) -> bool:
    """Whether facts were found out about this very object."""
    return facts.size == info.size and facts.upload == info.metadata.get(UPLOAD_KEY, "")


def delete_all(storage: Storage, versions: Mapping[str, str], *, is_needed: bool = False) -> bool:
    """Delete objects, by name, at these versions; if the storage does not, log once and return False.

    Args:
        storage: where they are.
        versions: of the objects, by name.
        is_needed: raise if the storage fails, other than for want of a permission.

    Raises:
        DestinationError: see `is_needed`.
    """
    refused = 0
    for name, version in versions.items():
        try:
            storage.delete(name, version)
        except (DestinationRefusedError, DestinationError) as error:
            if is_needed and isinstance(error, DestinationError):
                raise DestinationError(
                    f"{error} The manifest is written, but objects that it replaces remain, such as "
                    f"{storage.uri(name)}. Run the task again to delete them."
                ) from error
            if not refused:
                log.warning(
                    "Objects that are no longer needed remain, such as %s: %s Nothing else depends on them.",
                    storage.uri(name),
                    error,
                )
            refused += 1
            # One object may be on hold while others are not.
            if not is_needed or refused == _MOST_REFUSALS:
                return False
    return not refused


def _changed(export_id: str, uri: str) -> DestinationChangedError:
    return DestinationChangedError(
        f"SendGrid export {export_id}: another run changed {uri} meanwhile. Run the task again."
    )
