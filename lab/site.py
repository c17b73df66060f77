"""What `make docs` adds to mkdocs: default values as a user would write them.

The parameters' tables show the expressions that stand in the code, and these name constants that nobody knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from airflow_provider_sendgrid.exports.export import ExportFamily
from airflow_provider_sendgrid.file_delivery import DeliveryOptions

_VALUES: dict[str, Callable[[re.Match[str]], object]] = {
    r"ExportFamily\.MARKETING(\.value)?": lambda _: repr(ExportFamily.MARKETING.value),
    r"SendGridHook\.default_conn_name|default_conn_name": lambda _: "'sendgrid_default'",
    r"DEFAULTS\.(\w+)": lambda match: repr(getattr(DeliveryOptions(), match[1])),
    r"conf\.getboolean\(.*": lambda _: "Airflow's",
}
_CODE = re.compile(r"<code>((?:[^<]|<(?!/?code>))*)</code>")
# A name, with its whole path in the title; its last two parts tell enough.
_NAME = re.compile(r'<span title="(?:[^"]*\.)?(\w+\.\w+)">[^<]*</span>')


def on_post_page(output: str, **_: object) -> str:
    """Called by mkdocs with each page."""
    return _CODE.sub(_with_values, output)


def _with_values(code: re.Match[str]) -> str:
    text = _NAME.sub(r"\1", code[1])
    for pattern, value in _VALUES.items():
        match = re.fullmatch(pattern, text)
        if match:
            return f"<code>{value(match)}</code>"
    return code[0]
