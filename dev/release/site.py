"""mkdocs hooks for `make docs`: the repository's URL, the version, and the values of parameters' defaults.

The URL is that of `[project.urls]` in pyproject.toml. Signatures name internal constants as defaults; the pages show
their values.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow_provider_sendgrid import __version__
from airflow_provider_sendgrid.delivery.options import DeliveryOptions
from airflow_provider_sendgrid.exports.export import ExportFamily

_VALUES: dict[str, Callable[[re.Match[str]], object]] = {
    r"ExportFamily\.MARKETING(\.value)?": lambda _: repr(ExportFamily.MARKETING.value),
    r"SendGridHook\.default_conn_name|default_conn_name": lambda _: "'sendgrid_default'",
    r"DEFAULTS\.(\w+)": lambda match: repr(getattr(DeliveryOptions(), match[1])),
    r"conf\.getboolean\(.*": lambda _: "Airflow's",
}
_CODE = re.compile(r"<code>((?:[^<]|<(?!/?code>))*)</code>")
# A name, with its whole path in the title; its last two parts are shown.
_NAME = re.compile(r'<span title="(?:[^"]*\.)?(\w+\.\w+)">[^<]*</span>')


def on_config(config: Any) -> Any:
    """Called by mkdocs when it has read mkdocs.yml."""
    pyproject = Path(config.config_file_path).with_name("pyproject.toml").read_text()
    config.repo_url = re.findall(r'(?m)^Repository = "(.+?)"', pyproject)[0]
    config.repo_name = "/".join(config.repo_url.split("/")[-2:])
    config.extra["version"] = __version__
    return config


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
