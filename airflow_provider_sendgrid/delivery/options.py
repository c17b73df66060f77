"""How an export is delivered."""

from __future__ import annotations

from dataclasses import dataclass

from airflow_provider_sendgrid.exports.arguments import require_bool
from airflow_provider_sendgrid.storage.base import MIB


@dataclass(frozen=True, slots=True)
class DeliveryOptions:
    """How an export is delivered.

    Attributes:
        compression: ``gzip`` or ``none``: how files are stored, whatever SendGrid sends.
        part_bytes: size of a part, 5 MiB or more.
        max_concurrency: how many parts are downloaded at once, while one more is uploaded; memory is about this many
            times `part_bytes`. It also limits the connections of a large file, and how many small files are transferred
            at once.
        verify_row_count: count the rows and compare them with SendGrid's count; gzip is verified in any case.
        write_manifest: write the manifest at the end.
        replace: replace what an earlier manifest at this prefix names, and stored files that no manifest names.
    """

    compression: str = "gzip"
    part_bytes: int = 8 * MIB
    max_concurrency: int = 8
    verify_row_count: bool = True
    write_manifest: bool = True
    replace: bool = False

    def __post_init__(self) -> None:
        """Validate the options.

        Raises:
            ValueError: an option has an invalid value.
            TypeError: an option has the wrong type.
        """
        for name in ("verify_row_count", "write_manifest", "replace"):
            require_bool(name, getattr(self, name))
        for name, number in (("part_size", self.part_bytes), ("max_concurrency", self.max_concurrency)):
            if isinstance(number, bool) or not isinstance(number, int):
                raise TypeError(f"{name} must be a whole number, not {number!r}.")
        if self.compression not in ("gzip", "none"):
            raise ValueError(f"compression must be 'gzip' or 'none', not {self.compression!r}.")
        if not 5 * MIB <= self.part_bytes <= 1024 * MIB:
            raise ValueError(f"part_size must be from 5 MiB to 1 GiB, in bytes, not {self.part_bytes!r}.")
        if not 1 <= self.max_concurrency <= 64:
            raise ValueError(f"max_concurrency must be from 1 to 64, not {self.max_concurrency!r}.")
