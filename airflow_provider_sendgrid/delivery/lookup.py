"""Finds what is stored of one file: a file that is stored completely is not downloaded again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from airflow_provider_sendgrid.delivery.first_bytes import extension_of, file_type_of_path
from airflow_provider_sendgrid.delivery.object_names import file_stem, receipt_name
from airflow_provider_sendgrid.delivery.options import DeliveryOptions
from airflow_provider_sendgrid.delivery.publication import EXPORT_ID_KEY, Publication
from airflow_provider_sendgrid.delivery.receipts import read_receipt
from airflow_provider_sendgrid.delivery.stored_file import StoredFile
from airflow_provider_sendgrid.storage.base import UPLOAD_KEY, Storage, StoredInfo

FILE_KEY = "sendgrid-file"
_PLAIN_TEXT = re.compile(r"[!-~]{1,512}")  # ASCII without spaces, which any storage accepts as metadata


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class FileLookup:
    """The objects of one file.

    Attributes:
        order: the paths of the URLs of all files of the export, see `pinned_order`.
        index: which of them this is, from 0.
        distrusted: see `DeliveryState`.
        objects: what `find` saw under the names that the file may have, whether or not it counts.
    """

    export_id: str
    order: Sequence[str]
    index: int
    storage: Storage
    options: DeliveryOptions
    publication: Publication
    distrusted: Mapping[str, str]
    objects: dict[str, StoredInfo] = field(default_factory=dict, init=False)

    @property
    def path(self) -> str:
        """The path of the file's URL, which identifies it."""
        return self.order[self.index]

    @property
    def stem(self) -> str:
        """The name of its object without the extension."""
        return file_stem(self.export_id, self.index + 1, len(self.order))

    @property
    def title(self) -> str:
        """The file in words, for messages."""
        return f"SendGrid export {self.export_id} file {self.index + 1} of {len(self.order)}"

    @property
    def is_only_file(self) -> bool:
        """Whether the export has no other file."""
        return len(self.order) == 1

    def metadata(self, upload: str) -> dict[str, str]:
        """Metadata of its object, by which it is recognized."""
        return {EXPORT_ID_KEY: self.export_id, FILE_KEY: self._key, UPLOAD_KEY: upload}

    def find(self, listed: Collection[str] | None = None) -> StoredFile | None:
        """The file, if an earlier try or another task stored it: it is complete, or it would not be published.

        Args:
            listed: names of the objects at the prefix, if they were listed: no other names are looked up.
        """
        self.objects = {}
        for name in self._names():
            if (listed is not None and name not in listed) or (info := self.storage.head(name)) is None:
                continue
            self.objects[name] = info
            if self.distrusted.get(name) == info.version or self.publication.may_be_deleted(name, info):
                continue
            if not self._is_object_of_file(name, info):
                continue
            for file in self._descriptions(name, info):
                if file.count is not None or not self.options.verify_row_count:
                    return replace(file, path=self.path, uri=self.storage.uri(name), version=info.version)
        return None

    def find_same(self, file: StoredFile, info: StoredInfo) -> StoredFile | None:
        """What is known of an object of the same name, if its bytes are those of `file`."""
        if self.publication.find(file.name, info) is None and not self._is_object_of_file(file.name, info):
            return None
        return next((known for known in self._descriptions(file.name, info) if known.has_same_bytes(file)), None)

    def _descriptions(self, name: str, info: StoredInfo) -> Iterator[StoredFile]:
        """What describes a stored object: its metadata, the manifest, its receipt."""
        file = StoredFile.parse(name, {**info.metadata, "upload": info.metadata.get(UPLOAD_KEY, "")})
        if file is not None and file.describes(info):
            yield file
        if (file := self.publication.find(name, info)) is not None:
            # A delivery that ended right after it wrote the manifest may have left the receipt.
            yield replace(file, has_receipt=self.storage.head(receipt_name(name)) is not None)
        for file in read_receipt(name, self.storage.read(receipt_name(name))):
            if file.describes(info):
                yield replace(file, has_receipt=True)

    def _names(self) -> list[str]:
        """The names that its object may have, the likelier first: the first bytes of the file decide."""
        types = ("json", "csv") if file_type_of_path(self.path) == "json" else ("csv", "json")
        return [self.stem + extension_of(file_type, self.options.compression == "gzip") for file_type in types]

    @property
    def _key(self) -> str:
        """The path as an object's metadata can hold it."""
        if _PLAIN_TEXT.fullmatch(self.path):
            return self.path
        return f"sha256:{hashlib.sha256(self.path.encode(errors='surrogatepass')).hexdigest()}"

    def _is_object_of_file(self, name: str, info: StoredInfo) -> bool:
        """Whether an object is of this export and file.

        Earlier versions did not store the path: the file is known if it is the only one, or if the manifest has it.
        """
        if info.metadata.get(EXPORT_ID_KEY) != self.export_id:
            return False
        if (key := info.metadata.get(FILE_KEY)) is not None:
            return key == self._key
        named = self.publication.find(name, info)
        return self.is_only_file or (named is not None and named.path == self.path)
