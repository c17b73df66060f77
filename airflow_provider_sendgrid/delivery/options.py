"""How an export is delivered."""

from __future__ import annotations

from dataclasses import dataclass

from airflow_provider_sendgrid.exports.arguments import require_bool
from airflow_provider_sendgrid.storage.base import MIB


@dataclass(frozen=True, slots=True)
class DeliveryOptions:
    """How an export is delivered.

    Attributes:
        compression: ``gzip`` stores gzip whatever came, ``none`` stores plain.
        part_bytes: size of a part on its way, 5 MiB or more.
        max_concurrency: parts fetched at once, while one more is sent; memory is about as many times `part_bytes`.
            Also how many connections one large file, and how many small files, may use at once.
        verify_row_count: count the rows and compare them with SendGrid's count; gzip is verified in any case.
        write_manifest: write the manifest when all is done.
        replace: replace what an earlier manifest at this prefix names, and what none names.
    """

    compression: str = "gzip"
    part_bytes: int = 8 * MIB
    max_concurrency: int = 8
    verify_row_count: bool = True
    write_manifest: bool = True
    replace: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be right.

        Raises:
            ValueError: says which and what it should be.
            TypeError: likewise.
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
