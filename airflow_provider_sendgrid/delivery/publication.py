"""The manifest at the prefix: what it says before a delivery, and how the delivery replaces it.

Several runs may deliver to one prefix at once. The manifest decides between them:

- It is read before the first download and written over the version that was read. If another run wrote it meanwhile,
  the delivery reads it again, and decides again.
- Objects are deleted only after the manifest was written, and only in the versions that the manifest lists for
  deletion. If a run of another export stored one of them meanwhile, it finds this manifest instead of the one that it
  read, and stores the object again. A failed delivery deletes nothing that another run may have stored or found. The
  exception: it deletes its own files if their rows disagree with SendGrid's count.
- Before other content replaces an object that the manifest of the same export names, the manifest is withdrawn. Another
  run may write the manifest while an object is being stored. Therefore the manifest is read again after that,
  and withdrawn if it describes other content.
- Without `replace`, no object is deleted that the manifest of the same export names.
- With `replace`, receipts without an object and open uploads of killed runs of other exports are deleted, too. If such
  a run is still active, this is safe: it does not trust a receipt without an object, downloads again what no receipt
  describes, and finds the manifest changed when it writes its own. The order of that export's files is kept, because
  mapped tasks depend on it.

A manifest is withdrawn by deleting it. Without the permission to delete, a text that names no objects replaces it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence

from airflow_provider_sendgrid.delivery.cleanup import delete_all
from airflow_provider_sendgrid.delivery.manifest import KnownManifest, withdrawn_content
from airflow_provider_sendgrid.delivery.object_names import MANIFEST_NAME, FileName, name_of_uri
from airflow_provider_sendgrid.delivery.stored_file import StoredFile
from airflow_provider_sendgrid.exceptions import (
    DestinationChangedError,
    DestinationConflictError,
    DestinationRefusedError,
)
from airflow_provider_sendgrid.storage.base import ObjectInfo, Storage, StoredInfo, is_version

log = logging.getLogger(__name__)

EXPORT_ID_KEY = "sendgrid-export-id"


class ManifestChangedError(DestinationChangedError):
    """Another run wrote or deleted the manifest: all decisions that were based on it must be made again."""


class Publication:
    """The manifest as it was read, and what follows from it.

    Args:
        storage: where the manifest is.
        export_id: the export that is delivered.
        replace: whether another export's manifest may be replaced.
        writes_manifest: whether this delivery writes a manifest.
        head_all: returns what is known of several objects at once, see `Storage.head`.

    Raises:
        DestinationConflictError: there is another export's manifest, and `replace` is off.
    """

    def __init__(
        self,
        storage: Storage,
        export_id: str,
        *,
        replace: bool,
        writes_manifest: bool,
        head_all: Callable[[Collection[str]], Sequence[StoredInfo | None]],
    ) -> None:
        self._storage = storage
        self._head_all = head_all
        self._listed: Mapping[str, str] | None = None
        self._export_id = export_id
        self._replace = replace
        self._lock = threading.RLock()
        self._is_withdrawn = False
        stored = storage.read(MANIFEST_NAME)
        self._version = stored.version if stored else None
        self.known = KnownManifest.from_content(stored.content) if stored else None
        if self.known is not None and self.known.export_id != export_id and writes_manifest and not replace:
            known_id = self.known.export_id
            owner = f"the manifest of export {known_id}" if known_id else "not a manifest of this provider"
            raise DestinationConflictError(
                f"SendGrid export {export_id}: {storage.uri(MANIFEST_NAME)} already exists and is {owner}; nothing "
                "of it was changed. Choose another prefix, or set replace=True to replace it with this export."
            )

    @property
    def own(self) -> KnownManifest | None:
        """The manifest, if it is that of the export that is delivered."""
        return self.known if self.known is not None and self.known.export_id == self._export_id else None

    def may_be_deleted(self, name: str, info: StoredInfo) -> bool:
        """Whether the run that wrote the manifest may delete this very object at any time."""
        replaced = self.known.replaced if self.known is not None and self.known.export_id else {}
        versions = {name_of_uri(uri): version for uri, version in replaced.items()}
        return name in versions and versions[name] in (None, info.version)

    def find(self, name: str, info: StoredInfo) -> StoredFile | None:
        """What the manifest of this export says of this very object; None if it does not name it."""
        own = self.own
        file = own.files.get(name) if own is not None and name in own.names else None
        return file if file is not None and file.describes(info) else None

    def raise_if_changed(self) -> None:
        """Raise if the manifest is no longer the one that was read.

        Raises:
            ManifestChangedError: another run wrote or deleted it meanwhile.
        """
        with self._lock:
            now = self._storage.read(MANIFEST_NAME)
            if (now.version if now else None) != self._version:
                raise self._manifest_changed()

    def require_files_kept(
        self, file_count: int, names: Collection[str] | None = None, rows: int | None = None
    ) -> None:
        """Check that this delivery keeps the files that this export's manifest names.

        Called before the first download, and with names and rows before the manifest is written. Files may replace
        those of the manifest if they differ only in compression.

        Args:
            file_count: how many files the export has now.
            names: names of their objects.
            rows: contacts in all files; None if they were not counted.

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
                f"it{'' if own.rows is None else f' with {own.rows} rows'}, but SendGrid now lists {now}; no file that "
                "the manifest names was changed. Choose another prefix, or set replace=True to replace them."
            )

    def prepare_overwrite(self, name: str, info: StoredInfo) -> None:
        """Withdraw this export's manifest if it names an object that is about to be overwritten with other content.

        Raises:
            DestinationConflictError: this export's manifest names the object, and `replace` is off.
            DestinationChangedError: another run wrote a manifest meanwhile.
        """
        self.raise_if_changed()
        if self.find(name, info) is None:
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

    def withdraw_if_outdated(self, files: Collection[StoredFile]) -> None:
        """Withdraw the manifest if it describes the objects that these newly stored files replaced.

        Raises:
            ManifestChangedError: it was withdrawn.
        """
        with self._lock:
            now = self._storage.read(MANIFEST_NAME) if files else None
            if now is None:
                return
            known = KnownManifest.from_content(now.content)
            for file in files:
                named = known.files.get(file.name)
                if file.name not in known.names or (named is not None and named.has_same_bytes(file)):
                    continue
                log.warning("Withdrawing %s: %s was stored again.", self._storage.uri(MANIFEST_NAME), file.name)
                self._withdraw(now.version)
                raise self._manifest_changed()

    def write(self, content: bytes, files: Sequence[StoredFile], replaced: Mapping[str, str]) -> Mapping[str, str]:
        """Write the manifest; return what is to be deleted now: versions by URI.

        Args:
            content: content of the manifest.
            files: the files that it names.
            replaced: what `replaced` returned.

        Raises:
            DestinationChangedError: another run changed the manifest or an object meanwhile.
        """
        self._raise_if_file_changed(files, self._listed)
        info = ObjectInfo("application/json", {EXPORT_ID_KEY: self._export_id})
        try:
            version = self._storage.put(MANIFEST_NAME, content, info, self._version)
        except DestinationChangedError:
            # By another run, or by this one: the storage's client repeats a request whose response was lost.
            written = self._manifest_of(files)
            if written is None:
                raise
            self._raise_if_file_changed(files)
            return {uri: version for uri, version in written.replaced.items() if version and self._name(uri)}
        now = self._storage.read(MANIFEST_NAME)
        if now is None or now.content != content:
            raise self._manifest_changed()
        try:
            self._raise_if_file_changed(files, self._list_own() if len(files) > 1 else None)
        except DestinationChangedError:
            self._withdraw(version)
            raise
        return replaced

    def delete(self, versions: Mapping[str, str]) -> bool:
        """Delete what the manifest replaces, by name, at these versions; False if the credentials do not permit it.

        Raises:
            DestinationError: the storage failed. A task that loads the whole prefix would load both exports, so this
                one must not succeed; its next try deletes what the manifest lists.
            ManifestChangedError: another run's manifest was withdrawn, and there is none now.
        """
        try:
            is_done = delete_all(self._storage, versions, must_succeed=True)
        except BaseException:
            self.withdraw_if_deleted(versions)
            raise
        if self.withdraw_if_deleted(versions):
            raise self._manifest_changed()
        return is_done

    def withdraw_if_deleted(self, versions: Mapping[str, str]) -> bool:
        """Withdraw another run's manifest if it names an object that this run just deleted; return whether it did.

        That run may have stored the object again, and named it in its manifest, right before the delete. S3 deletes it
        nevertheless if its bytes are the same, because its ETag is then the same. That run checks its objects after it
        wrote its manifest. If it checked after the delete, it has noticed. If it checked before, its manifest is here
        now.

        Args:
            versions: those of the deleted objects, by name.
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

    def replaced(self, names: Collection[str]) -> dict[str, str]:
        """The objects to delete when a manifest of these objects is written: versions by URI.

        Those that the manifest before named or replaced, and all others of this export at the prefix. With `replace`,
        also those of other exports that this provider stored, such as those of a killed run.
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
            parts = FileName.parse(name)
            is_ours = parts is not None and (self._replace or parts.export_id == self._export_id)
            if parts and is_ours and name not in names and (uri := self._storage.uri(name)) not in found:
                info = self._storage.head(name)
                # A prefix without a trailing slash may be the beginning of other prefixes.
                if info is not None and info.metadata.get(EXPORT_ID_KEY) == parts.export_id:
                    found[uri] = info.version
        return found

    def _list_own(self) -> Mapping[str, str] | None:
        return self._storage.versions(f"{self._export_id}-")

    def _raise_if_file_changed(self, files: Sequence[StoredFile], listed: Mapping[str, str] | None = None) -> None:
        """Raise if an object has another version; a fresh listing that shows the version saves a request."""
        unsure = [file for file in files if not is_version((listed or {}).get(file.name), file.version)]
        for file, info in zip(unsure, self._head_all([file.name for file in unsure]), strict=True):
            if info is None or info.version != file.version or info.size != file.size:
                raise _changed(self._export_id, self._storage.uri(file.name))

    def _withdraw(self, version: str) -> str | None:
        """Delete the manifest at this version; return the version of the text that replaces it, if any does.

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

    def _manifest_of(self, files: Sequence[StoredFile]) -> KnownManifest | None:
        """The manifest that is there now, if it is of this export and names these very files."""
        now = self._storage.read(MANIFEST_NAME)
        known = KnownManifest.from_content(now.content) if now else KnownManifest("")
        is_same = (
            known.export_id == self._export_id
            and set(known.uris) == {self._storage.uri(file.name) for file in files}
            and known.files == {file.name: file for file in files}
        )
        return known if is_same else None

    def _name(self, uri: str) -> str | None:
        """The name of an object at the prefix, if it is the name of a stored file."""
        name = uri.removeprefix(self._storage.uri(""))
        return name if name != uri and FileName.parse(name) else None


def _changed(export_id: str, uri: str) -> DestinationChangedError:
    return DestinationChangedError(
        f"SendGrid export {export_id}: another run changed {uri} meanwhile. Run the task again."
    )
