"""Generated contacts, as rows of CSV or NDJSON; the same seed always gives the same contacts.

Knows SendGrid's rows. Must not know lists, exports, files or gzip.

Fast, because tests export millions: `_POOL` rows are composed once, from lists of values with coprime strides, with
placeholders for the contact's number. A block of rows is one string formatting.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

FileType = Literal["csv", "json"]

STANDARD_FIELDS: Final = (
    "EMAIL", "FIRST_NAME", "LAST_NAME", "ADDRESS_LINE_1", "ADDRESS_LINE_2", "CITY", "STATE_PROVINCE_REGION",
    "POSTAL_CODE", "COUNTRY", "ALTERNATE_EMAILS", "PHONE_NUMBER", "WHATSAPP", "LINE", "FACEBOOK",
    "UNIQUE_NAME", "CREATED_AT", "UPDATED_AT", "CONTACT_ID",
)  # fmt: skip
CUSTOM_FIELDS: Final = ("FAVOURITE_COLOUR", "LOYALTY_POINTS", "LAST_PURCHASE", "NOTES")
LATER_FIELDS: Final = ("PHONE_NUMBER_ID", "EXTERNAL_ID", "ANONYMOUS_ID")
FIELDS: Final = STANDARD_FIELDS + CUSTOM_FIELDS + LATER_FIELDS
HEADER: Final = (",".join(f'"{field}"' for field in FIELDS) + "\n").encode()

_POOL: Final = 2_003  # a prime, so no list of values below has a common divisor with it
_FIRST_NAMES: Final = (
    "Ada", "Jürgen", "Zoë", "Nuño", "Łukasz", "美咲", "Søren", "Anne-Marie", "Björk", "Иван", "Grace",
    "O'Brien", "null", "Mary Ann", "Émile", "宇航", "Fatima", "",
)  # fmt: skip
_LAST_NAMES: Final = (
    "Lovelace", "Müller", "Na", "NA", "Nguyễn", "佐藤", "d'Arc", "Smith, Jr.", 'The "Boss"', "Ångström",
    "García", "Hopper", "Null", "", "Öztürk", "van der Berg", "Петров", "Kowalska", "Lee",
)  # fmt: skip
_STREETS: Final = (
    "1 Main Street", "Große Straße 7", "221B Baker Street, London", 'Haus "Sonne", 2. Stock', "",
    "Rua do Sol 100%", "12 Rue de l'Église\nBâtiment B",
)  # fmt: skip
_CITIES: Final = (
    ("Berlin", "BE", "10115", "Germany"),
    ("São Paulo", "SP", "01310-100", "Brazil"),
    ("東京", "", "100-0001", "Japan"),
    ("New York", "NY", "10001", "United States"),
    ("Köln", "NW", "50667", "Germany"),
    ("Kraków", "", "31-042", "Poland"),
    ("", "", "", ""),
    ("London", "", "SW1A 1AA", "United Kingdom"),
    ("Windhoek", "KH", "NA", "Namibia"),
    ("Zürich", "ZH", "8001", "Switzerland"),
    ("İstanbul", "", "34000", "Türkiye"),
)
_COLOURS: Final = ("red", "bleu clair", "grün", "NA", "", "null", "#00ff7f", "白")
_NOTES: Final = (
    "", "", "called twice, no answer", "line one\nline two", 'said "maybe"', "likes 🍕 and 🎉", "n/a",
    'first, then\r\n"second"', "50% off", "\tindented", "NULL", "", "",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ContactGenerator:
    """Generates contacts, numbered from 0; `seed` determines them."""

    seed: int = 0

    def rows(self, file_type: FileType, first: int, count: int) -> bytes:
        """Return the rows of `count` contacts from number `first`, each with a line feed; no header."""
        pool = _pool(self.seed, file_type)
        start = first % _POOL
        block = "".join(pool[(start + i) % _POOL] for i in range(count))
        numbers = [placeholder for number in range(first, first + count) for placeholder in (number,) * _PLACEHOLDERS]
        return (block % tuple(numbers)).encode()


# Placeholders for the contact's number in each row: e-mail, phone, contact id, external id.
_PLACEHOLDERS: Final = 4
_NO_PLACEHOLDER: Final = "%.0s"  # consumes a number and writes nothing


@lru_cache(maxsize=8)
def _pool(seed: int, file_type: FileType) -> tuple[str, ...]:
    """Compose the rows from which all contacts of this seed are formatted."""
    rng = random.Random(seed)
    offset = rng.randrange(_POOL)
    compose = {"csv": _csv_row, "json": _json_row}[file_type]
    return tuple(compose(_contact(i + offset, rng)) for i in range(_POOL))


def _contact(i: int, rng: random.Random) -> dict[str, str]:
    """Return one contact's values; percent signs are doubled, `%d` is the contact's number."""
    city, state, postal_code, country = _CITIES[i * 7 % len(_CITIES)]
    month, day = i % 12 + 1, i % 28 + 1
    values = {
        "FIRST_NAME": _FIRST_NAMES[i * 5 % len(_FIRST_NAMES)],
        "LAST_NAME": _LAST_NAMES[i * 3 % len(_LAST_NAMES)],
        "ADDRESS_LINE_1": _STREETS[i * 2 % len(_STREETS)],
        "ADDRESS_LINE_2": "c/o Müller & Söhne" if i % 41 == 0 else "",
        "CITY": city,
        "STATE_PROVINCE_REGION": state,
        "POSTAL_CODE": postal_code,
        "COUNTRY": country,
        "WHATSAPP": "+49 151 0000000" if i % 53 == 0 else "",
        "UNIQUE_NAME": f"user,{i}" if i % 31 == 0 else "",
        "CREATED_AT": f"2021-{month:02}-{day:02}T08:{i % 60:02}:00Z",
        "UPDATED_AT": f"2024-{month:02}-{day:02}T17:{i % 60:02}:30Z",
        "FAVOURITE_COLOUR": _COLOURS[i * 3 % len(_COLOURS)],
        "LOYALTY_POINTS": str(rng.randrange(10_000)) if i % 3 else "",
        "LAST_PURCHASE": f"2024-{month:02}-{day:02}" if i % 4 else "",
        "NOTES": _NOTES[i * 5 % len(_NOTES)],
        "ANONYMOUS_ID": f"{rng.getrandbits(64):016x}" if i % 5 == 0 else "",
    }
    escaped = {field: value.replace("%", "%%") for field, value in values.items()}
    return escaped | {
        "EMAIL": _NO_PLACEHOLDER if i % 97 == 0 else f"contact.{i % _POOL}.%d@example.com",
        "PHONE_NUMBER": "+4930%08d" if i % 6 == 0 else _NO_PLACEHOLDER,
        "CONTACT_ID": f"{rng.getrandbits(32):08x}-{i % _POOL:04x}-4000-8000-%012x",
        "EXTERNAL_ID": "crm-%d" if i % 2 else _NO_PLACEHOLDER,
    }


def _csv_row(contact: dict[str, str]) -> str:
    """Quote every value except empty ones."""
    return ",".join(_quoted(contact.get(field, "")) for field in FIELDS) + "\n"


def _quoted(value: str) -> str:
    empty = value in ("", _NO_PLACEHOLDER)
    return value if empty else '"' + value.replace('"', '""') + '"'


def _json_row(contact: dict[str, str]) -> str:
    """Write one object on one line: placeholders in the order of `FIELDS`, empty fields omitted."""
    standard = {field.lower(): contact[field] for field in STANDARD_FIELDS if contact.get(field)}
    custom = {field.lower(): contact[field] for field in CUSTOM_FIELDS if contact[field]}
    later = {field.lower(): contact[field] for field in LATER_FIELDS if contact.get(field)}
    present = {**standard, "custom_fields": custom, **later}
    skipped = sum(value == _NO_PLACEHOLDER for value in present.values())
    kept = {field: value for field, value in present.items() if value != _NO_PLACEHOLDER}
    return json.dumps(kept, ensure_ascii=False) + _NO_PLACEHOLDER * skipped + "\n"
